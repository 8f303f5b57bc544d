"""Morphs: the frames of a walk, and the files that hold them."""

from __future__ import annotations

import json
import threading

import av
import numpy as np
import pytest
from PIL import Image

from model import ArticleGenerator, Generator
from studio.faces import Studio
from studio.morph import FORMATS, Stopped, Walk, frames, write_film
from studio.recipe import Edit, Mix, Recipe, RecipeError

THREE = (Recipe(1), Recipe(2, 0.5), Recipe(3, mix=(Mix(9, "coarse"),)))


@pytest.fixture(scope="module")
def studio() -> Studio:
    """Open the bundled generator."""
    return Studio.open()


def read_mp4(path):
    """Return an MP4's frames, uint8 `[N, H, W, 3]`, and its metadata."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        facts = (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate)
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        return np.stack(pictures), dict(file.metadata), facts


@pytest.mark.parametrize(("loop", "count"), [(True, 15), (False, 11)])
def test_a_walk_meets_each_face_exactly(studio, loop, count):
    found = np.stack(list(frames(studio, THREE, seconds=0.5, fps=10, loop=loop)))
    assert found.shape == (count, studio.size, studio.size, 3)
    assert found.dtype == np.uint8
    ends = studio.draw_recipes(THREE)
    assert np.abs(found[[0, 5, 10][: 3 if not loop else 3]].astype(int) - ends).max() <= 1


def test_a_walk_has_no_jump_not_even_where_it_repeats(studio):
    found = np.stack(list(frames(studio, THREE[:2], seconds=1, fps=30))).astype(float)
    steps = np.abs(found - np.roll(found, -1, 0)).mean((1, 2, 3))
    apart = np.abs(found[0] - found[30]).mean()
    assert steps.max() < apart / 5
    assert steps[[0, 29, 30, 59]].max() < steps.max() / 2  # it is slow near each face


def test_walking_in_z_draws_faces_between_two_seeds(studio):
    found = list(frames(studio, THREE[:2], seconds=0.4, fps=10, spherical=True, loop=False))
    straight = list(frames(studio, THREE[:2], seconds=0.4, fps=10, loop=False))
    ends = studio.draw_recipes(THREE[:2])
    assert np.abs(found[0].astype(int) - ends[0]).max() <= 1
    assert np.abs(found[-1].astype(int) - ends[1]).max() <= 1
    assert np.abs(found[2].astype(int) - straight[2]).mean() > 0.5


def test_a_generator_without_w_walks_between_seeds_only():
    studio = Studio(ArticleGenerator(4).eval(), source="", revision="")
    found = list(frames(studio, (Recipe(1), Recipe(2)), seconds=0.2, fps=10))
    assert len(found) == 4
    assert np.abs(found[0].astype(int) - studio.draw([1])[0]).max() <= 1
    with pytest.raises(RecipeError, match="no w"):
        list(frames(studio, THREE, seconds=0.2, fps=10))


def test_an_mp4_plays_what_was_drawn_and_carries_its_recipes(studio, tmp_path):
    path, shares = tmp_path / "walk.mp4", []
    write_film(path, studio, THREE, seconds=0.5, fps=20, size=128, progress=shares.append)
    pictures, metadata, facts = read_mp4(path)
    assert facts == ("h264", "yuv420p", 20)
    assert pictures.shape == (30, 128, 128, 3)
    face = Image.fromarray(studio.draw_recipes(THREE[:1])[0]).resize((128, 128), 1)
    assert np.abs(pictures[0].astype(float) - np.asarray(face)).mean() < 6
    comment = json.loads(metadata["comment"])
    assert tuple(Recipe.from_json(recipe) for recipe in comment["recipes"]) == THREE
    assert comment["revision"] == studio.revision
    data = path.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")  # it starts before it is all there
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("loop", "repeats"), [(True, 0), (False, 1)])
def test_an_animated_webp(studio, tmp_path, loop, repeats):
    path = tmp_path / "walk.webp"
    write_film(path, studio, THREE[:2], seconds=0.4, fps=20, size=64, loop=loop)
    with Image.open(path) as image:
        assert image.format == "WEBP"
        assert (image.size, image.n_frames) == ((64, 64), 16 if loop else 9)
        assert image.info["loop"] == repeats


def test_grey_faces_too(tmp_path):
    G = Generator(16, (16, 16, 16), z_dim=8, w_dim=8, img_channels=1).eval()
    studio = Studio(G, source="", revision="")
    write_film(tmp_path / "grey.mp4", studio, THREE[:2], seconds=0.2, fps=10, size=32)
    pictures, _, _ = read_mp4(tmp_path / "grey.mp4")
    assert pictures.shape == (4, 32, 32, 3)
    assert np.ptp(pictures.astype(int), axis=3).max() <= 6


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_stopped_film_leaves_nothing(studio, tmp_path, suffix):
    stop, shares = threading.Event(), []

    def progress(share: float) -> None:
        shares.append(share)
        if share > 0.1:
            stop.set()

    with pytest.raises(Stopped):
        path = tmp_path / f"walk{suffix}"
        write_film(path, studio, THREE, seconds=5, size=64, progress=progress, stop=stop)
    assert max(shares) < 0.15
    assert list(tmp_path.iterdir()) == []


def test_an_older_film_stays_where_a_new_one_fails(studio, tmp_path):
    path = tmp_path / "walk.mp4"
    path.write_bytes(b"older")

    def fail(share: float) -> None:
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        write_film(path, studio, THREE, seconds=0.2, size=64, progress=fail)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="No such file"):
        write_film(tmp_path / "nowhere" / "walk.mp4", studio, THREE, seconds=0.2, size=64)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipes": THREE[:1]}, "2 to 8 faces, not 1"),
        ({"recipes": THREE * 3}, "2 to 8 faces, not 9"),
        ({"seconds": 0}, "seconds from 0.1 to 10"),
        ({"seconds": float("nan")}, "seconds from 0.1 to 10"),
        ({"fps": 61}, "from 1 to 60"),
        ({"fps": 12.5}, "whole number"),
        ({"size": 127}, "even number"),
        ({"size": 4096}, "from 16 to 1024"),
        ({"recipes": (Recipe(1), Recipe(2, edits=(Edit("no-such-slider", 1.0),)))}, "slider"),
    ],
)
def test_what_cannot_be_walked_is_said_at_once(studio, tmp_path, change, says):
    arguments = {"recipes": THREE, **change}
    with pytest.raises(RecipeError, match=says):
        write_film(tmp_path / "walk.mp4", studio, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_film_of_another_kind_is_refused(studio, tmp_path):
    with pytest.raises(RecipeError, match=r"written as \.mp4 or \.webp, not '\.gif'"):
        write_film(tmp_path / "walk.gif", studio, THREE)


def test_a_walk_knows_its_length():
    assert len(Walk(THREE)) == 180
    assert len(Walk(THREE, loop=False)) == 121
