"""Meet in a real browser: the face, what changes it, the address, keys, a dropped picture."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from edits import save_generator
from hub_server import Hub
from PIL import Image
from playwright.sync_api import Page, expect

from model import SEED_MAX
from studio.faces import Studio
from studio.pictures import PAGE_SIZE
from studio.recipe import Edit, Mix, Recipe, Vary, recipe_from_png
from tests.browser import pixels
from tests.visitor import (
    apart,
    free_port,
    large,
    met,
    open_page,
    serve,
    wait_for_face,
    watched,
)

FACE = "#face img"
DROP = """async ([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const dropped = new DataTransfer();
  dropped.items.add(new File([bytes], name, { type: "image/png" }));
  for (const kind of ["dragover", "drop"]) {
    document.querySelector("#tabs").dispatchEvent(
      new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: dropped }));
  }
}"""


def drop(page: Page, name: str, data: bytes) -> None:
    """Drop a file on the page as a visitor's hand would."""
    page.evaluate(DROP, [name, base64.b64encode(data).decode()])


def test_seed_slider_and_dice(page: Page, url: str, studio: Studio):
    open_page(page, f"{url}/?seed=42")
    wait_for_face(page, Recipe(42), studio)
    assert apart(pixels(page, FACE), large(studio, Recipe(42))) <= 2
    assert page.get_attribute(FACE, "alt") == "Seed 42"
    page.fill("#seed input", str(SEED_MAX))
    assert (
        page.eval_on_selector("#seed input", "input => input.scrollWidth - input.clientWidth") <= 0
    )
    page.fill("#seed input", "43")
    wait_for_face(page, Recipe(43), studio)
    assert apart(pixels(page, FACE), large(studio, Recipe(43))) <= 2
    slider = page.locator('#psi input[type="range"]')
    slider.focus()
    slider.press("ArrowLeft")
    wait_for_face(page, Recipe(43, 0.5, 0.9), studio)
    fine = page.locator('#fine input[type="range"]')
    fine.focus()
    fine.press("ArrowLeft")
    wait_for_face(page, Recipe(43, 0.5, 0.85), studio)
    page.fill('#psi input[type="number"]', "5")
    page.keyboard.press("Tab")
    wait_for_face(page, Recipe(43, 1, 0.85), studio)
    page.click("#roll")
    page.wait_for_function("() => !location.search.startsWith('?seed=43&')")
    rolled = met(page)
    assert rolled == Recipe(rolled.seed, 1, 0.85)
    wait_for_face(page, rolled, studio)
    assert apart(pixels(page, FACE), large(studio, rolled)) <= 2
    expect(page.locator(".toast-body")).to_have_count(0)


def test_a_bad_typed_seed_gets_a_line_and_keeps_the_face(page: Page, url: str, studio: Studio):
    open_page(page, f"{url}/?seed=42")
    wait_for_face(page, Recipe(42), studio)
    for typed, says in (
        ("-3", "not -3"),
        ("1.5", "not 1.5"),
        ("99999999999", "not 99999999999"),
        ("", "A seed is a whole number from 0 to 4294967295."),
    ):
        page.fill("#seed input", typed)
        expect(page.locator("#note")).to_contain_text(says)
        assert "?seed=42&psi=0.55&fine=0.9&rev=" in page.url
    expect(page.locator("#note")).to_have_attribute("role", "status")
    page.fill("#seed input", "8")
    wait_for_face(page, Recipe(8), studio)
    expect(page.locator("#note")).to_be_hidden()
    expect(page.locator(".toast-body")).to_have_count(0)


def test_sliders_and_colours_change_the_face_and_hold(page: Page, url: str, studio: Studio):
    open_page(page, f"{url}/?seed=3")
    smile = page.locator('#edit-smile input[type="range"]')
    smile.focus()
    smile.press("ArrowRight")
    smile.press("ArrowRight")
    edits = (Edit("smile", 0.2),)
    wait_for_face(page, Recipe(3, edits=edits), studio)
    assert apart(pixels(page, FACE), large(studio, Recipe(3, edits=edits))) <= 2
    page.click("#edit-hair .dialog-button")
    page.click("#edit-hair .color-gradient", position={"x": 100, "y": 20})
    page.wait_for_function("() => location.search.includes('edit=hair:')")
    page.click("#intro")
    page.wait_for_timeout(500)
    painted = met(page)
    assert [edit.name for edit in painted.edits] == ["hair", "smile"]
    wait_for_face(page, painted, studio)
    assert apart(pixels(page, FACE), large(studio, painted)) <= 2
    page.check("#hold input")
    page.click("#roll")
    page.wait_for_function("() => !location.search.startsWith('?seed=3&')")
    held = met(page)
    assert held.edits == painted.edits
    wait_for_face(page, held, studio)
    page.click("#reset")
    wait_for_face(page, Recipe(held.seed), studio)
    expect(page.locator('#edit-smile input[type="number"]')).to_have_value("0")


def test_another_hair_expression_and_colouring_with_undo(page: Page, url: str, studio: Studio):
    open_page(page, f"{url}/?seed=3")
    wait_for_face(page, Recipe(3), studio)
    seen = [Recipe(3)]
    for part, mark in (("hair", "@8"), ("expression", "edit=smile"), ("colouring", "@fine")):
        page.click(f"#another-{part}")  # at once after the last one, and still a step of its own
        page.wait_for_function("mark => location.search.includes(mark)", arg=mark)
        seen.append(met(page))
    wait_for_face(page, seen[-1], studio)
    assert apart(pixels(page, FACE), large(studio, seen[-1])) <= 2
    hair, face, colours = seen[1:]
    assert (hair.steps[0].layers, hair.edits, hair.mix) == ("8", (), ())
    assert (face.steps, [edit.name for edit in face.edits]) == (hair.steps, ["smile"])
    assert (colours.steps, colours.edits) == (face.steps, face.edits)
    assert colours.mix[0].group == "fine"
    expect(page.locator('#edit-smile input[type="number"]')).to_have_value(
        f"{face.edits[0].value:g}"
    )
    for before in reversed(seen[:-1]):
        page.click("#undo")
        wait_for_face(page, before, studio)
    page.click("#redo")
    wait_for_face(page, hair, studio)


def test_keys_and_the_faces_seen(page: Page, url: str, studio: Studio):
    open_page(page, f"{url}/?seed=1")
    wait_for_face(page, Recipe(1), studio)
    seen = [Recipe(1)]
    for _ in range(2):
        page.keyboard.press("Space")
        page.wait_for_function(
            "query => location.search !== query", arg=seen[-1].query(studio.revision)
        )
        seen.append(met(page))
        wait_for_face(page, seen[-1], studio)
    page.keyboard.press("ArrowLeft")
    wait_for_face(page, seen[1], studio)
    page.click("#undo")
    wait_for_face(page, seen[0], studio)
    expect(page.locator("#undo")).to_have_class("lg secondary svelte-xzq5jh spent")
    page.keyboard.press("ArrowRight")  # the button keeps the focus; only a field keeps its keys
    page.click("#redo")
    wait_for_face(page, seen[1], studio)
    page.focus("#seed input")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    page.wait_for_timeout(500)
    assert met(page) == seen[1]


def test_an_address_round_trips_in_another_browser(browser, page: Page, url: str, studio: Studio):
    recipe = Recipe(
        7, 0.5, mix=(Mix(9, "fine"),), edits=(Edit("smile", 1.5), Edit("hair", "#3fa34d")),
        vary=Vary(5, 0.25),
    )  # fmt: skip
    open_page(page, url + "/" + recipe.query())
    wait_for_face(page, recipe, studio)
    page.click("#link button[aria-label=Copy]")
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == page.url
    here = pixels(page, FACE)
    assert apart(here, large(studio, recipe)) <= 2
    elsewhere = browser.new_context()
    with watched(elsewhere) as other:
        open_page(other, copied)
        wait_for_face(other, recipe, studio)
        assert (pixels(other, FACE) == here).all()
        expect(other.locator('#psi input[type="number"]')).to_have_value("0.5")
        expect(other.locator('#edit-smile input[type="number"]')).to_have_value("1.5")
        expect(other.locator("#note")).to_be_hidden()
    elsewhere.close()


def test_an_address_of_other_weights_is_drawn_with_those(browser, tmp_path: Path):
    """The page of a repository, whose address names the weights of an older commit."""
    with Hub() as hub:
        repo, studios = hub.create("owner/faces"), []
        for seed in (5, 6):
            save_generator(tmp_path / str(seed), seed=seed)
            files = {file.name: file.read_bytes() for file in (tmp_path / str(seed)).iterdir()}
            hub.commit(repo, f"weights {seed}", files, ("model.safetensors",))
            studios.append(Studio.open(tmp_path / str(seed)))
        older, newest = studios
        environment = {
            "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        with (
            serve("owner/faces", tmp_path, free_port(), **environment) as url,
            watched(browser) as page,
        ):
            open_page(page, f"{url}/{Recipe(42).query(older.revision)}")
            expect(page.locator("#note")).to_contain_text("the weights of this address")
            wait_for_face(page, Recipe(42), older)
            assert apart(pixels(page, FACE), large(older, Recipe(42))) <= 2
            assert apart(pixels(page, FACE), large(newest, Recipe(42))) > 9
            page.fill("#seed input", "43")  # from here on the page's own weights draw
            wait_for_face(page, Recipe(43), newest)
            assert apart(pixels(page, FACE), large(newest, Recipe(43))) <= 2
            open_page(page, f"{url}/{Recipe(42).query('0' * 12)}")
            expect(page.locator("#note")).to_contain_text("may differ")
            wait_for_face(page, Recipe(42), newest)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("?seed=banana&psi=0.5", "The seed in this address cannot be used"),
        ("?seed=5&psi=0.5&rev=0123456789ab", "other weights"),
        ("?seed=5&psi=0.5&edit=smile:1,nose:<b>&mix=9", "edit"),
    ],
)
def test_a_malformed_address_opens_with_a_friendly_line(
    page: Page, url: str, query: str, says: str
):
    open_page(page, url + "/" + query)
    expect(page.locator("#note")).to_contain_text(says)
    assert met(page).psi == 0.5
    assert page.locator(FACE).count() == 1
    expect(page.locator(".toast-body")).to_have_count(0)
    assert "<b>" not in page.inner_text("#note")


def test_a_saved_picture_brings_its_face_back(page: Page, url: str, studio: Studio, tmp_path: Path):
    recipe = Recipe(42, 0.6, edits=(Edit("smile", 1.0),))
    open_page(page, url + "/" + recipe.query())
    wait_for_face(page, recipe, studio)
    with page.expect_download() as started:
        page.click("#face .download-link")
    assert started.value.suggested_filename == "kaogan-42.png"
    started.value.save_as(tmp_path / "face.png")
    assert recipe_from_png(tmp_path / "face.png", studio.revision) == (recipe, "")
    assert Image.open(tmp_path / "face.png").size == (PAGE_SIZE, PAGE_SIZE)
    page.click("#roll")
    page.wait_for_function("() => !location.search.startsWith('?seed=42&')")
    drop(page, "anything.png", (tmp_path / "face.png").read_bytes())
    wait_for_face(page, recipe, studio)
    plain = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(plain, "PNG")
    for seed, data in enumerate((plain.getvalue(), b"\x89PNG\r\n\x1a\n" + bytes(100), b"nothing")):
        page.fill("#seed input", str(seed))
        page.wait_for_function("seed => location.search.startsWith(`?seed=${seed}&`)", arg=seed)
        expect(page.locator("#note")).to_be_hidden()
        drop(page, "other.png", data)
        expect(page.locator("#note")).to_contain_text(".")
        assert met(page).seed == seed
    expect(page.locator(".toast-body")).to_have_count(0)
