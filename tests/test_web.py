"""The page without a server: a plain file server, a browser, and the faces that torch draws."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from model import SEED_MAX, Generator, latents_from_seeds
from studio.export import export
from studio.faces import Studio

ROOT = Path(__file__).resolve().parents[1]
PIXELS = """canvas => Array.from(
  canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)"""
expect.set_options(timeout=60_000)


class Files(http.server.SimpleHTTPRequestHandler):
    """A file server that writes no log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """Return a studio of a small random generator with a card."""
    folder = tmp_path_factory.mktemp("generator")
    torch.manual_seed(0)
    G = Generator(resolution=32, channels=(32, 32, 16, 16))
    G.update_w_avg(256)
    G.save_pretrained(folder)
    (folder / "README.md").write_text("# Card\n\nRandom, for tests.\n")
    return Studio.open(folder)


@pytest.fixture(scope="module")
def site(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the page with that generator; yield its address."""
    makefile = (ROOT / "Makefile").read_text()
    stamp = f"web/runtime/{re.search(r'^ORT = (.+)$', makefile, re.MULTILINE)[1]}"
    subprocess.run(["make", "--silent", stamp], cwd=ROOT, check=True)  # from npm, where it is not
    folder = tmp_path_factory.mktemp("site")
    for file in (*(ROOT / "web").glob("*.*s"), ROOT / "web/index.html", ROOT / "assets/style.css"):
        shutil.copy(file, folder)
    (folder / "runtime").symlink_to(ROOT / "web" / "runtime")
    export(studio, folder)
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Files, directory=str(folder))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open a tab in which an error of a script fails the test."""
    context = browser.new_context()
    tab = context.new_page()
    faults: list[object] = []
    tab.on("pageerror", lambda fault: faults.append(fault))
    yield tab
    context.close()
    assert not faults


def read(page: Page, selector: str) -> np.ndarray:
    """Return the pixels of the canvases that fit, uint8 `[N, H, W, 3]`."""
    rgba = [np.array(c.evaluate(PIXELS), np.uint8) for c in page.query_selector_all(selector)]
    size = round((rgba[0].size / 4) ** 0.5)
    return np.stack(rgba).reshape(len(rgba), size, size, 4)[..., :3]


def wait_for(page: Page, seed: int, psi: str, element: str = "#face") -> None:
    expect(page.locator(element)).to_have_attribute("data-drawn", f"{seed} {psi}")


def worst(found: np.ndarray, expected: np.ndarray) -> int:
    return int(np.abs(found.astype(int) - expected).max())


def test_latents_are_those_of_numpy(site: str, page: Page, studio: Studio) -> None:
    page.goto(f"{site}?seed=0")
    seeds = [0, 1, 42, 2**31, SEED_MAX, *np.random.RandomState(5).randint(0, 2**32, 95, np.uint64)]
    script = """async ([seeds, n]) =>
      Array.from((await import("./seeds.js")).latents(seeds, n))"""
    found = page.evaluate(script, [[int(s) for s in seeds], 1001])
    expected = latents_from_seeds([int(s) for s in seeds], 1001).numpy()
    found = np.array(found, np.float32).reshape(expected.shape)
    # The browser's logarithm may differ in its last bit of 53; a float32 keeps 24.
    assert np.abs(found - expected).max() < 1e-6
    assert (found != expected).mean() < 1e-4


def test_same_faces_as_torch(site: str, page: Page, studio: Studio) -> None:
    page.goto(f"{site}?seed=42&psi=0.7")
    wait_for(page, 42, "0.7")
    wait_for(page, 24, "0.7", "#wall")
    assert worst(read(page, "#face"), studio.draw([42], 0.7)) <= 1
    assert worst(read(page, "#wall canvas"), studio.draw(range(24, 48), 0.7)) <= 1
    page.goto(f"{site}?seed={SEED_MAX}&psi=1")
    wait_for(page, SEED_MAX, "1")
    assert worst(read(page, "#face"), studio.draw([SEED_MAX], 1.0)) <= 1


def test_the_address_is_kept(site: str, page: Page, studio: Studio) -> None:
    page.goto(f"{site}?seed=7&psi=0.5")
    wait_for(page, 7, "0.5")
    link = page.locator("#link").input_value()
    query = {k: v[0] for k, v in parse_qs(urlsplit(link).query).items()}
    assert query == {"seed": "7", "psi": "0.5", "rev": studio.revision}
    page.click("#roll")
    page.wait_for_url(lambda url: "seed=7&" not in url and "psi=0.5" in url)
    rolled = int(page.locator("#seed").input_value())
    wait_for(page, rolled, "0.5")
    page.reload()
    wait_for(page, rolled, "0.5")
    assert worst(read(page, "#face"), studio.draw([rolled], 0.5)) <= 1


def test_controls(site: str, page: Page, studio: Studio) -> None:
    page.goto(f"{site}?seed=1")
    wait_for(page, 0, "0.7", "#wall")
    page.click("#wall button:nth-child(6)")
    wait_for(page, 5, "0.7")
    page.locator("#psi").fill("0.2")
    wait_for(page, 5, "0.2")
    wait_for(page, 0, "0.2", "#wall")
    assert worst(read(page, "#wall canvas"), studio.draw(range(24), 0.2)) <= 1
    page.locator("#seed").fill("4294967296")
    expect(page.locator("#note")).to_have_text("A seed is a whole number from 0 to 4294967295.")
    page.locator("#seed").fill("123")
    wait_for(page, 123, "0.2")
    expect(page.locator("#note")).to_be_hidden()
    page.click("#back")  # before the first wall comes the last, which is not full
    last = SEED_MAX - SEED_MAX % 24
    wait_for(page, last, "0.2", "#wall")
    assert page.locator("#wall button").count() == SEED_MAX - last + 1
    page.click("#more")
    wait_for(page, 0, "0.2", "#wall")


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("seed=4294967296", "The seed in this address cannot be used"),
        ("seed=1e3", "The seed in this address cannot be used"),
        ("seed=3&psi=1.5", "The psi in this address cannot be used"),
        ("seed=3&psi=..", "The psi in this address cannot be used"),
        ("seed=3&rev=000000000000", "made with other weights"),
        ("seed=3&mix=7%40fine", "what the address changes in it is left out"),
    ],
)
def test_unusable_addresses(site: str, page: Page, query: str, sentence: str) -> None:
    page.goto(f"{site}?{query}")
    expect(page.locator("#note")).to_contain_text(sentence)
    expect(page.locator("#face")).to_have_attribute("data-drawn", re.compile(r"^\d+ 0\.7$"))


def test_a_kept_picture_carries_its_recipe(
    site: str, page: Page, studio: Studio, tmp_path: Path
) -> None:
    page.goto(f"{site}?seed=9&psi=0.6")
    wait_for(page, 9, "0.6")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "kaogan-9.png"
    download.value.save_as(tmp_path / "face.png")
    with Image.open(tmp_path / "face.png") as image:
        image.load()
        assert image.size == (512, 512)
        assert image.text == {"seed": "9", "psi": "0.6", "revision": studio.revision}
        small = np.array(image.convert("RGB").resize((32, 32), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - studio.draw([9], 0.6)[0]).mean() < 12  # enlarged, but this face


def test_without_a_generator(site: str, page: Page) -> None:
    page.route("**/generator.json", lambda route: route.fulfill(status=404))
    page.goto(site)
    expect(page.locator("#notice")).to_have_text(
        "This page cannot draw: no generator lies beside this page; `make web` puts one there."
    )
    expect(page.locator("#roll")).to_be_disabled()


def test_without_the_runtime(site: str, page: Page) -> None:
    page.route("**/runtime/*.min.mjs", lambda route: route.fulfill(status=404))
    page.goto(site)
    expect(page.locator("#notice")).to_contain_text("its runtime is missing; `make web` fetches it")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_looks_like_the_other_page(site: str, browser: Browser, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{site}?seed=1")
    wait_for(page, 1, "0.7")
    style = (ROOT / "assets" / "style.css").read_text()
    paper = re.findall(r"--paper: (#[0-9a-f]{6});", style)[scheme == "dark"]
    rgb = ", ".join(str(int(paper[i : i + 2], 16)) for i in (1, 3, 5))
    expect(page.locator("body")).to_have_css("background-color", f"rgb({rgb})")
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # nothing sticks out
    expect(page.locator("#about")).to_contain_text("Random, for tests.")
    context.close()
