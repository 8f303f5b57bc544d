"""The page without a server: a plain file server, a browser, and the faces that torch draws."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
import torch
from edits import SLIDERS, save_directions
from hub_server import Hub, space_errors
from huggingface_hub import metadata_load
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect

from model import SEED_MAX, DenseGenerator, Enlarger, Generator, count_levels, latents_from_seeds
from studio.another import PARTS, another
from studio.faces import Studio
from studio.latents import decode_ws, encode_ws, find_layers, seed_to_ws, truncate
from studio.recipe import Between, Edit, Mix, Recipe, Vary, recipe_from_png, recipe_from_query
from studio.website import write_site
from tests.browser import WEBGPU_FLAGS, launch

ROOT = Path(__file__).resolve().parents[1]
# Draws the faces of some queries as the page itself does; their RGBA values as a data URL.
DRAW = """async (queries) => {
  const { artist, page } = await import("./app.js");
  const found = queries.map((query) => page.find(query));
  const lines = found.map(({ line }) => line).filter(Boolean);
  const faces = [];
  let left = queries.length;
  await new Promise((done) => artist.faces(found.map(({ recipe }) => recipe), (index, face) => {
    faces[index] = face.pixels;
    left -= 1;
    if (!left) done();
  }));
  const url = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(new Blob(faces));
  });
  return { lines, url, queries: found.map(({ recipe }) => page.query(recipe)) };
}"""
FACE = "#face canvas"
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
RUNTIME, AXE = (
    re.search(rf"^{name} = (.+)$", MAKEFILE, re.MULTILINE)[1] for name in ("ORT", "AXE")
)
KINDS = ("psi", "fine", "mix", "sliders", "colours", "vary", "between", "w", "all", "steps")
LAYERS = ("coarse", "middle", "fine", "4", "8", "16", "32", "64", "128")
COUNT = 64  # recipes of each kind


class Files(http.server.SimpleHTTPRequestHandler):
    """A file server that writes no log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """Return a studio of a small random generator with a card, sliders and an enlarger."""
    folder = tmp_path_factory.mktemp("weights") / "generator"
    torch.manual_seed(0)
    # Weights that fp16 holds exactly, as those of every published generator are.
    G = Generator(128, (16, 16, 8, 8, 8, 8), z_dim=16, w_dim=12).half().float()
    G.update_w_avg(256)
    G.save_pretrained(folder)
    save_directions(folder, G)
    (folder / "README.md").write_text("# Card\n\nRandom, for tests.\n")
    Enlarger(8, 1).half().float().save_pretrained(folder.parent / "enlarger")
    return Studio.open(folder)


@pytest.fixture(scope="module")
def folder(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page with that generator; return its folder."""
    # From npm, where it is not there yet.
    stamp = f"web/runtime/{RUNTIME}.packed"
    subprocess.run(["make", "--silent", stamp], cwd=ROOT, check=True)
    folder = tmp_path_factory.mktemp("site") / "some" / "path"
    folder.mkdir(parents=True)
    write_site(studio, folder, check_seeds=4)
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[str]:
    """Serve the page from a sub-path; yield its address."""
    root = folder.parent.parent
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Files, directory=str(root))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/some/path/"
        server.shutdown()


@pytest.fixture(scope="module")
def visit(browser: Browser) -> Iterator[BrowserContext]:
    """Return a browser's profile, which keeps files for all tests that use it."""
    context = browser.new_context(
        service_workers="block", locale="en", permissions=["clipboard-read", "clipboard-write"]
    )
    yield context
    context.close()


@pytest.fixture
def page(visit: BrowserContext) -> Iterator[Page]:
    """Open a tab in which an error of a script fails the test."""
    tab = visit.new_page()
    faults: list[object] = []
    tab.on("pageerror", lambda fault: faults.append(fault))
    yield tab
    tab.close()
    assert not faults


def read(page: Page, selector: str) -> np.ndarray:
    """Return the pixels of the canvases that fit, uint8 `[N, H, W, 3]`."""
    urls = page.eval_on_selector_all(selector, "all => all.map((canvas) => canvas.toDataURL())")
    files = [io.BytesIO(base64.b64decode(url.partition(",")[2])) for url in urls]
    return np.stack([np.array(Image.open(file).convert("RGB")) for file in files])


def wait_for(page: Page, recipe: Recipe, studio: Studio) -> None:
    """Wait until a face is drawn and enlarged."""
    drawn = recipe.query(studio.revision)
    expect(page.locator(FACE)).to_have_attribute("data-drawn", drawn)
    page.wait_for_function(f"document.querySelector('{FACE}').width === 512")


def large(studio: Studio, recipe: Recipe) -> np.ndarray:
    return studio.enlarge(studio.draw_recipes([recipe]), 512)


def go(page: Page, query: str) -> None:
    """Let an open page show another address, without opening the generator anew."""
    page.evaluate(
        """async (query) => {
          history.replaceState(null, "", location.pathname + query);
          (await import("./app.js")).page.start();
        }""",
        query,
    )


def worst(found: np.ndarray, expected: np.ndarray) -> int:
    return int(np.abs(found.astype(int) - expected).max())


def shown(page: Page) -> dict[str, str]:
    """Return the query of the page's address."""
    return {k: v[0] for k, v in parse_qs(urlsplit(page.url).query).items()}


def draw_edits(rng: np.random.RandomState, names: tuple[str, ...]) -> tuple[Edit, ...]:
    """Return some sliders, or colours, at places of their ranges."""
    if names == ("hair", "eyes"):
        return tuple(Edit(name, f"#{rng.randint(1 << 24):06x}") for name in names)
    chosen = [name for name in names if rng.rand() < 0.7] or [names[0]]
    return tuple(Edit(name, round(rng.uniform(-2, 2.5), 2)) for name in chosen)


def draw_steps(rng: np.random.RandomState) -> tuple[Vary, ...]:
    """Return one to four variations, each in some layers."""
    places = rng.choice(LAYERS, rng.randint(1, 5), replace=False)
    radii = rng.uniform(0.2, 2, len(places)).round(3)
    seeds = rng.randint(0, 2**32, len(places), np.uint64)
    return tuple(
        Vary(int(seed), float(radius), str(layers))
        for seed, radius, layers in zip(seeds, radii, places, strict=True)
    )


def make_recipe(kind: str, rng: np.random.RandomState, studio: Studio) -> Recipe:
    """Return a recipe of which one part is drawn at random, or all are."""
    seed, *others = (int(n) for n in rng.randint(0, 2**32, 6, np.uint64))
    groups = [g for g in ("coarse", "middle", "fine") if rng.rand() < 0.6] or ["fine"]
    parts: dict[str, dict[str, Any]] = {
        "psi": {"psi": round(rng.rand(), 3)},
        "fine": {"psi": round(rng.rand(), 3), "fine": round(rng.rand(), 3)},
        "mix": {"mix": tuple(Mix(others[i], group) for i, group in enumerate(groups))},
        "sliders": {"edits": draw_edits(rng, SLIDERS)},
        "colours": {"edits": draw_edits(rng, ("hair", "eyes"))},
        "vary": {"vary": Vary(others[3], round(rng.uniform(0, 2), 3))},
        "between": {"between": Between(others[4], round(rng.rand(), 3))},
        "w": {"w": encode_ws(studio.G, studio.ws([Recipe(others[0], 1.0)])[0]), "psi": 1.0},
        "steps": {"steps": draw_steps(rng)},
    }
    if kind != "all":
        return Recipe(seed, **parts[kind])
    every = {key: value for name in parts if name != "w" for key, value in parts[name].items()}
    edits = (*parts["sliders"]["edits"], *parts["colours"]["edits"])
    return Recipe(seed, **every | {"edits": edits, "w": parts["w"]["w"] if seed % 2 else ""})


def test_latents_are_those_of_numpy(open_face: Page) -> None:
    seeds = [0, 1, 42, 2**31, SEED_MAX, *np.random.RandomState(5).randint(0, 2**32, 95, np.uint64)]
    script = """async ([seeds, n]) =>
      Array.from((await import("./seeds.js")).latents(seeds, n))"""
    found = open_face.evaluate(script, [[int(s) for s in seeds], 1001])
    expected = latents_from_seeds([int(s) for s in seeds], 1001).numpy()
    found = np.array(found, np.float32).reshape(expected.shape)
    # The browser's logarithm may differ in its last bit of 53; a float32 keeps 24.
    assert np.abs(found - expected).max() < 1e-6
    assert (found != expected).mean() < 1e-4


@pytest.fixture(scope="module")
def open_face(site: str, visit: BrowserContext, studio: Studio) -> Iterator[Page]:
    """Open a tab that shows a face."""
    tab = visit.new_page()
    faults: list[object] = []
    tab.on("pageerror", lambda fault: faults.append(fault))
    tab.goto(f"{site}?seed=0")
    wait_for(tab, Recipe(0), studio)
    yield tab
    tab.close()
    assert not faults


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_a_recipe_gives_the_face_of_torch(
    open_face: Page, studio: Studio, kind: str
) -> None:
    rng = np.random.RandomState(KINDS.index(kind))
    recipes = [make_recipe(kind, rng, studio) for _ in range(COUNT)]
    queries = [recipe.query(studio.revision) for recipe in recipes]
    faces = draw_queries(open_face, studio, queries)
    expected = studio.draw_recipes(recipes)
    assert worst(faces, expected) <= 1
    assert expected.std(0).mean() > 4  # they are different faces


def draw_queries(page: Page, studio: Studio, queries: list[str]) -> np.ndarray:
    """Draw addresses of which nothing may be left out, as the page does; uint8 `[N, H, W, 3]`."""
    found = page.evaluate(DRAW, queries)
    assert found["lines"] == []
    assert found["queries"] == queries  # the address is the same on both pages
    rgba = np.frombuffer(base64.b64decode(found["url"].partition(",")[2]), np.uint8)
    return rgba.reshape(len(queries), studio.size, studio.size, 4)[..., :3]


def encode_layers(offsets: np.ndarray, first: int = 2) -> str:
    """Write a latent for each layer, as no page does: damaged, or of another format."""
    steps = (np.abs(offsets).max(1, keepdims=True) / 127).astype("<f2")
    whole = np.rint(offsets / steps.astype(float)).clip(-127, 127).astype("i1")
    rows = [step.tobytes() + row.tobytes() for step, row in zip(steps, whole, strict=True)]
    data = bytes([first]) + b"".join(rows)
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def test_a_latent_for_each_layer(open_face: Page, studio: Studio) -> None:
    G = studio.G
    queries, expected = [], []
    for number in range(8):
        seeds = range(100 * number, 100 * number + G.num_ws)  # each layer from another seed
        ws = torch.stack([seed_to_ws(G, seed)[layer] for layer, seed in enumerate(seeds)])
        text = encode_ws(G, ws)
        psi, fine = (1.0, None) if number % 2 else (0.7, 0.4)
        queries.append(Recipe(number, psi, fine, w=text).query(studio.revision))
        expected.append(truncate(G, decode_ws(G, text), psi, fine))
    faces = draw_queries(open_face, studio, queries)
    assert worst(faces, studio.draw_ws(torch.stack(expected))) <= 1
    assert faces.std(0).mean() > 4


def test_latents_that_cannot_be_read(open_face: Page, studio: Studio) -> None:
    shape = (studio.G.num_ws, studio.G.w_dim)
    damaged = np.ones(shape)
    damaged[3] = 3000.0  # a step that no latent needs
    one, every = encode_ws(studio.G, torch.zeros(shape)), encode_layers(np.ones(shape))
    cut, unknown = "is cut off, or of another generator", "is written in an unknown way"
    for text, fault in (
        (encode_layers(damaged), "is damaged"),
        (encode_layers(np.ones(shape), first=3), unknown),
        (every[:-1], cut),
        (every[: len(one)], cut),
        ("AQ" + every[2:], cut),  # the first way, at the second's length
        ("A" * 4096, cut),
    ):
        line = find(open_face, f"?seed=1&w={text}")["line"]
        assert line == f"This latent {fault}."
    line = find(open_face, f"?seed=1&w={'A' * 4097}")["line"]
    assert line == "The w in this address cannot all be used (a latent is written in base64)."


@pytest.mark.parametrize("length", [4096, 5000])
def test_a_picture_carries_long_latents(open_face: Page, length: int) -> None:
    script = """async (length) => {
      const { readTexts, toPng } = await import("./png.js");
      const png = await toPng(document.querySelector("canvas"), 8, { w: "A".repeat(length) });
      return readTexts(await png.arrayBuffer()).w.length;
    }"""
    assert open_face.evaluate(script, length) == min(length, 4097)  # one more than there may be


def find(page: Page, query: str) -> dict[str, str]:
    """Return the address of the face that a page finds in a query, and the line about it."""
    script = """async (query) => {
      const { page } = await import("./app.js");
      const { recipe, line } = page.find(query);
      return { query: page.query(recipe), line };
    }"""
    return page.evaluate(script, query)


@pytest.mark.parametrize(
    "vary",
    [
        "5:0.3@fine", "5:0.3@8", "5:0.3,8:1@fine,9:1@16", "9:1@16,9:1@8,9:1@128,9:1@4",
        "7:1@32,7:1@fine,7:1,7:1@middle,7:1@coarse", " 5:1@8 , 6:1@4 ", "5:1@8,6:2@8,5:1,6:2",
        "5:0@fine,8:1@fine", "8:1@fine,5:0@fine", "8:1,5:0", "5:0.30000000000000004@8",
        "5:1e-05@8", "5:.5@8", "5:-0@8", "4294967295:2@coarse", "5:0.3@", "5:0.3@@8", "5:0.3@8@8",
        "5:0.3@thin", "5:0.3@Fine", "5:0.3@08", "5:0.3@0", "5:0.3@10000", "5:0.3@512", "5:1@3",
        "5@fine", "@fine", "@", ":1@8", "5:@8", "5:2.1@8", "5:-1@8", "5:nan@8", "5:0.3@8:1",
        "4294967296:1@8", "-1:1@8", "5:1@8,", ",5:1@8", "5:1@8;6:1@4", "5:1@toString",
        ",".join(f"{i}:1@{2 ** (i % 9 + 2)}" for i in range(16)),
        ",".join(f"{i}:1@{2 ** (i % 9 + 2)}" for i in range(17)),
        ",".join(["5:1@8"] * 16 + ["6:1@8"]),
        ",".join([f"5:0.{'3' * 37}@coarse"] * 16), "5:1@8" + " " * 1020,
        "5:1@" + "8" * 1020, "5:1@8" + " " * 1019,
    ],
)  # fmt: skip
def test_variations_are_read_as_on_the_other_page(
    open_face: Page, studio: Studio, vary: str
) -> None:
    query = {"seed": "3", "vary": vary, "rev": studio.revision}
    read, line = recipe_from_query(query, 0, studio.revision)
    recipe, more = studio.usable(read)
    lines = " ".join(filter(None, [line, more]))
    found = find(open_face, "?" + urlencode(query))
    assert found == {"query": recipe.query(studio.revision), "line": lines}


@pytest.mark.parametrize(
    ("resolution", "patch"), [(4, 1), (6, 1), (8, 1), (48, 1), (64, 1), (128, 2), (96, 2), (128, 4)]
)
def test_layers_are_those_of_the_generator(open_face: Page, resolution: int, patch: int) -> None:
    levels = count_levels(resolution // patch)
    G = Generator(resolution, (4,) * levels, z_dim=4, w_dim=4, patch=patch)
    groups = {name: [layers.start, layers.stop] for name, layers in G.layer_groups.items()}
    shape = {"size": resolution, "num_ws": G.num_ws, "groups": groups}
    names = [*LAYERS, *(str(n) for n in range(200)), "256", "", "08", "constructor"]
    script = """async ([shape, names]) => {
      const { findLayers } = await import("./layers.js");
      return names.map((name) => findLayers(shape, name));
    }"""
    found = open_face.evaluate(script, [shape, names])
    expected = [find_layers(G, name) for name in names]
    assert found == [[layers.start, layers.stop] for layers in expected]


@pytest.mark.parametrize("sliders", [True, False])
def test_another_part_is_that_of_the_other_page(
    open_face: Page, studio: Studio, sliders: bool
) -> None:
    likes = SimpleNamespace(G=studio.G, directions=studio.directions if sliders else None)
    liked = Recipe(
        3, 0.6, 0.8, mix=(Mix(7, "middle"), Mix(8, "fine")),
        edits=(Edit("long-hair", 1.0), Edit("smile", -1.3), Edit("hair", "#3fa34d")),
        vary=Vary(5, 0.3), steps=(Vary(6, 1.0, "8"), Vary(9, 0.5, "fine")), between=Between(9, 0.2),
    )  # fmt: skip
    script = """async ([query, parts, seeds, sliders]) => {
      const { page } = await import("./app.js");
      const { another } = await import("./another.js");
      const { recipe } = page.find(query);
      const shown = sliders ? page.directions.sliders : [];
      const draw = (part, seed) =>
        page.query(page.make({ ...recipe, ...another(page.facts, shown, recipe, part, seed) }));
      return parts.flatMap((part) => seeds.map((seed) => draw(part, seed)));
    }"""
    seeds = [*range(50), SEED_MAX]
    query = liked.query(studio.revision)
    found = open_face.evaluate(script, [query, list(PARTS), seeds, sliders])
    faces = [another(likes, liked, part, seed) for part in PARTS for seed in seeds]
    assert found == [face.query(studio.revision) for face in faces]


def test_buttons_for_another_part(open_face: Page, studio: Studio) -> None:
    page = open_face
    go(page, "?seed=3&psi=0.6&mix=7@middle")
    face = Recipe(3, 0.6, mix=(Mix(7, "middle"),))
    wait_for(page, face, studio)
    steps = ["none"]
    for _ in range(2):  # a second one takes the place of the first, and is a face of its own
        page.click("#another-hair")
        page.wait_for_url(lambda url: "@8" in url and steps[-1] not in url)
        steps.append(shown(page)["vary"])
    face = replace(face, steps=(Vary.parse(steps[2]),))
    assert face.steps[0].layers == "8"
    wait_for(page, face, studio)
    assert worst(read(page, FACE), large(studio, face)) <= 2
    page.click("#undo")
    wait_for(page, replace(face, steps=(Vary.parse(steps[1]),)), studio)
    page.click("#another-colouring")
    page.wait_for_url(lambda url: "@fine" in url)
    page.click("#another-expression")
    page.wait_for_url(lambda url: "edit=smile:" in url)
    assert float(page.locator("#edit-smile input").input_value()) != 0
    expect(page.locator("#another-hair")).to_have_text("Another hair")


def test_large_face_and_address(site: str, page: Page, studio: Studio) -> None:
    page.goto(f"{site}?seed=7&psi=0.5")
    wait_for(page, Recipe(7, 0.5), studio)
    assert worst(read(page, FACE), large(studio, Recipe(7, 0.5))) <= 2
    link = page.locator("#link textarea").input_value()
    query = {k: v[0] for k, v in parse_qs(urlsplit(link).query).items()}
    assert query == {"seed": "7", "psi": "0.5", "rev": studio.revision}
    page.click("#roll")
    page.wait_for_url(lambda url: "seed=7&" not in url and "psi=0.5" in url)
    rolled = Recipe(int(page.locator("#seed input").input_value()), 0.5)
    wait_for(page, rolled, studio)
    page.reload()
    wait_for(page, rolled, studio)
    assert worst(read(page, FACE), large(studio, rolled)) <= 2
    page.click("#copy")
    assert page.evaluate("navigator.clipboard.readText()") == page.url


def test_meet(open_face: Page, studio: Studio) -> None:
    page = open_face
    go(page, "?seed=3")
    wait_for(page, Recipe(3), studio)
    page.locator("#edit-smile input").fill("1")
    face = Recipe(3, edits=(Edit("smile", 1.0),))
    wait_for(page, face, studio)
    page.locator("#edit-hair input").fill("#3fa34d")
    coloured = replace(face, edits=(*face.edits, Edit("hair", "#3fa34d")))
    wait_for(page, coloured, studio)
    assert worst(read(page, FACE), large(studio, coloured)) <= 2
    page.locator("#fine input").fill("0.5")
    paler = replace(coloured, fine=0.5)
    wait_for(page, paler, studio)
    page.locator("#seed input").fill("4294967296")
    expect(page.locator("#note")).to_have_text("A seed is a whole number from 0 to 4294967295.")
    page.locator("#seed input").fill("123")
    wait_for(page, replace(paler, seed=123), studio)
    expect(page.locator("#note")).to_be_hidden()
    page.wait_for_timeout(
        1500
    )  # sooner, the next face would take this one's place among those seen
    page.click("#reset")
    wait_for(page, Recipe(123, 0.55, 0.5), studio)
    page.locator("h1").click()
    page.keyboard.press("ArrowLeft")  # back
    wait_for(page, replace(paler, seed=123), studio)
    page.check("#hold")
    page.locator("h1").click()
    page.keyboard.press(" ")
    page.wait_for_url(lambda url: "seed=123&" not in url)
    assert shown(page)["edit"] == "hair:3fa34d,smile:1"


def test_wall(open_face: Page, studio: Studio) -> None:
    page = open_face
    go(page, "?seed=1&tab=wall&first=24")
    grid = page.locator("#wall .grid-container")
    expect(grid).to_have_attribute("data-drawn", "first=24")
    assert worst(read(page, "#wall canvas"), studio.draw(range(24, 48))) <= 1
    page.click("#wall-back")
    page.click("#wall-back")  # before the first wall comes the last, which is not full
    last = SEED_MAX - SEED_MAX % 24
    expect(grid).to_have_attribute("data-drawn", f"first={last}")
    assert page.locator("#wall button").count() == SEED_MAX - last + 1
    page.click("#wall-more")
    page.locator("#wall-psi input").fill("0.2")
    expect(grid).to_have_attribute("data-drawn", "first=0&wpsi=0.2&wfine=0.9")
    assert worst(read(page, "#wall canvas"), studio.draw(range(24), 0.2, 0.9)) <= 1
    page.wait_for_url(lambda url: "tab=wall&first=0&wpsi=0.2&wfine=0.9" in url)
    page.click("#wall button:nth-child(6)")
    wait_for(page, Recipe(5, 0.2, 0.9), studio)
    page.click("#like")
    expect(page.locator("#wall-like-note")).to_have_text("Small steps around face 5.")
    page.click("#wall button:nth-child(4)")
    wait_for(page, Recipe(5, 0.2, 0.9, vary=Vary(3, 0.35)), studio)


def test_mix(open_face: Page, studio: Studio) -> None:
    page = open_face
    go(page, "?tab=mix&a=1&b=2")
    grid = page.locator("#sheet .grid-container")
    expect(grid).to_have_attribute("data-drawn", "a=1&b=2")
    mixed = [Recipe(1), Recipe(1, mix=(Mix(2, "fine"),))]
    assert worst(read(page, "#sheet canvas")[:2], studio.draw_recipes(mixed)) <= 1
    assert worst(read(page, ".parent canvas"), studio.draw([1, 2])) <= 1
    page.click("#mix-swap")
    expect(grid).to_have_attribute("data-drawn", "a=2&b=1")
    page.locator("#seed-b input").fill("9")
    expect(grid).to_have_attribute("data-drawn", "a=2&b=9")
    page.click("#sheet button:nth-child(5)")
    wait_for(page, Recipe(2, between=Between(9, 0.5)), studio)


def test_kept(open_face: Page, studio: Studio) -> None:
    page = open_face
    go(page, "?seed=4&vary=5:0.3")
    face = Recipe(4, vary=Vary(5, 0.3))
    wait_for(page, face, studio)
    page.click("#heart")
    expect(page.locator("#note")).to_contain_text("Kept.")
    page.click("#heart")
    expect(page.locator("#note")).to_have_text("This face is kept already.")
    page.click("#tab-keep")
    expect(page.locator("#kept .grid-container")).to_have_attribute("data-drawn", "1")
    assert worst(read(page, "#kept canvas"), studio.draw_recipes([face])) <= 1
    page.click("#kept button")
    page.locator("#keep-name input").fill("  Mio  ")
    page.click("#keep-rename")
    expect(page.locator("#kept .caption-label")).to_have_text("Mio")
    with page.expect_download() as download:
        page.click("#export")
    exported = json.loads(Path(download.value.path()).read_text())
    faces = [{"name": "Mio", "face": face.query(studio.revision)}]
    assert exported == {"format": "kaogan-favourites-1", "faces": faces}
    with page.expect_download() as download:
        page.click("#contact")
    with Image.open(download.value.path()) as sheet:
        assert sheet.size == (304, 334)
    page.click("#kept button")
    page.click("#keep-delete")
    expect(page.locator("#keep-empty")).to_be_visible()
    exported["faces"].append({"name": "Ren", "face": "?seed=8"})
    page.locator("#import-file").set_input_files(
        {"name": "f.json", "mimeType": "application/json", "buffer": json.dumps(exported).encode()}
    )
    expect(page.locator("#keep-note")).to_have_text("2 new faces came in.")
    page.locator("#import-file").set_input_files(
        {"name": "f.json", "mimeType": "application/json", "buffer": b"[1]"}
    )
    expect(page.locator("#keep-note")).to_have_text("This file holds no favourites of this page.")
    page.click("#kept button:nth-child(2)")
    page.click("#keep-meet")
    wait_for(page, Recipe(8), studio)


def test_saved_pictures(open_face: Page, studio: Studio, tmp_path: Path) -> None:
    page = open_face
    go(page, "?seed=9&psi=0.6&mix=7@fine")
    face = Recipe(9, 0.6, mix=(Mix(7, "fine"),))
    wait_for(page, face, studio)
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "kaogan-9.png"
    download.value.save_as(tmp_path / "face.png")
    assert recipe_from_png(tmp_path / "face.png", studio.revision) == (face, "")
    with Image.open(tmp_path / "face.png") as image:
        assert image.text["enlarger"] == studio.enlarging.name
        found = np.array(image.convert("RGB"))
    assert worst(found[None], large(studio, face)) <= 2
    go(page, "?seed=1")
    wait_for(page, Recipe(1), studio)
    field = page.locator("#onward input[type=file]")
    field.set_input_files(tmp_path / "face.png")
    wait_for(page, face, studio)
    foreign = io.BytesIO()
    Image.new("RGB", (8, 8)).save(foreign, "PNG")
    for data in (foreign.getvalue(), b"no picture", b""):
        field.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": data})
        expect(page.locator("#note")).to_contain_text("This picture carries no recipe")
        page.locator("#seed input").fill("2")
        page.locator("#seed input").fill("1")
        expect(page.locator("#note")).to_be_hidden()


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("seed=4294967296", "The seed in this address cannot be used"),
        ("seed=1e3", "The seed in this address cannot be used"),
        ("seed=3&psi=1.5", "The psi in this address cannot be used"),
        ("seed=3&fine=..", "The fine in this address cannot be used"),
        ("seed=3&rev=000000000000", "made with other weights"),
        ("seed=3&rev=e9229fde7989", "which only the page with a server draws"),
        ("seed=3&mix=7%40thin", "The mix in this address cannot all be used"),
        ("seed=3&edit=wings:1", "There is no slider wings here; there are principal-1"),
        ("seed=3&edit=smile:9", "Smile takes a number from -2 to 2.5, not 9"),
        ("seed=3&w=AAAA", "This latent is cut off, or of another generator"),
    ],
)
def test_unusable_addresses(open_face: Page, query: str, sentence: str) -> None:
    go(open_face, f"?{query}")
    expect(open_face.locator("#note")).to_contain_text(sentence)
    drawn = re.compile(r"^\?seed=\d+&psi=0\.55&fine=0\.9&rev=")
    expect(open_face.locator(FACE)).to_have_attribute("data-drawn", drawn)


def break_file(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("pattern", "answer", "sentence"),
    [
        ("**/generator.json", {"status": 404}, "no generator lies beside this page; `make web`"),
        ("**/generator.onnx*", {"status": 404}, "generator.onnx is missing beside this page"),
        ("**/generator.onnx*", {"body": "short"}, "generator.onnx is damaged or cut off"),
        ("**/generator.onnx*", break_file, "generator.onnx is damaged or cut off"),
        ("**/runtime/*.min.mjs", {"status": 404}, "its runtime is missing; `make web` fetches it"),
        ("**/runtime/*.wasm.gz*", {"status": 404}, "wasm.gz is missing beside this page"),
    ],
)
def test_missing_and_broken_files(
    site: str, browser: Browser, folder: Path, pattern: str, answer: Any, sentence: str
) -> None:
    if callable(answer):
        answer = {"body": answer((folder / "generator.onnx").read_bytes())}
    context = browser.new_context(service_workers="block", locale="en")
    page = context.new_page()
    page.route(pattern, lambda route: route.fulfill(**answer))
    page.goto(site)
    expect(page.locator("#notice")).to_contain_text("This page cannot draw: ")
    expect(page.locator("#notice")).to_contain_text(sentence)
    expect(page.locator("#roll")).to_be_disabled()
    context.close()


def before_worker(page: Page, script: str) -> None:
    """Let workers of a page run a script before their own."""
    page.add_init_script(f"""
      const Own = Worker;
      window.Worker = class extends Own {{
        constructor(url, options) {{
          const text = `${{{json.dumps(script)}}} await import("${{url}}");`;
          super(URL.createObjectURL(new Blob([text], {{ type: "text/javascript" }})), options);
        }}
      }};""")


def test_a_browser_without_simd(site: str, browser: Browser) -> None:
    context = browser.new_context(service_workers="block", locale="en")
    page = context.new_page()
    before_worker(page, "WebAssembly.validate = () => false;")
    page.goto(site)
    expect(page.locator("#notice")).to_contain_text("no WebAssembly with SIMD; a newer one has it")
    context.close()


def test_it_works_offline_and_with_threads(site: str, browser: Browser, studio: Studio) -> None:
    context = browser.new_context(locale="en")
    page = context.new_page()
    page.goto(f"{site}?seed=1")
    expect(page.locator("#loading-text")).to_contain_text(re.compile("MB|Opening"))
    wait_for(page, Recipe(1), studio)
    page.evaluate("navigator.serviceWorker.ready.then(() => true)")
    context.set_offline(True)
    page.goto(f"{site}?seed=2&psi=0.7")
    wait_for(page, Recipe(2, 0.7), studio)
    assert page.evaluate("crossOriginIsolated")  # by the worker's headers, so there are threads
    assert worst(read(page, FACE), large(studio, Recipe(2, 0.7))) <= 2
    context.close()


@pytest.fixture(scope="module")
def webgpu(
    browser: Browser, site: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[BrowserContext, bool]]:
    """Start a browser with WebGPU; return a profile, and whether there is an adapter in it."""
    script = tmp_path_factory.mktemp("webgpu") / "browser"  # it takes all cores for a minute
    with launch(browser.browser_type, flags=WEBGPU_FLAGS, low_priority=script) as other:
        context = other.new_context(service_workers="block", locale="en")
        page = context.new_page()
        page.goto(f"{site}words.json")
        adapter = page.evaluate("navigator.gpu?.requestAdapter().then(Boolean)")
        page.close()
        yield context, bool(adapter)


@pytest.mark.parametrize("backend", ["webgpu", "wasm", ""])
def test_webgpu_draws_the_faces_of_torch(
    webgpu: tuple[BrowserContext, bool], site: str, studio: Studio, backend: str
) -> None:
    context, adapter = webgpu
    page = context.new_page()
    page.goto(f"{site}?seed=1&backend={backend}")
    wait_for(page, Recipe(1), studio)
    # Unasked, a CPU that computes WebGPU is not used: it does WebAssembly faster.
    by = "webgpu" if adapter and backend == "webgpu" else "wasm"
    expect(page.locator("body")).to_have_attribute("data-backend", by)
    rng = np.random.RandomState(7)
    recipes = [make_recipe(kind, rng, studio) for kind in ("fine", "all", "steps")]
    faces = draw_queries(page, studio, [recipe.query(studio.revision) for recipe in recipes])
    assert worst(faces, studio.draw_recipes(recipes)) <= 1
    assert worst(read(page, FACE), large(studio, Recipe(1))) <= 2
    page.close()
    if backend == "webgpu" and not adapter:
        pytest.skip("this browser has no WebGPU, so WebAssembly was tested again")


@pytest.mark.parametrize("right", [True, False])
def test_a_gpu_that_draws_other_faces_is_left_alone(
    webgpu: tuple[BrowserContext, bool], site: str, folder: Path, studio: Studio, right: bool
) -> None:
    context, adapter = webgpu
    facts = json.loads((folder / "generator.json").read_text())
    if not right:
        facts["probe"][100] = (facts["probe"][100] + 128) % 256
    page = context.new_page()
    page.route("**/generator.json", lambda route: route.fulfill(json=facts))
    before_worker(
        page,
        """if (globalThis.GPUAdapterInfo) {
          const own = { get: () => false };
          Object.defineProperty(GPUAdapterInfo.prototype, "isFallbackAdapter", own);
        }""",
    )
    page.goto(f"{site}?seed=2")
    wait_for(page, Recipe(2), studio)
    by = "webgpu" if adapter and right else "wasm"
    expect(page.locator("body")).to_have_attribute("data-backend", by)
    assert worst(read(page, FACE), large(studio, Recipe(2))) <= 2
    if not right and adapter:
        page.goto(f"{site}?seed=2&backend=webgpu")  # who asks for it is told
        expect(page.locator("#notice")).to_contain_text(
            "this GPU draws other faces than the others"
        )
    page.close()
    if not adapter:
        pytest.skip("this browser has no WebGPU, so only WebAssembly was tested")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_looks_like_the_other_page(
    site: str, browser: Browser, studio: Studio, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=scheme, locale="ja"
    )
    page = context.new_page()
    page.goto(f"{site}?seed=1")
    wait_for(page, Recipe(1), studio)
    style = (ROOT / "assets" / "style.css").read_text()
    paper = re.findall(r"--paper: (#[0-9a-f]{6});", style)[scheme == "dark"]
    rgb = ", ".join(str(int(paper[i : i + 2], 16)) for i in (1, 3, 5))
    expect(page.locator("body")).to_have_css("background-color", f"rgb({rgb})")
    for tab in ("wall", "mix", "morph", "match", "keep", "about", "meet"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") == 390  # nothing sticks out
    box = page.locator("#face").bounding_box()
    assert box["x"] >= 12 and box["x"] + box["width"] <= 390 - 12
    page.click("#tab-about")
    expect(page.locator("#card")).to_contain_text("Random, for tests.")
    assert page.get_attribute("html", "lang") == "ja"
    page.click("[data-language=zh-CN]")
    expect(page.locator("#tab-wall")).to_have_text("画墙")
    context.close()


def test_a_generator_without_w(browser: Browser, tmp_path: Path) -> None:
    torch.manual_seed(0)
    DenseGenerator(z_dim=8).half().float().save_pretrained(tmp_path / "generator")
    studio = Studio.open(tmp_path / "generator")
    (tmp_path / "site").mkdir()
    write_site(studio, tmp_path / "site")
    handler = functools.partial(Files, directory=str(tmp_path / "site"))
    context = browser.new_context(service_workers="block", locale="en")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/?seed=3&psi=0.8&mix=7@fine&between=4:0.5")
        expect(page.locator("#note")).to_contain_text(
            "This generator has no w, so its faces cannot be mixed."
        )
        face = Recipe(3, 0.8, between=Between(4, 0.5))
        drawn = face.query(studio.revision)
        expect(page.locator(FACE)).to_have_attribute("data-drawn", drawn)
        grey = studio.enlarge(studio.draw_recipes([face]), 4 * studio.size)
        assert worst(read(page, FACE), np.repeat(grey, 3, axis=3)) <= 2
        expect(page.locator("#tab-mix")).to_be_hidden()
        server.shutdown()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(
    site: str, browser: Browser, studio: Studio, scheme: str
) -> None:
    axe = ROOT / f"tests/axe/{AXE}/axe.min.js"
    subprocess.run(["make", "--silent", axe.relative_to(ROOT)], cwd=ROOT, check=True)
    context = browser.new_context(service_workers="block", locale="en", color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{site}?seed=1")
    wait_for(page, Recipe(1), studio)
    page.click("#heart")
    page.evaluate(axe.read_text())
    for tab in ("meet", "wall", "mix", "morph", "match", "keep", "about"):
        page.click(f"#tab-{tab}")
        found = page.evaluate("axe.run()")["violations"]
        faults = [
            (fault["id"], fault["nodes"][0]["html"])
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]
        assert not faults, tab
    context.close()


def test_the_folder_is_a_static_space(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert space_errors(text) == []
    for right, wrong in (("require-corp", "anything"), ("static", "stationary"), ("pink", "rose")):
        assert len(space_errors(text.replace(right, wrong))) == 1
    card = metadata_load(folder / "README.md")
    assert card["sdk"] == "static" and card["license"] == "mit"
    assert card["custom_headers"]["cross-origin-embedder-policy"] == "require-corp"
    facts = json.loads((folder / "generator.json").read_text())
    for name, file in facts["files"].items():
        assert (folder / name).stat().st_size == file["bytes"]


def test_the_documented_command_sends_the_folder_to_the_hub(folder: Path, tmp_path: Path) -> None:
    (line,) = re.findall(r"^(\S*hf upload owner/name web .*?) +#", README, re.MULTILINE)
    hf, *arguments = shlex.split(line)
    arguments[arguments.index("web")] = str(folder)
    own = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    settings = {"HF_TOKEN": "hf_owner", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    command = [Path(sys.executable).with_name(Path(hf).name), *arguments]
    with Hub() as hub:
        env = {**own, **settings, "HF_ENDPOINT": hub.url}
        for _ in range(2):
            sent = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
            assert sent.returncode == 0, sent.stdout + sent.stderr
        assert list(hub.repos) == ["spaces/owner/name"]
        first, *pushed = hub.repos["spaces/owner/name"].commits
        assert len(pushed) == 1  # the second time there was nothing new
        files = {k: v for k, v in pushed[0].files.items() if k not in first.files}
        here = [file for file in folder.rglob("*") if file.is_file()]
        assert files == {file.relative_to(folder).as_posix(): file.read_bytes() for file in here}
        kinds = {Path(name).suffix for name in pushed[0].lfs}
        assert kinds == {".gz", ".onnx", ".safetensors"}
        assert hub.tokens_on_cdn == []


def test_every_file_works_offline(folder: Path) -> None:
    text = (folder / "sw.js").read_text()
    listed = set(re.findall(r'"([\w./-]+)"', text.split("];")[0]))
    own = {p.name for p in folder.iterdir() if p.suffix in (".js", ".css", ".json")} - {"sw.js"}
    assert own <= listed
    assert all((folder / name).exists() for name in listed)


def test_all_words_are_there() -> None:
    used = set()
    for file in [ROOT / "web" / "index.html", *(ROOT / "web").glob("*.js")]:
        text = file.read_text()
        used |= set(re.findall(r'(?:data-word=|data-html=|say\()"([a-z.-]+)"', text))
    assert len(used) > 60
    assert used <= set(json.loads((ROOT / "assets" / "words.json").read_text()))


def test_modules_are_small() -> None:
    for file in (ROOT / "web").glob("*.js"):
        if file.name != "page.js":
            assert len(file.read_text().splitlines()) < 300, file.name
