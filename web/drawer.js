// A worker that draws faces, so that the page never waits for one.
//
// in:  {id, seeds, psi}      out: {facts} once, then {id, faces: [RGBA bytes, one array a face]}
//                            or {id, fault}; a fault without an id: nothing can be drawn

import * as ort from "./runtime/ort.wasm.min.mjs";
import { latents } from "./seeds.js";

const BATCH = 4; // small, so that the large face waits for few others

ort.env.wasm.wasmPaths = new URL("runtime/", import.meta.url).href;
// Threads need a page that is isolated from other sites' (COOP and COEP headers of the server).
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;

const ready = open();
let last = ready; // one drawing at a time

async function open() {
  const answer = await fetch("generator.json");
  if (!answer.ok) {
    throw new Error("no generator lies beside this page; `make web` puts one there");
  }
  const facts = await answer.json();
  // The revision in the address keeps a browser from using the file of older weights.
  const session = await ort.InferenceSession.create(`generator.onnx?rev=${facts.revision}`);
  return { facts, session };
}

async function draw(seeds, psi) {
  const { facts, session } = await ready;
  const faces = [];
  for (let first = 0; first < seeds.length; first += BATCH) {
    const part = seeds.slice(first, first + BATCH);
    const z = new ort.Tensor("float32", latents(part, facts.z_dim), [part.length, facts.z_dim]);
    const outputs = await session.run({ z, psi: new ort.Tensor("float32", [psi], []) });
    faces.push(...split(outputs.faces.data, facts));
  }
  return faces;
}

/** Cut pixels [N, size, size, channels] into one RGBA array for each face. */
function split(pixels, { size, channels }) {
  const area = size * size;
  return Array.from({ length: pixels.length / (area * channels) }, (_, n) => {
    const rgba = new Uint8ClampedArray(area * 4).fill(255);
    for (let i = 0; i < area; i++) {
      const from = (n * area + i) * channels;
      for (let c = 0; c < 3; c++) {
        rgba[i * 4 + c] = pixels[from + (channels === 3 ? c : 0)];
      }
    }
    return rgba;
  });
}

self.onmessage = ({ data: { id, seeds, psi } }) => {
  last = last
    .then(() => draw(seeds, psi))
    .then((faces) => self.postMessage({ id, faces }))
    .catch((error) => self.postMessage({ id, fault: error.message }));
};

ready.then(
  ({ facts }) => self.postMessage({ facts }),
  (error) => self.postMessage({ fault: error.message }),
);
