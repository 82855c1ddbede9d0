/** Artifacts through LiteRT.js. Runs in a classic worker: LiteRT's loader calls importScripts. */

import { type CompiledModel, loadAndCompile, loadLiteRt, supportsFeature, Tensor } from "@litertjs/core";
import { version } from "@litertjs/core/package.json";
import { messageOf } from "./messages";

export const RUNTIME = "LiteRT.js (wasm)";
export const RUNTIME_VERSION: string = version;

/** The runtime does not take an artifact. */
export class Refused extends Error {}

/**
 * Load the runtime, once in a worker's life. Returns the threads that it has: one, unless the page is cross-origin
 * isolated and the browser has relaxed SIMD.
 *
 * folder: URL of its WebAssembly, with / at the end
 */
export async function startRuntime(folder: string, threads: number): Promise<number> {
  const several = threads > 1 && self.crossOriginIsolated && (await supportsFeature("relaxedSimd"));
  // In a worker the loader would look for its files beside the worker's script.
  (self as unknown as { Module: object }).Module = {
    locateFile: (file: string) => folder + file,
    mainScriptUrlOrBlob: `${folder}litert_wasm_threaded_internal.js`,
  };
  await loadLiteRt(folder, { threads: several });
  return several ? threads : 1;
}

/** A loaded artifact: float32 RGB 0..255 (1, H, W, 3) in, float32 logits (C) out. */
export class Program {
  private constructor(
    private readonly model: CompiledModel,
    private readonly shape: Int32Array,
  ) {}

  /** Raises Refused for bytes that are no sound model of that kind. */
  static async load(bytes: Uint8Array, threads: number): Promise<Program> {
    let model: CompiledModel;
    try {
      model = await loadAndCompile(bytes, { accelerator: "wasm", cpuOptions: { numThreads: threads } });
    } catch (error) {
      throw new Refused(messageOf(error));
    }
    const [input] = model.getInputDetails();
    if (input?.dtype !== "float32") throw new Refused(`it takes ${input?.dtype} instead of float32`);
    return new Program(model, input.shape);
  }

  /** One inference. pixels: float32 RGB 0..255, H x W x 3 of them */
  async run(pixels: Float32Array): Promise<Float32Array> {
    const input = new Tensor(pixels, this.shape);
    try {
      const outputs = await this.model.run([input]);
      const logits = outputs[0]!.toTypedArray() as Float32Array;
      for (const output of outputs) output.delete();
      return logits;
    } finally {
      input.delete();
    }
  }
}

