// What all tabs share: the generator's facts, the met face, the tabs, how addresses are read.

import { usable } from "./able.js";
import { dice, one } from "./parts.js";
import { makeRecipe, queryOf, readRecipe } from "./recipe.js";

const PLACES = { wall: ["first", "wpsi", "wfine", "like", "radius"], mix: ["a", "b"] };
const MAX_ADDRESS = 16384; // characters: of a face, and of the place on a tab that names another
const TABS = ["meet", "wall", "mix", "morph", "match", "keep", "about"];

/**
 * @typedef {import("./recipe.js").Recipe} Recipe
 */

/** Shared by the tabs; `meet`, `wall`, `mix` and `kept` are set by app.js. */
export class PageContext {
  /**
   * @param {object} facts generator.json
   * @param {{sliders: object[], parts: string[]} | null} directions
   * @param {import("./artist.js").Artist} artist
   * @param {import("./i18n.js").Words} words
   */
  constructor(facts, directions, artist, words) {
    Object.assign(this, { facts, directions, artist, words });
    this.tabs = {};
    this.places = {};
    /** @type {Recipe} */
    this.recipe = makeRecipe({ seed: dice() }, facts);
  }

  say(key, values) {
    return this.words.say(key, values);
  }

  /** Return a recipe in its one form. */
  make(parts) {
    const fine = this.facts.num_ws ? parts.fine : null;
    return makeRecipe({ ...parts, fine }, this.facts);
  }

  /** Return the address of a face, as a query. */
  query(recipe) {
    return queryOf(recipe, this.facts.revision);
  }

  /**
   * Return the recipe of a query, and a line about what of it cannot be used.
   * @param {string | Record<string, string>} query an address, its query, or its names and values
   * @param {object} options as `readRecipe` takes them
   */
  find(query, options = {}) {
    const texts = typeof query === "string" ? parse(query) : query;
    const read = readRecipe(texts, { seed: dice(), usual: this.facts, ...options });
    const drawn = usable(read.recipe, this.facts, this.directions);
    const lines = [
      this.words.blame(
        [...new Set([...read.faults, ...drawn.faults])],
        [...read.sentences, ...drawn.sentences],
      ),
    ];
    const rev = texts.rev ?? this.facts.revision;
    if (this.facts.earlier.includes(rev)) {
      lines.push(this.say("web.earlier", { rev }));
    } else if (rev !== this.facts.revision) {
      lines.push(this.say("fault.rev"));
    }
    return { recipe: drawn.recipe, line: lines.filter(Boolean).join(" "), faults: read.faults };
  }

  /** Return the recipe of a bare seed or of a query. */
  readShort(text) {
    return this.find(/^[0-9]+$/.test(text) ? `?seed=${text}` : text).recipe;
  }

  /** Show a face and go to where it stands. */
  show(recipe, line = "") {
    this.meet.show(recipe, line);
    this.open("meet");
  }

  /** Turn to a tab. */
  open(tab) {
    for (const name of TABS) {
      const [button, room] = [one(`#tab-${name}`), one(`#room-${name}`)];
      button.classList.toggle("selected", name === tab);
      button.setAttribute("aria-selected", String(name === tab));
      button.tabIndex = name === tab ? 0 : -1;
      room.hidden = name !== tab;
    }
    window.kaogan.open(tab);
    this.tabs[tab]?.enter();
  }

  /** Connect the row of tabs: clicks, and the keys that its role promises. */
  wireTabs() {
    for (const name of TABS) {
      one(`#tab-${name}`).addEventListener("click", () => this.open(name));
    }
    one("[role=tablist]").addEventListener("keydown", ({ key, target }) => {
      const shown = TABS.filter((name) => !one(`#tab-${name}`).hidden);
      const at = shown.indexOf(target.id.slice(4));
      const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: -1 }[key];
      if (at >= 0 && next !== undefined) {
        const name = shown.at(next % shown.length);
        this.open(name);
        one(`#tab-${name}`).focus();
      }
    });
  }

  /** Show what the address of the page names: the face, the tab, and the place on it. */
  start() {
    const query = parse(location.search);
    const tab = TABS.includes(query.tab) && !one(`#tab-${query.tab}`).hidden ? query.tab : "meet";
    const place = (PLACES[tab] ?? []).filter((name) => query[name]);
    this.places[tab] = Object.fromEntries(place.map((name) => [name, query[name]]));
    this.places[tab].best = query.best;
    const { recipe, line } = this.find(query);
    this.meet.show(recipe, line);
    this.open(tab);
  }
}

/** Return names and values of an address or its query, cut where nobody writes that much. */
export function parse(address) {
  const query = String(address).slice(0, MAX_ADDRESS).replace(/^[^?]*\?/, "");
  return Object.fromEntries(new URLSearchParams(query));
}
