// The page without a server: a face from a seed, a wall to choose from, an address to keep.

import { toPng } from "./png.js";
import { SEED_MAX } from "./seeds.js";

const WALL_FACES = 24;
const ROLL_SEEDS = 1_000_000; // six digits are easy to say and to send
const FACE_SIZE = 512; // px of a kept picture
const SEED_RULE = `a seed is a whole number from 0 to ${SEED_MAX}`;
const OTHER_PARTS = ["mix", "edit", "vary", "between", "w"];

const ui = Object.fromEntries(
  [...document.querySelectorAll("[id]")].map((element) => [element.id, element]),
);
const shown = { seed: 0, psi: 0.7, first: 0 };
let facts = null;

// ----------------------------------------------------------------------------------------
// Drawing

const worker = new Worker("drawer.js", { type: "module" });
const waiting = new Map(); // id → what to do with its faces
let count = 0;

worker.onmessage = ({ data }) => {
  if (data.facts) {
    start(data.facts);
  } else if (data.fault) {
    waiting.delete(data.id);
    complain(data.fault);
  } else {
    waiting.get(data.id)(data.faces);
    waiting.delete(data.id);
  }
};
worker.onerror = (event) => {
  event.preventDefault();
  complain(event.message || "its runtime is missing; `make web` fetches it");
};

function complain(fault) {
  ui.notice.textContent = `This page cannot draw: ${fault}.`;
  ui.notice.hidden = false;
}

function draw(seeds, psi) {
  return new Promise((done) => {
    waiting.set(++count, done);
    worker.postMessage({ id: count, seeds, psi });
  });
}

/** Make a function that, while it is busy, remembers only that it was asked once more. */
function latest(work) {
  let busy = false;
  let again = false;
  return async () => {
    again = true;
    if (busy) {
      return;
    }
    busy = true;
    while (again) {
      again = false;
      await work();
    }
    busy = false;
  };
}

function paint(canvas, rgba) {
  canvas.width = canvas.height = facts.size;
  canvas.getContext("2d").putImageData(new ImageData(rgba, facts.size), 0, 0);
}

const showFace = latest(async () => {
  const { seed, psi } = shown;
  const [rgba] = await draw([seed], psi);
  paint(ui.face, rgba);
  ui.face.setAttribute("aria-label", `The face of seed ${seed}`);
  ui.face.dataset.drawn = `${seed} ${psi}`;
});

const showWall = latest(async () => {
  const { first, psi } = shown;
  const seeds = Array.from({ length: WALL_FACES }, (_, i) => first + i).filter(
    (seed) => seed <= SEED_MAX,
  );
  const faces = await draw(seeds, psi);
  ui.wall.replaceChildren(...faces.map((rgba, i) => tile(seeds[i], rgba)));
  ui.wall.dataset.drawn = `${first} ${psi}`;
});

function tile(seed, rgba) {
  const button = document.createElement("button");
  const canvas = document.createElement("canvas");
  const caption = document.createElement("span");
  paint(canvas, rgba);
  button.className = "thumbnail-item";
  caption.className = "caption-label";
  caption.textContent = seed;
  button.append(canvas, caption);
  button.addEventListener("click", () => {
    choose(seed);
    ui.face.scrollIntoView({ block: "nearest" });
  });
  return button;
}

// ----------------------------------------------------------------------------------------
// The address

/** Read an address's query; return the recipe and a sentence about each unusable part. */
function readAddress(query) {
  const recipe = { seed: Math.floor(Math.random() * ROLL_SEEDS), psi: facts.psi };
  const faults = [];
  const seed = query.get("seed");
  if (seed !== null && /^[0-9]{1,10}$/.test(seed) && Number(seed) <= SEED_MAX) {
    recipe.seed = Number(seed);
  } else if (seed !== null) {
    faults.push(
      `The seed in this address cannot be used (${SEED_RULE}), so here is another face.`,
    );
  }
  const psi = query.get("psi");
  if (psi !== null && /^[0-9.]{1,40}$/.test(psi) && Number(psi) <= 1) {
    recipe.psi = Number(psi);
  } else if (psi !== null) {
    faults.push(
      "The psi in this address cannot be used (psi is a number from 0 to 1), " +
        `so here it is ${facts.psi}.`,
    );
  }
  if (OTHER_PARTS.some((name) => query.has(name))) {
    faults.push("This page draws a seed's own face; what the address changes in it is left out.");
  }
  if ((query.get("rev") ?? facts.revision) !== facts.revision) {
    faults.push("This address was made with other weights, so its face may differ here.");
  }
  return { recipe, note: faults.join(" ") };
}

let addressTimer;

function writeAddress() {
  const query = new URLSearchParams({ seed: shown.seed, psi: shown.psi, rev: facts.revision });
  const address = new URL(`${location.origin}${location.pathname}?${query}`);
  ui.link.value = address.href;
  // Browsers allow some 100 changes of the address in half a minute, a dragged slider makes more.
  clearTimeout(addressTimer);
  addressTimer = setTimeout(() => history.replaceState(null, "", address), 150);
}

// ----------------------------------------------------------------------------------------
// What a visitor does

function say(note = "") {
  ui.note.textContent = note;
  ui.note.hidden = !note;
}

function choose(seed, note) {
  shown.seed = seed;
  ui.seed.value = seed;
  say(note);
  writeAddress();
  showFace();
}

function typeSeed() {
  const seed = Number(ui.seed.value);
  if (ui.seed.value.trim() === "" || !Number.isInteger(seed) || seed < 0 || seed > SEED_MAX) {
    say(`${SEED_RULE[0].toUpperCase()}${SEED_RULE.slice(1)}.`);
    return;
  }
  shown.seed = seed;
  say();
  writeAddress();
  showFace();
}

function slide() {
  shown.psi = Number(ui.psi.value);
  writeAddress();
  showFace();
  showWall();
}

function turn(pages) {
  const walls = Math.ceil((SEED_MAX + 1) / WALL_FACES);
  const wall = shown.first / WALL_FACES + pages;
  shown.first = (((wall % walls) + walls) % walls) * WALL_FACES;
  showWall();
}

async function keep() {
  const { seed, psi } = shown;
  const texts = { seed, psi, revision: facts.revision };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await toPng(ui.face, FACE_SIZE, texts));
  link.download = `kaogan-${seed}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function copy() {
  ui.link.select();
  await navigator.clipboard.writeText(ui.link.value);
  ui.copy.textContent = "Copied";
  setTimeout(() => (ui.copy.textContent = "Copy"), 1500);
}

function showAbout() {
  const paragraphs = facts.about.split("\n\n").map((text) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = text.replaceAll("`", "");
    return paragraph;
  });
  ui.about.replaceChildren(...paragraphs);
}

function start(found) {
  facts = found;
  const { recipe, note } = readAddress(new URLSearchParams(location.search));
  shown.psi = recipe.psi;
  ui.psi.value = recipe.psi;
  shown.first = recipe.seed - (recipe.seed % WALL_FACES);
  showAbout();
  for (const control of document.querySelectorAll("[disabled]")) {
    control.disabled = false;
  }
  choose(recipe.seed, note);
  showWall();
}

ui.seed.addEventListener("input", typeSeed);
ui.psi.addEventListener("input", slide);
ui.roll.addEventListener("click", () => choose(Math.floor(Math.random() * ROLL_SEEDS)));
ui.back.addEventListener("click", () => turn(-1));
ui.more.addEventListener("click", () => turn(1));
ui.save.addEventListener("click", keep);
ui.copy.addEventListener("click", copy);

const dark = matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", dress);
dress();
