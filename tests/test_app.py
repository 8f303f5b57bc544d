"""The page: the real server in a process of its own, asked by its API and by a browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect

import app
from model import SEED_MAX, Generator
from studio.faces import Studio
from studio.pictures import enlarge, to_image
from tests.browser import open_browser, pixels

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120  # a busy machine imports slowly
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def generator_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small random generator with a card."""
    folder = tmp_path_factory.mktemp("generator")
    torch.manual_seed(0)
    G = Generator(resolution=32, channels=(32, 32, 16, 16))
    G.update_w_avg(256)
    G.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Card\n\nRandom, for tests.\n")
    return folder


@pytest.fixture(scope="module")
def studio(generator_dir: Path) -> Studio:
    return Studio.open(generator_dir)


def start_app(cache: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start app.py with a cache of its own; its output goes to `cache`/log."""
    env = {
        **os.environ,
        "GRADIO_TEMP_DIR": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (cache / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "app.py", *map(str, arguments)],
            cwd=ROOT,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def url(generator_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the page of the small generator on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache = tmp_path_factory.mktemp("cache")
    arguments = ("--model", generator_dir, "--host", "127.0.0.1", "--port", port)
    server = start_app(cache, *arguments)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    try:
        while True:
            try:
                httpx.get(address, timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                running = server.poll() is None and time.monotonic() < deadline
                assert running, f"app.py did not start:\n{(cache / 'log').read_text()}"
                time.sleep(0.2)
        yield address
        log = (cache / "log").read_text()
        assert "Traceback" not in log, log
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def context(browser: Browser) -> BrowserContext:
    """Share one cache among all tabs: the page's scripts are large."""
    return browser.new_context(viewport={"width": 1280, "height": 900})


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """Open a tab that notes every address asked for outside this machine and every error."""
    page = context.new_page()
    page.set_default_timeout(30_000)
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


def large(studio: Studio, seed: int, psi: float = 0.7) -> np.ndarray:
    """Draw what the page should show for a seed."""
    return np.array(enlarge(to_image(studio.draw([seed], psi)[0]), 512))


def apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# The API


def test_the_api_has_two_calls(client: Client):
    calls = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(calls) == {"/generate", "/wall"}
    for call in calls.values():
        assert [p["label"] for p in call["parameters"]] == ["seed", "psi"]


def test_generate_draws_a_face_with_its_recipe(client: Client, studio: Studio):
    path = client.predict(SEED_MAX, 0.5, api_name="/generate")
    assert Path(path).name == f"kaogan-{SEED_MAX}.png"
    with Image.open(path) as picture:
        assert apart(np.array(picture), large(studio, SEED_MAX, 0.5)) <= 2
        wanted = {"seed": str(SEED_MAX), "psi": "0.5", "revision": studio.revision}
        assert picture.text == wanted


def test_wall_draws_24_faces(client: Client, studio: Studio):
    wall = client.predict(100, 0.9, api_name="/wall")
    assert [face["caption"] for face in wall] == [str(seed) for seed in range(100, 124)]
    drawn = np.stack([np.array(Image.open(face["image"])) for face in wall])
    assert apart(drawn, studio.draw(range(100, 124), 0.9)) <= 1
    assert len(client.predict(SEED_MAX - 2, 0.7, api_name="/wall")) == 3


def test_many_visitors_get_their_own_faces(client: Client, studio: Studio):
    with ThreadPoolExecutor(6) as visitors:
        paths = visitors.map(
            lambda seed: client.predict(seed, 0.7, api_name="/generate"), range(200, 218)
        )
        for seed, path in zip(range(200, 218), paths, strict=True):
            assert apart(np.array(Image.open(path)), large(studio, seed)) <= 2


@pytest.mark.parametrize(
    ("seed", "psi", "says"),
    [
        ("banana", 0.7, "a seed is a whole number from 0 to 4294967295, not 'banana'"),
        (-1, 0.7, "a seed is a whole number from 0 to 4294967295, not -1"),
        (1.5, 0.7, "a seed is a whole number from 0 to 4294967295, not 1.5"),
        (2**32, 0.7, "a seed is a whole number from 0 to 4294967295, not 4294967296"),
        (1, 9, "psi is a number from -2 to 2, not 9"),
        (1, "much", "psi is a number from -2 to 2, not 'much'"),
    ],
)
def test_the_api_refuses_in_one_sentence(client: Client, seed: object, psi: object, says: str):
    for call in ("/generate", "/wall"):
        with pytest.raises(AppError) as refused:
            client.predict(seed, psi, api_name=call)
        assert str(refused.value) == says


# The browser


def open_page(page: Page, address: str) -> None:
    """Open the page and wait for its face and its wall."""
    page.goto(address)
    page.wait_for_selector("#face img")
    page.wait_for_selector("#wall img")


def wait_for_face(page: Page, seed: int, psi: str = "0.7") -> None:
    """Wait until the page shows a seed: picture, number, link and address bar."""
    page.wait_for_selector(f'#face img[src$="psi{psi}/kaogan-{seed}.png"]')
    expect(page.locator("#seed input")).to_have_value(str(seed))
    revision = page.locator("#about code").inner_text()
    query = f"?seed={seed}&psi={psi}&rev={revision}"
    page.wait_for_function("query => location.search === query", arg=query)
    base = page.url.split("?")[0]
    expect(page.locator("#link textarea")).to_have_value(base + query)


def test_a_face_changes_with_the_seed_and_comes_back(page: Page, url: str, studio: Studio):
    open_page(page, f"{url}/?seed=42")
    wait_for_face(page, 42)
    before = pixels(page, "#face img")
    assert apart(before, large(studio, 42)) <= 2
    page.fill("#seed input", "43")
    wait_for_face(page, 43)
    other = pixels(page, "#face img")
    assert apart(other, large(studio, 43)) <= 2
    assert apart(other, before) > 20
    page.fill("#seed input", "42")
    wait_for_face(page, 42)
    assert (pixels(page, "#face img") == before).all()


def test_an_address_restores_its_face(page: Page, url: str, studio: Studio):
    open_page(page, f"{url}/?seed=7&psi=0.5")
    wait_for_face(page, 7, "0.5")
    assert apart(pixels(page, "#face img"), large(studio, 7, 0.5)) <= 2
    expect(page.locator('#psi input[type="number"]')).to_have_value("0.5")
    expect(page.locator("#note")).not_to_contain_text("cannot")
    expect(page.locator("#about")).to_contain_text("Random, for tests.")
    expect(page.locator("#about")).to_contain_text(studio.revision)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (
            "?seed=banana&psi=0.5",
            "The seed in this address cannot be used (a seed is a whole number",
        ),
        ("?seed=5&psi=0.5&rev=0123456789ab", "made with other weights, so its face may differ"),
        ("?seed=5&psi=<b>", "The psi in this address cannot be used (psi is a number from 0 to 1)"),
    ],
)
def test_a_malformed_address_opens_with_a_friendly_line(
    page: Page, url: str, query: str, says: str
):
    open_page(page, url + "/" + query)
    expect(page.locator("#note")).to_contain_text(says)
    seed = int(page.input_value("#seed input"))
    assert 0 <= seed < 1_000_000
    wait_for_face(page, seed, "0.5" if "psi=0.5" in query else "0.7")
    expect(page.locator(".toast-body")).to_have_count(0)


def test_a_bad_typed_seed_gets_a_line_and_keeps_the_face(page: Page, url: str):
    open_page(page, f"{url}/?seed=42")
    wait_for_face(page, 42)
    for typed, says in (
        ("-3", "not -3"),
        ("1.5", "not 1.5"),
        ("99999999999", "not 99999999999"),
        ("", "A seed is a whole number from 0 to 4294967295."),
    ):
        page.fill("#seed input", typed)
        expect(page.locator("#note")).to_contain_text(says)
        assert page.locator('#face img[src$="kaogan-42.png"]').count() == 1
        assert "?seed=42&psi=0.7&rev=" in page.url
    page.locator("#seed input").press_sequentially("banana")
    expect(page.locator("#note")).to_contain_text("A seed is a whole number")
    expect(page.locator(".toast-body")).to_have_count(0)
    page.fill("#seed input", "8")
    wait_for_face(page, 8)
    expect(page.locator("#note")).not_to_contain_text("seed")


def test_a_click_on_the_wall_takes_its_face(page: Page, url: str, studio: Studio):
    open_page(page, f"{url}/?seed=42")
    wait_for_face(page, 42)
    expect(page.locator("#wall img")).to_have_count(24)
    assert page.locator("#wall img").first.get_attribute("alt") == "24"
    page.click('#wall button:has(img[alt="31"])')
    wait_for_face(page, 31)
    assert apart(pixels(page, "#face img"), large(studio, 31)) <= 2
    page.click("#turn button:last-child")
    page.click('#wall button:has(img[alt="71"])')
    wait_for_face(page, 71)
    page.click("#turn button:first-child")
    page.wait_for_selector('#wall img[alt="24"]')
    page.click("#turn button:first-child")
    page.wait_for_selector('#wall img[alt="0"]')  # a click is not taken while one is answered
    page.click("#turn button:first-child")  # before the first page comes the last, which is short
    page.wait_for_selector(f'#wall img[alt="{SEED_MAX}"]')
    expect(page.locator("#wall img")).to_have_count(16)


def test_the_slider_redraws_face_and_wall(page: Page, url: str, studio: Studio):
    open_page(page, f"{url}/?seed=3")
    wait_for_face(page, 3)
    slider = page.locator('#psi input[type="range"]')
    slider.focus()
    for _ in range(4):
        slider.press("ArrowLeft")
    wait_for_face(page, 3, "0.5")
    assert apart(pixels(page, "#face img"), large(studio, 3, 0.5)) <= 2
    page.wait_for_selector('#wall img[src*="/psi0.5/"][alt="9"]')
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    wait_for_face(page, 3, "1")
    page.wait_for_selector('#wall img[src*="/psi1/"][alt="9"]')
    page.fill('#psi input[type="number"]', "5")
    page.keyboard.press("Tab")
    wait_for_face(page, 3, "1")
    expect(page.locator(".toast-body")).to_have_count(0)


def test_rolling_shows_another_face(page: Page, url: str, studio: Studio):
    open_page(page, f"{url}/?seed=3")
    wait_for_face(page, 3)
    page.click("#roll")
    page.wait_for_function("() => !location.search.startsWith('?seed=3&')")
    seed = int(page.input_value("#seed input"))
    wait_for_face(page, seed)
    assert apart(pixels(page, "#face img"), large(studio, seed)) <= 2


def test_a_download_is_named_by_its_seed_and_carries_its_recipe(
    page: Page, url: str, studio: Studio, tmp_path: Path
):
    open_page(page, f"{url}/?seed=42")
    wait_for_face(page, 42)
    with page.expect_download() as started:
        page.click("#face .download-link")
    assert started.value.suggested_filename == "kaogan-42.png"
    started.value.save_as(tmp_path / "face.png")
    with Image.open(tmp_path / "face.png") as picture:
        assert picture.text == {"seed": "42", "psi": "0.7", "revision": studio.revision}
        assert picture.size == (512, 512)


def test_the_page_fits_a_phone(page: Page, url: str):
    page.set_viewport_size({"width": 390, "height": 844})
    open_page(page, f"{url}/?seed=42")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.click('#wall button:has(img[alt="47"])')
    wait_for_face(page, 47)
    expect(page.locator("#face img")).to_be_in_viewport()


# Starting


def test_a_notice_stands_on_the_page(generator_dir: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    studio = Studio.open(generator_dir)
    studio.notice = "Other weights than asked are shown."
    shown = [c.get("props", {}).get("value") for c in app.build(studio).config["components"]]
    assert studio.notice in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "{folder}"), "has no config.json"),
        (("--revision", "abc"), "a revision is only for a Hub repository"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], says: str, capsys, monkeypatch
):
    arguments = tuple(a.format(folder=tmp_path) for a in arguments)
    monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
    assert app.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("app.py: ")
    assert says in error
    assert error.count("\n") == 1
