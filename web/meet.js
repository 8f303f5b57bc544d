// Meet: one large face, what changes it, and the address that keeps it.

import { another, PARTS } from "./another.js";
import { layOutEdits } from "./edits.js";
import { copy, dice, fill, one, paint, say, typedSeed } from "./parts.js";
import { readTexts, toPng } from "./png.js";
import { fits, plain, textsOf } from "./recipe.js";
import { SEED_MAX } from "./seeds.js";

const FACE_SIZE = 512; // px of a saved picture
const MAX_PNG = 10_000_000; // bytes

/** The tab of the large face. */
export class Meet {
  /** @param {import("./context.js").PageContext} page */
  constructor(page) {
    this.page = page;
    this.canvas = one("#face canvas");
    this.seed = one("#seed input");
    this.psi = one("#psi input");
    this.fine = one("#fine input");
    this.waiting = []; // whoever waits for the large picture
    this.whole = true; // it is on the canvas
    Object.assign(this, layOutEdits(page, () => this.change()));
    this.wire();
  }

  enter() {}

  wire() {
    const { page } = this;
    for (const input of [this.seed, this.psi, this.fine]) {
      input.addEventListener("input", () => this.change());
    }
    one("#roll").addEventListener("click", () => this.roll());
    for (const part of PARTS) {
      one(`#another-${part}`).addEventListener("click", () => this.vary(part));
    }
    one("#undo").addEventListener("click", () => this.step(-1));
    one("#redo").addEventListener("click", () => this.step(1));
    one("#heart").addEventListener("click", () => page.kept.add(page.recipe));
    one("#like").addEventListener("click", () => page.wall.moreLike(page.recipe));
    one("#to-mix").addEventListener("click", () => page.mix.start(page.recipe));
    one("#reset").addEventListener("click", () => this.reset());
    one("#copy").addEventListener("click", () => this.copy());
    one("#save").addEventListener("click", () => this.save());
    one("#share").addEventListener("click", () => this.share());
    one("#share").hidden = !navigator.share;
    const file = one("#onward input[type=file]");
    one("#restore").addEventListener("click", () => file.click());
    file.addEventListener("change", () => {
      if (file.files.length) {
        this.openPng(file.files[0]);
      }
      file.value = "";
    });
  }

  /** Say something over the face. */
  say(line) {
    say(one("#note"), line);
  }

  /** Show a face: its picture, its address, and where the controls stand for it. */
  show(recipe, line = "") {
    this.seed.value = recipe.seed;
    this.psi.value = recipe.psi;
    this.fine.value = recipe.fine ?? recipe.psi;
    const values = new Map(recipe.edits.map(({ name, value }) => [name, value]));
    for (const [name, input] of this.sliders) {
      input.value = values.get(name) ?? 0;
      fill(input);
    }
    this.draw(recipe, line);
  }

  /** Draw a face, whatever the controls say. */
  draw(recipe, line = "") {
    const { page } = this;
    page.recipe = recipe;
    this.say(line);
    one("#link textarea").value = window.kaogan.follow(page.query(recipe));
    const name = `${page.say("seed")} ${recipe.seed}`;
    const drawn = page.query(recipe);
    this.whole = false;
    page.artist.face(
      recipe,
      (picture, colours) => {
        this.put(picture, name, drawn, page.recipe === recipe && !page.facts.enlarger);
        if (page.recipe === recipe) {
          this.showColours(recipe, colours);
        }
      },
      (picture) => this.put(picture, name, drawn, page.recipe === recipe),
    );
  }

  put(picture, name, drawn, whole) {
    paint(this.canvas, picture);
    this.canvas.setAttribute("aria-label", name);
    this.canvas.dataset.drawn = drawn;
    this.whole = whole;
    if (whole) {
      this.waiting.splice(0).forEach((go) => go());
    }
  }

  /** Set each colour picker to the face's colour: the picked one, else the one it shows. */
  showColours(recipe, colours) {
    const picked = new Map(recipe.edits.map(({ name, value }) => [name, value]));
    for (const [part, input] of this.pickers) {
      input.value = picked.get(part) ?? colours[part];
      input.dataset.shown = input.value;
    }
  }

  /** Show the face that the controls describe, or say what is wrong with a typed seed. */
  change() {
    const { page } = this;
    const seed = typedSeed(this.seed, SEED_MAX);
    if (seed === undefined) {
      this.say(page.say("fault.seed"));
      return;
    }
    const edits = [];
    for (const [part, input] of this.pickers) {
      const kept = page.recipe.edits.find(({ name }) => name === part);
      if (kept || input.value !== input.dataset.shown) {
        edits.push({ name: part, value: input.value });
      }
    }
    for (const [name, input] of this.sliders) {
      edits.push({ name, value: Number(input.value) });
      fill(input);
    }
    const { recipe } = page;
    const w = seed === recipe.seed ? recipe.w : "";
    const truncation = { psi: this.psiOf(this.psi, "psi"), fine: this.psiOf(this.fine, "fine") };
    const changed = page.make({ ...recipe, ...truncation, seed, w, edits });
    if (this.hasRoom(changed)) {
      this.draw(changed);
    }
  }

  /** Tell whether an address can hold a face's edits, and the visitor where it cannot. */
  hasRoom(recipe) {
    if (!fits(recipe)) {
      this.say(this.page.say("fault.edits"));
    }
    return fits(recipe);
  }

  /** Return a slider's psi; one that stands where the face put it keeps the face's own number. */
  psiOf(input, name) {
    const { recipe } = this.page;
    const own = recipe[name] ?? recipe.psi;
    const step = Number(input.step);
    const put = Math.min(1, Math.max(0, Math.round(own / step) * step));
    return Math.abs(put - Number(input.value)) < 1e-9 ? own : Number(input.value);
  }

  /** Show a random face, with the sliders as they stand where held. */
  roll() {
    const { recipe } = this.page;
    const edits = one("#hold").checked ? recipe.edits : [];
    const fine = recipe.fine ?? recipe.psi;
    this.show(this.page.make({ seed: dice(), psi: recipe.psi, fine, edits }));
  }

  /** Show a face with another hair, expression or colouring. */
  vary(part) {
    const { directions, facts, recipe } = this.page;
    const change = another(facts, directions?.sliders ?? [], recipe, part, dice());
    const changed = this.page.make({ ...recipe, ...change });
    if (this.hasRoom(changed)) {
      window.kaogan.apart();
      this.show(changed);
    }
  }

  step(by) {
    const query = window.kaogan.step(by);
    if (query) {
      const { recipe, line } = this.page.find(query);
      this.show(recipe, line);
    }
  }

  /** Show the seed's own face: no edits, no mix, no step aside. */
  reset() {
    const { recipe } = this.page;
    this.show({ ...plain(recipe, recipe.seed), w: recipe.w });
  }

  /** Return the face as a PNG that carries its recipe. */
  async png() {
    if (!this.whole) {
      await new Promise((go) => this.waiting.push(go));
    }
    const { facts, recipe } = this.page;
    const larger = this.canvas.width > facts.size ? facts.enlarger : "browser";
    const texts = { ...textsOf(recipe), revision: facts.revision };
    return toPng(this.canvas, FACE_SIZE, { ...texts, enlarger: larger });
  }

  async save() {
    const name = `kaogan-${this.page.recipe.seed}.png`;
    window.kaogan.save(name, await this.png(), "image/png");
  }

  /** Hand picture and address to whatever the visitor's system shares with. */
  async share() {
    const { seed } = this.page.recipe;
    const url = one("#link textarea").value;
    const files = [new File([await this.png()], `kaogan-${seed}.png`, { type: "image/png" })];
    const whole = { title: `Kaogan ${seed}`, url, files };
    const gift = navigator.canShare?.(whole) ? whole : { title: whole.title, url };
    await navigator.share(gift).catch(() => {}); // the visitor thought better of it
  }

  async copy() {
    await copy(one("#link textarea"));
    one("#copy").textContent = this.page.say("web.copied");
    setTimeout(() => (one("#copy").textContent = this.page.say("web.copy")), 1500);
  }

  /** Show the face whose recipe a PNG carries. */
  async openPng(file) {
    const { page } = this;
    const texts = file.size > MAX_PNG ? null : readTexts(await file.arrayBuffer());
    if (texts?.seed === undefined) {
      this.say(page.say("web.png"));
      return;
    }
    const { revision: rev = page.facts.revision, ...query } = texts;
    const options = { low: -2, high: 2, source: "picture" };
    const { recipe, line, faults } = page.find({ ...query, rev }, options);
    if (faults.includes("seed")) {
      this.say(page.say("web.png"));
    } else {
      page.show(recipe, line);
    }
  }
}
