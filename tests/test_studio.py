"""The studio: seeds → faces, lists of seeds, recipes, and the command `python -m studio`."""

from __future__ import annotations

import io
import os
import re
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import edits
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model import SEED_MAX, ArticleGenerator, Discriminator, Generator, ModelError
from studio import faces
from studio.__main__ import main
from studio.faces import Studio, first_paragraph, to_uint8
from studio.pictures import Album, Sheet, png_bytes
from studio.recipe import (
    Between,
    Edit,
    Mix,
    Recipe,
    RecipeError,
    Vary,
    check_psi,
    parse_seeds,
    recipe_from_png,
    recipe_from_query,
)
from tests.visitor import apart

ROOT = Path(__file__).resolve().parents[1]
CHANNELS = (32, 32, 16, 16)


def save_generator(folder: Path, **options: Any) -> Path:
    """Save a random generator of 32 px and return its folder."""
    edits.save_generator(folder, **{"resolution": 32, "channels": CHANNELS, **options})
    return folder


@pytest.fixture(scope="module")
def generator_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_generator(tmp_path_factory.mktemp("generator"))


@pytest.fixture(scope="module")
def studio(generator_dir: Path) -> Studio:
    return Studio.open(generator_dir)


# Drawing


def test_faces_are_uint8_and_differ(studio: Studio):
    drawn = studio.draw([1, 2, 3], psi=1)
    assert drawn.shape == (3, 32, 32, 3)
    assert drawn.dtype == np.uint8
    assert apart(drawn[0], drawn[1]) > 20
    assert studio.draw([]).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_face_does_not_depend_on_its_batch(studio: Studio, threads: int):
    before = torch.get_num_threads()
    alone = {seed: studio.draw([seed])[0] for seed in (7, 42, SEED_MAX)}
    torch.set_num_threads(threads)
    try:
        for batch_size, seeds in (
            (16, [*range(20), 42, 7, SEED_MAX]),
            (2, [SEED_MAX, 1, 7, 42, 9]),
            (64, [42, *range(100, 130), 7, SEED_MAX]),
        ):
            drawn = studio.draw(seeds, batch_size=batch_size)
            for seed, face in alone.items():
                assert apart(drawn[seeds.index(seed)], face) <= 1
    finally:
        torch.set_num_threads(before)


def test_many_threads_draw_what_one_draws(studio: Studio):
    expected = studio.draw(range(12))
    with ThreadPoolExecutor(6) as callers:
        drawn = list(callers.map(lambda seed: studio.draw([seed])[0], range(12)))
    assert apart(np.stack(drawn), expected) <= 1


def test_psi_zero_draws_one_face_for_all_seeds(studio: Studio):
    drawn = studio.draw([1, 2, 3], psi=0)
    assert apart(drawn[0], drawn[1]) <= 1
    assert apart(drawn[0], drawn[2]) <= 1
    assert apart(drawn[0], studio.draw([1], psi=1)[0]) > 20


def test_large_draws_are_streamed(studio: Studio):
    batches = studio.draw_batches(iter(range(10**9)), batch_size=4)
    first, second = next(batches), next(batches)
    assert len(first) == len(second) == 4
    assert apart(np.concatenate([first, second]), studio.draw(range(8))) <= 1


@pytest.mark.parametrize("psi", [float("nan"), float("inf"), 2.1, -3, "x", True])
def test_bad_psi_is_refused(studio: Studio, psi: object):
    with pytest.raises(ValueError, match="psi is a number from -2 to 2, not"):
        studio.draw([1], psi=psi)
    with pytest.raises(ValueError, match="psi is a number from -2 to 2, not"):
        studio.draw([1], fine=psi)


def test_bad_seeds_and_batch_sizes_are_refused(studio: Studio):
    for seed in (-1, 2**32, 1.5, "7"):
        with pytest.raises(ValueError, match="a seed is a whole number from 0 to 4294967295"):
            studio.draw([seed])
    for batch_size in (0, 5000, 2.0):
        with pytest.raises(ValueError, match="a batch holds 1 to 1024 faces"):
            studio.draw([1], batch_size=batch_size)


def test_quantisation_rounds_and_clamps():
    levels = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 5.0]).view(1, 1, 1, 6)
    assert to_uint8(levels).ravel().tolist() == [0, 0, 128, 255, 255, 255]
    every = torch.arange(256).view(1, 1, 16, 16)
    assert (to_uint8(every / 127.5 - 1).ravel() == np.arange(256)).all()


@pytest.mark.parametrize(
    ("resolution", "channels", "grey"),
    [(24, (16, 16, 16), True), (96, (16,) * 5, False), (256, (16, *(8,) * 6), True)],
)
def test_other_sizes_and_grey(tmp_path: Path, resolution: int, channels: tuple, grey: bool):
    c = 1 if grey else 3
    save_generator(tmp_path, resolution=resolution, channels=channels, img_channels=c)
    studio = Studio.open(tmp_path)
    drawn = studio.draw([5, 6])
    assert drawn.shape == (2, resolution, resolution, c)
    path = Album(studio, tmp_path / "album").face(Recipe(5, 0.7))
    with Image.open(path) as picture:
        assert picture.mode == ("L" if grey else "RGB")
        assert picture.size == (512, 512)
        by = {"revision": studio.revision, "enlarger": studio.enlarging.name}
        assert picture.text == {"seed": "5", "psi": "0.7", **by}


def test_the_articles_generator_has_no_w_and_works_too():
    studio = Studio(ArticleGenerator(z_dim=4).eval(), source="here", revision="0")
    drawn = studio.draw([1, 2], psi=1)
    assert drawn.shape == (2, 96, 96, 3)
    assert apart(drawn[0], drawn[1]) > 5
    average = studio.draw([1, 2], psi=0)
    assert apart(average[0], average[1]) <= 1


# Opening


def test_revision_and_about(tmp_path: Path):
    save_generator(tmp_path)
    (tmp_path / "README.md").write_text("---\na: b\n---\n\n# Title\n\nFaces of\ndots.\n\nMore.")
    studio = Studio.open(tmp_path)
    sums = subprocess.run(
        ["sha256sum", tmp_path / "model.safetensors"], capture_output=True, text=True, check=True
    )
    assert sums.stdout.startswith(studio.revision)
    assert len(studio.revision) == 12
    assert studio.about().startswith("Faces of dots.\n\n32×32 px · 0.044 million parameters · ")
    assert str(tmp_path) not in studio.about()
    assert tmp_path.name in studio.about()
    assert studio.revision in studio.about()
    assert studio.notice == ""


@pytest.mark.parametrize("card", ["", "---\na: b\n---\n", "# Only a title\n", "| a | table |"])
def test_a_card_without_a_paragraph(card: str):
    assert first_paragraph(card) == ""


def test_what_cannot_be_opened_is_refused(tmp_path: Path, generator_dir: Path):
    with pytest.raises(ModelError, match="config.json"):
        Studio.open(tmp_path)
    with pytest.raises(ModelError, match="a revision is only for a Hub repository"):
        Studio.open(generator_dir, "abc")
    Discriminator(resolution=32, channels=CHANNELS).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds a Discriminator, which draws no faces"):
        Studio.open(tmp_path)


OPEN = """
import sys
from pathlib import Path
from studio import faces
from studio.__main__ import main
faces.BUNDLED = Path(sys.argv[1])
studio = faces.Studio.open(sys.argv[2], sys.argv[3] or None)
print(studio.source, studio.revision, studio.notice, sep="\\n")
"""


def open_offline(tmp_path: Path, bundled: Path, repo: str, revision: str = "") -> list[str]:
    """Open a repository in a new process that never asks the network; return what it prints."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(bundled), repo, revision],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_unreachable_repository_falls_back_to_the_bundled_weights(
    tmp_path: Path, generator_dir: Path, studio: Studio
):
    source, revision, notice = open_offline(tmp_path, generator_dir, "nobody/nothing")
    assert source == "the bundled weights"
    assert revision == studio.revision
    assert notice == (
        "The weights of nobody/nothing could not be loaded, so these faces come from the bundled "
        "ones."
    )


def test_a_repository_at_a_revision_is_used(tmp_path: Path, generator_dir: Path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "hub" / "models--some--one"
    save_generator(repository / "snapshots" / commit, z_dim=8)
    source, revision, *notice = open_offline(tmp_path, generator_dir, "some/one", commit)
    assert source == f"some/one at {commit}"
    assert revision == Studio.open(repository / "snapshots" / commit).revision
    assert notice in ([], [""])


def test_count_cpus_is_at_least_one():
    assert 1 <= faces.count_cpus() <= (os.cpu_count() or 1)


# Seeds and recipes


def test_parse_seeds():
    assert parse_seeds("0-3,100") == [0, 1, 2, 3, 100]
    assert parse_seeds(" 9 , 4 - 6,5") == [9, 4, 5, 6]
    assert parse_seeds(str(SEED_MAX)) == [SEED_MAX]
    assert len(parse_seeds("1-1000000")) == 1_000_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is no seed and no range"),
        ("1,,2", "'' is no seed"),
        ("-1", "'-1' is no seed"),
        ("1.5", "'1.5' is no seed"),
        ("banana", "write seeds like 0-63,100"),
        ("٤٢", "is no seed"),
        ("9-5", "runs backwards; write 5-9"),
        ("4294967296", "4294967296 is too large: a seed is a whole number from 0 to 4294967295"),
        ("0-4294967295", "more than 1,000,000 seeds"),
        ("0-999999,5", "more than 1,000,000 seeds"),
        ("1" * 5000, "is no seed"),
    ],
)
def test_bad_lists_of_seeds(text: str, says: str):
    with pytest.raises(RecipeError) as caught:
        parse_seeds(text)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 200


@given(st.lists(st.tuples(st.integers(0, SEED_MAX - 50), st.integers(0, 50)), min_size=1))
def test_parse_seeds_reads_what_is_written(ranges: list[tuple[int, int]]):
    text = ",".join(f"{a}-{a + n}" if n else f"{a}" for a, n in ranges)
    wanted = [seed for a, n in ranges for seed in range(a, a + n + 1)]
    assert parse_seeds(text) == list(dict.fromkeys(wanted))


@given(st.integers(0, SEED_MAX), st.floats(0, 1))
def test_an_address_gives_its_recipe_back(seed: int, psi: float):
    recipe = Recipe(seed, psi)
    query = dict(pair.split("=") for pair in recipe.query()[1:].split("&"))
    assert recipe_from_query(query, 0) == (recipe, "")
    assert recipe_from_query(query | {"rev": "a" * 12}, 0, "a" * 12) == (recipe, "")
    for other in ("b" * 12, "", "<script>", "a" * 100_000):
        again, line = recipe_from_query(query | {"rev": other}, 0, "a" * 12)
        assert again == recipe
        assert line == "This address was made with other weights, so its face may differ here."


def test_short_addresses():
    assert Recipe(42, 0.7).query() == "?seed=42&psi=0.7"
    assert Recipe(42, 0.7).query("0123456789ab") == "?seed=42&psi=0.7&rev=0123456789ab"
    assert Recipe(42.0, 1).query() == "?seed=42&psi=1"
    assert Recipe(0, -0.0).query() == "?seed=0&psi=0"


@given(st.text(max_size=60))
def test_any_address_opens(text: str):
    recipe, line = recipe_from_query({"seed": text, "psi": text}, 5)
    assert 0 <= recipe.psi <= 1
    assert recipe.seed == 5 or not line.startswith("The seed")
    assert "\n" not in line


def test_a_malformed_address_is_said_once_and_not_repeated():
    recipe, line = recipe_from_query({"seed": "<b>banana", "psi": "0.5"}, 9)
    assert recipe == Recipe(9, 0.5)
    assert line.startswith("The seed in this address cannot be used (a seed is a whole number")
    assert "banana" not in line
    assert recipe_from_query({"seed": "4294967296"}, 9)[0].seed == 9
    recipe, line = recipe_from_query({"seed": "3", "psi": "1.5"}, 9)
    assert recipe == Recipe(3)
    assert line.startswith("The psi in this address cannot be used")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, float("nan"), float("inf"), "7", None, True])
def test_bad_recipes(seed: object):
    with pytest.raises(RecipeError, match="a seed is a whole number from 0 to 4294967295, not"):
        Recipe(seed)


def test_check_psi_takes_numpy_numbers():
    assert check_psi(np.float32(0.5)) == 0.5


# Pictures


def test_an_album_draws_each_face_once_and_again_when_it_was_cleaned(
    studio: Studio, tmp_path: Path
):
    album = Album(studio, tmp_path)
    path = Path(album.face(Recipe(3)))
    assert path.name == "kaogan-3.png"
    drawn = np.array(Image.open(path))
    assert apart(drawn, studio.enlarge(studio.draw([3]), 512)[0]) <= 1
    path.write_bytes(b"kept")
    assert album.face(Recipe(3)) == str(path)
    assert path.read_bytes() == b"kept"
    path.unlink()
    album.face(Recipe(3))
    assert apart(np.array(Image.open(path)), drawn) <= 1
    assert album.face(Recipe(3, 0.70000001)) != str(path)
    assert album.faces([Recipe(3)])[0] != str(path)


def test_an_album_keeps_many_faces_at_their_own_size(studio: Studio, tmp_path: Path):
    album = Album(studio, tmp_path)
    album.faces([Recipe(5, 1)])
    paths = album.faces([Recipe(seed, 1) for seed in (4, 5, 6)])
    assert [Path(path).name for path in paths] == [f"kaogan-{seed}.png" for seed in (4, 5, 6)]
    drawn = np.stack([np.array(Image.open(path)) for path in paths])
    assert apart(drawn, studio.draw([4, 5, 6], 1)) <= 1


def test_a_sheet_fills_row_by_row():
    sheet = Sheet(5, 2, 1)
    sheet.add(np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(2, 1).repeat(2, 2))
    assert sheet.pixels[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 255]]
    with pytest.raises(RecipeError, match="a grid of 100,000 faces of 64 px is too large"):
        Sheet(100_000, 64, 3)


# The command


def run_studio(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m studio` as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "studio", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )


def test_the_command_draws_files_and_a_sheet(generator_dir: Path, studio: Studio, tmp_path: Path):
    out, grid = tmp_path / "a" / "out", tmp_path / "b" / "grid.png"
    done = run_studio(
        *("--seeds", "0-9,4294967295", "--psi", 0.5, "--out", out, "--grid", grid),
        *("--batch-size", 4, "--model", generator_dir),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^11 faces in \d+\.\d s: \d+ faces/s$", done.stdout, re.M)
    seeds = [*range(10), SEED_MAX]
    assert sorted(p.name for p in out.iterdir()) == [f"seed{s:010d}.png" for s in seeds]
    drawn = studio.draw(seeds, 0.5)
    for seed, face in zip(seeds, drawn, strict=True):
        with Image.open(out / f"seed{seed:010d}.png") as picture:
            assert apart(np.array(picture), face) <= 1
            wanted = {"seed": str(seed), "psi": "0.5", "revision": studio.revision}
            assert picture.text == wanted
    with Image.open(grid) as sheet:
        assert sheet.size == (128, 96)
        assert apart(np.array(sheet)[64:96, 64:96], drawn[10]) <= 1
        assert sheet.text["seeds"] == "0-9,4294967295"


def test_the_command_keeps_the_best_of_each_few(tmp_path: Path, capsys):
    from studio.__main__ import main

    arguments = ["--seeds", "0-129", "--psi", "1", "--best-of", "13"]
    assert main([*arguments, "--out", str(tmp_path), "--grid", str(tmp_path / "g" / "g.png")]) == 0
    assert "10 faces in" in capsys.readouterr().out
    kept = sorted(int(p.stem[4:]) for p in tmp_path.glob("seed*.png"))
    assert [seed // 13 for seed in kept] == list(range(10))
    whole = Studio.open()
    pixels = torch.from_numpy(whole.draw(range(13, 26), 1.0)).permute(0, 3, 1, 2)
    assert kept[1] == 13 + int(whole.D.most_real(pixels.float() / 127.5 - 1, 13))
    with Image.open(tmp_path / "g" / "g.png") as sheet:
        assert sheet.text["best-of"] == "13"


SHAPED = ["--edit", "smile=1.5", "--edit", "hair=#3fa34d", "--mix", "77@middle", "--vary", "5:0.3",
          "--between", "77:0.5"]  # fmt: skip


def test_the_command_shapes_faces_and_draws_them_again(tmp_path: Path, capsys):
    folder = save_generator(tmp_path / "generator")
    edits.save_directions(folder, Generator.from_pretrained(folder))
    studio = Studio.open(folder)
    out, model = tmp_path / "out", ["--model", str(folder)]
    grid = ["--grid", str(tmp_path / "grid.png")]
    assert main(["--seeds", "3,42", "--out", str(out), *model, *SHAPED, *grid]) == 0
    wanted = Recipe(
        42,
        mix=(Mix(77, "middle"),),
        edits=(Edit("smile", 1.5), Edit("hair", "#3fa34d")),
        vary=Vary(5, 0.3),
        between=Between(77, 0.5),
    )
    path = out / "seed0000000042.png"
    assert recipe_from_png(path, studio.revision) == (wanted, "")
    face = np.array(Image.open(path))
    assert apart(face, studio.draw_recipes([wanted])[0]) <= 1
    assert apart(face, studio.draw([42])[0]) > 5
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.text["seeds"] == "3,42"
        assert sheet.text["edit"] == "hair:3fa34d,smile:1.5"
        assert "seed" not in sheet.text
    for number, source in enumerate(
        (str(path), wanted.query(), "https://here/?a=b&" + wanted.query(studio.revision)[1:])
    ):
        again = tmp_path / f"again{number}"
        assert main(["--recipe", source, "--out", str(again), *model]) == 0
        assert (np.array(Image.open(again / path.name)) == face).all()
    assert capsys.readouterr().err == ""
    assert main(["--recipe", wanted.query("f" * 12), "--out", str(again), *model]) == 0
    assert (
        capsys.readouterr().err == "python -m studio: made with other weights, so it may differ\n"
    )


def test_the_command_refuses_in_one_sentence(generator_dir: Path, tmp_path: Path):
    out = tmp_path / "out"
    done = run_studio("--seeds", "5-1", "--out", out, "--model", generator_dir)
    assert done.returncode == 2
    assert done.stderr == "python -m studio: the range 5-1 runs backwards; write 1-5\n"
    assert done.stdout == ""
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "1", "--psi", "nan"], "psi is a number from -2 to 2, not nan"),
        (["--seeds", "1", "--batch-size", "0"], "a batch holds 1 to 1024 faces, not 0"),
        (["--seeds", "1", "--model", "no/such/folder"], "neither a folder nor a Hub repository"),
        (["--seeds", "1", "--revision", "abc"], "a revision is only for a Hub repository"),
        (["--seeds", "1", "--out", "{file}"], "cannot write"),
        (["--seeds", "1", "--grid", "{file}/sheet.png"], "cannot write"),
        (["--seeds", "1", "--edit", "smile=1"], "These weights have no directions file"),
        (["--seeds", "1", "--edit", "smile"], "--edit 'smile': an edit is NAME:NUMBER"),
        (["--seeds", "1", "--edit", "smile=nan"], "--edit 'smile=nan': this is no number"),
        (["--seeds", "1", "--edit", "smile=11"], "smile takes a number from -10 to 10, not 11"),
        (["--seeds", "1", "--mix", "2@top"], "--mix '2@top': a mix is SEED@GROUP"),
        (["--seeds", "1", "--mix", "x@fine"], "--mix 'x@fine': a seed is a whole number"),
        (["--seeds", "1", "--vary", "5"], "--vary '5': this is no number"),
        (["--seeds", "1", "--between", "5:2"], "the share of a way is a number from 0 to 1, not 2"),
        (["--recipe", "?seed=1&edit=smile:x"], "The edit in this address cannot all be used"),
        (["--recipe", "?seed=1", "--psi", "1"], "leave out the options that shape it"),
        (["--recipe", "?psi=1"], "this address holds no recipe"),
        (["--recipe", "{file}"], "This file is not a readable PNG"),
        (["--seeds", "0-9", "--best-of", "0"], "--best-of takes 1 to 64 seeds for a face, not 0"),
        (["--seeds", "0-9", "--best-of", "4"], "these weights came without a discriminator"),
        (["--seeds", "0-99999", "--grid", "g.png"], "a grid of 100,000 faces of 32 px is too"),
    ],
)
def test_what_the_command_refuses(
    generator_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
):
    (tmp_path / "file").write_text("in the way")
    arguments = [a.format(file=tmp_path / "file") for a in arguments]
    out = str(tmp_path / "out")
    assert main(["--out", out, "--model", str(generator_dir), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("python -m studio: ")
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_full_disk_is_named_with_the_folder(generator_dir: Path, tmp_path: Path, capsys):
    """A failed write names no file; a limit on their size stands in for a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
    try:
        arguments = ["--seeds", "1", "--out", str(tmp_path), "--model", str(generator_dir)]
        assert main(arguments) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert capsys.readouterr().err == f"python -m studio: cannot write {tmp_path}: File too large\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "x"], "one of the arguments --seeds --recipe is required"),
        (["--seeds", "1", "--out", "x", "--psi", "much"], "invalid float value: 'much'"),
        (["--seeds", "1", "--out", "x", "--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_wrong_options(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_help_is_fast_and_names_every_option():
    done = run_studio("--help")
    assert done.returncode == 0
    for option in ("--seeds", "--recipe", "--psi", "--out", "--grid", "--edit", "--mix", "--vary",
                   "--between", "--batch-size", "--model", "--revision"):  # fmt: skip
        assert option in done.stdout


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_png_holds_the_very_pixels_and_its_text(mode: str):
    shape = (17, 31) if mode == "L" else (17, 31, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    text = {"seed": "42", "name": "顔"}
    read = Image.open(io.BytesIO(png_bytes(Image.fromarray(pixels), text)))
    read.load()
    assert (read.mode, read.text) == (mode, text)
    assert (np.array(read) == pixels).all()
