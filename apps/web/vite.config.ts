import { readFileSync } from "node:fs";
import { defineConfig, type Plugin } from "vite";

const LITERT = new URL("node_modules/@litertjs/core/wasm/", import.meta.url);

// One of the three is loaded: with threads, without, and for browsers without relaxed SIMD.
const VARIANTS = ["threaded_internal", "internal", "compat_internal"];

/** LiteRT's WebAssembly beside the pages, in litert/: its loader asks for the files by these names. */
function litert(): Plugin {
  return {
    name: "litert",
    generateBundle() {
      for (const file of VARIANTS.flatMap((name) => [`litert_wasm_${name}.js`, `litert_wasm_${name}.wasm`])) {
        this.emitFile({ type: "asset", fileName: `litert/${file}`, source: readFileSync(new URL(file, LITERT)) });
      }
    },
  };
}

export default defineConfig({
  base: "./", // whatever folder it is served from
  plugins: [litert()],
  // LiteRT.js calls importScripts, which module workers lack: workers are bundled into classic scripts.
  worker: { format: "iife" },
  build: {
    target: "es2022",
    rollupOptions: { input: { runner: "runner.html" } },
    reportCompressedSize: false,
  },
});
