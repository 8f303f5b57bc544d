// PNG files that carry a recipe as text, as those of the other page do.

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k++) {
    c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  }
  return c;
});
const HEAD = 33; // bytes of the signature and the IHDR chunk, after which text may stand

/** Return one tEXt chunk (PNG specification, section 11.3.4.3). */
function textChunk(key, value) {
  const body = new TextEncoder().encode(`tEXt${key}\0${value}`); // ASCII only
  const crc = body.reduce((c, byte) => CRC_TABLE[(c ^ byte) & 255] ^ (c >>> 8), 0xffffffff);
  const chunk = new Uint8Array(body.length + 8);
  chunk.set(body, 4);
  const numbers = new DataView(chunk.buffer);
  numbers.setUint32(0, body.length - 4);
  numbers.setUint32(body.length + 4, ~crc >>> 0);
  return chunk;
}

/** Return a Blob of the canvas, enlarged to `size` px where it is smaller, with texts by key. */
export async function toPng(canvas, size, texts) {
  const large = document.createElement("canvas");
  large.width = large.height = Math.max(size, canvas.width);
  const context = large.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, 0, 0, large.width, large.height);
  const plain = await new Promise((done) => large.toBlob(done, "image/png"));
  const chunks = Object.entries(texts).map(([key, value]) => textChunk(key, value));
  return new Blob([plain.slice(0, HEAD), ...chunks, plain.slice(HEAD)], { type: "image/png" });
}

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const MAX_HEAD = 256 * 1024; // bytes, of which the text before the pixels needs a few thousand
const MAX_TEXT = 4097; // characters of one text; no part of a recipe is longer

/**
 * Return the texts that stand before the pixels of a PNG; those of later chunks are not looked for.
 * @param {ArrayBuffer} buffer of a file that anyone may have made
 * @returns {Record<string, string> | null} null for what is no PNG
 */
export function readTexts(buffer) {
  const bytes = new Uint8Array(buffer, 0, Math.min(buffer.byteLength, MAX_HEAD));
  if (bytes.length < HEAD || SIGNATURE.some((byte, i) => bytes[i] !== byte)) {
    return null;
  }
  const view = new DataView(buffer, 0, bytes.length);
  const texts = {};
  for (let at = SIGNATURE.length; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const body = bytes.subarray(at + 8, at + 8 + length);
    if (kind === "IDAT") {
      break;
    }
    const end = body.indexOf(0);
    if (kind === "tEXt" && body.length === length && end > 0 && end < 80) {
      const text = Array.from(body.subarray(end + 1, end + 1 + MAX_TEXT), (b) => String.fromCharCode(b));
      texts[String.fromCharCode(...body.subarray(0, end))] = text.join("");
    }
    at += 12 + length;
  }
  return texts;
}
