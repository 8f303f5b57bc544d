// The runtime that runs the networks: on the GPU by WebGPU where the browser has it and draws
// right, else by WebAssembly with SIMD, with threads where the page is isolated.

import { fetchFiles } from "./files.js";

const WASM = "runtime/ort-wasm-simd-threaded.wasm.gz";
const GPU_WASM = "runtime/ort-wasm-simd-threaded.asyncify.wasm.gz";
const MAX_THREADS = 4;
const PROBE_TOLERANCE = 2; // of 255
// A module of one function, () → v128, which makes sixteen zeros with i8x16.splat.
const SIMD_MODULE = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, // magic and version
  1, 5, 1, 96, 0, 1, 123, // types
  3, 2, 1, 0, // functions
  10, 8, 1, 6, 0, 65, 0, 253, 15, 11, // code
);

/**
 * @typedef {{backend: string, ort: object, files: Record<string, ArrayBuffer>,
 *   sessions: Record<string, object>}} Runtime
 */

/**
 * Download what is needed and open the networks.
 * @param {object} facts generator.json
 * @param {string} choice "webgpu", "wasm", or "" for the best one
 * @param {(done: number, total: number) => void} progress
 * @returns {Promise<Runtime>}
 */
export async function openRuntime(facts, choice, progress) {
  if (!globalThis.WebAssembly?.validate(SIMD_MODULE)) {
    throw new Error("this browser has no WebAssembly with SIMD; a newer one has it");
  }
  const own = Object.keys(facts.files).filter((name) => !name.startsWith("runtime/"));
  if (await hasGpu(facts, choice)) {
    try {
      return await open(facts, [...own, GPU_WASM], "webgpu", progress);
    } catch (error) {
      if (choice) {
        throw error;
      }
      console.warn("WebGPU is not used:", error.message);
    }
  }
  return open(facts, [...own, WASM], "wasm", progress);
}

/** Tell whether there is a GPU that is none in name only. */
async function hasGpu(facts, choice) {
  if (choice === "wasm" || !facts.probe || !facts.files[GPU_WASM]) {
    return false;
  }
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return Boolean(adapter) && (choice === "webgpu" || !adapter.info?.isFallbackAdapter);
}

async function open(facts, names, backend, progress) {
  const missing = names.find((name) => !facts.files[name]);
  if (missing) {
    throw new Error("its runtime is missing; `make web` fetches it");
  }
  const wanted = Object.fromEntries(names.map((name) => [name, facts.files[name]]));
  const [ort, files] = await Promise.all([
    load(`./runtime/ort.${backend}.min.mjs`),
    fetchFiles(wanted, progress),
  ]);
  ort.env.wasm.wasmPaths = new URL("runtime/", import.meta.url).href;
  ort.env.wasm.wasmBinary = files[names.at(-1)];
  ort.env.wasm.numThreads = threads();
  ort.env.logLevel = "error";
  const sessions = {};
  for (const name of names.filter((n) => n.endsWith(".onnx"))) {
    try {
      const options = { executionProviders: [backend], logSeverityLevel: 3 };
      sessions[name] = await ort.InferenceSession.create(new Uint8Array(files[name]), options);
    } catch (error) {
      throw new Error(`${name} cannot be opened (${String(error.message).slice(0, 120)})`);
    }
    delete files[name]; // the runtime has its own copy
  }
  const runtime = { backend, ort, files, sessions };
  if (backend === "webgpu") {
    await test(runtime, facts);
  }
  return runtime;
}

async function load(path) {
  try {
    return await import(path);
  } catch {
    throw new Error("its runtime is missing; `make web` fetches it");
  }
}

/** Threads need a page that is isolated from other sites' (headers COOP and COEP). */
function threads() {
  return globalThis.crossOriginIsolated
    ? Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1)
    : 1;
}

/** Draw the average face and compare some of its pixels with those that torch draws. */
async function test(runtime, facts) {
  const { readTensors } = await import("./tensors.js");
  const average = readTensors(runtime.files["latents.safetensors"]).tensors.w_avg.data;
  const ws = new Float32Array(facts.num_ws * average.length);
  for (let layer = 0; layer < facts.num_ws; layer++) {
    ws.set(average, layer * average.length);
  }
  const pixels = await run(runtime, facts, [ws]);
  const { size, channels, probe } = facts;
  const side = Math.sqrt(probe.length / channels);
  const at = (i) => Math.floor(((2 * i + 1) * size) / (2 * side));
  const wrong = probe.some((value, i) => {
    const [place, channel] = [Math.floor(i / channels), i % channels];
    const pixel = at(Math.floor(place / side)) * size + at(place % side);
    return Math.abs(pixels[pixel * channels + channel] - value) > PROBE_TOLERANCE;
  });
  if (wrong) {
    throw new Error("this GPU draws other faces than the others");
  }
}

/**
 * Draw faces of latents.
 * @param {Runtime} runtime
 * @param {object} facts
 * @param {Float32Array[]} latents of one face each
 * @returns {Promise<Uint8Array>} `[N, size, size, channels]`
 */
export async function run({ ort, sessions }, facts, latents) {
  const length = latents[0].length;
  const all = new Float32Array(latents.length * length);
  latents.forEach((one, n) => all.set(one, n * length));
  const shape = facts.num_ws ? [facts.num_ws, facts.w_dim] : [facts.z_dim];
  const feeds = { [facts.input]: new ort.Tensor("float32", all, [latents.length, ...shape]) };
  if (facts.input === "z") {
    feeds.psi = new ort.Tensor("float32", [1], []); // z is scaled already
  }
  return (await sessions["generator.onnx"].run(feeds)).faces.data;
}

/**
 * Make one face larger.
 * @param {Runtime} runtime
 * @param {object} facts
 * @param {Uint8Array} face `[size, size, channels]`
 * @returns {Promise<{pixels: Uint8Array, size: number}>}
 */
export async function enlarge({ ort, sessions }, { size, channels }, face) {
  const small = new ort.Tensor("uint8", face, [1, size, size, channels]);
  const { faces } = await sessions["enlarger.onnx"].run({ small });
  return { pixels: faces.data, size: faces.dims[1] };
}
