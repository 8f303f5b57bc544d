"""A headless Chromium for tests that look at the page as a visitor does."""

from __future__ import annotations

import base64
import io
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, BrowserType, Page, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--js-flags=--no-opt --max-lazy",  # scripts that run for seconds are not worth compiling
    "--renderer-process-limit=1",  # which keeps them, parsed, from one tab to the next
]
# WebGPU that a CPU computes, where the browser brings it.
WEBGPU_FLAGS = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
# Without windows first: a shell opens the page in half the CPU time.
SYSTEM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
READ_PIXELS = """(image) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
}"""


@contextmanager
def open_browser(names: Sequence[str] = SYSTEM) -> Iterator[Browser]:
    """Start Playwright's own Chromium, else the system's by one of `names`.

    RuntimeError where there is none.
    """
    with sync_playwright() as playwright:
        browser = launch(playwright.chromium, names)
        try:
            yield browser
        finally:
            browser.close()


def launch(
    chromium: BrowserType,
    names: Sequence[str] = SYSTEM,
    flags: Sequence[str] = (),
    low_priority: Path | None = None,
) -> Browser:
    """Start a browser as `open_browser` does, with more flags; to be closed by the caller.

    With `low_priority`, a path for a script, the other tests' browsers get the cores first.
    """
    path = None  # Playwright's choice: its shell, for pages that nobody looks at
    if not Path(chromium.executable_path).exists():
        path = next(filter(None, map(shutil.which, names)), None)
        if path is None:
            raise RuntimeError(
                "the page's tests need a browser: `playwright install chromium`, or Debian's "
                "package chromium-headless-shell"
            )
    if low_priority is not None and shutil.which("nice"):
        command = shlex.quote(str(path or chromium.executable_path))
        low_priority.write_text(f'#!/bin/sh\nexec nice -n 15 {command} "$@"\n')
        low_priority.chmod(0o755)
        path = str(low_priority)
    return chromium.launch(executable_path=path, args=[*FLAGS, *flags])


def pixels(page: Page, selector: str) -> np.ndarray:
    """Read what an `<img>` shows, uint8 `[H, W, 3]`, once it is loaded."""
    image = page.wait_for_selector(selector)
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image)
    png = base64.b64decode(image.evaluate(READ_PIXELS))
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


if __name__ == "__main__":  # does this machine have a browser, or one of the given, that starts?
    try:
        with open_browser(sys.argv[1:] or SYSTEM) as found:
            print(f"Chromium {found.version}")
    except RuntimeError as missing:
        sys.exit(str(missing))
