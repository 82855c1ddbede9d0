/** A job and its result: the contract of targets/devices/job.py. Names are the contract's. */

import { conditions, type Conditions, type Description } from "./device";
import { InferenceWorker, type Pixels, RefusedError } from "./inference";
import { invalid, type LatencyResult, type Protocol } from "./latency";

const VERSION = 1;

export interface Job {
  version: number;
  id: string;
  files: [string, ...string[]];
  sha256: Record<string, string>;
  threads: number;
  height: number;
  width: number;
  classes: number;
  /** (G, C) */
  golden: number[][];
  /** (N,) */
  labels: number[];
  protocol: Protocol | null;
}

/** See DeviceResult in targets/devices/job.py. */
export interface Result {
  version: number;
  job: string;
  file: string;
  sha256: string;
  device: Description;
  threads: number;
  runtime: string;
  runtime_version: string;
  refused: string | null;
  before: Conditions | Record<string, never>;
  after: Conditions | Record<string, never>;
  /** JSON turns what is not a number into null, as the contract has it */
  golden: number[][];
  golden_error: number | null;
  logits: number[][];
  top1: number | null;
  latency: Record<string, LatencyResult>;
  peak_mb: null;
}

export type Step = "loading" | "golden" | "images" | "latency";
/** done and total: files, pictures, or seconds of the measured window */
export type Progress = (step: Step, done: number, total: number) => void;

export async function readJob(folder: string): Promise<Job> {
  const response = await fetch(`${folder}job.json`);
  if (!response.ok) throw new Error(`job.json: ${response.status} ${response.statusText}`);
  const job = (await response.json()) as Job;
  if (job.version !== VERSION) throw new Error(`job.json is of version ${job.version}, this page's is ${VERSION}`);
  return job;
}

/**
 * Do the job as `run` in targets/devices/measure.py does. An artifact that the runtime refuses is a result.
 *
 * folder:  URL of the job's files, with / at the end
 * runtime: URL of LiteRT's WebAssembly, likewise
 */
export async function runJob(
  job: Job,
  folder: string,
  runtime: string,
  device: Description,
  progress: Progress,
): Promise<Result> {
  const worker = new InferenceWorker();
  try {
    return await runIn(worker, job, folder, runtime, device, progress);
  } finally {
    worker.stop();
  }
}

async function runIn(
  worker: InferenceWorker,
  job: Job,
  folder: string,
  runtime: string,
  device: Description,
  progress: Progress,
): Promise<Result> {
  const file = job.files[0];
  const fetched = (name: string) => worker.fetch(folder + name, job.sha256[name]!);
  progress("loading", 0, job.files.length);
  const [goldenBytes, imageBytes] = [await fetched("golden.u8"), await fetched("images.u8")];
  const started = await worker.start(runtime, job.threads);
  const nothing: Conditions | Record<string, never> = {};
  const result: Result = {
    version: VERSION,
    job: job.id,
    file,
    sha256: job.sha256[file]!, // what differs from it is not loaded
    device,
    threads: started.threads,
    runtime: started.runtime,
    runtime_version: started.version,
    refused: null,
    before: nothing,
    after: nothing,
    golden: [],
    golden_error: null,
    logits: [],
    top1: null,
    latency: {},
    peak_mb: null, // browsers do not tell
  };
  for (const [index, name] of job.files.entries()) {
    try {
      await worker.load(name, folder + name, job.sha256[name]!);
    } catch (error) {
      if (!(error instanceof RefusedError)) throw error;
      return { ...result, refused: `LiteRT.js does not take ${name}: ${error.message}` };
    }
    progress("loading", index + 1, job.files.length);
  }
  const logits = async (bytes: Uint8Array, count: number, step: Step) => {
    const rows: number[][] = [];
    for (let index = 0; index < count; index++) {
      rows.push([...(await worker.run(file, picture(job, bytes, index)))]);
      progress(step, index + 1, count);
    }
    return rows;
  };
  result.golden = await logits(goldenBytes, job.golden.length, "golden");
  if (job.golden.length > 0) result.golden_error = largestDifference(result.golden, job.golden);
  result.logits = await logits(imageBytes, job.labels.length, "images");
  if (job.labels.length > 0) result.top1 = top1(result.logits, job.labels);
  result.before = await conditions();
  if (job.protocol) {
    const { seconds } = job.protocol;
    progress("latency", 0, seconds);
    const wasHidden = watchHidden();
    const image = picture(job, goldenBytes, 0);
    result.latency = await worker.measure(job.files, image, job.protocol, (s) =>
      progress("latency", Math.min(s, seconds), seconds),
    );
    if (wasHidden()) {
      const why = "the page was not in front all the time, and browsers slow down what is not";
      for (const [name, found] of Object.entries(result.latency)) result.latency[name] = invalid(found, why);
    }
    progress("latency", seconds, seconds);
  }
  result.after = await conditions();
  return result;
}

/** One of the pictures (H, W, 3) that lie one after the other. */
function picture(job: Job, bytes: Uint8Array, index: number): Pixels {
  const size = job.height * job.width * 3;
  return Float32Array.from(bytes.subarray(index * size, (index + 1) * size));
}

/** Largest absolute difference; null for logits that are no numbers, or of another shape. */
export function largestDifference(found: number[][], expected: number[][]): number | null {
  const same = found.length === expected.length && found.every((row, i) => row.length === expected[i]!.length);
  if (!same || !found.flat().every(Number.isFinite)) return null;
  const other = expected.flat();
  return found.flat().reduce((largest, value, i) => Math.max(largest, Math.abs(value - other[i]!)), 0);
}

/** Share of the rows whose largest logit is the label's. */
export function top1(logits: number[][], labels: number[]): number {
  return logits.filter((row, i) => argmax(row) === labels[i]).length / labels.length;
}

/** Place of the largest value, the first of several; of the first that is not a number, as numpy has it. */
export function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 0; i < values.length; i++) {
    if (Number.isNaN(values[i])) return i;
    if (values[i]! > values[best]!) best = i;
  }
  return best;
}

/** Returns a function that says whether the page has been hidden since; it can be asked once. */
export function watchHidden(): () => boolean {
  let hidden = document.hidden;
  const look = () => {
    hidden ||= document.hidden;
  };
  document.addEventListener("visibilitychange", look);
  return () => {
    document.removeEventListener("visibilitychange", look);
    return hidden;
  };
}
