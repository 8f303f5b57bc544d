// Small pieces that all tabs are made of.

/** @returns {any} the first element that fits */
export const one = (selector) => document.querySelector(selector);

/**
 * Make an element.
 * @param {string} tag
 * @param {Record<string, any>} properties of the element; `data` goes to its dataset
 * @param {...(Node | string)} children
 */
export function make(tag, { data = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
}

/** Show a sentence on a line, or clear it; **bold** and `code` lose their marks. */
export function say(line, sentence = "") {
  const text = sentence.replace(/\*\*|`/g, "");
  line.replaceChildren(...(text ? [make("p", { textContent: text })] : []));
}

/** Paint RGBA bytes on a canvas of their size. */
export function paint(canvas, { pixels, size }) {
  canvas.width = canvas.height = size;
  canvas.getContext("2d").putImageData(new ImageData(pixels, size), 0, 0);
}

/** Return a face to choose, empty until it is painted. */
export function tile(caption, label, onClick) {
  const canvas = make("canvas", { width: 1, height: 1 });
  canvas.setAttribute("aria-hidden", "true");
  const button = make("button", { type: "button", className: "thumbnail-item" }, canvas,
    make("span", { className: "caption-label", textContent: caption }));
  button.setAttribute("aria-label", label);
  button.addEventListener("click", onClick);
  return button;
}

/** Copy the text of a field. */
export async function copy(field) {
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
  } catch {
    document.execCommand("copy"); // a page without https has no clipboard
  }
}

/** Return a slider with its name. */
export function slider({ id, name, low, high, step, value = 0 }) {
  const input = make("input", { type: "range", min: low, max: high, step, value });
  const label = make("label", { id }, make("span", { textContent: name }), input);
  if (low === -high) {
    label.classList.add("even"); // filled from its middle
  }
  return { label, input };
}

/** Fill a slider up to where it stands. */
export function fill(input) {
  const share = (input.value - input.min) / (input.max - input.min);
  input.style.setProperty("--range_progress", `${100 * share}%`);
}

const ROLL_SEEDS = 1_000_000; // six digits are easy to say and to send

/** Return a random seed. */
export const dice = () => Math.floor(Math.random() * ROLL_SEEDS);

/** Return the seed that a field holds, or undefined where it holds none. */
export function typedSeed(input, most) {
  const seed = Number(input.value);
  const usable = input.value.trim() !== "" && Number.isInteger(seed) && seed >= 0 && seed <= most;
  return usable ? seed : undefined;
}
