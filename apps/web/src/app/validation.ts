/** The validation screen: golden pictures, a latency test, and the result as JSON. */

import { conditions, describe } from "../device";
import { argmax, watchHidden } from "../job";
import { invalid, type LatencyResult, type Protocol } from "../latency";
import { keepAwake } from "./awake";
import { at, make } from "./dom";
import type { Engine } from "./engine";
import { label, milliseconds } from "./format";
import type { GoldenCheck } from "./golden";
import { addressOf, fileOf, type Manifest, type Role } from "./manifest";

/** How long whoever takes a file may need for that. */
const TAKING_MS = 60_000;
/** As in targets/latency.py. */
const PROTOCOLS: Record<string, Protocol> = {
  quick: { name: "quick", seconds: 10, min_samples: 128, warmup: 10, cooldown_s: 1 },
  full: { name: "full", seconds: 60, min_samples: 1024, warmup: 32, cooldown_s: 10 },
};

const VERDICTS = {
  good: "✓ It computes what it should",
  bad: "✗ It does not compute what it should",
  unknown: "– It could not be checked",
};

export type Result = Record<string, unknown>;

/**
 * Runs it and shows it. Names in what it returns are those of targets/devices/job.py, where they mean the same.
 *
 * stop: ends it early, by an exception
 */
export async function validate(
  engine: Engine,
  folder: string,
  protocolName: string,
  stop: AbortSignal,
): Promise<Result> {
  const sleep = keepAwake(); // a screen that goes dark would make its times void
  try {
    return await run(engine, folder, protocolName, stop);
  } finally {
    sleep();
  }
}

async function run(engine: Engine, folder: string, protocolName: string, stop: AbortSignal): Promise<Result> {
  const protocol = PROTOCOLS[protocolName]!;
  const { manifest } = engine;
  const entry = fileOf(manifest, "pruned")!;
  const progress = (share: number, text: string) => {
    at<HTMLProgressElement>("check-bar").value = share;
    at("check-text").textContent = text;
  };
  progress(0, "Golden pictures");
  const wasHidden = watchHidden();
  const [pictures, golden] = await engine.checkGoldens();
  at("check-results").replaceChildren(showGolden(manifest, golden, folder));
  const before = await conditions();
  progress(0.05, "Letting the device rest");
  const roles = [...engine.roles];
  stop.throwIfAborted();
  const times: Partial<Record<Role, LatencyResult>> = await engine.measure(
    roles,
    pictures[0] ?? engine.grey(),
    protocol,
    (done) => {
      const { seconds, min_samples: enough } = protocol;
      const rest = done < seconds ? `of ${seconds} s` : `s, until there are ${enough} inferences`;
      progress(0.1 + 0.9 * Math.min(done / seconds, 1), `Time of an inference: ${Math.round(done)} ${rest}`);
    },
    stop,
  );
  if (wasHidden()) {
    const why = "the page was not in front all the time, and browsers slow down what is not";
    for (const role of roles) times[role] = invalid(times[role]!, why);
  }
  at("check-results").append(showTimes(times));
  progress(1, "Done");
  return {
    version: 1,
    created: new Date().toISOString(),
    file: entry.file,
    sha256: entry.sha256,
    device: await describe(),
    user_agent: navigator.userAgent,
    threads: engine.runtime.threads,
    runtime: engine.runtime.runtime,
    runtime_version: engine.runtime.version,
    isolated: self.crossOriginIsolated,
    before,
    after: await conditions(),
    golden: golden.logits,
    golden_error: golden.error,
    golden_limit: golden.limit,
    golden_top1: golden.logits.map((row) => manifest.labels[argmax(row)]),
    warning: golden.problem,
    protocol,
    latency: Object.fromEntries(roles.map((role) => [fileOf(manifest, role)!.file, times[role]])),
  };
}

function showGolden(manifest: Manifest, golden: GoldenCheck, folder: string): HTMLElement {
  const total = manifest.golden.length;
  const list = make("ul", "", "goldens");
  for (const [i, logits] of golden.logits.entries()) {
    const picture = manifest.golden[i]!;
    const image = document.createElement("img");
    image.src = addressOf(folder, picture);
    image.alt = "";
    image.width = manifest.input.width;
    image.height = manifest.input.height;
    const found = argmax(logits);
    const item = make("li", "", "", image, make("span", label(manifest.labels[found] ?? "nothing")));
    if (golden.expected) {
      const expected = argmax(golden.expected[i]!);
      const sign = make("span", found === expected ? "✓" : "✗", found === expected ? "good" : "bad");
      sign.ariaLabel = found === expected ? "as expected" : `expected ${label(manifest.labels[expected]!)}`;
      sign.role = "img";
      item.append(sign);
    }
    list.append(item);
  }
  const largest = golden.error === null ? "not a number" : golden.error.toPrecision(3);
  const allowed = `${golden.limit?.toPrecision(3)} allowed`;
  return make(
    "div", "", `card verdict ${golden.verdict}`,
    make("h2", VERDICTS[golden.verdict]),
    make("p", golden.problem ?? `${golden.same} of ${total} pictures get the same class.`),
    ...(golden.expected ? [make("p", `Largest difference of a logit: ${largest}, ${allowed}.`, "quiet")] : []),
    list,
  ); // prettier-ignore
}

function showTimes(times: Partial<Record<Role, LatencyResult>>): HTMLElement {
  const table = make("table", "", "", make("caption", "One inference, milliseconds", "hidden"));
  const found = (["pruned", "dense"] as const).flatMap((role) => (times[role] ? [[role, times[role]] as const] : []));
  const heads = found.map(([role]) => make("th", role === "pruned" ? "Pruned" : "Dense"));
  for (const head of heads) (head as HTMLTableCellElement).scope = "col";
  table.append(make("tr", "", "", make("td"), ...heads));
  const row = (name: string, cell: (result: LatencyResult) => string) => {
    const head = make("th", name) as HTMLTableCellElement;
    head.scope = "row";
    table.append(make("tr", "", "", head, ...found.map(([, result]) => make("td", cell(result)))));
  };
  row("Half within (p50)", (result) => milliseconds(result.p50_ms));
  row("9 of 10 within (p90)", (result) => milliseconds(result.p90_ms));
  row("Mean", (result) => milliseconds(result.mean_ms));
  row("Inferences", (result) => String(result.samples));
  const why = found.find(([, result]) => result.why_invalid)?.[1].why_invalid;
  const note = why ? `These times do not count: ${why}.` : "Measured one after the other, dense and pruned in turn.";
  return make("div", "", "card", make("h2", "Time of an inference"), table, make("p", note, why ? "warn" : "quiet"));
}

/** The result of a check as a file. */
export function offer(result: Result): void {
  const file = new File([JSON.stringify(result, null, 2)], "classifier-check.json", { type: "application/json" });
  const save = at<HTMLButtonElement>("check-save");
  save.hidden = false;
  save.onclick = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), TAKING_MS);
  };
  const share = at<HTMLButtonElement>("check-share");
  share.hidden = !navigator.canShare?.({ files: [file] });
  share.onclick = () => void navigator.share({ files: [file] }).catch(() => {}); // whoever shares may change their mind
}
