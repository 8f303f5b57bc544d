// The page's side of the worker that draws.

/**
 * @typedef {import("./recipe.js").Recipe} Recipe
 * @typedef {{pixels: Uint8ClampedArray, size: number}} Picture RGBA bytes
 */

const MISSING = "its runtime is missing; `make web` fetches it";

/** Asks the worker for faces and hands them out. */
export class Artist {
  /**
   * @param {{facts: (facts: object) => void, progress: (done: number, total: number) => void,
   *   ready: (message: object) => void, fault: (sentence: string) => void}} on
   * @param {string} backend "webgpu", "wasm", or "" for the best one
   */
  constructor(on, backend = "") {
    this.handlers = new Map();
    this.count = 0;
    const address = new URL("drawer.js", import.meta.url);
    if (backend) {
      address.searchParams.set("backend", backend);
    }
    this.worker = new Worker(address, { type: "module" });
    this.worker.onmessage = ({ data }) => {
      if (data.id !== undefined) {
        this.hand(data);
      } else if (data.facts) {
        on.facts(data.facts);
      } else if (data.progress) {
        on.progress(data.progress.done, data.progress.total);
      } else if (data.ready) {
        on.ready(data);
      } else {
        on.fault(data.fault);
      }
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      on.fault(event.message || MISSING);
    };
    this.fault = on.fault;
  }

  hand(data) {
    const handler = this.handlers.get(data.id);
    if (data.done) {
      this.handlers.delete(data.id);
    }
    if (data.fault) {
      this.fault(data.fault);
    }
    handler?.(data);
  }

  ask(message, handler) {
    const id = ++this.count;
    this.handlers.set(id, handler);
    this.worker.postMessage({ id, ...message });
    return id;
  }

  /**
   * Draw the large face; one that still waits is given up.
   * @param {Recipe} recipe
   * @param {(small: Picture, colours: Record<string, string>) => void} onSmall
   * @param {(large: Picture) => void} onLarge called where there is an enlarger
   */
  face(recipe, onSmall, onLarge) {
    this.ask({ kind: "face", recipe }, ({ small, large, size, colours }) => {
      if (small) {
        onSmall({ pixels: small, size }, colours);
      } else if (large) {
        onLarge({ pixels: large, size });
      }
    });
  }

  /**
   * Draw small faces.
   * @param {Recipe[]} recipes
   * @param {(index: number, picture: Picture) => void} onFace
   * @returns {() => void} gives up what is not drawn yet
   */
  faces(recipes, onFace) {
    if (!recipes.length) {
      return () => {};
    }
    const id = this.ask({ kind: "faces", recipes }, ({ index, small, size }) => {
      if (small) {
        onFace(index, { pixels: small, size });
      }
    });
    return () => {
      this.handlers.delete(id);
      this.worker.postMessage({ id, kind: "forget" });
    };
  }
}
