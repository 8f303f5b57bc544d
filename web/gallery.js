// A grid of small faces to choose from, painted as they are drawn.

import { paint, tile } from "./parts.js";

/** One grid; what it still waits for is given up when it is filled anew. */
export class Gallery {
  /**
   * @param {HTMLElement} element with a .grid-container
   * @param {import("./artist.js").Artist} artist
   */
  constructor(element, artist) {
    this.grid = element.querySelector(".grid-container");
    this.artist = artist;
    this.forget = () => {};
  }

  /**
   * Hang faces.
   * @param {import("./recipe.js").Recipe[]} recipes
   * @param {string[]} captions
   * @param {(index: number) => void} onClick
   * @param {string} mark what the grid is marked with (data-drawn) once all of it is painted
   * @param {(index: number, picture: import("./artist.js").Picture) => void} onFace
   */
  hang(recipes, captions, onClick, mark, onFace = () => {}) {
    this.forget();
    const old = [...this.grid.children];
    const tiles = recipes.map((_, i) => tile(captions[i], captions[i], () => onClick(i)));
    if (old.length === tiles.length) {
      // The old faces stay until the new ones come, so that nothing blinks.
      tiles.forEach((button, i) => button.querySelector("canvas").replaceWith(
        old[i].querySelector("canvas"),
      ));
    }
    delete this.grid.dataset.drawn;
    this.grid.replaceChildren(...tiles);
    let left = tiles.length;
    this.forget = this.artist.faces(recipes, (index, picture) => {
      paint(tiles[index].querySelector("canvas"), picture);
      onFace(index, picture);
      left -= 1;
      if (!left) {
        this.grid.dataset.drawn = mark;
      }
    });
  }
}
