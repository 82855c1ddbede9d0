/** manifest.json beside the model: all that this app knows of it. See targets/manifest.py. */

import { messageOf } from "../messages";
import type { ResizeRule } from "./resize";

export type Role = "pruned" | "dense";
export type Verdict = "pass" | "fail" | "not_measured";

export interface Check {
  name: string;
  limit: number;
  value: number | null;
  verdict: Verdict;
  reason: string | null;
}

export interface Measured {
  device?: Record<string, unknown> | null;
  runtime?: string | null;
  /** percent */
  top1?: number | null;
  parity?: { psnr_db: number; max_abs: number; top1_agreement: number } | null;
  latency_ms?: { p50: number; p90: number; samples: number; valid: boolean } | null;
  peak_mb?: number | null;
  checks?: Check[];
  verdict?: Verdict;
}

export interface ArtifactFile {
  file: string;
  format: string;
  precision: string;
  role: Role;
  size_bytes: number;
  sha256: string;
  layout: string;
  dtype: string;
  minimum_runtime: string | null;
  measured: Measured | null;
}

export interface Golden {
  file: string;
  sha256: string;
  model: number[];
  artifacts: Record<string, number[]>;
}

export interface Manifest {
  manifest_version: number;
  model: string;
  dataset: string;
  target: string;
  labels: string[];
  input: { height: number; width: number; color: string; range: [number, number]; resize: ResizeRule };
  files: ArtifactFile[];
  golden: Golden[];
  golden_share: Record<string, number> | null;
  params: number | null;
  params_dense: number | null;
  tools: Record<string, string> | null;
}

/** There is no model that this app could run; the message is for whoever set it up. */
export class ModelError extends Error {}

const VERSION = 2;
const FORMAT = "tflite";
/** of what the gate has written into it, and this app does not read */
const MAX_DEPTH = 32;

/** folder: URL of the manifest's folder, with / at the end. Raises ModelError. */
export async function readManifest(folder: string): Promise<Manifest> {
  const response = await fetch(`${folder}manifest.json`, { cache: "reload" }).catch((error: unknown) => {
    throw new ModelError(`The model's description cannot be loaded (${messageOf(error)}).`);
  });
  if (response.status === 404) throw new ModelError("No model has been deployed into this app yet.");
  if (!response.ok) throw new ModelError(`The model's description cannot be loaded (${response.status}).`);
  const content = parseManifest(await response.text());
  if (!fileOf(content, "pruned")) {
    throw new ModelError("manifest.json names no model that a browser can run. Deploy one with TARGET=web.");
  }
  return content;
}

/** What stands in manifest.json, as targets/manifest.py has it: known keys, of the right kinds. Raises ModelError. */
export function parseManifest(text: string): Manifest {
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch {
    throw new ModelError("The model's description, manifest.json, is damaged.");
  }
  const version = (content as Manifest | null)?.manifest_version;
  if (version !== VERSION) throw new ModelError(`manifest.json is of version ${version}; this app reads ${VERSION}.`);
  const problem = MANIFEST(content) ?? disagreement(content as Manifest);
  if (problem !== null) throw new ModelError(`The model's description, manifest.json, is not sound (${problem}).`);
  const absent = { golden: [], golden_share: null, params: null, params_dense: null, tools: null };
  return { ...absent, ...(content as Manifest) };
}

/** What is wrong with a value; null if nothing is. */
type Rule = (value: any) => string | null;

function is(sound: (value: any) => boolean, words: string): Rule {
  return (value) => (sound(value) ? null : `must be ${words}`);
}

const text = is((value) => typeof value === "string", "text");
const number = is(Number.isFinite, "a number");
const whole = (least: number) => is((value) => Number.isSafeInteger(value) && value >= least, "a whole number");
const plain = is((value) => typeof value === "object" && value !== null && !Array.isArray(value), "an object");
const list = is(Array.isArray, "a list");
const orNull = (check: Rule): Rule => (value) => (value === null ? null : check(value));
const free: Rule = (value) => plain(value) ?? (isSound(value, 0) ? null : "is nested too deeply, or holds no number");
const many = (check: Rule): Rule => (value) =>
  list(value) ?? firstOf(value.map((one: any, i: number) => [`[${i}]`, check(one)]));
const mapOf = (check: Rule): Rule => (value) =>
  plain(value) ?? firstOf(Object.entries(value).map(([key, one]) => [key, check(one)]));

function fields(required: Record<string, Rule>, optional: Record<string, Rule> = {}): Rule {
  const known: Record<string, Rule> = { ...required, ...optional };
  return (value) => {
    if (plain(value) !== null) return plain(value);
    const unknown = Object.keys(value).find((key) => !Object.hasOwn(known, key));
    if (unknown !== undefined) return `has the unknown key ${unknown}`;
    const missing = Object.keys(required).find((key) => !Object.hasOwn(value, key));
    if (missing !== undefined) return `lacks ${missing}`;
    return firstOf(Object.entries(value).map(([key, one]) => [key, known[key]!(one)]));
  };
}

function firstOf(problems: [string, string | null][]): string | null {
  const found = problems.find(([, problem]) => problem !== null);
  return found ? `${found[0]} ${found[1]}` : null;
}

function isSound(value: unknown, depth: number): boolean {
  if (typeof value === "number") return Number.isFinite(value);
  if (typeof value !== "object" || value === null) return true;
  return depth <= MAX_DEPTH && Object.values(value).every((one) => isSound(one, depth + 1));
}

const checksum = is((value) => typeof value === "string" && /^[0-9a-f]{64}$/.test(value), "a SHA-256");
/** A manifest may come from elsewhere: it must not name files outside its own folder, nor itself. */
const path = is((value) => {
  if (typeof value !== "string" || /[\\\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u.test(value)) return false;
  const parts = value.split("/");
  return parts.every((part) => !["", ".", ".."].includes(part)) && parts[0]!.toLowerCase() !== "manifest.json";
}, "a file beside manifest.json");
const range: Rule = (value) =>
  many(number)(value) ?? (value.length === 2 && value[0] < value[1] ? null : "must be two numbers that rise");
const input = fields({ height: whole(1), width: whole(1), color: text, range, resize: free });
const file = fields(
  {
    file: path,
    format: text,
    precision: text,
    role: is((value) => value === "pruned" || value === "dense", "pruned or dense"),
    size_bytes: whole(0),
    sha256: checksum,
    layout: text,
    dtype: text,
  },
  { minimum_runtime: orNull(text), measured: orNull(free) },
);
const golden = fields({ file: path, sha256: checksum, model: many(number), artifacts: mapOf(many(number)) });
const MANIFEST = fields(
  {
    manifest_version: whole(VERSION),
    model: text,
    dataset: text,
    target: text,
    labels: many(text),
    input,
    files: many(file),
  },
  {
    golden: many(golden),
    golden_share: orNull(mapOf(number)),
    params: orNull(whole(-Infinity)),
    params_dense: orNull(whole(-Infinity)),
    tools: orNull(mapOf(text)),
  },
);

/** Whether parts of it do not fit each other. */
function disagreement({ labels, files, golden = [] }: Manifest): string | null {
  if (labels.length === 0 || files.length === 0) return "it names no model, or no labels";
  const names = [...files, ...golden].map((one) => one.file);
  if (new Set(names).size < names.length) return "it names a file twice";
  for (const { file, model, artifacts } of golden) {
    const rows = [model, ...Object.values(artifacts)];
    if (rows.some((row) => row.length !== labels.length)) return `${file} has not a logit for each label`;
    if (Object.keys(artifacts).some((name) => !names.includes(name))) return `${file} has logits of an unknown file`;
  }
  return null;
}

/** The file that this app runs in a role. */
export function fileOf(manifest: Manifest, role: Role): ArtifactFile | undefined {
  return manifest.files?.find((file) => file.format === FORMAT && file.role === role);
}

/** Where a file lies. The checksum makes the address another one when the content is another. */
export function addressOf(folder: string, { file, sha256 }: { file: string; sha256: string }): string {
  return `${folder}${file}?sha256=${sha256}`;
}
