/** The model's artifacts in a worker, and the choice of what they run on. */

import { InferenceWorker, type Pixels, type Runtime, type Timed } from "../inference";
import type { LatencyResult, Protocol } from "../latency";
import type { Accelerator } from "../litert";
import { messageOf } from "../messages";
import { pause } from "./dom";
import { checkGolden, type GoldenCheck, unchecked } from "./golden";
import { addressOf, fileOf, type Manifest, ModelError, type Role } from "./manifest";
import type { Prepared } from "./picture";

/** More than phones have fast cores for. */
const THREADS_MAX = 4;
const RETIRE_MS = 500;

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

  /** The pixels are gone afterwards. */
  measure(roles: Role[], pixels: Pixels, protocol: Protocol, progress: (seconds: number) => void, stop: AbortSignal) {
    return this.worker.measure(roles, pixels, protocol, progress, stop) as Promise<Record<Role, LatencyResult>>;
  }

  /** A picture to take times with where there is no other: they do not depend on what it shows. */
  grey(): Pixels {
    return new Float32Array(3 * this.manifest.input.height * this.manifest.input.width).fill(128);
  }

  private async goldens(): Promise<Pixels[]> {
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

  /** The golden pictures, none if they cannot be had; and the pruned model against what its maker promises of them. */
  async checkGoldens(): Promise<[Pixels[], GoldenCheck]> {
    let pictures: Pixels[];
    try {
      pictures = await this.goldens();
    } catch (error) {
      return [[], unchecked(`The golden pictures are not all there (${messageOf(error)})`)];
    }
    return [pictures, await this.check(pictures)];
  }

  private async check(pictures: Pixels[]): Promise<GoldenCheck> {
    const { file } = fileOf(this.manifest, "pruned")!;
    const expected = this.manifest.golden.map(({ artifacts }) => artifacts[file]);
    const known = expected.every((row) => row !== undefined) ? (expected as number[][]) : null;
    return checkGolden(await this.logits("pruned", pictures), known, this.manifest.golden_share?.[file]);
  }

  stop(): void {
    this.worker.stop();
  }

  /** Stop, once what has been asked of it is done. */
  async retire(): Promise<void> {
    while (this.worker.busy) await pause(RETIRE_MS);
    this.stop();
  }
}
