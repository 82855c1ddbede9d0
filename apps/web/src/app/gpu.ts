/** The graphics processor: whether there is one that is worth changing over to. */

import { type Pixels, RefusedError } from "../inference";
import { messageOf } from "../messages";
import { Engine } from "./engine";
import { checkGolden } from "./golden";
import { fileOf } from "./manifest";

/** In the browser's storage while a trial lasts: the browser that began it. Drivers have been known to take it down. */
const TRIAL = "gpu trial";

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
  const memory = storage();
  if (memory?.getItem(TRIAL) === navigator.userAgent) {
    return { why: "this browser did not survive trying it", failed: false };
  }
  const over = () => memory?.removeItem(TRIAL);
  memory?.setItem(TRIAL, navigator.userAgent);
  window.addEventListener("pagehide", over); // whoever leaves meanwhile has survived it
  try {
    return await trial(current, base, pictures);
  } finally {
    over();
    window.removeEventListener("pagehide", over);
  }
}

async function trial(current: Engine, base: string, pictures: Pixels[]): Promise<Engine | NoGpu> {
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

/** Null where the user lets pages keep nothing. */
function storage(): Storage | null {
  try {
    return localStorage;
  } catch {
    return null;
  }
}

/** Milliseconds of an inference, the median of a few. */
async function typical(engine: Engine, picture: Pixels): Promise<number> {
  const taken: number[] = [];
  for (let i = 0; i < 12; i++) taken.push((await engine.time("pruned", picture)).milliseconds);
  return taken.slice(3).sort((a, b) => a - b)[4]!; // the first few compile shaders
}
