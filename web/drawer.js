// A worker that draws faces, so that the page never waits for one. The large face goes first.
//
// in:   {id, kind: "face", recipe}        the large face; an older one that waits is given up
//       {id, kind: "faces", recipes}      small faces, one after the other
//       {id, kind: "forget"}
// out:  {facts, directions}, {progress: {done, total}} …, {ready: backend}; or {fault} for good
//       {id, small, size, colours}, {id, large, size, done: true}       of the large face
//       {id, index, small, size, done}                                  of each small one
//       {id, fault, done: true}
//
// Pixels are RGBA bytes.

import { Directions } from "./directions.js";
import { forgetOthers } from "./files.js";
import { Latents } from "./latents.js";
import { queryOf } from "./recipe.js";
import { enlarge, openRuntime, run } from "./runtime.js";

const KEPT = 256; // small faces: what was just seen is not drawn again

const choice = new URL(import.meta.url).searchParams.get("backend") ?? "";
const post = (message) => self.postMessage(message);
const jobs = new Map(); // id → job; the newest last
const kept = new Map(); // query → small face, the one used last at the end
const opening = open();
let active = null; // the job whose step runs
let working = false;

async function open() {
  const answer = await fetch(new URL("generator.json", import.meta.url)).catch(() => null);
  const facts = await answer?.json().catch(() => null);
  if (!answer?.ok || !facts?.files) {
    throw new Error("no generator lies beside this page; `make web` puts one there");
  }
  post({ facts });
  const progress = (done, total) => post({ progress: { done, total } });
  const runtime = await openRuntime(facts, choice, progress);
  const packed = runtime.files["directions.safetensors"];
  const directions = packed ? new Directions(packed) : null;
  const w = runtime.files["latents.safetensors"] ?? null;
  const latents = new Latents(facts, w, directions);
  forgetOthers(facts.files).catch(() => {});
  post({ ready: runtime.backend, directions: directions?.describe() ?? null });
  return { facts, runtime, latents, directions };
}

/** Return the small face of a recipe, `[size, size, channels]`. */
async function drawSmall(drawer, recipe, ws) {
  const query = queryOf(recipe);
  const face = kept.get(query) ?? (await run(drawer.runtime, drawer.facts, [ws])).slice();
  kept.delete(query);
  kept.set(query, face);
  if (kept.size > KEPT) {
    kept.delete(kept.keys().next().value);
  }
  return face;
}

/** Turn pixels `[size, size, channels]` into RGBA bytes. */
function toRgba(pixels, channels) {
  const rgba = new Uint8ClampedArray((pixels.length / channels) * 4).fill(255);
  for (let i = 0, from = 0; i < rgba.length; i += 4, from += channels) {
    rgba[i] = pixels[from];
    rgba[i + 1] = pixels[channels === 3 ? from + 1 : from];
    rgba[i + 2] = pixels[channels === 3 ? from + 2 : from];
  }
  return rgba;
}

/** Draw the small large face, then enlarge it in a step of its own. */
async function stepFace(drawer, job) {
  const { facts, directions, latents, runtime } = drawer;
  if (!job.small) {
    const ws = latents.of(job.recipe);
    job.small = await drawSmall(drawer, job.recipe, ws);
    const done = !runtime.sessions["enlarger.onnx"] || Boolean(job.superseded);
    const colours = directions ? directions.shown(ws) : {};
    const small = toRgba(job.small, facts.channels);
    post({ id: job.id, small, size: facts.size, colours, done });
    return done;
  }
  const { pixels, size } = await enlarge(runtime, facts, job.small);
  post({ id: job.id, large: toRgba(pixels, facts.channels), size, done: true });
  return true;
}

/** Draw the next of some small faces. */
async function stepFaces(drawer, job) {
  const index = job.next++;
  const recipe = job.recipes[index];
  const face = await drawSmall(drawer, recipe, drawer.latents.of(recipe));
  const done = job.next >= job.recipes.length;
  const small = toRgba(face, drawer.facts.channels);
  post({ id: job.id, index, small, size: drawer.facts.size, done });
  return done;
}

/** Return what to work on: the large face, else the faces that were asked for last. */
function choose() {
  const waiting = [...jobs.values()];
  return waiting.find(({ kind }) => kind === "face") ?? waiting.at(-1);
}

/** Work until nothing waits; messages are read between two steps. */
async function work() {
  const drawer = await opening;
  for (let job = choose(); job; job = choose()) {
    active = job;
    try {
      const done = await (job.kind === "face" ? stepFace : stepFaces)(drawer, job);
      if (done) {
        jobs.delete(job.id);
      }
    } catch (error) {
      jobs.delete(job.id);
      post({ id: job.id, fault: error.message, done: true });
    }
    active = null;
    await new Promise((next) => setTimeout(next));
  }
}

self.onmessage = ({ data: { id, kind, ...rest } }) => {
  if (kind === "forget") {
    jobs.delete(id);
    return;
  }
  if (kind === "face") {
    for (const old of [...jobs.values()].filter((job) => job.kind === "face")) {
      if (old === active) {
        old.superseded = true; // it is shown as far as it is, or a dragged slider would show none
      } else {
        jobs.delete(old.id);
        post({ id: old.id, done: true });
      }
    }
  }
  jobs.set(id, { id, kind, next: 0, ...rest });
  if (!working) {
    working = true;
    work().catch(() => {}).finally(() => (working = false));
  }
};

opening.catch((error) => post({ fault: error.message }));
