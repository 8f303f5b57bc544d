// Files of named tensors, as safetensors writes them: a JSON header, then numbers.

/**
 * @typedef {{shape: number[], data: Float32Array}} Tensor
 */

/**
 * Read a safetensors file of float32 tensors.
 * @param {ArrayBuffer} buffer
 * @returns {{tensors: Record<string, Tensor>, metadata: Record<string, string>}}
 */
export function readTensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const { __metadata__: metadata = {}, ...entries } = header;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(entries)) {
    if (dtype !== "F32") {
      throw new Error(`tensor ${name} is ${dtype}, not F32`);
    }
    // A copy, because the numbers need not stand at a multiple of four bytes.
    const data = new Float32Array(buffer.slice(8 + length + start, 8 + length + end));
    tensors[name] = { shape, data };
  }
  return { tensors, metadata };
}

/**
 * Multiply a matrix with a vector and add a bias.
 * @param {Tensor} matrix `[rows, columns]`, in any shape whose first dimension is the rows
 * @param {ArrayLike<number>} vector `[columns]`
 * @param {ArrayLike<number>} bias `[rows]`
 * @returns {Float64Array} `[rows]`
 */
export function affine(matrix, vector, bias) {
  const rows = bias.length;
  const columns = matrix.data.length / rows;
  const result = new Float64Array(rows);
  for (let row = 0, at = 0; row < rows; row++) {
    let sum = bias[row];
    for (let column = 0; column < columns; column++) {
      sum += matrix.data[at++] * vector[column];
    }
    result[row] = sum;
  }
  return result;
}

/**
 * Add weighted rows of a tensor to an array, in place.
 * @param {Float32Array} target `[columns]`
 * @param {ArrayLike<number>} weights `[rows]`
 * @param {Tensor} rows `[rows, columns]`, in any shape whose first dimension is the rows
 */
export function addRows(target, weights, rows) {
  const columns = target.length;
  const sums = new Float64Array(columns);
  for (let row = 0, at = 0; row < weights.length; row++) {
    for (let column = 0; column < columns; column++) {
      sums[column] += weights[row] * rows.data[at++];
    }
  }
  for (let column = 0; column < columns; column++) {
    target[column] += sums[column];
  }
}
