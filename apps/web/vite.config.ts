import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { defineConfig, type Plugin } from "vite";

const LITERT = new URL("node_modules/@litertjs/core/wasm/", import.meta.url);
const PUBLIC = new URL("public/", import.meta.url);

// One of the three is loaded: with threads, without, and for browsers without relaxed SIMD.
const VARIANTS = ["threaded_internal", "internal", "compat_internal"];

const WORKER = "sw.js";

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

/** Tells the service worker what the app consists of: what was built for it and public/, without runner and model. */
function offline(): Plugin {
  return {
    name: "offline",
    enforce: "post", // the pages are there by then
    generateBundle: {
      order: "post",
      handler(_, bundle) {
        const worker = bundle[WORKER];
        if (worker?.type !== "chunk") throw new Error(`${WORKER} was not built`);
        const digest = createHash("sha256").update(worker.code);
        const files: string[] = [];
        for (const [name, built] of Object.entries(bundle).sort()) {
          digest.update(name).update(built.type === "chunk" ? built.code : built.source);
          const others = name === WORKER || name.startsWith("litert/") || name.includes("runner");
          if (!others) files.push(name === "index.html" ? "" : name); // a server may have but the folder's address
        }
        for (const name of readdirSync(PUBLIC, { recursive: true, encoding: "utf8" }).sort()) {
          if (!/\.\w+$/.test(name) || name.startsWith("model")) continue;
          digest.update(name).update(readFileSync(new URL(name, PUBLIC)));
          files.push(name);
        }
        worker.code = worker.code
          .replaceAll("__FILES__", JSON.stringify(files))
          .replaceAll("__BUILD__", JSON.stringify(digest.digest("hex").slice(0, 16)));
      },
    },
  };
}

export default defineConfig({
  base: "./", // whatever folder it is served from
  plugins: [litert(), offline()],
  // LiteRT.js calls importScripts, which module workers lack: workers are bundled into classic scripts.
  worker: { format: "iife" },
  build: {
    target: "es2022",
    modulePreload: { polyfill: false },
    rollupOptions: {
      input: { index: "index.html", runner: "runner.html", worker: "src/service-worker.ts" },
      output: { entryFileNames: ({ name }) => (name === "worker" ? WORKER : "assets/[name]-[hash].js") },
    },
    reportCompressedSize: false,
  },
});
