// Writes the shown face into the address bar; returns its whole address for the page's link field.
(link) => {
  const face = new URL(link, window.location.origin + window.location.pathname);
  // Browsers allow some 100 changes of the address in half a minute, a dragged slider makes more.
  clearTimeout(window.kaoganAddress);
  window.kaoganAddress = setTimeout(() => {
    const here = new URL(window.location);
    face.searchParams.forEach((value, name) => here.searchParams.set(name, value));
    window.history.replaceState(window.history.state, "", here);
    if (window.parent !== window) {
      // On a Space the page is a frame; its host shows the query in the outer address.
      const queryString = here.search.slice(1);
      window.parent.postMessage({ queryString }, "https://huggingface.co");
    }
  }, 150);
  return face.href;
}
