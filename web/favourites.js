// Kept: favourites, which live in the visitor's browser as recipes.

import { Gallery } from "./gallery.js";
import { one, say } from "./parts.js";
import { queryOf } from "./recipe.js";
import { drawSheet } from "./sheet.js";

const STORE = "kaogan-kept";
const FORMAT = "kaogan-favourites-1";
const MAX_KEPT = 200;
const MAX_NAME = 60;
const MAX_ADDRESS = 8192;
const MAX_IMPORT = 2_000_000; // bytes

/**
 * @typedef {{name: string, face: string}} Favourite a name and an address
 */

/** Return what of some favourites is well formed; anyone may have changed them. */
function wellFormed(entries) {
  return (Array.isArray(entries) ? entries : [])
    .slice(0, MAX_KEPT)
    .filter((entry) => typeof entry?.name === "string" && typeof entry.face === "string")
    .filter(({ face }) => /^(\?|http)/.test(face) && face.length <= MAX_ADDRESS)
    .map(({ name, face }) => ({ name: name.slice(0, MAX_NAME), face }));
}

/** The tab of favourites. */
export class Kept {
  /** @param {import("./context.js").PageContext} page */
  constructor(page) {
    this.page = page;
    this.gallery = new Gallery(one("#kept"), page.artist);
    this.chosen = -1;
    this.name = one("#keep-name input");
    one("#keep-rename").addEventListener("click", () => this.rename());
    this.name.addEventListener("keydown", ({ key }) => key === "Enter" && this.rename());
    one("#keep-delete").addEventListener("click", () => this.delete());
    one("#keep-meet").addEventListener("click", () => this.meet());
    one("#export").addEventListener("click", () => this.export());
    one("#contact").addEventListener("click", () => this.contact());
    const file = one("#import-file");
    one("#import").addEventListener("click", () => file.click());
    file.addEventListener("change", async () => {
      if (file.files.length) {
        await this.import(file.files[0]);
      }
      file.value = "";
    });
  }

  /** @returns {Favourite[]} what the browser keeps */
  faces() {
    try {
      return wellFormed(JSON.parse(localStorage.getItem(STORE) ?? "[]"));
    } catch {
      return this.unsaved ?? []; // a browser that keeps nothing, or something broken
    }
  }

  store(faces) {
    this.unsaved = faces;
    try {
      localStorage.setItem(STORE, JSON.stringify(faces));
    } catch {
      // Kept as long as the page is open, then.
    }
  }

  say(key, values) {
    say(one("#keep-note"), key ? this.page.say(key, values) : "");
  }

  /** Keep a face. */
  add(recipe) {
    const { page } = this;
    const faces = this.faces();
    const face = queryOf(recipe, page.facts.revision);
    if (faces.some((other) => other.face === face)) {
      page.meet.say(page.say("keep.already"));
    } else if (faces.length >= MAX_KEPT) {
      page.meet.say(page.say("keep.full", { most: MAX_KEPT }));
    } else {
      this.store([...faces, { name: String(recipe.seed), face }]);
      page.meet.say(page.say("keep.added"));
    }
  }

  enter() {
    this.say("");
    this.hang();
  }

  /** Show all favourites, none of them chosen. */
  hang() {
    const faces = this.faces();
    this.choose(-1);
    one("#keep-empty").hidden = faces.length > 0;
    one("#keep-empty").classList.toggle("hide", faces.length > 0); // as style.css knows it
    const recipes = faces.map(({ face }) => this.page.find(face).recipe);
    const names = faces.map(({ name }) => name);
    this.gallery.hang(recipes, names, (index) => this.choose(index), String(faces.length));
  }

  /** Show what can be done with a favourite. */
  choose(index) {
    this.chosen = index;
    one("#chosen").hidden = index < 0;
    [...this.gallery.grid.children].forEach((tile, i) => {
      tile.classList.toggle("selected", i === index);
    });
    this.name.value = this.faces()[index]?.name ?? "";
  }

  rename() {
    const name = this.name.value.trim().replace(/\s+/g, " ").slice(0, MAX_NAME);
    const faces = this.faces();
    if (!name) {
      this.say("keep.no-name");
    } else if (faces[this.chosen]) {
      faces[this.chosen].name = name;
      this.store(faces);
      this.say("");
      this.hang();
    }
  }

  delete() {
    const faces = this.faces();
    const [gone] = faces.splice(this.chosen, 1);
    this.store(faces);
    this.say("keep.deleted", gone);
    this.hang();
  }

  meet() {
    const { recipe, line } = this.page.find(this.faces()[this.chosen].face);
    this.page.show(recipe, line);
  }

  /** Save the favourites as a file, in the format of the other page. */
  export() {
    const text = JSON.stringify({ format: FORMAT, faces: this.faces() }, null, 1);
    window.kaogan.save("kaogan-favourites.json", text);
  }

  /** Add the favourites of an exported file to those that are here. */
  async import(file) {
    let more = null;
    try {
      const found = file.size > MAX_IMPORT ? null : JSON.parse(await file.text());
      more = found?.format === FORMAT ? wellFormed(found.faces) : null;
    } catch {
      // No JSON, which the line below says.
    }
    if (more === null) {
      this.say("fault.import");
      return;
    }
    const faces = this.faces();
    const known = new Set(faces.map(({ face }) => face));
    const added = more.filter(({ face }) => !known.has(face)).slice(0, MAX_KEPT - faces.length);
    this.store([...faces, ...added]);
    this.hang();
    this.say("keep.merged", { count: added.length });
  }

  /** Save all favourites on one picture, or say that there are none. */
  async contact() {
    const recipes = this.faces().map(({ face }) => this.page.find(face).recipe);
    if (!recipes.length) {
      this.say("keep.nothing");
      return;
    }
    const sheet = await drawSheet(this.page.artist, recipes);
    window.kaogan.save("kaogan-favourites.png", sheet, "image/png");
  }
}
