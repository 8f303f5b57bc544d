// Mix: two faces crossed layer by layer, on a sheet of three by three.

import { Gallery } from "./gallery.js";
import { dice, make, one, paint, say, typedSeed } from "./parts.js";
import { isPlain, plain, queryOf } from "./recipe.js";
import { SEED_MAX } from "./seeds.js";

// What each place of the sheet takes from B; places opposite each other complete each other. The
// one in the middle is half-way between the two in z.
const SHEET = [
  [], ["fine"], ["middle"],
  ["coarse"], null, ["middle", "fine"],
  ["coarse", "fine"], ["coarse", "middle"], ["coarse", "middle", "fine"],
];
const SLOTS = ["a", "b"];

/**
 * Return the nine faces of the sheet of a face and a seed.
 * @param {import("./recipe.js").Recipe} a
 * @param {number} b
 * @param {(parts: object) => import("./recipe.js").Recipe} build
 */
export function cross(a, b, build) {
  const same = { ...a, fine: a.fine ?? a.psi };
  return SHEET.map((groups) => {
    if (groups === null) {
      return build({ ...same, between: { seed: b, share: 0.5 } });
    }
    if (groups.length === 3) { // all of B's layers are B; only A's edits stay
      return build({ seed: b, psi: same.psi, fine: same.fine, edits: a.edits });
    }
    const taken = groups.map((group) => ({ seed: b, group }));
    return build({ ...same, mix: [...a.mix, ...taken] });
  });
}

/** The tab of crossings. */
export class Mix {
  /** @param {import("./context.js").PageContext} page */
  constructor(page) {
    this.page = page;
    this.gallery = new Gallery(one("#sheet"), page.artist);
    this.seeds = SLOTS.map((slot) => one(`#seed-${slot} input`));
    this.a = null;
    this.b = 0;
    for (const [index, slot] of SLOTS.entries()) {
      this.seeds[index].addEventListener("input", () => this.type());
      one(`#met-${slot}`).addEventListener("click", () => this.put(slot, page.recipe));
      const kept = one(`#kept-${slot} select`);
      kept.addEventListener("change", () => {
        if (kept.value) {
          this.put(slot, page.find(kept.value).recipe);
        }
      });
    }
    one("#mix-swap").addEventListener("click", () => this.lay(plain(this.a, this.b), this.a.seed));
    one("#mix-roll").addEventListener("click", () => this.lay(page.make({ seed: dice() }), dice()));
  }

  /** Fill the sheet when it is first seen; offer the favourites where there are any. */
  enter() {
    this.offer();
    if (this.a === null) {
      const { a, b } = this.page.places.mix ?? {};
      const first = a ? this.page.readShort(a) : this.page.recipe;
      this.lay(first, b ? this.page.readShort(b).seed : dice());
    }
  }

  offer() {
    const faces = this.page.kept.faces();
    for (const slot of SLOTS) {
      one(`#kept-${slot}`).hidden = !faces.length;
      one(`#kept-${slot} select`).replaceChildren(
        make("option", { value: "", textContent: "–" }),
        ...faces.map(({ name, face }) => make("option", { value: face, textContent: name })),
      );
    }
  }

  /** Lay the sheet of two faces. */
  lay(a, b, line = "") {
    const { page } = this;
    [this.a, this.b] = [a, b];
    [a.seed, b].forEach((seed, i) => {
      if (document.activeElement !== this.seeds[i]) {
        this.seeds[i].value = seed;
      }
    });
    say(one("#mix-note"), line);
    const recipes = cross(a, b, (parts) => page.make(parts));
    const captions = SHEET.map((groups) => this.caption(groups));
    const first = isPlain(a) && queryOf(a) === queryOf(page.make({ seed: a.seed }));
    const place = new URLSearchParams({ a: first ? a.seed : queryOf(a), b }).toString();
    const show = (index) => page.show(recipes[index]);
    this.gallery.hang(recipes, captions, show, place, (index, picture) => {
      const slot = { 0: "a", 8: "b" }[index];
      if (slot) {
        paint(one(`#face-${slot} canvas`), picture);
      }
    });
    window.kaogan.settle("mix", place);
  }

  /** Say what a place of the sheet takes from B. */
  caption(groups) {
    if (groups === null) {
      return this.page.say("mix.half");
    }
    if (groups.length === 0 || groups.length === 3) {
      return groups.length ? "B" : "A";
    }
    return `B ${groups.map((group) => this.page.say(`mix.${group}`)).join(" ")}`;
  }

  /** Lay the sheet of typed seeds, or say what is wrong with one. */
  type() {
    const [a, b] = this.seeds.map((input) => typedSeed(input, SEED_MAX));
    if (a === undefined || b === undefined) {
      say(one("#mix-note"), this.page.say("fault.seed"));
      return;
    }
    this.lay(a === this.a.seed ? this.a : plain(this.a, a), b);
  }

  /** Make a face the first of the two, or its seed the second. */
  put(slot, recipe) {
    if (slot === "a") {
      this.lay(recipe, this.b);
    } else {
      this.lay(this.a, recipe.seed, isPlain(recipe) ? "" : this.page.say("mix.only-seed"));
    }
  }

  /** Turn to this tab with a face as A. */
  start(recipe) {
    this.lay(recipe, this.a === null ? dice() : this.b);
    this.page.open("mix");
  }
}
