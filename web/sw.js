// The service worker: the page works without a connection once it has been seen, and is isolated
// from other sites (which threads need) wherever it is hosted.

const SCOPE = new URL(".", self.location).pathname;
const CACHE = `kaogan ${SCOPE}`; // files.js uses the same
const SHELL = [
  "./", "able.js", "another.js", "app.js", "artist.js", "context.js", "directions.js", "drawer.js",
  "edits.js", "files.js", "gallery.js", "generator.json", "favourites.js", "latents.js", "layers.js",
  "meet.js", "mix.js", "page.css", "page.js", "parts.js", "png.js", "recipe.js", "runtime.js",
  "seeds.js", "sheet.js", "style.css", "tensors.js", "wall.js", "i18n.js", "words.json",
  "runtime/ort.wasm.min.mjs", "runtime/ort-wasm-simd-threaded.mjs",
  "runtime/ort.webgpu.min.mjs", "runtime/ort-wasm-simd-threaded.asyncify.mjs",
];

self.addEventListener("install", (event) => {
  const fresh = SHELL.map((path) => new Request(path, { cache: "reload" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(fresh)));
  self.skipWaiting();
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const ours = url.origin === self.location.origin && url.pathname.startsWith(SCOPE);
  if (ours && event.request.method === "GET") {
    event.respondWith(answer(event.request, url).then(isolate));
  }
});

/** Files of a named content come from the cache; the rest from the server while it answers. */
async function answer(request, url) {
  const cache = await caches.open(CACHE);
  if (url.searchParams.has("v")) {
    // Where it is not kept yet, the page keeps it when it is whole.
    return (await cache.match(request)) ?? fetch(request);
  }
  const plain = url.origin + url.pathname;
  try {
    const found = await fetch(request);
    if (found.ok && found.type === "basic") {
      await cache.put(plain, found.clone());
    }
    return found;
  } catch (error) {
    const kept = await cache.match(plain);
    if (kept) {
      return kept;
    }
    throw error;
  }
}

/** Add the headers that isolate a page and its workers. */
function isolate(found) {
  if (found.status === 0 || found.redirected) {
    return found;
  }
  const headers = new Headers(found.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "cross-origin");
  const { status, statusText } = found;
  const empty = [204, 205, 304].includes(status);
  return new Response(empty ? null : found.body, { status, statusText, headers });
}
