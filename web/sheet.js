// A contact sheet: faces on paper, with their seeds.

import { make, paint } from "./parts.js";

const CELL = 256; // px of a face
const GAP = 24;
const LINE = 30;
const COLUMNS = 6;

/**
 * Draw faces on one picture.
 * @param {import("./artist.js").Artist} artist
 * @param {import("./recipe.js").Recipe[]} recipes at least one
 * @returns {Promise<Blob>} a PNG
 */
export async function drawSheet(artist, recipes) {
  const columns = Math.min(COLUMNS, Math.ceil(Math.sqrt(recipes.length)));
  const rows = Math.ceil(recipes.length / columns);
  const sheet = make("canvas", {
    width: columns * (CELL + GAP) + GAP,
    height: rows * (CELL + GAP + LINE) + GAP,
  });
  const context = sheet.getContext("2d");
  context.fillStyle = "#faf7f1";
  context.fillRect(0, 0, sheet.width, sheet.height);
  Object.assign(context, { fillStyle: "#2b2623", textAlign: "center", textBaseline: "top" });
  Object.assign(context, { font: "18px system-ui, sans-serif", imageSmoothingQuality: "high" });
  const small = make("canvas");
  await new Promise((done) => {
    let left = recipes.length;
    artist.faces(recipes, (index, picture) => {
      const x = GAP + (index % columns) * (CELL + GAP);
      const y = GAP + Math.floor(index / columns) * (CELL + GAP + LINE);
      paint(small, picture);
      context.drawImage(small, x, y, CELL, CELL);
      context.fillText(String(recipes[index].seed), x + CELL / 2, y + CELL + 8);
      left -= 1;
      if (!left) {
        done();
      }
    });
  });
  return new Promise((done) => sheet.toBlob(done, "image/png"));
}
