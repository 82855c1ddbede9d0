/** The model's artifacts in a worker, and the choice of what they run on. */

import { InferenceWorker, type Pixels, RefusedError, type Runtime, type Timed } from "../inference";
import type { LatencyResult, Protocol } from "../latency";
import type { Accelerator } from "../litert";
import { messageOf } from "../messages";
import { checkGolden, type GoldenCheck } from "./golden";
import { addressOf, fileOf, type Manifest, ModelError, type Role } from "./manifest";
import type { Prepared } from "./picture";

/** More than phones have fast cores for. */
const THREADS_MAX = 4;

export class Engine {
  readonly roles = new Set<Role>();

  private constructor(
    readonly manifest: Manifest,
    private readonly folder: string,
    private readonly worker: InferenceWorker,
    readonly runtime: Runtime,
    readonly accelerator: Accelerator,
  ) {}

  /** base: URL of the app's folder, with / at the end */
  static async start(manifest: Manifest, base: string, accelerator: Accelerator = "wasm"): Promise<Engine> {
    const cores = Math.min(THREADS_MAX, navigator.hardwareConcurrency || 1);
    const threads = accelerator === "wasm" && self.crossOriginIsolated ? cores : 1;
    for (const count of threads > 1 ? [threads, 1] : [1]) {
      const worker = new InferenceWorker();
      try {
        const runtime = await worker.start(`${base}litert/`, count, accelerator);
        return new Engine(manifest, `${base}model/`, worker, runtime, accelerator);
      } catch (error) {
        worker.stop();
        if (count === 1) throw error;
      }
    }
    throw new Error("unreachable");
  }

  /** Make an artifact ready. Raises ModelError if the manifest has none in that role. */
  async load(role: Role): Promise<void> {
    const entry = fileOf(this.manifest, role);
    if (!entry) throw new ModelError(`manifest.json names no ${role} model for browsers`);
    await this.worker.load(role, addressOf(this.folder, entry), entry.sha256);
    this.roles.add(role);
  }

  /** A picture as the model wants it. preview: longer side of the picture to show, 0 for none */
  prepare(source: Blob | ImageBitmap, preview: number): Promise<Prepared> {
    return this.worker.prepare(source, this.manifest.input.resize, preview);
  }

  time(role: Role, pixels: Pixels): Promise<Timed> {
    return this.worker.time(role, pixels);
  }

  measure(roles: Role[], pixels: Pixels, protocol: Protocol, progress: (seconds: number) => void) {
    return this.worker.measure(roles, pixels, protocol, progress) as Promise<Record<Role, LatencyResult>>;
  }

  /** The golden pictures, ready to be classified. */
  async goldens(): Promise<Pixels[]> {
    const pictures: Pixels[] = [];
    for (const golden of this.manifest.golden) {
      const bytes = await this.worker.fetch(addressOf(this.folder, golden), golden.sha256);
      pictures.push((await this.prepare(new Blob([bytes as Uint8Array<ArrayBuffer>]), 0)).pixels);
    }
    return pictures;
  }

  async logits(role: Role, pictures: Pixels[]): Promise<number[][]> {
    const rows: number[][] = [];
    for (const picture of pictures) rows.push([...(await this.time(role, picture)).logits]);
    return rows;
  }

  /** The pruned model against what its maker promises. */
  async check(pictures: Pixels[]): Promise<GoldenCheck> {
    const { file } = fileOf(this.manifest, "pruned")!;
    const expected = this.manifest.golden.map(({ artifacts }) => artifacts[file]);
    const known = expected.every((row) => row !== undefined) ? (expected as number[][]) : null;
    return checkGolden(await this.logits("pruned", pictures), known, this.manifest.golden_share?.[file]);
  }

  stop(): void {
    this.worker.stop();
  }
}

/** Why the graphics processor is not used. */
export interface NoGpu {
  why: string;
  /** it is there, and does not do what it should */
  failed: boolean;
}

/**
 * The same models on the graphics processor, once they are known to give there what they give here, in less time.
 *
 * current: keeps its models; whoever changes over stops it
 */
export async function tryGpu(current: Engine, base: string, pictures: Pixels[]): Promise<Engine | NoGpu> {
  if (pictures.length === 0) return { why: "there are no golden pictures to check it with", failed: false };
  let gpu: Engine;
  try {
    gpu = await Engine.start(current.manifest, base, "webgpu");
  } catch (error) {
    return { why: messageOf(error), failed: !(error instanceof RefusedError) };
  }
  const no = await objection(gpu, current, pictures).catch((error: unknown) => ({ why: messageOf(error), failed: true }));
  if (no) gpu.stop();
  return no ?? gpu;
}

async function objection(gpu: Engine, current: Engine, pictures: Pixels[]): Promise<NoGpu | null> {
  const { file } = fileOf(current.manifest, "pruned")!;
  for (const role of current.roles) {
    await gpu.load(role);
    const here = await current.logits(role, pictures);
    const { problem } = checkGolden(await gpu.logits(role, pictures), here, current.manifest.golden_share?.[file]);
    if (problem) return { why: `it gives other numbers with the ${role} model`, failed: true };
  }
  const [there, here] = [await typical(gpu, pictures[0]!), await typical(current, pictures[0]!)];
  return there < here ? null : { why: "it is slower here than the processor", failed: false };
}

/** Milliseconds of an inference, the median of a few. */
async function typical(engine: Engine, picture: Pixels): Promise<number> {
  const taken: number[] = [];
  for (let i = 0; i < 12; i++) taken.push((await engine.time("pruned", picture)).milliseconds);
  return taken.slice(3).sort((a, b) => a - b)[4]!; // the first few compile shaders
}
