/** The worker: answers calls one after the other, so that inference never holds up the page. */

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import { prepare } from "./app/picture";
import type { Answer, Call, Value } from "./inference";
import { measure } from "./latency";
import { type Accelerator, Program, Refused, RUNTIME, RUNTIME_VERSION, runtimeFiles, startRuntime } from "./litert";
import { messageOf } from "./messages";

const PROGRESS_MS = 500;

const scope = self as unknown as { postMessage(answer: Answer, transfer: Transferable[]): void };
const programs = new Map<string, Program>();
let threads = 1;
let accelerator: Accelerator = "wasm";
let last: Promise<void> = Promise.resolve();
const cancelled = new Set<number>();

self.onmessage = ({ data }: MessageEvent<{ id: number; call: Call }>) => {
  if (data.call.do === "cancel") {
    cancelled.add(data.id);
    return;
  }
  const { id, call } = data;
  last = last.then(() => answer(id, call));
};

async function answer(id: number, call: Exclude<Call, { do: "cancel" }>): Promise<void> {
  try {
    const [value, transfer] = await execute(id, call);
    scope.postMessage({ id, value }, transfer);
  } catch (error) {
    scope.postMessage({ id, error: messageOf(error), refused: error instanceof Refused }, []);
  }
}

async function execute(id: number, call: Exclude<Call, { do: "cancel" }>): Promise<[Value, Transferable[]]> {
  switch (call.do) {
    case "start":
      accelerator = call.accelerator;
      threads = await startRuntime(call.folder, call.threads, accelerator);
      return [
        { threads, runtime: RUNTIME[accelerator], version: RUNTIME_VERSION, files: [...runtimeFiles] },
        [],
      ];
    case "fetch": {
      const bytes = await fetchWhole(call.url, call.sha256);
      return [bytes, [bytes.buffer]];
    }
    case "load":
      programs.set(call.name, await Program.load(await fetchWhole(call.url, call.sha256), threads, accelerator));
      return [null, []];
    case "prepare": {
      const prepared = await prepare(call.source, call.rule, call.preview);
      return [prepared, prepared.preview ? [prepared.pixels.buffer, prepared.preview] : [prepared.pixels.buffer]];
    }
    case "time": {
      const begin = performance.now();
      const logits = await program(call.name).run(call.pixels);
      return [{ logits, milliseconds: performance.now() - begin }, [logits.buffer]];
    }
    case "run": {
      const logits = await program(call.name).run(call.pixels);
      return [logits, [logits.buffer]];
    }
    case "measure": {
      let told = 0;
      const tell = async (seconds: number) => {
        const now = performance.now();
        if (now - told < PROGRESS_MS) return;
        told = now;
        scope.postMessage({ id, progress: seconds }, []);
        await new Promise((resolve) => setTimeout(resolve)); // a word to cancel comes in
        if (cancelled.has(id)) throw new Error("it was cancelled");
      };
      const callables = call.names.map((name) => [name, () => program(name).run(call.pixels)] as const);
      return [await measure(Object.fromEntries(callables), call.protocol, tell), []];
    }
  }
}

/** A file's bytes, once its checksum is right. crypto.subtle is no choice: pages on plain http do not have it. */
async function fetchWhole(url: string, expected: string): Promise<Uint8Array<ArrayBuffer>> {
  const name = new URL(url).pathname.split("/").pop();
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytesToHex(sha256(bytes)) !== expected) throw new Error(`${name} did not arrive whole; try again`);
  return bytes;
}

function program(name: string): Program {
  const found = programs.get(name);
  if (!found) throw new Error(`${name} is not loaded`);
  return found;
}
