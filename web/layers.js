// The layers of a generator by their names: groups, and blocks by their px.

/**
 * @typedef {{size: number, num_ws: number, groups: Record<string, [number, number]>}} Shape
 * @typedef {[start: number, stop: number]} Span first layer, and the one after the last
 */

/**
 * Return the px of each block, coarse first.
 * @param {Shape} shape
 * @returns {number[]}
 */
export function blockSizes({ size, num_ws }) {
  // As model.py builds them: from 4 px where the size is a power of two, else from 6 px.
  const base = (size & (size - 1)) === 0 ? 4 : Math.min(size, 6);
  return Array.from({ length: (num_ws + 1) / 2 }, (_, i) => base * 2 ** i);
}

/**
 * Return the layers of a group, or of the block of so many px; none where there are none such.
 * @param {Shape} shape
 * @param {string} name
 * @returns {Span}
 */
export function findLayers(shape, name) {
  if (Object.hasOwn(shape.groups, name)) {
    return shape.groups[name];
  }
  const last = 2 * blockSizes(shape).map(String).indexOf(name) + 1;
  return last > 0 ? [Math.max(0, last - 2), last] : [0, 0]; // the first block has one layer
}

/** Tell whether there are such layers. */
export function hasLayers(shape, name) {
  const [start, stop] = findLayers(shape, name);
  return start < stop;
}

/**
 * Return the names of the groups that a generator has, coarse first.
 * @param {Shape} shape
 */
export function filledGroups(shape) {
  return Object.keys(shape.groups).filter((name) => hasLayers(shape, name));
}
