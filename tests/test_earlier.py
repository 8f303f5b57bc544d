"""A shared face stays: addresses of earlier releases draw the faces that they drew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import Generator
from studio.faces import Studio
from studio.page.context import PageContext
from studio.page.i18n import LANGUAGES, TEXTS
from studio.recipe import recipe_from_png
from studio.revisions import EARLIER, is_bundled
from training.release import KEPT, ORDER, digest, retire, store

FIRST = "e9229fde7989"
DRAWN = Path(__file__).parent / "earlier"  # by the release that addresses then named
ADDRESSES = {
    "plain": "?seed=42&psi=0.7",
    "rich": "?seed=42&psi=0.7&mix=77@middle&edit=hair:3fa34d,smile:1.5&vary=5:0.3",
}


@pytest.fixture(scope="module")
def context() -> PageContext:
    return PageContext(Studio.open())


@pytest.mark.parametrize("name", ADDRESSES)
def test_an_old_address_draws_the_old_face(context, name):
    recipe, line, album = context.find(f"{ADDRESSES[name]}&rev={FIRST}", None)
    assert album is not None
    (drawn,) = album.studio.draw_recipes([recipe])
    expected = np.array(Image.open(DRAWN / f"{name}.png"))
    assert np.abs(drawn.astype(int) - expected).max() <= 1
    assert recipe_from_png(DRAWN / f"{name}.png", FIRST) == (recipe, "")
    assert f"earlier generator ({FIRST})" in line
    assert "](?seed=42&psi=0.55&fine=0.9)" in line  # the same seed by the present one
    assert recipe.query(album.studio.revision) == f"{ADDRESSES[name]}&rev={FIRST}"


def test_the_note_is_in_every_language():
    for language in LANGUAGES:
        line = TEXTS["note.earlier"][language]
        assert "{rev}" in line
        assert "]({address})" in line


def test_favourites_of_an_earlier_release_hang_beside_new_ones(context):
    old = f"?seed=42&psi=0.7&rev={FIRST}"
    new = f"?seed=42&psi=0.7&rev={context.studio.revision}"
    found = [np.array(Image.open(path)) for path in context.find_small([new, old, new])]
    expected = np.array(Image.open(DRAWN / "plain.png"))
    assert np.abs(found[1].astype(int) - expected).max() <= 1
    assert np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("rev", ["", "f" * 12, "../generator", "e9229FDE7989", FIRST + "/"])
def test_a_rev_that_is_none_opens_nothing(context, rev):
    assert not is_bundled(rev)
    assert context.album_of(rev) is context.album


def test_the_bundle_lists_what_it_holds():
    listed = json.loads((EARLIER / ORDER).read_text())
    assert sorted(listed) == sorted(p.name for p in EARLIER.iterdir() if p.is_dir())
    assert len(listed) <= KEPT
    for revision in listed:
        assert digest(EARLIER / revision).startswith(revision)


def test_a_release_keeps_the_ones_before_it(tmp_path):
    def release(seed: int) -> str:
        torch.manual_seed(seed)
        store(Generator(8, (16, 16), z_dim=4, w_dim=4).eval(), tmp_path / "generator")
        (tmp_path / "generator" / "directions.safetensors").write_bytes(b"%d" % seed)
        return digest(tmp_path / "generator")[:12]

    first, again = release(0), release(0)
    assert first == again
    assert not (tmp_path / "earlier").exists()  # the same weights are no new release
    later = [release(seed) for seed in range(1, KEPT + 2)]
    kept = [*reversed(later[:-1])][:KEPT]
    assert json.loads((tmp_path / "earlier" / ORDER).read_text()) == kept
    assert sorted(p.name for p in (tmp_path / "earlier").iterdir()) == sorted([*kept, ORDER])
    assert digest(tmp_path / "earlier" / kept[0]).startswith(kept[0])
    assert (tmp_path / "earlier" / kept[0] / "directions.safetensors").read_bytes() == b"%d" % KEPT
    retire(tmp_path / "nothing", tmp_path / "earlier")  # no weights, nothing to keep
    assert json.loads((tmp_path / "earlier" / ORDER).read_text()) == kept
