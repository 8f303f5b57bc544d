// Another hair, expression or colouring for a face that is liked otherwise, as studio/another.py
// makes them: a new one takes the place of the last one of its kind.

import { blockSizes, filledGroups } from "./layers.js";
import { RandomState } from "./seeds.js";

export const PARTS = ["hair", "expression", "colouring"];
const RADIUS = { hair: 1, expression: 1.2 }; // of a step in one block; one below is hardly seen
const REACH = 0.7; // of a slider's way to its ends, where faces begin to tear
const EXPRESSIONS = ["smile", "open-mouth", "closed-eyes", "blush"]; // sliders, where there are some
export const COLOURED = ["hair", "eyes"]; // colours, and what the names of sliders of shades begin with

/**
 * @typedef {import("./recipe.js").Recipe} Recipe
 * @typedef {import("./recipe.js").Edit} Edit
 * @typedef {import("./directions.js").Slider} Slider
 */

/**
 * Return what changes in a face that is to differ in one part.
 * @param {import("./layers.js").Shape} shape of a generator with w
 * @param {Slider[]} sliders that it has
 * @param {Recipe} recipe the liked face
 * @param {string} part one of PARTS
 * @param {number} seed names the variation: the same one gives the same face
 * @returns {Partial<Recipe>}
 */
export function another(shape, sliders, recipe, part, seed) {
  if (part === "hair") {
    return step(shape, recipe, seed, 1, RADIUS.hair);
  }
  if (part === "colouring") {
    return colour(shape, recipe, seed);
  }
  const moved = EXPRESSIONS.map((name) => sliders.find((s) => s.name === name)).filter(Boolean);
  return moved.length
    ? { edits: move(recipe.edits, moved, seed) }
    : step(shape, recipe, seed, 2, RADIUS.expression);
}

/**
 * Return edits with each of some sliders moved by at least a quarter of its reach.
 * @param {Edit[]} edits
 * @param {Slider[]} sliders
 * @param {number} seed
 */
function move(edits, sliders, seed) {
  const values = new Map(edits.map(({ name, value }) => [name, value]));
  const stream = new RandomState(seed);
  for (const slider of sliders) {
    const share = 0.25 + 0.5 * stream.uniform();
    const [low, high] = [REACH * slider.low, REACH * slider.high];
    const at = ((values.get(slider.name) ?? 0) - low) / (high - low);
    const value = low + ((Math.min(1, Math.max(0, at)) + share) % 1) * (high - low);
    const whole = Math.round(value / slider.step) * slider.step;
    values.set(slider.name, Number(whole.toFixed(6)) + 0);
  }
  return [...values].map(([name, value]) => ({ name, value }));
}

/** Return the steps of a face after one in a block, in place of an earlier step there. */
function step(shape, recipe, seed, index, radius) {
  const layers = String(blockSizes(shape).slice(0, index + 1).at(-1));
  return { steps: [...recipe.steps, { seed, radius, layers }] };
}

/** Return the mixes of a face with a seed's fine layers, and edits without what else colours it. */
function colour(shape, recipe, seed) {
  const edits = recipe.edits.filter(({ name }) => !COLOURED.includes(name.split("-")[0]));
  return { mix: [...recipe.mix, { seed, group: filledGroups(shape).at(-1) }], edits };
}
