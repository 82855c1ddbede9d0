/** What pruning bought: dense beside pruned, the time measured on this device. */

import type { Pixels } from "../inference";
import { clockStepNs, type LatencyResult, summarise } from "../latency";
import { at, make } from "./dom";
import type { Engine } from "./engine";
import { bytes, change, count, milliseconds, percent, points } from "./format";
import { fileOf, type Manifest, type Role } from "./manifest";

const WARMUP = 3;
const ROUNDS = 24;
const ROLES: Role[] = ["dense", "pruned"];

export type Times = Record<Role, LatencyResult>;

/** A short look at both in turn, which gives way to whatever the user wants. Null if it had to. */
export async function glance(engine: Engine, picture: Pixels, mayGoOn: () => boolean): Promise<Times | null> {
  const taken: Record<Role, number[]> = { dense: [], pruned: [] };
  const begin = performance.now();
  for (let round = 0; round < WARMUP + ROUNDS; round++) {
    for (const role of ROLES) {
      if (!mayGoOn()) return null;
      const { milliseconds } = await engine.time(role, picture);
      if (round >= WARMUP) taken[role].push(Math.round(1e6 * milliseconds));
    }
  }
  const [seconds, step] = [(performance.now() - begin) / 1000, clockStepNs()];
  const result = (role: Role) => summarise(taken[role], seconds, ROUNDS, step);
  return { dense: result("dense"), pruned: result("pruned") };
}

/** times: null until they are measured */
export function showBought(manifest: Manifest, times: Times | null): void {
  const [dense, pruned] = [fileOf(manifest, "dense"), fileOf(manifest, "pruned")!];
  at("bought").hidden = !dense;
  if (!dense) return;
  const rows: HTMLElement[] = [];
  if (times) {
    const [slow, fast] = [times.dense.p50_ms, times.pruned.p50_ms];
    const gain = slow >= fast ? `${(slow / fast).toFixed(1)} × faster` : `${(fast / slow).toFixed(1)} × slower`;
    // clocks that are coarse on purpose may show nothing at all
    if (Math.min(slow, fast) > 0) rows.push(row("Time, measured here", gain, slow, fast, milliseconds));
    else rows.push(make("p", "The time is not measurable here: the browser's clock is too coarse.", "quiet"));
  } else {
    rows.push(make("p", "The time is taken as soon as both are loaded.", "quiet"));
  }
  rows.push(row("Size", change(dense.size_bytes, pruned.size_bytes), dense.size_bytes, pruned.size_bytes, bytes));
  const { params, params_dense: before } = manifest;
  if (params && before) rows.push(row("Parameters", change(before, params), before, params, count));
  const [right, still] = [dense.measured?.top1, pruned.measured?.top1];
  if (right != null && still != null) {
    const format = (value: number) => percent(value / 100);
    rows.push(row("Right answers", points(right, still), right, still, format, still > right));
  }
  at("bought-rows").replaceChildren(...rows);
  const why = times && (times.dense.why_invalid ?? times.pruned.why_invalid);
  at("bought-note").textContent = why
    ? `The time is a rough one: ${why}.`
    : `${dense.precision} beside ${pruned.precision}. The time is the median of ${ROUNDS} inferences each, in turn.`;
}

/** Two bars, the longer one as long as the card. */
function row(
  name: string,
  gain: string,
  dense: number,
  pruned: number,
  format: (value: number) => string,
  better = pruned < dense,
): HTMLElement {
  const bar = (role: string, value: number) => {
    const track = make("span", "", `bar ${role.toLowerCase()}`, make("i"));
    (track.firstElementChild as HTMLElement).style.transform = `scaleX(${value / Math.max(dense, pruned)})`;
    track.ariaHidden = "true";
    return make("div", "", "pair", make("span", role, "role"), track, make("span", format(value), "value"));
  };
  const head = make("div", "", "head", make("h3", name), make("strong", gain, better ? "better" : ""));
  return make("div", "", "gain", head, bar("Dense", dense), bar("Pruned", pruned));
}
