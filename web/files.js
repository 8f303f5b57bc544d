// The large files that a browser draws with: fetched once, with progress, then kept by it.

/**
 * @typedef {{bytes: number, sha256: string}} FileFacts
 */

// One cache for each folder that holds such a page; sw.js uses the same.
const CACHE = `kaogan ${new URL(".", import.meta.url).pathname}`;

/** Where a file of a certain content is: another content has another address. */
export const addressOf = (name, { sha256 }) =>
  new URL(`${name}?v=${sha256.slice(0, 12)}`, import.meta.url).href;

/** Open the cache, or return null where the browser has none for this page. */
async function openCache() {
  try {
    return await caches.open(CACHE);
  } catch {
    return null; // a page without https, or a browser that keeps nothing
  }
}

/**
 * Return some files, each from the browser's cache or from the server.
 * @param {Record<string, FileFacts>} wanted
 * @param {(done: number, total: number) => void} progress bytes of what is not in the cache yet
 * @returns {Promise<Record<string, ArrayBuffer>>}
 */
export async function fetchFiles(wanted, progress) {
  const cache = await openCache();
  const found = {};
  const missing = [];
  for (const [name, facts] of Object.entries(wanted)) {
    const kept = await cache?.match(addressOf(name, facts));
    if (kept) {
      found[name] = await kept.arrayBuffer(); // whole, or it would not be kept
    } else {
      missing.push([name, facts]);
    }
  }
  const total = missing.reduce((sum, [, { bytes }]) => sum + bytes, 0);
  let done = 0;
  const count = (bytes) => progress(Math.min((done += bytes), total), total);
  if (total) {
    count(0);
  }
  await Promise.all(missing.map(async ([name, facts]) => {
    const data = await unpack(await download(name, facts, count));
    // A full disk costs another download some day, not this face.
    await cache?.put(addressOf(name, facts), new Response(data)).catch(() => {});
    found[name] = data;
  }));
  return found;
}

/** Delete files of earlier contents from the cache. */
export async function forgetOthers(files) {
  const cache = await openCache();
  const present = new Set(Object.entries(files).map(([name, facts]) => addressOf(name, facts)));
  for (const { url } of (await cache?.keys()) ?? []) {
    if (new URL(url).searchParams.has("v") && !present.has(url)) {
      await cache.delete(url);
    }
  }
}

async function download(name, facts, count) {
  let answer;
  try {
    answer = await fetch(addressOf(name, facts));
  } catch {
    throw new Error(`${name} cannot be reached; look at the connection and reload the page`);
  }
  if (!answer.ok) {
    throw new Error(`${name} is missing beside this page; \`make web\` puts it there`);
  }
  const parts = [];
  const reader = answer.body.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      count(part.value.length);
    }
  } catch {
    throw new Error(`${name} was cut off on its way; reload the page`);
  }
  const data = await new Blob(parts).arrayBuffer();
  if (!(await isWhole(name, data, facts))) {
    throw new Error(`${name} is damaged or cut off; reload the page, or run \`make web\` again`);
  }
  return data;
}

const isPacked = (data) => new DataView(data).getUint16(0) === 0x1f8b; // gzip (RFC 1952)

/** Tell whether a file has the size and, where the browser can tell, the SHA-256 it should. */
async function isWhole(name, data, { bytes, sha256 }) {
  if (name.endsWith(".gz") && data.byteLength > 2 && !isPacked(data)) {
    return true; // unpacked on its way, by a server that says how it is packed
  }
  if (data.byteLength !== bytes) {
    return false;
  }
  if (!crypto.subtle) {
    return true; // not a secure page
  }
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(hash, (b) => b.toString(16).padStart(2, "0")).join("") === sha256;
}

/** Unpack what is packed. */
async function unpack(data) {
  if (!isPacked(data)) {
    return data;
  }
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}
