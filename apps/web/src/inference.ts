/** The page's side of the worker. */

import type { Prepared } from "./app/picture";
import type { ResizeRule } from "./app/resize";
import type { LatencyResult, Protocol } from "./latency";
import type { Accelerator } from "./litert";

export type Pixels = Float32Array<ArrayBuffer>;

/** What the page may ask the worker for. */
export type Call =
  | { do: "start"; folder: string; threads: number; accelerator: Accelerator }
  | { do: "fetch"; url: string; sha256: string }
  | { do: "load"; name: string; url: string; sha256: string }
  | { do: "prepare"; source: Blob | ImageBitmap; rule: ResizeRule; preview: number }
  | { do: "run"; name: string; pixels: Pixels }
  | { do: "time"; name: string; pixels: Pixels }
  | { do: "measure"; names: string[]; pixels: Pixels; protocol: Protocol }
  /** the measurement with this call's id, soon */
  | { do: "cancel" };

export interface Runtime {
  threads: number;
  runtime: string;
  version: string;
  /** URLs of what was loaded of it */
  files: string[];
}

/** What one inference gave, and how long it alone took. */
export interface Timed {
  logits: Float32Array;
  milliseconds: number;
}

export type Value = null | Runtime | Uint8Array | Float32Array | Prepared | Timed | Record<string, LatencyResult>;

export type Answer =
  | { id: number; value: Value }
  | { id: number; error: string; refused: boolean }
  | { id: number; progress: number };

/** The runtime does not take the artifact. */
export class RefusedError extends Error {}

interface Waiting {
  resolve(value: Value): void;
  reject(error: Error): void;
  progress(seconds: number): void;
}

/** A worker with LiteRT.js in it. Calls are answered one after the other; a worker that breaks rejects them all. */
export class InferenceWorker {
  private readonly worker = new Worker(new URL("./worker.ts", import.meta.url));
  private readonly waiting = new Map<number, Waiting>();
  private calls = 0;
  private broken: Error | null = null;

  constructor() {
    this.worker.onmessage = ({ data }: MessageEvent<Answer>) => this.take(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.breakOff(new Error(`the worker broke off: ${event.message || "its script could not be loaded"}`));
    };
  }

  /** Load the runtime; before anything but fetch. folder: URL of its WebAssembly, with / at the end */
  start(folder: string, threads: number, accelerator: Accelerator = "wasm"): Promise<Runtime> {
    return this.ask({ do: "start", folder, threads, accelerator }) as Promise<Runtime>;
  }

  /** A file's bytes, off the main thread. Rejects if its SHA-256 (hexadecimal) is not the expected one. */
  fetch(url: string, sha256: string): Promise<Uint8Array> {
    return this.ask({ do: "fetch", url, sha256 }) as Promise<Uint8Array>;
  }

  /** Make an artifact ready, to be called `name`. Rejects as fetch does, and with RefusedError. */
  async load(name: string, url: string, sha256: string): Promise<void> {
    await this.ask({ do: "load", name, url, sha256 });
  }

  /** Logits of one picture: float32 RGB 0..255, H x W x 3. The pixels go to the worker and are gone here. */
  run(name: string, pixels: Pixels): Promise<Float32Array> {
    return this.ask({ do: "run", name, pixels }, [pixels.buffer]) as Promise<Float32Array>;
  }

  /** A picture as the model wants it; see `prepare` in app/picture.ts. A bitmap goes to the worker and is gone here. */
  prepare(source: Blob | ImageBitmap, rule: ResizeRule, preview: number): Promise<Prepared> {
    const transfer = source instanceof Blob ? [] : [source];
    return this.ask({ do: "prepare", source, rule, preview }, transfer) as Promise<Prepared>;
  }

  /** As `run`, with the milliseconds of the inference. The pixels stay. */
  time(name: string, pixels: Pixels): Promise<Timed> {
    return this.ask({ do: "time", name, pixels }) as Promise<Timed>;
  }

  /** Latency of artifacts side by side on one picture. progress: told the seconds measured, twice a second; stop: early */
  measure(
    names: string[],
    pixels: Pixels,
    protocol: Protocol,
    progress: (seconds: number) => void,
    stop?: AbortSignal,
  ): Promise<Record<string, LatencyResult>> {
    const call: Call = { do: "measure", names, pixels, protocol };
    const id = this.calls;
    stop?.addEventListener("abort", () => this.worker.postMessage({ id, call: { do: "cancel" } }));
    return this.ask(call, [pixels.buffer], progress) as Promise<Record<string, LatencyResult>>;
  }

  /** Whether it still works on something. */
  get busy(): boolean {
    return this.waiting.size > 0;
  }

  /** End the worker and give its memory back. */
  stop(): void {
    this.worker.terminate();
    this.breakOff(new Error("the worker has been stopped"));
  }

  private breakOff(error: Error): void {
    this.broken = error;
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }

  private ask(call: Call, transfer: Transferable[] = [], progress: Waiting["progress"] = () => {}): Promise<Value> {
    if (this.broken) return Promise.reject(this.broken);
    const id = this.calls++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, progress });
      this.worker.postMessage({ id, call }, transfer);
    });
  }

  private take(answer: Answer): void {
    const waiting = this.waiting.get(answer.id);
    if (!waiting) return;
    if ("progress" in answer) {
      waiting.progress(answer.progress);
      return;
    }
    this.waiting.delete(answer.id);
    if ("value" in answer) waiting.resolve(answer.value);
    else waiting.reject(answer.refused ? new RefusedError(answer.error) : new Error(answer.error));
  }
}
