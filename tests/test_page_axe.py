"""The page as a screen reader has it: axe-core on every tab, and what a thumbnail is called."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import draw_face
from playwright.sync_api import Page, expect

from studio.page.i18n import TEXTS
from tests.visitor import ROOT, go, open_page, watched, whole

CHECK = """async () => {
  const fades = document.getAnimations().map((animation) => animation.finished);
  await Promise.race([Promise.allSettled(fades), new Promise((end) => setTimeout(end, 1000))]);
  const found = await axe.run(document, {resultTypes: ["violations"], selectors: false});
  return found.violations.map((v) => [v.id, v.impact, v.nodes.map((n) => n.html.slice(0, 200))]);
}"""


@pytest.fixture(scope="module")
def axe() -> str:
    """Return axe-core's script, of the version that the Makefile fetches and checks."""
    name = re.search(r"^AXE = (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    path = f"tests/axe/{name}/axe.min.js"
    subprocess.run(["make", "--silent", path], cwd=ROOT, check=True)  # from npm, where it is not
    return (ROOT / path).read_text()


def names(page: Page, gallery: str, count: int) -> list[str]:
    """Wait for a gallery of so many faces; return what a screen reader calls them."""
    faces = whole(page, gallery, count)
    expect(page.locator(f"{gallery} .thumbnail-item img:not([alt=''])")).to_have_count(0)
    return [face.get_attribute("aria-label") for face in faces.all()]


@pytest.mark.parametrize(("language", "scheme"), [("en", "light"), ("ja", "dark")])
def test_no_tab_has_a_fault_that_axe_finds(
    browser, url: str, axe: str, language: str, scheme: str, tmp_path: Path
):
    """Each tab as it opens and with something on it; a thumbnail is called by its seed."""
    seed = TEXTS["seed"][language]
    draw_face(1).save(tmp_path / "her.png")
    context = browser.new_context(locale=language, color_scheme=scheme)
    with watched(context) as page:

        def check(tab: str) -> None:
            assert page.evaluate(CHECK) == [], tab

        open_page(page, f"{url}/?seed=42&tab=keep")
        page.evaluate(axe)
        check("keep, empty")
        go(page, "meet")
        page.click("#heart")
        expect(page.locator("#note")).not_to_be_empty()
        check("meet")
        assert page.get_attribute("#face img", "alt") == f"{seed} 42"
        page.click("#to-mix")
        sheet = names(page, "#sheet", 9)
        assert sheet[0] == f"A, {seed} 42"
        assert sheet[1] == f"B {TEXTS['mix.fine'][language]}, {seed} 42"
        assert page.get_attribute("#face-a img", "alt") == f"A, {seed} 42"
        check("mix")
        go(page, "meet")
        page.click("#like")
        assert names(page, "#wall", 24)[5] == f"5, {seed} 42"
        page.click("#wall-leave")
        page.wait_for_selector(f"#wall [aria-label='{seed} 5']")
        assert names(page, "#wall", 24) == [f"{seed} {number}" for number in range(24)]
        check("wall")
        go(page, "morph")
        check("morph, empty")
        go(page, "meet")
        page.click("#to-morph")
        assert names(page, "#strip", 1) == [f"1, {seed} 42"]
        check("morph")
        go(page, "match")
        check("match, empty")
        page.set_input_files("#upload input[type=file]", tmp_path / "her.png")
        page.wait_for_selector("#upload img")
        check("match")
        go(page, "keep")
        assert names(page, "#kept", 1) == [f"{seed} 42"]
        page.click("#kept .thumbnail-item")
        page.wait_for_selector("#keep-name")
        check("keep")
        go(page, "about")
        check("about")
    context.close()
