"""Another hair, expression or colouring: what changes, what stays, and what the address holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
import torch
from edits import save_generator
from PIL import Image

from benchmarks import another as bench
from benchmarks import directions
from studio.another import EXPRESSIONS, PARTS, another
from studio.faces import Studio
from studio.recipe import Between, Edit, Mix, Recipe, Vary, recipe_from_query
from tests.visitor import apart

LIKED = Recipe(
    3, 0.6, mix=(Mix(7, "middle"),), edits=(Edit("long-hair", 1.0), Edit("hair", "#3fa34d")),
    vary=Vary(5, 0.3), between=Between(9, 0.2),
)  # fmt: skip


def moved(studio: Studio, before: Recipe, after: Recipe) -> set[int]:
    """Return the layers whose w is another one; edits, which stand in all of them, left out."""
    a, b = studio.ws([replace(before, edits=()), replace(after, edits=())])
    return set(torch.nonzero((a - b).abs().amax(1) > 1e-6).flatten().tolist())


@pytest.mark.parametrize("part", PARTS)
def test_each_is_a_new_face_that_its_address_holds(studio: Studio, part: str):
    first, same, second = (another(studio, LIKED, part, seed) for seed in (1, 1, 2))
    assert first == same
    drawn = studio.draw_recipes([LIKED, first, second])
    assert apart(drawn[0], drawn[1]) > 3
    assert apart(drawn[1], drawn[2]) > 0
    query = dict(parse_qsl(first.query()[1:]))
    assert recipe_from_query(query, 0) == (first, "")
    # A second one takes the place of the first: addresses do not grow.
    assert len(another(studio, first, part, 2).query()) <= len(first.query()) + 4


def test_what_is_liked_is_kept(studio: Studio):
    hair = another(studio, LIKED, "hair", 1)
    assert moved(studio, LIKED, hair) == {1, 2}
    assert hair.edits == LIKED.edits
    face = another(studio, LIKED, "expression", 1)
    assert {e.name for e in face.edits} - {e.name for e in LIKED.edits} == {"smile"}
    assert moved(studio, LIKED, face) == set()
    colours = another(studio, LIKED, "colouring", 1)
    assert moved(studio, LIKED, colours) == {5, 6, 7, 8}
    assert colours.edits == (Edit("long-hair", 1.0),)  # a picked colour would hide the new one
    together = another(studio, another(studio, hair, "colouring", 4), "expression", 2)
    assert moved(studio, LIKED, together) == {1, 2, 5, 6, 7, 8}
    assert (together.vary, together.between, together.mix[0]) == (
        LIKED.vary, LIKED.between, LIKED.mix[0],
    )  # fmt: skip


def test_an_expression_moves_its_sliders_well_within_their_ends(studio: Studio):
    recipe = Recipe(1)
    for seed in range(20):
        before = {e.name: e.value for e in recipe.edits}.get("smile", 0.0)
        recipe = another(studio, recipe, "expression", seed)
        after = {e.name: e.value for e in recipe.edits}.get("smile", 0.0)
        assert -1.4 <= after <= 1.75
        assert abs(after - before) > 0.6
    assert "smile" in EXPRESSIONS


@pytest.mark.parametrize("resolution", [8, 16, 64])
def test_small_generators_and_those_without_sliders(tmp_path: Path, resolution: int):
    levels = {8: 2, 16: 3, 64: 5}[resolution]
    save_generator(tmp_path, resolution=resolution, channels=(8,) * levels)
    studio = Studio.open(tmp_path)
    for part in PARTS:
        recipe = studio.check(another(studio, Recipe(1), part, 5))
        assert moved(studio, Recipe(1), recipe)


def test_the_bench_says_what_is_kept(generator_dir: Path, tmp_path: Path, capsys, monkeypatch):
    """On a random generator, of which no figure means anything but which parts cannot change."""
    monkeypatch.setattr(directions, "REGION_FACES", 64)
    sheet = tmp_path / "sheet.png"
    arguments = ["--model", str(generator_dir), "--seeds", "8", "--sheet", str(sheet)]
    assert bench.main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed if "|" in line]
    assert [row[0] for row in rows[2:]] == ["hair", "expression", "colouring", "face"]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert float(rows[-1][-1]) == pytest.approx(1, abs=0.01)  # another face is as far as others are
    assert Image.open(sheet).size == (512, 512)
    assert bench.main(["--seeds", "7"]) == 2
    assert "at least 8 seeds" in capsys.readouterr().err
