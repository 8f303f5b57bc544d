// A face's recipe, as studio/recipe.py defines it: the query of an address ⇄ an object.

import { SEED_MAX } from "./seeds.js";

const GROUPS = ["coarse", "middle", "fine"];
const MAX_MIXES = 8;
const MAX_STEPS = 16; // one for all layers, three groups and every block that there can be
const MAX_EDITS = 48;
const MAX_EDIT = 10;
const MAX_RADIUS = 2;
const MAX_TEXT = 1024;
const MAX_W_TEXT = 4096;
const NAME = /^[a-z0-9]+(-[a-z0-9]+)*$/;
const COLOUR = /^#?([0-9a-f]{6})$/;
const LAYERS = /^(coarse|middle|fine|[1-9][0-9]{0,3})$/;
const NUMBER = /^[+-]?[0-9]*\.?[0-9]*([eE][+-]?[0-9]{1,3})?$/;

export const NUMBERS = ["seed", "psi", "fine"];
export const SEED_RULE = `a seed is a whole number from 0 to ${SEED_MAX}`;
export const RULES = {
  mix: "a mix is SEED@GROUP, such as 77@middle",
  edit: "an edit is NAME:NUMBER or NAME:COLOUR, such as smile:1.5",
  vary: "a variation is SEED:RADIUS, such as 5:0.3",
  between: "a face between two is SEED:SHARE, such as 77:0.5",
  w: "a latent is written in base64",
};

/**
 * @typedef {{seed: number, group: string}} Mix
 * @typedef {{name: string, value: number | string}} Edit a slider's number or "#rrggbb"
 * @typedef {{seed: number, radius: number, layers: string}} Vary a step in w, in the layers of a
 *   group or of the block of so many px; "": in all
 * @typedef {Object} Recipe
 * @property {number} seed 0 … 2³²−1
 * @property {number} psi truncation, -2 … 2
 * @property {number | null} fine that of the fine layers; null: psi
 * @property {Mix[]} mix
 * @property {Edit[]} edits
 * @property {Vary | null} vary in all layers
 * @property {Vary[]} steps in some layers
 * @property {{seed: number, share: number} | null} between
 * @property {string} w a latent instead of the seed's
 */

/**
 * Return a recipe in its one form: equal faces have equal recipes.
 * @param {Partial<Recipe> & {seed: number}} parts of several steps in the same layers the last one
 *   counts, `vary` after `steps`
 * @param {{psi: number, fine: number}} usual truncation where none is given
 * @returns {Recipe}
 */
export function makeRecipe(parts, usual) {
  const psi = parts.psi ?? usual.psi;
  const fine = parts.fine ?? (parts.psi === undefined ? usual.fine : psi);
  const mixes = new Map((parts.mix ?? []).map((mix) => [mix.group, mix]));
  const edits = new Map((parts.edits ?? []).map((edit) => [edit.name, edit]));
  const steps = new Map((parts.steps ?? []).map((step) => [step.layers, step]));
  if (parts.vary) {
    steps.set("", { ...parts.vary, layers: "" });
  }
  const varied = [...steps.values()].filter(({ radius }) => radius);
  return {
    seed: parts.seed,
    psi,
    fine: fine === psi ? null : fine,
    mix: GROUPS.filter((group) => mixes.has(group)).map((group) => mixes.get(group)),
    edits: [...edits.values()]
      .filter(({ value }) => value !== 0)
      .sort((a, b) => (a.name < b.name ? -1 : 1)),
    vary: varied.find(({ layers }) => !layers) ?? null,
    steps: varied.filter(({ layers }) => layers).sort((a, b) => place(a) - place(b)),
    between: parts.between?.share ? parts.between : null,
    w: parts.w ?? "",
  };
}

/** Return where a step stands among others: groups first, then blocks by their px. */
function place({ layers }) {
  return GROUPS.includes(layers) ? GROUPS.indexOf(layers) - GROUPS.length : Number(layers);
}

/** Return the face of a seed at the same truncation. */
export function plain({ psi, fine }, seed) {
  return makeRecipe({ seed, psi, fine: fine ?? psi });
}

/** Tell whether a recipe is nothing but a seed and its truncation. */
export function isPlain(recipe) {
  return queryOf(recipe) === queryOf(plain(recipe, recipe.seed));
}

// ----------------------------------------------------------------------------------------
// Writing

/** Write a number as Python's `:g` does where that keeps it, else as shortly as it can be. */
export function numberText(number) {
  const [digits, exponent] = number.toExponential().split("e");
  if (Number(exponent) >= -4 || number === 0) {
    return String(number);
  }
  return `${digits}e-${exponent.slice(1).padStart(2, "0")}`;
}

/**
 * Return what addresses and PNGs share: names and short texts, defaults left out.
 * @param {Recipe} recipe
 * @returns {Record<string, string>}
 */
export function textsOf({ seed, psi, fine, mix, edits, vary, between, w, steps }) {
  const varied = vary ? [vary, ...steps] : steps;
  const texts = { seed: String(seed), psi: numberText(psi) };
  if (fine !== null) texts.fine = numberText(fine);
  if (mix.length) texts.mix = mix.map(mixText).join(",");
  if (edits.length) texts.edit = edits.map(editText).join(",");
  if (varied.length) texts.vary = varied.map(varyText).join(",");
  if (between) texts.between = `${between.seed}:${numberText(between.share)}`;
  if (w) texts.w = w;
  return texts;
}

function mixText({ seed, group }) {
  return `${seed}@${group}`;
}

function editText({ name, value }) {
  return `${name}:${typeof value === "string" ? value.slice(1) : numberText(value)}`;
}

function varyText({ seed, radius, layers }) {
  return `${seed}:${numberText(radius)}${layers && `@${layers}`}`;
}

/** Return the query of an address that shows this face: `?seed=42&psi=0.7`. */
export function queryOf(recipe, revision = "") {
  const texts = { ...textsOf(recipe), ...(revision && { rev: revision }) };
  return `?${Object.entries(texts).map(([name, text]) => `${name}=${text}`).join("&")}`;
}

/** Tell whether the edits of a recipe fit into an address. */
export function fits(recipe) {
  return (textsOf(recipe).edit ?? "").length <= MAX_TEXT;
}

// ----------------------------------------------------------------------------------------
// Reading; each reader returns undefined for what cannot be used

export function readSeed(text) {
  return /^[0-9]{1,10}$/.test(text) && Number(text) <= SEED_MAX ? Number(text) : undefined;
}

export function readNumber(text, low, high) {
  const number = text && text.length <= 40 && NUMBER.test(text) ? Number(text) : NaN;
  return number >= low && number <= high ? number + 0 : undefined;
}

function readMix(text) {
  const [seed, ...rest] = text.split("@");
  const [number, group] = [readSeed(seed), rest.join("@")];
  return number === undefined || !GROUPS.includes(group) ? undefined : { seed: number, group };
}

function readEdit(text) {
  const [, name, written] = /^([^:=]*)[:=](.*)$/s.exec(text) ?? [];
  if (name === undefined || name.length > 40 || !NAME.test(name)) {
    return undefined;
  }
  if (written.startsWith("#") || COLOUR.test(written.toLowerCase())) {
    const colour = COLOUR.exec(written.slice(0, 8).toLowerCase());
    return colour ? { name, value: `#${colour[1]}` } : undefined;
  }
  const value = readNumber(written, -MAX_EDIT, MAX_EDIT);
  return value === undefined ? undefined : { name, value };
}

function readPair(text, most, what) {
  const [first, ...rest] = text.split(":");
  const [seed, number] = [readSeed(first), readNumber(rest.join(":"), 0, most)];
  return seed === undefined || number === undefined ? undefined : { seed, [what]: number };
}

function readVary(text) {
  const [pair, ...rest] = text.split("@");
  const layers = rest.join("@");
  const step = readPair(pair, MAX_RADIUS, "radius");
  return step && (!rest.length || LAYERS.test(layers)) ? { ...step, layers } : undefined;
}

/** Read a list with commas; return its usable entries, and whether that is all. */
function readList(text, read, write, most) {
  const entries = text.split(",");
  const found = [];
  let length = -1; // of the entries as they will be written, maybe longer than they were typed
  for (const entry of entries.slice(0, most)) {
    const part = read(entry.trim());
    if (part === undefined) {
      continue;
    }
    length += write(part).length + 1;
    if (length <= MAX_TEXT) {
      found.push(part);
    }
  }
  return { part: found, whole: found.length === entries.length };
}

/** Read one part's text; return what of it can be used, and whether that is all. */
function readPart(name, text) {
  const lists = {
    mix: () => readList(text, readMix, mixText, MAX_MIXES),
    edit: () => readList(text, readEdit, editText, MAX_EDITS),
    vary: () => readList(text, readVary, varyText, MAX_STEPS),
  };
  const ones = {
    between: () => readPair(text, 1, "share"),
    w: () => (/^[A-Za-z0-9_-]*$/.test(text) ? text : undefined),
  };
  if (!text || text.length > (name === "w" ? MAX_W_TEXT : MAX_TEXT)) {
    return { part: undefined, whole: !text };
  }
  if (lists[name]) {
    return lists[name]();
  }
  const part = ones[name]();
  return { part, whole: part !== undefined };
}

// From an address' words to a recipe's fields; among the steps a recipe finds its `vary` itself.
export const FIELDS = { edit: "edits", vary: "steps" };

/**
 * Read a recipe from the query of an address, or the text of a picture, that anyone may have made.
 * @param {Record<string, string>} query
 * @param {{seed: number, usual: {psi: number, fine: number}, low?: number, high?: number,
 *   source?: string}} options a face where no usable seed is given; bounds of psi and fine
 * @returns {{recipe: Recipe, faults: string[], sentences: string[]}} faults: names of the parts
 *   that could not all be used; sentences about them in English, which never repeat what the
 *   address said
 */
export function readRecipe(query, { seed, usual, low = 0, high = 1, source = "address" }) {
  const faults = [];
  const sentences = [];
  const blame = (name, sentence) => {
    faults.push(name);
    sentences.push(sentence);
  };
  const parts = { seed: query.seed === undefined ? seed : readSeed(query.seed) };
  if (parts.seed === undefined) {
    parts.seed = seed;
    blame("seed", `The seed in this ${source} cannot be used (${SEED_RULE}), ` +
      "so here is another face.");
  }
  for (const name of ["psi", "fine"]) {
    if (query[name] === undefined) {
      continue;
    }
    parts[name] = readNumber(query[name], low, high);
    if (parts[name] === undefined) {
      delete parts[name];
      blame(name, `The ${name} in this ${source} cannot be used (${name} is a number from ` +
        `${low} to ${high}), so here it is ${numberText(parts.psi ?? usual[name])}.`);
    }
  }
  for (const [name, rule] of Object.entries(RULES)) {
    const { part, whole } = readPart(name, query[name] ?? "");
    parts[FIELDS[name] ?? name] = part;
    if (!whole) {
      blame(name, `The ${name} in this ${source} cannot all be used (${rule}).`);
    }
  }
  return { recipe: makeRecipe(parts, usual), faults, sentences };
}
