"""The page without a server, in a browser: from a visitor's hand to the face.

python -m benchmarks.website             # the bundled generator
python -m benchmarks.website --quick     # a few of each
python -m benchmarks.website --site DIR  # a folder that `python -m studio.website --out DIR` wrote

"First face" is from the start of a visit whose files the browser has already downloaded, with the
opening of the networks; all else from the click to the painted canvas. The headless browser draws
by WebAssembly.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import finish, machine, make_parser, p95, table

PATIENCE = 600_000  # ms; a busy machine opens the networks slowly
# Notes when the small and the large picture of a face are painted.
WATCH = """() => {
  const canvas = document.querySelector("#face canvas");
  window.times = { small: [], large: [] };
  window.began = 0; // the start of the visit
  const note = (kind) => window.times[kind].push(performance.now() - window.began);
  new MutationObserver(() => note(canvas.width < 512 ? "small" : "large"))
    .observe(canvas, { attributes: true, attributeFilter: ["data-drawn"] });
  document.addEventListener("click", () => { window.began = performance.now(); }, true);
}"""


@contextmanager
def serve(folder: Path, *, isolated: bool) -> Iterator[str]:
    """Serve a folder without a log; `isolated` with the headers that allow threads."""

    class Files(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def end_headers(self) -> None:
            if isolated:
                self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

    handler = functools.partial(Files, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def visit(context: Any, address: str) -> Any:
    """Open the page in a new tab, watched, and wait until its first face is enlarged."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.add_init_script(f"addEventListener('DOMContentLoaded', {WATCH})")
    page.goto(f"{address}?seed=42&backend=wasm")
    page.wait_for_function("window.times.large.length > 0")
    return page


def time_faces(page: Any, act: Callable[[], None], count: int) -> dict[str, list[float]]:
    """Ask for some faces; return ms until the small and the large picture of each is seen."""
    page.evaluate("window.times = { small: [], large: [] }")
    for done in range(1, count + 1):
        act()
        page.wait_for_function("done => window.times.large.length >= done", arg=done)
        time.sleep(0.2)
    return page.evaluate("window.times")


def measure(folder: Path, count: int, *, isolated: bool) -> dict[str, Any]:
    """Use the page as a visitor would and return the times, ms."""
    from tests.browser import open_browser

    with serve(folder, isolated=isolated) as address, open_browser() as browser:
        context = browser.new_context(service_workers="block", locale="en")
        visit(context, address).close()  # downloads
        page = visit(context, address)
        times = page.evaluate("window.times")
        figures = {"first face": times["small"][:1], "first face, large": times["large"][:1]}
        rolled = time_faces(page, lambda: page.click("#roll"), count)
        figures |= {"another face": rolled["small"], "another face, large": rolled["large"]}
        context.close()
    return figures


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Measure what the command line asks for; return Markdown and the figures."""
    count = 3 if args.quick else 20
    with tempfile.TemporaryDirectory() as made:
        folder = args.site or Path(made)
        if args.site is None:
            from studio.faces import Studio
            from studio.website import write_site

            write_site(Studio.open(), folder)
        figures = {
            name: measure(folder, count, isolated=isolated)
            for name, isolated in (("one thread", False), ("threads", True))
        }
    rows = [
        [event, threads, len(times), round(median(times)), round(p95(times))]
        for threads, events in figures.items()
        for event, times in events.items()
    ]
    head = ["event", "WebAssembly", "times", "p50, ms", "p95, ms"]
    return f"{table(head, rows)}\n\nHeadless Chromium on {machine()}.", figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = make_parser("website", __doc__)
    parser.add_argument("--site", type=Path, help="folder of the page (default: made anew)")
    return finish("website", parser.parse_args(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
