"""The other tabs in a real browser: wall, mix, favourites, languages, a phone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_face
from PIL import Image
from playwright.sync_api import Page, expect

from model import SEED_MAX
from studio.best import best_of
from studio.faces import Studio
from studio.page.i18n import TEXTS
from studio.page.wall import BEST_OF, RADIUS
from studio.pictures import png_bytes
from studio.recipe import Between, Mix, Recipe, Vary
from tests.browser import pixels
from tests.visitor import (
    apart,
    free_port,
    go,
    large,
    met,
    open_page,
    serve,
    wait_for_face,
    watched,
    whole,
)

TABS = ("meet", "wall", "mix", "morph", "match", "keep", "about")


def captions(page: Page, gallery: str, count: int) -> list[str]:
    """Wait for a gallery of so many faces and return their captions."""
    return [text.strip() for text in whole(page, gallery, count).all_inner_texts()]


def choose(page: Page, gallery: str, caption: str) -> None:
    page.click(shown(gallery, caption))


def shown(gallery: str, caption: str) -> str:
    """Return the selector of a face by its caption."""
    return f'{gallery} .thumbnail-item >> text="{caption}"'


def test_wall_pages_and_variations(page: Page, url: str, studio: Studio):
    open_page(page, f"{url}/?seed=42&tab=wall&first=24")
    assert captions(page, "#wall", 24) == [str(s) for s in range(24, 48)]
    choose(page, "#wall", "31")
    wait_for_face(page, Recipe(31), studio)
    expect(page.locator("#face img")).to_be_in_viewport()
    go(page, "wall")
    page.click("#wall-more")
    page.wait_for_selector(shown("#wall", "71"))
    page.wait_for_function("() => location.search.endsWith('tab=wall&first=48')")
    page.fill("#wall-first input", str(SEED_MAX - 2))
    page.wait_for_selector(shown("#wall", f"{SEED_MAX}"))
    assert len(captions(page, "#wall", 3)) == 3
    page.fill("#wall-first input", "-1")
    expect(page.locator("#wall-note")).to_contain_text("A seed is a whole number")
    page.fill("#wall-first input", "0")
    page.wait_for_selector(shown("#wall", "23"))
    page.check("#wall-best input")
    best = best_of(studio, [Recipe(seed) for seed in range(4 * 24)], BEST_OF)
    page.wait_for_selector(shown("#wall", f"{best[-1].seed}"))
    assert captions(page, "#wall", 24) == [str(recipe.seed) for recipe in best]
    go(page, "meet")
    page.click("#like")
    page.wait_for_selector(shown("#wall", "0"))
    expect(page.locator("#wall-like")).to_contain_text("31")
    choose(page, "#wall", "5")
    wait_for_face(page, Recipe(31, vary=Vary(5, RADIUS)), studio)
    expect(page.locator(".toast-body")).to_have_count(0)


def test_morph_makes_a_film_that_plays(page: Page, url: str):
    open_page(page, f"{url}/?seed=42")
    page.click("#to-morph")
    page.wait_for_selector("#tab-morph-button[aria-selected=true]")
    assert captions(page, "#strip", 1) == ["1"]
    page.click("#film-make")
    expect(page.locator("#morph-note")).not_to_be_empty()  # one face is no film
    page.fill("#morph-seeds input, #morph-seeds textarea", "7, banana")
    page.click("#morph-add")
    expect(page.locator("#morph-note")).to_contain_text("banana")
    page.fill("#morph-seeds input, #morph-seeds textarea", "7")
    page.click("#morph-add")
    assert captions(page, "#strip", 2) == ["1", "2"]
    page.wait_for_function("() => location.search.includes('faces=')")
    page.fill("#seconds input[type=number]", "0.5")
    page.keyboard.press("Tab")
    page.click("#film-make")
    page.wait_for_selector("#film video")
    page.wait_for_function("() => document.querySelector('#film video').readyState >= 3")
    assert page.evaluate("document.querySelector('#film video').videoWidth") == 512
    with page.expect_download() as started:
        page.click("#film a")
    assert started.value.suggested_filename.endswith(".mp4")
    choose(page, "#strip", "1")  # a click takes a face off
    captions(page, "#strip", 1)


def test_match_finds_a_face_and_keeps_no_picture(
    page: Page, url: str, studio: Studio, tmp_path: Path, tmp_path_factory
):
    Image.fromarray(studio.draw([7])[0]).save(tmp_path / "upload-of-a-visitor.png")
    open_page(page, f"{url}/?seed=42&tab=match")
    page.click("#match-go")
    expect(page.locator("#match-note")).not_to_be_empty()  # there is no picture yet
    page.set_input_files("#upload input[type=file]", tmp_path / "upload-of-a-visitor.png")
    page.wait_for_selector("#upload img")
    page.click("#match-go")
    page.wait_for_selector("#match-meet", timeout=60_000)
    expect(page.locator("#pair-slider img")).to_have_count(2)
    expect(page.locator("#match-note")).to_have_text(TEXTS["match.done"]["en"], timeout=60_000)
    page.click("#match-meet")
    page.wait_for_function("() => location.search.includes('&w=')")
    found = met(page)
    assert found.w
    wait_for_face(page, found, studio)
    left = list(tmp_path_factory.getbasetemp().rglob("cache*/**/upload-of-a-visitor*"))
    assert left == []


COPY = """async (bytes) => {
  const face = new Blob([new Uint8Array(bytes)], {type: "image/png"});
  await navigator.clipboard.write([new ClipboardItem({"image/png": face})]);
}"""


def test_a_pasted_picture_gets_a_first_answer_and_stop_keeps_it(browser, url: str):
    """The first face stands while the search goes on; Stop keeps what was found."""
    with browser.new_context(permissions=["clipboard-read", "clipboard-write"]) as visit:
        page = visit.new_page()
        open_page(page, f"{url}/?seed=42&tab=match")
        page.evaluate(COPY, list(png_bytes(draw_face(7), {})))  # what no seed draws takes longest
        page.click("#upload button[aria-label*=lipboard]")
        page.wait_for_selector("#upload img")
        page.click("#match-go")
        first, done = (TEXTS[f"match.{name}"]["en"] for name in ("first", "done"))
        expect(page.locator("#match-note")).to_have_text(first, timeout=60_000)
        page.wait_for_selector("#match-progress progress")
        expect(page.locator("#match-meet")).to_be_visible()
        page.click("#match-stop")
        expect(page.locator("#match-note")).to_have_text(done, timeout=10_000)
        expect(page.locator("#pair-slider img").first).to_be_visible()
        expect(page.locator("#match-progress progress")).to_have_count(0)
        page.click("#match-go")  # the picture went with the search
        expect(page.locator("#match-note")).to_have_text(TEXTS["match.none"]["en"])


def test_stop_ends_a_film(page: Page, url: str):
    open_page(page, f"{url}/?seed=42&tab=morph")
    page.fill("#morph-seeds input, #morph-seeds textarea", "7, 8, 9, 10, 11")
    page.click("#morph-add")
    captions(page, "#strip", 5)
    page.fill("#seconds input[type=number]", "10")
    page.keyboard.press("Tab")
    page.click("#film-make")
    page.wait_for_timeout(1000)
    page.click("#film-stop")
    expect(page.locator("#morph-note")).to_have_text(TEXTS["morph.stopped"]["en"])
    expect(page.locator("#film video")).to_have_count(0)


def test_mix_crosses_two_faces(page: Page, url: str, studio: Studio):
    open_page(page, f"{url}/?seed=42&tab=mix&a=5&b=6")
    assert captions(page, "#sheet", 9)[4] == "half-way"
    assert apart(pixels(page, "#face-b img"), studio.draw([6])[0]) <= 2
    choose(page, "#sheet", "half-way")
    wait_for_face(page, Recipe(5, between=Between(6, 0.5)), studio)
    page.click("#to-mix")
    page.wait_for_selector("#tab-mix-button[aria-selected=true]")
    page.fill("#seed-a input", "7")
    page.wait_for_function("() => location.search.includes('a=7&b=6')")
    page.fill("#seed-a input", "1.5")
    expect(page.locator("#mix-note")).to_contain_text("whole number")
    page.fill("#seed-a input", "7")
    page.click("#mix-swap")
    page.wait_for_function("() => location.search.includes('a=6&b=7')")
    choose(page, "#sheet", "B fine")
    wait_for_face(page, Recipe(6, mix=(Mix(7, "fine"),)), studio)
    expect(page.locator(".toast-body")).to_have_count(0)


def test_favourites_outlive_reload_and_restart(
    browser, generator_dir: Path, studio: Studio, tmp_path: Path
):
    context, port = browser.new_context(), free_port()
    with watched(context) as page:
        with serve(generator_dir, tmp_path, port) as url:
            open_page(page, f"{url}/?seed=42")
            for seed in (42, 43):
                page.fill("#seed input", str(seed))
                wait_for_face(page, Recipe(seed), studio)
                page.click("#heart")
                expect(page.locator("#note")).to_contain_text("Kept")
            page.click("#heart")
            expect(page.locator("#note")).to_contain_text("already")
            go(page, "keep")
            assert captions(page, "#kept", 2) == ["42", "43"]
            choose(page, "#kept", "43")
            page.fill("#keep-name input, #keep-name textarea", "  Ann\u00e9  花 ")
            page.click("#keep-rename")
            page.wait_for_selector(shown("#kept", "Anné 花"))
        with serve(generator_dir, tmp_path, port) as url:
            open_page(page, f"{url}/?seed=1&tab=keep")
            assert captions(page, "#kept", 2) == ["42", "Anné 花"]
            with page.expect_download() as started:
                page.click("#export")
            started.value.save_as(tmp_path / "kept.json")
            with page.expect_download() as started:
                page.click("#contact")
            started.value.save_as(tmp_path / "sheet.png")
            choose(page, "#kept", "42")
            page.click("#keep-delete")
            expect(page.locator("#keep-note")).to_contain_text("42 is deleted")
            assert captions(page, "#kept", 1) == ["Anné 花"]
            page.set_input_files("#keep-files input[type=file]", tmp_path / "kept.json")
            assert captions(page, "#kept", 2) == ["Anné 花", "42"]
            (tmp_path / "bad.json").write_text('{"format": "kaogan-favourites-1", "faces": [1]}')
            page.set_input_files("#keep-files input[type=file]", tmp_path / "bad.json")
            expect(page.locator("#keep-note")).to_contain_text("0 new faces")
            choose(page, "#kept", "Anné 花")
            page.click("#keep-meet")
            wait_for_face(page, Recipe(43), studio)
    context.close()
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [face["name"] for face in kept["faces"]] == ["42", "Anné 花"]
    assert all(len(face["face"]) < 80 for face in kept["faces"])  # recipes, not pictures
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[2] == 3
    assert sheet.std() > 5


@pytest.mark.parametrize("language", ["en", "zh-CN", "ja"])
def test_every_tab_in_every_language(browser, url: str, language: str):
    context = browser.new_context(locale=language, viewport={"width": 390, "height": 844})
    with watched(context) as page:
        open_page(page, f"{url}/?seed=banana&psi=0.5&mix=9@nose&edit=smile:1,nose:2")
        assert page.get_attribute("html", "lang") == language
        if language != "en":
            line = TEXTS["fault.parts"][language].format(parts="seed, mix, edit")
            expect(page.locator("#note")).to_have_text(line)
        for tab in TABS:
            button = page.locator(f"#tab-{tab}-button")
            expect(button).to_have_text(TEXTS[f"tab.{tab}"][language])
            button.click()
            page.wait_for_selector(f"#tab-{tab}-button[aria-selected=true]")
            page.wait_for_timeout(400)
            assert page.evaluate("document.documentElement.scrollWidth") == 390, tab
            assert "__i18n__" not in page.inner_text("body")
        expect(page.locator("#about")).to_contain_text("Random, for tests.")
        other = "ja" if language != "ja" else "en"
        page.click(f'[data-language="{other}"]')
        expect(page.locator("#tab-about-button")).to_have_text(TEXTS["tab.about"][other])
    context.close()


def test_a_phone_shows_face_and_buttons_at_once(browser, url: str, studio: Studio):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    with watched(context) as page:
        open_page(page, f"{url}/?seed=42")
        for part in ("#face img", "#undo", "#roll", "#redo", "#heart"):
            expect(page.locator(part)).to_be_in_viewport(ratio=1)
            box = page.locator(part).bounding_box()
            assert box["height"] >= 44, part
        before = page.locator("#roll").bounding_box()
        page.tap("#roll")
        page.wait_for_function("() => !location.search.startsWith('?seed=42&')")
        wait_for_face(page, met(page), studio)
        assert apart(pixels(page, "#face img"), large(studio, met(page))) <= 2
        assert page.locator("#roll").bounding_box() == before  # nothing jumps
    context.close()


def test_everything_has_a_name_and_can_be_reached_by_key(page: Page, url: str):
    open_page(page, f"{url}/?seed=42")
    for tab in TABS:
        go(page, tab)
        page.wait_for_timeout(300)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, input, a, textarea, [role=slider]')]
              .filter((e) => e.offsetParent && !e.disabled && e.type !== 'file')
              .filter((e) => !(e.ariaLabel || e.innerText?.trim() || e.labels?.length || e.title
                || e.querySelector?.('img[alt]:not([alt=""]), [aria-label]')))
              .map((e) => e.outerHTML.slice(0, 160))"""
        )
        assert nameless == [], tab
    page.focus("#tab-meet-button")
    reached = set()
    page.keyboard.press("Enter")
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.closest('[id]:not([id^=range])')?.id || ''")
        )
    assert {"face", "undo", "roll", "redo", "heart", "seed", "psi", "edit-smile", "link"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_aa(browser, url: str, scheme: str):
    context = browser.new_context(color_scheme=scheme)
    with watched(context) as page:
        open_page(page, f"{url}/?seed=42")
        names = ["--paper", "--card", "--ink", "--faint", "--seal"]
        style = "getComputedStyle(document.querySelector('.gradio-container'))"
        colours = {n: page.evaluate(f"{style}.getPropertyValue('{n}').trim()") for n in names}
        for text in ("--ink", "--faint", "--seal"):
            for ground in ("--paper", "--card"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert contrast("#ffffff", "#c8402f") >= 4.5
    context.close()


def contrast(a: str, b: str) -> float:
    """Return the contrast ratio of two colours `#rrggbb` (WCAG 2.2)."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
