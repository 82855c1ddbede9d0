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

/** folder: URL of the manifest's folder, with / at the end. Raises ModelError. */
export async function readManifest(folder: string): Promise<Manifest> {
  const response = await fetch(`${folder}manifest.json`, { cache: "reload" }).catch((error: unknown) => {
    throw new ModelError(`The model's description cannot be loaded (${messageOf(error)}).`);
  });
  if (response.status === 404) throw new ModelError("No model has been deployed into this app yet.");
  if (!response.ok) throw new ModelError(`The model's description cannot be loaded (${response.status}).`);
  let content: Manifest;
  try {
    content = (await response.json()) as Manifest;
  } catch {
    throw new ModelError("The model's description, manifest.json, is damaged.");
  }
  if (content?.manifest_version !== VERSION) {
    throw new ModelError(`manifest.json is of version ${content?.manifest_version}; this app reads ${VERSION}.`);
  }
  if (!content.labels?.length || !content.input?.resize || !fileOf(content, "pruned")) {
    throw new ModelError("manifest.json names no model that a browser can run. Deploy one with TARGET=web.");
  }
  return content;
}

/** The file that this app runs in a role. */
export function fileOf(manifest: Manifest, role: Role): ArtifactFile | undefined {
  return manifest.files?.find((file) => file.format === FORMAT && file.role === role);
}

/** Where a file lies. The checksum makes the address another one when the content is another. */
export function addressOf(folder: string, { file, sha256 }: { file: string; sha256: string }): string {
  return `${folder}${file}?sha256=${sha256}`;
}
