// The page without a server: it starts the worker that draws, then lays out the tabs.

import { Artist } from "./artist.js";
import { PageContext } from "./context.js";
import { Kept } from "./favourites.js";
import { Meet } from "./meet.js";
import { Mix } from "./mix.js";
import { make, one } from "./parts.js";
import { Wall } from "./wall.js";
import { Words } from "./i18n.js";

const words = await Words.load();
words.write();
window.startKaogan();

const dark = matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", dress);
dress();

let facts = null;
/** @type {PageContext | null} */
export let page = null;

function complain(fault) {
  one("#notice").textContent = words.say("web.fault", { fault });
  one("#notice").hidden = false;
  one("#loading").hidden = true;
}

/** Show how much of the first download is there. */
function showProgress(done, total) {
  if (!one("#notice").hidden) {
    return; // another file is missing
  }
  const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  const values = { done: megabytes(done), total: megabytes(total) };
  one("#loading").hidden = false;
  one("#loading-text").textContent =
    done < total ? words.say("web.loading", values) : words.say("web.opening");
  one("#loading-bar").value = done / total;
}

function showFacts(found) {
  facts = found;
  const paragraphs = facts.about.split("\n\n");
  one("#card").replaceChildren(
    ...paragraphs.map((text) => make("p", { textContent: text.replaceAll("`", "") })),
  );
  one("#loading").hidden = false;
  one("#loading-text").textContent = words.say("web.opening");
  one("#loading-bar").removeAttribute("value");
  if (!facts.num_ws) {
    one("#tab-mix").hidden = true;
    for (const element of document.querySelectorAll(".needs-w")) {
      element.hidden = true;
    }
  }
}

/** Lay out the tabs and show what the address names. */
function start({ directions, ready }) {
  page = new PageContext(facts, directions, artist, words);
  page.kept = new Kept(page);
  page.meet = new Meet(page);
  page.wall = new Wall(page);
  page.mix = new Mix(page);
  page.tabs = { meet: page.meet, wall: page.wall, mix: page.mix, keep: page.kept };
  page.wireTabs();
  for (const fieldset of document.querySelectorAll("fieldset")) {
    fieldset.disabled = false;
  }
  one("#loading").hidden = true;
  document.body.dataset.backend = ready;
  page.start();
}

const backend = new URLSearchParams(location.search).get("backend") ?? "";
export const artist = new Artist(
  { facts: showFacts, progress: showProgress, ready: start, fault: complain },
  ["webgpu", "wasm"].includes(backend) ? backend : "",
);

// What a browser needs to show this page again without a connection; see sw.js.
navigator.serviceWorker?.register("sw.js").catch(() => {});
