// What both pages do in the browser: the address, the faces seen, keys, a dropped picture. Gradio
// takes this file as the function that it is; the page without a server calls it by its name.
window.startKaogan = () => {
  const MERGE_MS = 900; // a dragged slider is one step back, not forty
  const seen = { list: [], at: -1, time: 0, apart: 0 };
  const face = { query: "" };
  const place = { tab: "meet", rest: {} };
  const one = (selector) => document.querySelector(selector);

  function writeAddress() {
    // Browsers allow some 100 changes of the address in half a minute, a dragged slider makes more.
    clearTimeout(writeAddress.timer);
    writeAddress.timer = setTimeout(() => {
      const here = new URL(window.location);
      const query = [face.query.slice(1)];
      if (place.tab !== "meet") query.push(`tab=${place.tab}`, place.rest[place.tab] || "");
      here.search = query.filter(Boolean).join("&");
      window.history.replaceState(window.history.state, "", here);
      if (window.parent !== window) {
        // On a Space the page is a frame; its host shows the query in the outer address.
        const queryString = here.search.slice(1);
        window.parent.postMessage({ queryString }, "https://huggingface.co");
      }
    }, 150);
  }

  function showSteps() {
    const show = (button, spent) => {
      button?.classList.toggle("spent", spent);
      button?.setAttribute("aria-disabled", spent);
    };
    show(one("#undo"), seen.at <= 0);
    show(one("#redo"), seen.at >= seen.list.length - 1);
  }

  function remember(query) {
    if (seen.list[seen.at] === query) return;
    const now = Date.now();
    const seed = (text) => new URLSearchParams(text).get("seed");
    const drags = !seen.apart && seen.at >= 0 && now - seen.time < MERGE_MS
      && seed(seen.list[seen.at]) === seed(query);
    seen.list.length = seen.at + 1;
    if (drags && seen.at > 0) seen.list[seen.at] = query;
    else seen.at = seen.list.push(query) - 1;
    seen.list.splice(0, Math.max(0, seen.list.length - 200));
    seen.at = seen.list.length - 1;
    seen.time = now;
    seen.apart = Math.max(0, seen.apart - 1);
  }

  window.kaogan = {
    // A new face is shown: keep it among those seen and in the address; returns its link.
    follow(address) {
      const link = new URL(address, window.location.origin + window.location.pathname);
      if (!link.search) return address;
      face.query = link.search;
      remember(link.search);
      showSteps();
      writeAddress();
      const picture = one("#face img");
      if (picture) picture.alt = `${one("#seed span")?.textContent.trim()} ${link.searchParams.get("seed")}`;
      return link.href;
    },
    // Another place on a tab: keep it in the address.
    settle(tab, rest) {
      place.rest[tab] = rest;
      writeAddress();
    },
    open(tab) {
      place.tab = tab;
      writeAddress();
      showSteps();
    },
    // The face before or after the present one.
    step(by) {
      seen.at = Math.min(Math.max(seen.at + by, 0), seen.list.length - 1);
      seen.time = 0;
      return seen.list[seen.at] || "";
    },
    // The next face of the same seed is a step of its own, however soon it comes.
    apart(address) {
      seen.apart += 1;
      return address;
    },
    speak(language) {
      const safe = window.location.protocol === "https:" ? "; SameSite=None; Secure; Partitioned" : "";
      document.cookie = `kaogan-language=${language}; path=/; max-age=31536000${safe}`;
      clearTimeout(writeAddress.timer);
      window.location.reload();
    },
    save(name, content, type = "application/json") {
      const anchor = document.createElement("a");
      anchor.href = URL.createObjectURL(new Blob([content], { type }));
      anchor.download = name;
      anchor.click();
      setTimeout(() => URL.revokeObjectURL(anchor.href), 1000);
    },
  };

  // What Gradio does not tell a screen reader, or tells it wrongly.
  // It calls small faces "Thumbnail 1 of 24", whatever the language, and tells their captions
  // twice. Here each is called by its seed, which its file is named by.
  function help() {
    const word = one("#seed span")?.textContent.trim();
    const set = (element, name, value) => {
      if (element.getAttribute(name) !== value) element.setAttribute(name, value);
    };
    const name = (image, caption) => {
      const seed = image?.src.match(/kaogan-(\d+)\.png/)?.[1];
      if (!seed || !word) return "";
      return caption && caption !== seed ? `${caption}, ${word} ${seed}` : `${word} ${seed}`;
    };
    for (const button of document.querySelectorAll(".faces .thumbnail-item")) {
      const image = button.querySelector("img");
      const called = name(image, button.textContent.trim());
      if (!called) continue;
      set(button, "aria-label", called);
      set(image, "alt", "");
    }
    for (const image of document.querySelectorAll(".parent img")) {
      const called = name(image, image.closest(".parent").id.slice(-1).toUpperCase());
      if (called) set(image, "alt", called);
    }
    // Dimmed until there is something to stop.
    for (const button of document.querySelectorAll("#match-stop, #film-stop")) {
      const works = button.closest("#match-left, #morph-tools")?.querySelector("progress");
      set(button, "aria-disabled", `${!works}`);
    }
    // Names that hide what stands there: the text of the upload, and of an empty frame nothing.
    document.querySelectorAll("#upload .upload-container[aria-label], .empty[aria-label]:not([role])")
      .forEach((element) => element.removeAttribute("aria-label"));
  }
  new MutationObserver(help).observe(document.body, {
    subtree: true, childList: true, characterData: true,
    attributes: true, attributeFilter: ["alt", "aria-label", "src"],
  });
  help();

  // Keys: space draws again, the arrows walk through the faces seen.
  const KEYS = { " ": "#roll", ArrowLeft: "#undo", ArrowRight: "#redo" };
  document.addEventListener("keydown", (event) => {
    const button = one(KEYS[event.key] || "#none");
    const field = event.target.closest("input, textarea, select, button, a, summary, video, dialog");
    // The open tab keeps the focus after a click, and has no use for the space bar.
    const free = !field || (event.key === " " && field.getAttribute("aria-selected") === "true");
    if (!free || !button?.offsetParent || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    button.click();
  });

  // A picture dropped anywhere but on a field that takes pictures goes to the reader of recipes.
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  const elsewhere = (event) => event.target.closest("#upload, #import");
  document.addEventListener("dragover", (event) => {
    if (!isFile(event) || elsewhere(event)) return;
    event.preventDefault();
    one(".gradio-container").classList.add("dropping");
  });
  for (const kind of ["dragleave", "drop", "dragend"]) {
    document.addEventListener(kind, (event) => {
      if (kind !== "dragleave" || !event.relatedTarget) one(".gradio-container").classList.remove("dropping");
    });
  }
  document.addEventListener("drop", (event) => {
    if (!isFile(event) || elsewhere(event)) return;
    event.preventDefault();
    const field = one("#onward input[type=file]");
    const files = new DataTransfer();
    files.items.add(event.dataTransfer.files[0]);
    field.files = files.files;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  });

  const current = { zh: "zh-CN", ja: "ja" }[document.documentElement.lang.slice(0, 2)] || "en";
  one(`[data-language="${current}"]`)?.setAttribute("aria-current", "true");
  document.querySelectorAll(".line").forEach((line) => line.setAttribute("role", "status"));

  document.addEventListener("click", (event) => {
    const language = event.target.closest("[data-language]")?.dataset.language;
    if (language) window.kaogan.speak(language);
  });
}
