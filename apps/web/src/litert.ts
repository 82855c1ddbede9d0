/** Artifacts through LiteRT.js. Runs in a classic worker: LiteRT's loader calls importScripts. */

import {
  type CompiledModel,
  Environment,
  getGlobalLiteRt,
  loadAndCompile,
  loadLiteRt,
  supportsFeature,
  Tensor,
} from "@litertjs/core";
import { version } from "@litertjs/core/package.json";
import { messageOf } from "./messages";

export type Accelerator = "wasm" | "webgpu";

export const RUNTIME: Record<Accelerator, string> = { wasm: "LiteRT.js (wasm)", webgpu: "LiteRT.js (WebGPU)" };
export const RUNTIME_VERSION: string = version;

/** URLs of what the browser's abilities made the runtime load. */
export const runtimeFiles = new Set<string>();

/** The runtime does not take an artifact. */
export class Refused extends Error {}

/**
 * Load the runtime, once in a worker's life. Returns the threads that it has: one, unless the page is cross-origin
 * isolated and the browser has relaxed SIMD.
 *
 * folder: URL of its WebAssembly, with / at the end
 */
export async function startRuntime(folder: string, threads: number, accelerator: Accelerator): Promise<number> {
  const several = accelerator === "wasm" && threads > 1 && self.crossOriginIsolated && (await supportsFeature("relaxedSimd"));
  // In a worker the loader would look for its files beside the worker's script.
  (self as unknown as { Module: object }).Module = {
    locateFile: (file: string) => {
      runtimeFiles.add(folder + file).add(folder + file.replace(/\.wasm$/, ".js"));
      return folder + file;
    },
    mainScriptUrlOrBlob: `${folder}litert_wasm_threaded_internal.js`,
  };
  await loadLiteRt(folder, { threads: several });
  if (accelerator === "webgpu") {
    const environment = await Environment.create();
    if (!environment.webGpuDevice) throw new Refused("this browser has no graphics processor to compute on");
    getGlobalLiteRt().setDefaultEnvironment(environment);
  }
  return several ? threads : 1;
}

/** A loaded artifact: float32 RGB 0..255 (1, H, W, 3) in, float32 logits (C) out. */
export class Program {
  private constructor(
    private readonly model: CompiledModel,
    private readonly shape: Int32Array,
    private readonly onGpu: boolean,
  ) {}

  /** Raises Refused for bytes that are no sound model of that kind. */
  static async load(bytes: Uint8Array, threads: number, accelerator: Accelerator): Promise<Program> {
    let model: CompiledModel;
    try {
      // float32 on a graphics processor too: in half precision the logits would not be the artifact's own
      const gpuOptions = { precision: "fp32" as const };
      model = await loadAndCompile(bytes, { accelerator, cpuOptions: { numThreads: threads }, gpuOptions });
    } catch (error) {
      throw new Refused(messageOf(error));
    }
    // It falls back to WebAssembly by itself, as a whole or in parts; who asked has a faster one of those already.
    if (accelerator === "webgpu" && (model.options.accelerator !== "webgpu" || !model.isFullyAccelerated)) {
      throw new Refused("the graphics processor takes only a part of it");
    }
    const [input] = model.getInputDetails();
    if (input?.dtype !== "float32") throw new Refused(`it takes ${input?.dtype} instead of float32`);
    return new Program(model, input.shape, accelerator === "webgpu");
  }

  /** One inference. pixels: float32 RGB 0..255, H x W x 3 of them */
  async run(pixels: Float32Array): Promise<Float32Array> {
    const input = new Tensor(pixels, this.shape);
    try {
      const outputs = await this.model.run([input]);
      const [output] = this.onGpu ? [await outputs[0]!.moveTo("wasm")] : outputs;
      const logits = output!.toTypedArray() as Float32Array;
      for (const each of new Set([...outputs, output!])) if (!each.deleted) each.delete();
      return logits;
    } finally {
      input.delete();
    }
  }
}

