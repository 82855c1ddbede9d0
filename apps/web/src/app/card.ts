/** The model's card: what the manifest says of it, and what runs it here. */

import type { Runtime } from "../inference";
import { at, make } from "./dom";
import { bytes, count, label, milliseconds, percent } from "./format";
import { type ArtifactFile, type Check, fileOf, type Manifest, type Verdict } from "./manifest";

const VERDICTS: Record<Verdict, [sign: string, words: string]> = {
  pass: ["✓", "met"],
  fail: ["✗", "missed"],
  not_measured: ["–", "not measured"],
};

/** A budget's key: how it is called and shown; as in pipeline/report.py. */
const CHECKS: Record<string, [name: string, show: (value: number) => string]> = {
  golden: ["Largest golden logit error", (value) => value.toPrecision(3)],
  golden_on_device: ["The same between machines", (value) => value.toPrecision(3)],
  top1_min: ["Right answers", (value) => percent(value)],
  top1_share_min: ["Right answers kept by the export", (value) => percent(value)],
  top1_drop_max_points: ["Lost against dense", (value) => `${value.toFixed(2)} points`],
  latency_p50_ms_max: ["Time, p50", milliseconds],
  latency_p90_ms_max: ["Time, p90", milliseconds],
  latency_asked_ms_max: ["Time asked for, + 10 %", milliseconds],
  latency_ratio_max: ["Time against dense", (value) => `${value.toFixed(3)} ×`],
  size_mb_max: ["Size", (value) => bytes(1e6 * value)],
  memory_mb_max: ["Peak memory", (value) => bytes(1e6 * value)],
  parity_psnr_db_min: ["Parity (PSNR)", (value) => `${value.toFixed(0)} dB`],
  parity_psnr_db_min_reduced: ["Parity (PSNR)", (value) => `${value.toFixed(0)} dB`],
  top1_agreement_min: ["Same class as the model", (value) => percent(value)],
};

/** What is known of the model's life here, in words; empty if nothing is to be said. */
export interface Here {
  golden: string;
  graphics: string;
  offline: string;
}

export function showCard(manifest: Manifest): void {
  const file = fileOf(manifest, "pruned")!;
  at("card").replaceChildren(make("div", "", "card"), budget(file), classes(manifest.labels), provenance(manifest, file));
}

/** The card's first part. The others stay as they are: somebody may be searching in them. */
export function showFacts(manifest: Manifest, runtime: Runtime | null, here: Here): void {
  const file = fileOf(manifest, "pruned")!;
  const { width, height } = manifest.input;
  const facts: [string, string | null | undefined][] = [
    ["Trained on", manifest.dataset],
    ["Classes", manifest.labels.length.toLocaleString("en")],
    ["Sees", `${width} × ${height} pixels`],
    ["File", `${file.precision}, ${bytes(file.size_bytes)}`],
    ["Parameters", manifest.params ? count(manifest.params) : null],
    ["Right answers", file.measured?.top1 != null ? percent(file.measured.top1 / 100) : "not measured"],
    ["Runs here on", runtime && `${runtime.runtime}, ${threads(runtime.threads)}`],
    ["Golden pictures", here.golden],
    ["WebGPU", here.graphics],
    ["Works offline", here.offline],
  ];
  at("card").firstElementChild!.replaceChildren(make("h2", manifest.model), list(facts));
}

export function threads(number: number): string {
  return number === 1 ? "one thread" : `${number} threads`;
}

function list(facts: [string, string | number | null | undefined][]): HTMLElement {
  const rows = facts.flatMap(([name, value]) =>
    value == null || value === "" ? [] : [make("div", "", "", make("dt", name), make("dd", String(value)))],
  );
  return make("dl", "", "facts", ...rows);
}

function budget(file: ArtifactFile): HTMLElement {
  const checks = file.measured?.checks ?? [];
  const [sign, words] = VERDICTS[file.measured?.verdict ?? "not_measured"];
  const card = make("div", "", "card", make("h2", `${sign} Budget ${words}`));
  if (checks.length === 0) return (card.append(make("p", "Nobody has measured it against a budget.", "quiet")), card);
  const rows = make("ul", "", "checks");
  for (const check of checks) rows.append(verdict(check));
  const on = file.measured?.device?.["device"];
  card.append(rows, make("p", `Measured${on ? ` on ${on}` : ""} with ${file.measured?.runtime ?? "its runtime"}.`, "quiet"));
  return card;
}

function verdict(check: Check): HTMLElement {
  const [name, show] = CHECKS[check.name] ?? [check.name, (value: number) => value.toPrecision(3)];
  const [sign, words] = VERDICTS[check.verdict];
  const mark = make("span", sign, check.verdict);
  mark.role = "img";
  mark.ariaLabel = words;
  const value = check.value === null ? "not measured" : show(check.value);
  const limit = `${check.name.includes("_min") ? "≥" : "≤"} ${show(check.limit)}`;
  return make("li", "", "", mark, make("span", name, "name"), make("span", value, "value"), make("span", limit, "limit"));
}

function classes(labels: string[]): HTMLElement {
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = `Find one of ${labels.length.toLocaleString("en")} classes`;
  search.ariaLabel = search.placeholder;
  const names = labels.map(label);
  const items = names.map((name) => make("li", name));
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    for (const [i, item] of items.entries()) item.hidden = !names[i]!.toLowerCase().includes(wanted);
  });
  const few = labels.length <= 20;
  return make("div", "", "card", make("h2", "Classes"), ...(few ? [] : [search]), make("ul", "", "classes", ...items));
}

function provenance(manifest: Manifest, file: ArtifactFile): HTMLElement {
  const tools = Object.entries(manifest.tools ?? {}).map(([name, version]) => `${name} ${version}`);
  const facts: [string, string][] = [
    ["File", file.file],
    ["SHA-256", file.sha256],
    ["Deployed for", manifest.target],
    ["Made with", tools.join(", ")],
  ];
  const details = make("details", "", "card", make("summary", "Where it comes from"), list(facts));
  details.classList.add("provenance");
  return details;
}
