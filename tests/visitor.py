"""The page as a visitor has it: the real server in a process of its own, a client, a browser.

Loaded by conftest.py, so that all modules that one process runs share one server.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.common import free_port

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 180  # a busy machine imports slowly
SHOWN = "(items) => items.map((i) => [i.innerText, i.ariaLabel, i.querySelector('img')?.src])"
PATIENCE = 90_000  # ms, for what a visitor waits for


@pytest.fixture(scope="session")
def generator_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small random generator with a card, sliders and a discriminator."""
    import torch
    from edits import save_directions, save_generator

    from model import Discriminator

    folder = tmp_path_factory.mktemp("weights") / "generator"
    G = save_generator(folder)
    save_directions(folder, G)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Card\n\nRandom, for tests.\n")
    torch.manual_seed(1)
    D = Discriminator(G.resolution, (16, 16, 8, 8, 8))
    D.save_pretrained(folder.parent / "discriminator")
    return folder


@pytest.fixture(scope="session")
def studio(generator_dir: Path):
    from studio.faces import Studio

    return Studio.open(generator_dir)


@contextmanager
def serve(generator: Path | str, cache: Path, port: int, **environment: str) -> Iterator[str]:
    """Run app.py with a cache of its own until it answers; no traceback may be in its log."""
    env = {
        **os.environ,
        "GRADIO_TEMP_DIR": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "app.py", "--model", generator, "--host", "127.0.0.1"]
    log = cache / "log"
    with log.open("a") as file:
        server = subprocess.Popen(
            [*map(str, command), "--port", str(port)],
            cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    try:
        while True:
            try:
                httpx.get(address, timeout=10).raise_for_status()
                break
            except httpx.HTTPError:
                running = server.poll() is None and time.monotonic() < deadline
                assert running, f"app.py did not start:\n{log.read_text()}"
                time.sleep(0.2)
        yield address
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="session")
def url(generator_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the page of the small generator on a free port."""
    with serve(generator_dir, tmp_path_factory.mktemp("cache"), free_port()) as address:
        yield address


@pytest.fixture(scope="session")
def client(url: str, tmp_path_factory: pytest.TempPathFactory):
    from gradio_client import Client

    return Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import expect

    from tests.browser import open_browser

    expect.set_options(timeout=PATIENCE)
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def context(browser):
    """Share one cache among all tabs: the page's scripts are large."""
    return browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )


@pytest.fixture
def page(context):
    """Open a tab that notes every address asked for outside this machine and every error."""
    with watched(context) as page:
        yield page


@contextmanager
def watched(context) -> Iterator:
    """Open a tab in which nothing foreign may be asked for and no script may fail."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    foreign: list[str] = []
    errors: list[str] = []
    page.on("request", lambda r: foreign.append(r.url) if is_foreign(r.url) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert foreign == []
    assert errors == []


def is_foreign(address: str) -> bool:
    return not address.startswith(("http://127.0.0.1:", "data:", "blob:"))


# What a visitor does and sees


def open_page(page, address: str) -> None:
    """Open the page and wait for its face."""
    page.goto(address)
    page.wait_for_selector("#face img", state="attached")
    page.wait_for_function("() => location.search.includes('rev=')")


def go(page, tab: str) -> None:
    """Turn to a tab."""
    page.click(f"#tab-{tab}-button")
    page.wait_for_selector(f"#tab-{tab}-button[aria-selected=true]")


def wait_for_face(page, recipe, studio) -> None:
    """Wait until the page shows a recipe: picture, number, link and address bar."""
    from playwright.sync_api import expect

    from studio.pictures import name_folder

    page.wait_for_selector(f'#face img[src*="/face/{name_folder(recipe)}/"]')
    expect(page.locator("#seed input")).to_have_value(str(recipe.seed))
    query = recipe.query(studio.revision)
    page.wait_for_function("query => location.search === query", arg=query)
    expect(page.locator("#link textarea")).to_have_value(page.url.split("?")[0] + query)


def met(page):
    """Return the recipe in the address bar."""
    from urllib.parse import parse_qsl, urlsplit

    from studio.recipe import recipe_from_query

    return recipe_from_query(dict(parse_qsl(urlsplit(page.url).query)), 0, "")[0]


def whole(page, gallery: str, count: int):
    """Wait until a gallery shows so many faces, none of them still to come; return its items."""
    from playwright.sync_api import expect

    faces = page.locator(f"{gallery} .thumbnail-item")
    expect(faces).to_have_count(count)
    expect(page.locator(f"{gallery} img[src*='blank.png']")).to_have_count(0)
    before, now = None, faces.evaluate_all(SHOWN)
    while now != before:  # captions and pictures of one page come one after the other
        page.wait_for_timeout(300)
        before, now = now, faces.evaluate_all(SHOWN)
    return faces


def large(studio, recipe) -> np.ndarray:
    """Draw what the page should show for a recipe."""
    from studio.pictures import PAGE_SIZE

    return studio.enlarge(studio.draw_recipes([recipe]), PAGE_SIZE)[0]


def apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())
