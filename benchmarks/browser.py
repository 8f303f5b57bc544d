"""The page in a browser: from a visitor's hand to the changed face.

python -m benchmarks.browser            # dice, space bar, slider, a dragged slider
python -m benchmarks.browser --quick    # a few of each

Timed inside the page, from the click or input event to the first frame painted after the new
picture has loaded. The server, which is app.py with the bundled weights, and the headless browser
share this machine.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import machine, make_parser, median, p95, publish, table
from benchmarks.page import start_server, wait_until_idle

SLIDER = '#tools input[type="range"]'
DRAG_SECONDS = 3.0
# A picture's `load` does not bubble, but whoever listens in the capturing phase hears it.
WATCH = """() => {
  window.took = [];
  for (const kind of ["click", "input"]) {
    document.addEventListener(kind, () => { window.began = performance.now(); }, true);
  }
  document.addEventListener("load", (event) => {
    if (!event.target.closest?.("#face")) return;
    const painted = () => window.took.push(performance.now() - window.began);
    requestAnimationFrame(() => setTimeout(painted));
  }, true);
}"""


@contextmanager
def open_meet(cache: Path) -> Any:
    """Yield a page that shows a face, watched, of a server that has nothing else to do."""
    from tests.browser import open_browser

    server, address = start_server(cache)
    try:
        wait_until_idle(server.pid)
        with open_browser() as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 860}, locale="en")
            page.goto(f"{address}/?seed=9")
            page.wait_for_selector("#face img")
            page.evaluate(WATCH)
            page.wait_for_timeout(1000)
            yield page
    finally:
        server.terminate()
        server.wait(20)


def time_all(page: Any, act: Any, count: int) -> list[float]:
    """Do something `count` times and return how long each took to show, ms; the first warms up."""
    for _ in range(count + 1):
        before = page.evaluate("window.took.length")
        act()
        page.wait_for_function("before => window.took.length > before", arg=before)
        page.wait_for_timeout(250)
    took = page.evaluate("window.took")[-count:]
    page.evaluate("window.took = []")
    return took


def press(page: Any, key: str) -> None:
    """Move the first named slider by a step."""
    page.locator(SLIDER).nth(1).press(key)


def drag(page: Any) -> dict[str, float]:
    """Drag a slider to and fro; return faces a second, and ms from the last move to its face."""
    box = page.locator(SLIDER).nth(1).bounding_box()
    x, y, width = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"] * 0.8
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate("window.took = []")
    start = time.monotonic()
    while (gone := time.monotonic() - start) < DRAG_SECONDS:
        page.mouse.move(x + width * (abs(gone % 2 - 1) - 0.5), y)
    seen = page.evaluate("window.took.length") / gone
    page.mouse.up()
    page.wait_for_timeout(1500)  # whatever was queued would come now
    return {"faces_per_second": round(seen, 1), "last_ms": round(page.evaluate("took.at(-1)"))}


def measure(count: int) -> dict:
    """Use the page as a visitor would and return the times, ms."""
    with tempfile.TemporaryDirectory() as cache, open_meet(Path(cache)) as page:
        keys = ["ArrowRight", "ArrowLeft"] * (count + 1)
        times = {
            "dice": time_all(page, lambda: page.click("#roll"), count),
            "space bar": time_all(page, lambda: page.keyboard.press("Space"), count),
            "slider": time_all(page, lambda: press(page, keys.pop()), count),
        }
        return {"times": times, "drag": drag(page)}


def main() -> None:
    """Measure, print a table, write the figures."""
    args = make_parser("browser", __doc__.splitlines()[0]).parse_args()
    figures = measure(5 if args.quick else 40)
    rows = [[k, len(v), round(median(v)), round(p95(v))] for k, v in figures["times"].items()]
    dragged = figures["drag"]
    text = (
        f"{table(['event', 'times', 'p50, ms', 'p95, ms'], rows)}\n\n"
        f"A dragged slider shows {dragged['faces_per_second']} faces a second, and the face of its "
        f"last place {dragged['last_ms']} ms after the hand stops.\n\n"
        f"Server and headless Chromium on {machine()}."
    )
    publish("browser", text, figures, args)


if __name__ == "__main__":
    main()
