// A recipe → the latents that the generator draws, as studio/latents.py computes them.
//
// The order: the seed's z, spherically between two, → w (or a given w, linearly between two) →
// truncation → mixing → variation → edits.

import { filledGroups, findLayers } from "./layers.js";
import { latents } from "./seeds.js";
import { affine, readTensors } from "./tensors.js";

// How a latent's text is written, by its first byte: 1, a latent for each layer group; 2, one for
// each layer.
const W_FORMATS = {
  1: (facts) => filledGroups(facts).map((group) => facts.groups[group]),
  2: ({ num_ws }) => Array.from({ length: num_ws }, (_, layer) => [layer, layer + 1]),
};
const MAX_SCALE = 16; // largest step of an encoded w

/**
 * @typedef {import("./recipe.js").Recipe} Recipe
 * @typedef {import("./layers.js").Shape & {input: string, z_dim: number, w_dim: number,
 *   slope: number}} Facts
 */

/** The mapping network, the average w, and what recipes do with them. */
export class Latents {
  /**
   * @param {Facts} facts
   * @param {ArrayBuffer | null} buffer of latents.safetensors; null for a generator without w
   * @param {import("./directions.js").Directions | null} directions
   */
  constructor(facts, buffer, directions) {
    this.facts = facts;
    this.tensors = buffer ? readTensors(buffer).tensors : {};
    this.average = this.tensors.w_avg?.data;
    this.directions = directions;
  }

  /**
   * Return what the generator draws a recipe from.
   * @param {Recipe} recipe which `listFaults` finds no fault with
   * @returns {Float32Array} ws `[num_ws × w_dim]`, or z `[z_dim]` where there is no w
   */
  of(recipe) {
    if (!this.facts.num_ws) {
      return this.z(recipe).map((value) => value * recipe.psi);
    }
    const ws = this.truncate(this.untruncated(recipe), recipe);
    for (const { seed, group } of recipe.mix) {
      const [start, stop] = this.facts.groups[group].map((layer) => layer * this.facts.w_dim);
      ws.set(this.truncate(this.seed(seed), recipe).subarray(start, stop), start);
    }
    if (recipe.vary) {
      this.step(ws, recipe.vary, [0, this.facts.num_ws]);
    }
    for (const step of recipe.steps) {
      this.step(ws, step, findLayers(this.facts, step.layers));
    }
    if (recipe.edits.length) {
      this.directions.apply(ws, recipe.edits);
    }
    return ws;
  }

  /** Take a step in some layers, in the direction that its seed names; ws are changed in place. */
  step(ws, { seed, radius }, [start, stop]) {
    const aside = this.seed(seed);
    const dim = this.facts.w_dim;
    for (let i = start * dim; i < stop * dim; i++) {
      ws[i] += radius * (aside[i] - this.average[i % dim]);
    }
  }

  /** Return z of a recipe's seed, or spherically between two seeds. */
  z({ seed, between }) {
    const z = latents([seed], this.facts.z_dim);
    return between ? slerp(z, latents([between.seed], this.facts.z_dim), between.share) : z;
  }

  /** Map z to one w for each layer, untruncated. */
  map(z) {
    const size = Math.sqrt(z.reduce((sum, value) => sum + value * value, 0) / z.length + 1e-8);
    let w = z.map((value) => value / size);
    for (let layer = 0; this.tensors[`mapping.${layer}.weight`]; layer++) {
      const bias = this.tensors[`mapping.${layer}.bias`].data;
      w = affine(this.tensors[`mapping.${layer}.weight`], w, bias);
      w = w.map((value) => (value < 0 ? value * this.facts.slope : value));
    }
    return this.everywhere(w);
  }

  /** Repeat one w for each layer. */
  everywhere(w) {
    const ws = new Float32Array(this.facts.num_ws * this.facts.w_dim);
    for (let layer = 0; layer < this.facts.num_ws; layer++) {
      ws.set(w, layer * this.facts.w_dim);
    }
    return ws;
  }

  /** Return the untruncated ws of a seed. */
  seed(seed) {
    return this.map(latents([seed], this.facts.z_dim));
  }

  /** Return the ws of a recipe's seed or w, on its way between two faces. */
  untruncated(recipe) {
    if (!recipe.w) {
      return this.map(this.z(recipe));
    }
    const ws = decode(recipe.w, this.facts, this.average);
    return recipe.between ? lerp(ws, this.seed(recipe.between.seed), recipe.between.share) : ws;
  }

  /** Move ws towards the average face by psi and, in the fine layers, by `fine`. */
  truncate(ws, { psi, fine }) {
    const average = this.everywhere(this.average);
    const moved = lerp(average, ws, psi);
    if (fine !== null) {
      const [start, stop] = this.facts.groups.fine.map((layer) => layer * this.facts.w_dim);
      moved.set(lerp(average, ws, fine).subarray(start, stop), start);
    }
    return moved;
  }
}

/** Walk a share of the straight line from a to b. */
function lerp(a, b, share) {
  return a.map((value, i) => value + share * (b[i] - value));
}

/** Walk a share of the great circle from a to b (Shoemake 1985); a line where there is none. */
function slerp(a, b, share) {
  let product = 0;
  let first = 0;
  let second = 0;
  for (let i = 0; i < a.length; i++) {
    product += a[i] * b[i];
    first += a[i] * a[i];
    second += b[i] * b[i];
  }
  const angle = Math.acos(Math.min(1, Math.max(-1, product / Math.sqrt(first * second))));
  if (Math.sin(angle) < 1e-6) {
    return lerp(a, b, share);
  }
  const near = Math.sin((1 - share) * angle) / Math.sin(angle);
  const far = Math.sin(share * angle) / Math.sin(angle);
  return a.map((value, i) => value * near + b[i] * far);
}

/**
 * Return what is wrong with a latent's text, or "".
 * @param {string} text in base64url
 * @param {Facts} facts
 */
export function latentFault(text, facts) {
  const cut = "this latent is cut off, or of another generator";
  const length = (format) =>
    Math.ceil(((1 + W_FORMATS[format](facts).length * (2 + facts.w_dim)) * 4) / 3);
  const known = Object.keys(W_FORMATS).map(length);
  if (!/^[A-Za-z0-9_-]+$/.test(text) || !known.includes(text.length)) {
    return cut;
  }
  const data = bytes(text);
  if (!W_FORMATS[data[0]]) {
    return "this latent is written in an unknown way";
  }
  if (text.length !== length(data[0])) {
    return cut;
  }
  const steps = W_FORMATS[data[0]](facts).map((_, i) => half(data, 1 + i * (2 + facts.w_dim)));
  return steps.every((s) => s >= 0 && s <= MAX_SCALE) ? "" : "this latent is damaged";
}

/** Read the text of a latent without fault as ws `[num_ws × w_dim]`. */
function decode(text, facts, average) {
  const data = bytes(text);
  const dim = facts.w_dim;
  const ws = new Float32Array(facts.num_ws * dim);
  W_FORMATS[data[0]](facts).forEach(([start, stop], i) => {
    const at = 1 + i * (2 + dim);
    const step = half(data, at);
    for (let layer = start; layer < stop; layer++) {
      for (let k = 0; k < dim; k++) {
        ws[layer * dim + k] = average[k] + Math.fround(step * ((data[at + 2 + k] << 24) >> 24));
      }
    }
  });
  return ws;
}

function bytes(text) {
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(binary, (character) => character.charCodeAt(0));
}

/** Read a little-endian 16-bit float (IEEE 754). */
function half(data, at) {
  const number = data[at] | (data[at + 1] << 8);
  const sign = number & 0x8000 ? -1 : 1;
  const exponent = (number >> 10) & 31;
  const fraction = number & 1023;
  if (exponent === 31) {
    return fraction ? NaN : sign * Infinity;
  }
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : fraction * 2 ** -24);
}
