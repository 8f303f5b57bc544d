// Wall: 24 faces at a time, of seeds in a row or of small steps around one face.

import { Gallery } from "./gallery.js";
import { dice, fill, one, say, typedSeed } from "./parts.js";
import { numberText, queryOf } from "./recipe.js";
import { SEED_MAX } from "./seeds.js";

const FACES = 24;
const RADIUS = 0.35; // of a step around a face, in w

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** The tab of many faces. */
export class Wall {
  /** @param {import("./context.js").PageContext} page */
  constructor(page) {
    this.page = page;
    this.gallery = new Gallery(one("#wall"), page.artist);
    this.inputs = Object.fromEntries(
      ["first", "psi", "fine", "radius"].map((name) => [name, one(`#wall-${name} input`)]),
    );
    this.place = null; // where a visitor stands; null until the wall is first seen
    for (const input of Object.values(this.inputs)) {
      input.addEventListener("input", () => this.change());
    }
    one("#wall-back").addEventListener("click", () => this.turn(-1));
    one("#wall-more").addEventListener("click", () => this.turn(1));
    one("#wall-jump").addEventListener("click", () => this.go({ first: dice() }));
    one("#wall-leave").addEventListener("click", () => this.go({ first: 0, like: "" }));
  }

  /** Fill the wall when it is first seen. */
  enter() {
    if (this.place === null) {
      this.go(this.read(this.page.places.wall ?? {}));
    }
  }

  /** Read a place from an address; what cannot be used is as usual. */
  read({ first = "", wpsi, wfine, like = "", radius, best }) {
    const usual = this.page.facts;
    const number = (text, otherwise) => {
      const value = Number.parseFloat(text);
      return Number.isNaN(value) ? otherwise : value;
    };
    const psi = clamp(number(wpsi, usual.psi), 0, 1);
    if (best) {
      this.say(this.page.say("web.best"));
    }
    return {
      first: /^[0-9]{1,10}$/.test(first) ? Math.min(Number(first), SEED_MAX) : 0,
      psi,
      fine: clamp(number(wfine, wpsi === undefined ? usual.fine : psi), 0, 1),
      like,
      radius: clamp(number(radius, RADIUS), 0.05, 1),
    };
  }

  /** Write the place for the address; what is as usual is left out. */
  write() {
    const { first, psi, fine, like, radius } = this.place;
    const { facts } = this.page;
    const query = new URLSearchParams({ first });
    if (psi !== facts.psi || fine !== facts.fine) {
      query.set("wpsi", numberText(psi));
      query.set("wfine", numberText(fine));
    }
    if (like) {
      query.set("like", like);
      query.set("radius", numberText(radius));
    }
    return query.toString();
  }

  say(line) {
    say(one("#wall-note"), line);
  }

  /** Return the faces of this page of the wall; the last page may be short. */
  recipes() {
    const { first, psi, fine, like, radius } = this.place;
    const count = Math.min(FACES, SEED_MAX + 1 - first);
    const seeds = Array.from({ length: count }, (_, i) => first + i);
    if (like) {
      const face = this.page.readShort(like);
      return seeds.map((seed) => this.page.make({
        ...face, fine: face.fine ?? face.psi, vary: { seed, radius, layers: "" },
      }));
    }
    return seeds.map((seed) => this.page.make({ seed, psi, fine }));
  }

  /** Hang another place. */
  go(change) {
    this.place = { ...this.place, ...change };
    const { inputs, place } = this;
    for (const [name, input] of Object.entries(inputs)) {
      if (document.activeElement !== input) {
        input.value = place[name];
      }
      if (input.type === "range") {
        fill(input);
      }
    }
    for (const name of ["psi", "fine"]) {
      one(`#wall-${name}`).hidden = Boolean(place.like) || (name === "fine" && !this.page.facts.num_ws);
    }
    one("#wall-radius").hidden = one("#wall-like").hidden = !place.like;
    const recipes = this.recipes();
    const seed = place.like ? this.page.readShort(place.like).seed : 0;
    one("#wall-like-note").textContent =
      place.like ? this.page.say("wall.like", { seed }).replaceAll("**", "") : "";
    const captions = recipes.map((r) => String(place.like ? r.vary?.seed ?? 0 : r.seed));
    const show = (index) => this.page.show(recipes[index]);
    this.gallery.hang(recipes, captions, show, this.write());
    window.kaogan.settle("wall", this.write());
  }

  /** Hang what the controls describe, or say what is wrong with a typed seed. */
  change() {
    const { inputs } = this;
    const first = typedSeed(inputs.first, SEED_MAX);
    this.say(first === undefined ? this.page.say("fault.seed") : "");
    if (first !== undefined) {
      const [psi, fine, radius] = ["psi", "fine", "radius"].map((n) => Number(inputs[n].value));
      this.go({ first, psi, fine, radius });
    }
  }

  /** Turn the wall by some pages; after the last comes the first. */
  turn(pages) {
    const count = Math.ceil((SEED_MAX + 1) / FACES);
    const offset = this.place.first % FACES;
    const page = (Math.floor(this.place.first / FACES) + pages + count) % count;
    this.go({ first: Math.min(page * FACES + offset, SEED_MAX) });
  }

  /** Turn to the wall and hang small steps around a face there. */
  moreLike(recipe) {
    this.place ??= this.read({});
    this.go({ first: 0, like: queryOf(recipe) });
    this.page.open("wall");
  }
}
