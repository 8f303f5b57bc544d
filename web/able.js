// What a generator can draw of a recipe, as `Studio.usable` tells it.

import { latentFault } from "./latents.js";
import { hasLayers } from "./layers.js";
import { FIELDS, makeRecipe, numberText } from "./recipe.js";

const NEEDS_W = {
  mix: "its faces cannot be mixed",
  edits: "its faces cannot be edited",
  vary: "its faces cannot be varied",
  steps: "its faces cannot be varied",
  w: "it cannot draw a given one",
};
/** Return what an address calls a field. */
const wordOf = (field) => Object.keys(FIELDS).find((word) => FIELDS[word] === field) ?? field;
const told = (names) => (names.length ? `there are ${names.join(", ")}` : "there are none");

/** Return what is wrong with one edit, or "". */
function editFault({ name, value }, { sliders, parts }) {
  if (typeof value === "string") {
    return parts.includes(name) ? "" : `${name} takes no colour here; ${told(parts)}`;
  }
  const slider = sliders.find((s) => s.name === name);
  if (!slider) {
    return `there is no slider ${name} here; ${told(sliders.map((s) => s.name))}`;
  }
  return value >= slider.low && value <= slider.high
    ? ""
    : `${name} takes a number from ${numberText(slider.low)} to ${numberText(slider.high)}, ` +
        `not ${numberText(value)}`;
}

/** Yield [field, entry, sentence] for what names layers that the generator lacks. */
function* listLayerFaults(recipe, facts) {
  const named = [
    ...recipe.mix.map((mix) => ["mix", mix, mix.group]),
    ...recipe.steps.map((step) => ["steps", step, step.layers]),
  ];
  for (const [field, entry, layers] of named.filter(([, , name]) => !hasLayers(facts, name))) {
    yield [field, entry, Object.hasOwn(facts.groups, layers)
      ? `this generator is too small to have ${layers} layers`
      : `this generator has no block of ${layers} px`];
  }
}

/** Yield [field, entry or undefined for all of it, sentence] for what cannot be drawn. */
function* listFaults(recipe, facts, directions) {
  if (!facts.num_ws) {
    for (const [field, why] of Object.entries(NEEDS_W)) {
      if (recipe[field]?.length || recipe[field]?.radius) {
        yield [field, undefined, `this generator has no w, so ${why}`];
      }
    }
    return;
  }
  yield* listLayerFaults(recipe, facts);
  const fault = recipe.w && latentFault(recipe.w, facts);
  if (fault) {
    yield ["w", undefined, fault];
  }
  if (recipe.edits.length && !directions) {
    yield ["edits", undefined, facts.directions_notice.replace(/\.$/, "")];
  }
  for (const edit of directions ? recipe.edits : []) {
    const why = editFault(edit, directions);
    if (why) {
      yield ["edits", edit, why];
    }
  }
}

/**
 * Return what of a recipe the generator can draw, and what it says of the rest.
 * @param {import("./recipe.js").Recipe} recipe
 * @param {import("./latents.js").Facts & {directions_notice: string}} facts
 * @param {{sliders: import("./directions.js").Slider[], parts: string[]} | null} directions
 * @returns {{recipe: import("./recipe.js").Recipe, faults: string[], sentences: string[]}}
 */
export function usable(recipe, facts, directions) {
  const fields = { ...recipe };
  const faults = new Set();
  const sentences = new Set();
  for (const [field, entry, sentence] of listFaults(recipe, facts, directions)) {
    faults.add(wordOf(field));
    sentences.add(`${sentence[0].toUpperCase()}${sentence.slice(1)}.`);
    fields[field] = entry === undefined ? undefined : fields[field].filter((e) => e !== entry);
  }
  const fine = facts.num_ws ? recipe.fine ?? recipe.psi : recipe.psi;
  return {
    recipe: makeRecipe({ ...fields, fine }, facts),
    faults: [...faults],
    sentences: [...sentences],
  };
}
