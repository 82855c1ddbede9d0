/**
 * The measuring protocol of targets/latency.py, with the same statistics, and one rule more: the clocks of browsers are
 * coarse on purpose (steps of 5 us for isolated pages, 100 us or 1 ms for others). Names in results are the contract's.
 */

/** A run that hasn't got its samples after this many times the asked duration stops: the device is too slow. */
const PATIENCE = 3;
const EARLY_SAMPLES = 64;
/** When one inference in ten takes this many times the median or longer, the machine did something else meanwhile. */
const SPREAD_MAX = 5;
/** A median of fewer steps of the clock than this could be wrong by more than 5 %. */
const CLOCK_STEPS_MIN = 20;

/** How long to measure; see Protocol in targets/latency.py. */
export interface Protocol {
  name: string;
  seconds: number;
  min_samples: number;
  warmup: number;
  cooldown_s: number;
}

/** See LatencyResult in targets/latency.py. */
export interface LatencyResult {
  p5_ms: number;
  p50_ms: number;
  p90_ms: number;
  mean_ms: number;
  p90_bound_ms: number;
  samples: number;
  seconds: number;
  valid: boolean;
  why_invalid: string | null;
  samples_ms: number[];
}

export type Inference = () => Promise<unknown>;

/**
 * Run every callable in turn as the protocol says, one inference each (a, b, a, b, ...).
 *
 * progress: told the seconds that have been measured, before the first round and after every one; what it takes is not
 *           timed; it may raise to end the measurement
 */
export async function measure(
  callables: Record<string, Inference>,
  protocol: Protocol,
  progress: (seconds: number) => void | Promise<void>,
): Promise<Record<string, LatencyResult>> {
  const entries = Object.entries(callables);
  if (entries.length === 0) throw new Error("measure needs at least one callable");
  const { seconds, min_samples: minSamples } = protocol;
  await new Promise((resolve) => setTimeout(resolve, 1000 * protocol.cooldown_s));
  await progress(0);
  const stepNs = clockStepNs();
  for (let round = 0; round < protocol.warmup; round++) {
    for (const [, inference] of entries) await inference();
  }
  const samplesNs: number[][] = entries.map(() => []);
  const begin = performance.now();
  let elapsedS = 0;
  for (
    let rounds = 0;
    rounds === 0 || elapsedS < seconds || (rounds < minSamples && elapsedS < PATIENCE * seconds);
    rounds++
  ) {
    for (const [index, [, inference]] of entries.entries()) {
      const start = performance.now();
      await inference();
      samplesNs[index]!.push(Math.round(1e6 * (performance.now() - start)));
    }
    elapsedS = (performance.now() - begin) / 1000;
    await progress(elapsedS);
  }
  return Object.fromEntries(
    entries.map(([name], index) => [name, summarise(samplesNs[index]!, elapsedS, minSamples, stepNs)]),
  );
}

/**
 * Percentiles of the samples (at least one), and whether they can be trusted; the rules of targets/latency.py, and: not
 * valid if the median is shorter than CLOCK_STEPS_MIN steps of the clock.
 */
export function summarise(samplesNs: number[], seconds: number, minSamples: number, stepNs: number): LatencyResult {
  const samplesMs = samplesNs.map((value) => value / 1e6);
  const sorted = Float64Array.from(samplesMs).sort();
  const [p5, p50, p90] = [percentile(sorted, 0.05), percentile(sorted, 0.5), percentile(sorted, 0.9)];
  const shortest = Math.round(1e6 * sorted[0]!);
  let why: string | null = null;
  if (shortest <= 0) {
    why = `the clock showed ${shortest} ns for an inference`;
  } else if (samplesNs.length < Math.min(minSamples, EARLY_SAMPLES)) {
    const atLeast = minSamples > EARLY_SAMPLES ? `, ${EARLY_SAMPLES} at least` : "";
    why = `${samplesNs.length} samples in ${seconds.toFixed(1)} s, ${minSamples} needed${atLeast}`;
  } else if (p90 > SPREAD_MAX * p50) {
    why = `p90 is ${(p90 / p50).toFixed(1)} times the median, at most ${SPREAD_MAX} allowed: the machine was busy`;
  } else if (1e6 * p50 < CLOCK_STEPS_MIN * stepNs) {
    const step = `the browser's clock moves in steps of ${stepNs / 1e6} ms`;
    why = `${step}, too coarse for an inference of ${p50.toFixed(3)} ms`;
  }
  return {
    p5_ms: p5,
    p50_ms: p50,
    p90_ms: p90,
    mean_ms: samplesMs.reduce((sum, value) => sum + value, 0) / samplesMs.length,
    p90_bound_ms: samplesNs.length >= minSamples ? p90 : p90Bound(sorted),
    samples: samplesNs.length,
    seconds,
    valid: why === null,
    why_invalid: why,
    samples_ms: samplesMs,
  };
}

/** The same figures, not to be believed. */
export function invalid(result: LatencyResult, why: string): LatencyResult {
  return { ...result, valid: false, why_invalid: why };
}

/** The smallest step that performance.now() has been seen to make, ns. */
export function clockStepNs(): number {
  let smallest = Infinity;
  let last = performance.now();
  for (const end = last + 20; last < end; ) {
    const now = performance.now();
    if (now > last) smallest = Math.min(smallest, now - last);
    last = now;
  }
  return Math.round(1e6 * smallest);
}

/** Linear between the two nearest samples, as numpy's default. */
export function percentile(sorted: Float64Array, share: number): number {
  const place = (sorted.length - 1) * share;
  const below = sorted[Math.floor(place)]!;
  return below + (sorted[Math.ceil(place)]! - below) * (place - Math.floor(place));
}

/** Upper end of the one-sided 99 % confidence interval of the 90th percentile; the maximum if there are too few. */
function p90Bound(sorted: Float64Array): number {
  const n = sorted.length;
  let logOfP = n * Math.log(0.1); // of P(Binomial(n, 0.9) = 0)
  let below = 0;
  for (let k = 0; k < n; k++) {
    below += Math.exp(logOfP);
    if (below >= 0.99) return sorted[k]!;
    logOfP += Math.log((n - k) / (k + 1)) + Math.log(0.9 / 0.1);
  }
  return sorted[n - 1]!;
}
