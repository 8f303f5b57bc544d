// Sliders and colours: what studio/directions.py does to ws, from the file that
// studio/website.py writes.

import { addRows, affine, readTensors } from "./tensors.js";

const LEAST_WAY = 0.2; // of a slider, in lengths of the way from its middle
const MOST_WAY = 2.5;
const FARTHEST = 5; // in units of colour_bounds: what is picked beyond is drawn at this distance
const FARTHEST_AIM = 7.5; // likewise: no face is moved farther than this by the map

/**
 * @typedef {{name: string, kind: string, low: number, high: number, step: number,
 *   family: string}} Slider
 * @typedef {import("./recipe.js").Edit} Edit
 */

/** The sliders and colours of one generator. */
export class Directions {
  /** @param {ArrayBuffer} buffer of directions.safetensors */
  constructor(buffer) {
    const { tensors, metadata } = readTensors(buffer);
    this.tensors = tensors;
    /** @type {Record<string, Slider>} */
    this.sliders = Object.fromEntries(JSON.parse(metadata.sliders).map((s) => [s.name, s]));
    /** @type {string[]} parts of a face that can be coloured */
    this.parts = JSON.parse(metadata.colours);
  }

  /** Return what a page needs to lay out: sliders in the file's order, and coloured parts. */
  describe() {
    return { sliders: Object.values(this.sliders), parts: this.parts };
  }

  /**
   * Apply all edits, sliders first, then colours. Each slider's way is measured on the face as it
   * was, so that their order does not matter.
   * @param {Float32Array} ws `[num_ws × w_dim]`; changed in place
   * @param {Edit[]} edits which the generator can do
   */
  apply(ws, edits) {
    const before = ws.slice();
    for (const { name, value } of edits) {
      if (typeof value === "number") {
        this.slide(ws, before, this.sliders[name], value);
      }
    }
    for (const { name, value } of edits) {
      if (typeof value === "string") {
        this.colour(ws, name, hexToLab(value));
      }
    }
  }

  /** Move one slider. */
  slide(ws, before, slider, value) {
    const t = this.tensors;
    const { name, family } = slider;
    if (!family) {
      const map = t[`place_map.${name}`];
      const share = map ? way(value, affine(map, before, t[`place_bias.${name}`].data)[0]) : value;
      addRows(ws, [share], t[`unit.${name}`]);
      return;
    }
    const right = value > 0;
    const share = value / (right ? slider.high : slider.low);
    const found = affine(t[`family_map.${family}`], before, t[`family_bias.${family}`].data);
    const targets = t[`target.${name}`].data.slice(right ? found.length : 0);
    addRows(ws, found.map((f, i) => share * (targets[i] - f)), t[`family_step.${family}`]);
  }

  /** Move ws towards a colour of a part, as far as there are such faces. */
  colour(ws, part, target) {
    const aimed = this.aimed(part, target);
    const found = this.predict(ws, part);
    addRows(ws, aimed.map((a, i) => a - found[i]), this.tensors[`colour_step.${part}`]);
  }

  /** Return the colour (Lab / 100) that ws should give a part. */
  predict(ws, part) {
    return affine(
      this.tensors[`colour_map.${part}`], ws, this.tensors[`colour_bias.${part}`].data,
    );
  }

  /** Return the predicted colour of each part, `{hair: "#rrggbb"}`. */
  shown(ws) {
    return Object.fromEntries(this.parts.map((part) => [part, labToHex(this.predict(ws, part))]));
  }

  /** Return the colour that the map must foretell for the part to get `target`. */
  aimed(part, target) {
    const mean = this.tensors[`colour_mean.${part}`].data;
    const reach = this.within(part, target.map((t, i) => t - mean[i]), FARTHEST);
    // The offset, its products and 1: a map that is linear tells too much of strong colours.
    const terms = [1, ...reach];
    for (let i = 0; i < 3; i++) {
      for (let j = i; j < 3; j++) {
        terms.push(reach[i] * reach[j]);
      }
    }
    const aim = affine(this.tensors[`colour_aim.${part}`], terms, [0, 0, 0]);
    return this.within(part, [...aim], FARTHEST_AIM).map((a, i) => mean[i] + a);
  }

  /** Shorten an offset from the mean colour to what is no farther. */
  within(part, offset, farthest) {
    const lengths = affine(this.tensors[`colour_bounds.${part}`], offset, [0, 0, 0]);
    const share = Math.min(1, farthest / Math.max(Math.hypot(...lengths), 1e-6));
    return offset.map((o) => o * share);
  }
}

/** Return how many units a slider of the first format moves a face that stands at `place`. */
function way(value, place) {
  return value * Math.min(MOST_WAY, Math.max(LEAST_WAY, 1 - Math.sign(value) * place));
}

const TO_XYZ = [
  [0.4124564, 0.3575761, 0.1804375],
  [0.2126729, 0.7151522, 0.072175],
  [0.0193339, 0.119192, 0.9503041],
];
const TO_RGB = [
  [3.2404542, -1.5371385, -0.4985314],
  [-0.969266, 1.8760108, 0.041556],
  [0.0556434, -0.2040259, 1.0572252],
];
const WHITE = [0.95047, 1, 1.08883];
const dot = (row, vector) => row[0] * vector[0] + row[1] * vector[1] + row[2] * vector[2];

/** Convert sRGB "#rrggbb" to CIE Lab (D65, 2°) / 100 (IEC 61966-2-1, CIE 15). */
export function hexToLab(colour) {
  const linear = [1, 3, 5].map((i) => {
    const value = parseInt(colour.slice(i, i + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  const [x, y, z] = TO_XYZ.map((row) => {
    const share = dot(row, linear) / dot(row, [1, 1, 1]); // relative to white
    return share > (6 / 29) ** 3 ? Math.cbrt(share) : share / (3 * (6 / 29) ** 2) + 4 / 29;
  });
  return [1.16 * y - 0.16, 5 * (x - y), 2 * (y - z)];
}

/** Convert CIE Lab (D65, 2°) / 100 to sRGB, clamped into its gamut. */
export function labToHex([lightness, a, b]) {
  const y = (100 * lightness + 16) / 116;
  const xyz = [y + a / 5, y, y - b / 2].map(
    (f, i) => WHITE[i] * (f > 6 / 29 ? f ** 3 : 3 * (6 / 29) ** 2 * (f - 4 / 29)),
  );
  const digits = TO_RGB.map((row) => {
    const linear = Math.min(1, Math.max(0, dot(row, xyz)));
    const value = linear <= 0.0031308 ? 12.92 * linear : 1.055 * linear ** (1 / 2.4) - 0.055;
    return Math.round(255 * value).toString(16).padStart(2, "0");
  });
  return `#${digits.join("")}`;
}
