// Where Meet's sliders and colours are laid out: what comes with the weights, in folding sections.

import { COLOURED } from "./another.js";
import { make, one, slider } from "./parts.js";

/**
 * @typedef {import("./context.js").PageContext} PageContext
 * @typedef {import("./directions.js").Slider} Slider
 * @typedef {Map<string, HTMLInputElement>} Inputs by the name of their edit
 */

/**
 * Place a slider for each direction, and a picker for each part that can be coloured.
 * @param {PageContext} page
 * @param {() => void} onInput called when a visitor moves one
 * @returns {{sliders: Inputs, pickers: Inputs}} none where the generator has none
 */
export function layOutEdits(page, onInput) {
  const { directions, facts } = page;
  const [sliders, pickers] = [new Map(), new Map()];
  if (!directions) {
    if (facts.num_ws) {
      sayWhyThereAreNone(page);
    }
    return { sliders, pickers };
  }
  const add = (inputs, name, { label, input }) => {
    input.addEventListener("input", onInput);
    inputs.set(name, input);
    return label;
  };
  const named = directions.sliders.filter(({ kind }) => kind === "attribute");
  const isShade = ({ name }) => COLOURED.some((part) => name.startsWith(`${part}-`));
  const sections = {
    features: named.filter((entry) => !isShade(entry)),
    shades: named.filter(isShade),
    deeper: directions.sliders.filter(({ kind }) => kind !== "attribute"),
  };
  const parts = COLOURED.filter((part) => directions.parts.includes(part));
  if (parts.length) {
    section(page, "colours", true, parts.map((part) => add(pickers, part, picker(page, part))));
  }
  for (const [title, entries] of Object.entries(sections)) {
    if (entries.length) {
      const labels = entries.map((entry) => add(sliders, entry.name, direction(page, entry)));
      section(page, title, title === "features", labels);
    }
  }
  one("#hold-row").hidden = false;
  return { sliders, pickers };
}

function sayWhyThereAreNone(page) {
  const notice = page.facts.directions_notice;
  const lines = [page.say("meet.no-directions")];
  if (!notice.startsWith("These weights have no")) {
    lines.push(notice); // a fault of the file, in its own words
  }
  const texts = lines.map((textContent) => make("p", { textContent }));
  one("#edits").append(make("div", { id: "no-directions" }, ...texts));
}

function section(page, name, open, children) {
  const title = make("summary", { textContent: page.say(`meet.${name}`) });
  const body = make("div", { className: name === "colours" ? "colours" : "form" }, ...children);
  const className = name === "colours" ? "section" : "section sliders";
  one("#edits").append(make("details", { className, open }, title, body));
}

function picker(page, part) {
  const input = make("input", { type: "color" });
  input.dataset.shown = input.value;
  const name = make("span", { textContent: page.say(`colour.${part}`) });
  return { label: make("label", { id: `edit-${part}` }, name, input), input };
}

/** @param {PageContext} page @param {Slider} entry */
function direction(page, { name, low, high, step }) {
  const plainName = name.replaceAll("-", " ");
  const title = plainName[0].toUpperCase() + plainName.slice(1);
  const words = page.words.say(`direction.${name}`, {}, title);
  return slider({ id: `edit-${name}`, name: words, low, high, step });
}
