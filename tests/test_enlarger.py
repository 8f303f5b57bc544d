"""Enlarging: sizes, determinism, what wins where, strict files, and a student that learns."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from courses import interrupted_after
from edits import save_generator
from PIL import Image

from fitting import course
from fitting import enlarge as fitting
from model import Discriminator, Enlarger, Generator, ModelError, load_generator
from studio.__main__ import main as studio_main
from studio.enlarging import BUNDLED, LANCZOS, Enlarging, find_enlarging, load_enlarging
from studio.faces import Studio
from studio.pictures import Album
from studio.recipe import Recipe, read_png_text


@pytest.fixture(scope="module")
def network() -> Enlarger:
    torch.manual_seed(0)
    return Enlarger(8, 2).freeze()


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (5, 32, 32, 3)).astype(np.uint8)


def test_a_large_face_depends_on_its_pixels_alone(network, faces):
    enlarging = Enlarging(network, "0" * 12)
    large = enlarging(faces, 128)
    assert large.shape == (5, 128, 128, 3) and large.dtype == np.uint8
    assert np.array_equal(large, enlarging(faces, 128))
    assert np.array_equal(large[3:4], enlarging(faces[3:4], 128))  # whatever its company
    together = network.enlarge(torch.from_numpy(faces).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert np.abs(large.astype(int) - together.numpy()).max() <= 1
    again = Enlarging(Enlarger.from_pretrained(BUNDLED).freeze())
    threads = torch.get_num_threads()
    small = np.repeat(np.repeat(faces, 2, 1), 2, 2)
    one = again(small, 256)
    torch.set_num_threads(threads % 2 + 1)
    try:
        assert np.abs(one.astype(int) - again(small, 256)).max() <= 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("size", "channels"), [(64, 3), (128, 1), (200, 3), (512, 1)])
def test_any_size_and_grey_ones(network, faces, size, channels):
    for enlarging in (Enlarging(network), Enlarging()):
        large = enlarging(faces[..., :channels], size)
        assert large.shape == (5, size, size, channels)
        assert Enlarging()(large, 16) is large  # none becomes smaller


def test_without_a_network_it_is_lanczos(faces):
    expected = Image.fromarray(faces[0]).resize((128, 128), Image.Resampling.LANCZOS)
    assert np.array_equal(Enlarging()(faces, 128)[0], np.asarray(expected))
    assert Enlarging().name == LANCZOS


def test_which_enlarger_wins(tmp_path, network):
    G = save_generator(tmp_path / "generator")
    bundled = find_enlarging(tmp_path / "generator", None, G)
    assert bundled.name == load_enlarging(BUNDLED).name != LANCZOS
    assert find_enlarging(tmp_path / "generator", None, G, "none") == Enlarging()
    network.save_pretrained(tmp_path / "enlarger")
    own = find_enlarging(tmp_path / "generator", None, G)
    assert own.name not in (bundled.name, LANCZOS)
    assert find_enlarging(tmp_path, None, G, tmp_path / "enlarger").name == own.name
    large = Generator(256, (8,) * 7, z_dim=4, w_dim=4)
    assert find_enlarging(tmp_path / "generator", None, large) == Enlarging()


def test_a_broken_enlarger_beside_the_weights_is_replaced_and_a_chosen_one_refused(
    tmp_path, network, caplog
):
    G = save_generator(tmp_path / "generator")
    network.save_pretrained(tmp_path / "enlarger")
    (tmp_path / "enlarger" / "model.safetensors").write_bytes(b"broken")
    found = find_enlarging(tmp_path / "generator", None, G)
    assert found.name == load_enlarging(BUNDLED).name
    assert "the bundled enlarger is used" in caplog.text
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        find_enlarging(tmp_path / "generator", None, G, tmp_path / "enlarger")
    with pytest.raises(ModelError, match="describes a Generator, not a Enlarger"):
        find_enlarging(tmp_path / "generator", None, G, tmp_path / "generator")
    with pytest.raises(ModelError, match="holds a Enlarger, which draws no faces"):
        load_generator(BUNDLED)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"width": 4}, "width of an enlarger is a whole number from 8 to 128"),
        ({"width": True}, "width of an enlarger is a whole number from 8 to 128"),
        ({"layers": 33}, "layers of an enlarger is a whole number from 1 to 32"),
        ({"width": 128, "layers": 32}, "at most 400,000 parameters"),
        ({"scale": 8}, "unknown entries: scale"),
    ],
)
def test_what_a_strangers_config_may_not_ask_for(tmp_path, network, config, says):
    network.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(ModelError, match=says):
        Enlarger.from_pretrained(tmp_path)


def test_the_bundled_one_is_small_and_half_precision():
    network = Enlarger.from_pretrained(BUNDLED)
    assert sum(p.numel() for p in network.parameters()) <= 400_000
    assert (BUNDLED / "model.safetensors").stat().st_size < 1_000_000
    assert "BSD-3-Clause" in (BUNDLED / "README.md").read_text()


def test_large_pngs_say_what_enlarged_them(tmp_path):
    save_generator(tmp_path / "generator")
    studio = Studio.open(tmp_path / "generator")
    album = Album(studio, tmp_path / "album")
    assert read_text(album.face(Recipe(1)))["enlarger"] == studio.enlarging.name
    assert "enlarger" not in read_text(album.faces([Recipe(1)])[0])
    assert Image.open(album.face(Recipe(1))).size == (512, 512)
    assert read_png_text(album.face(Recipe(1)))["revision"] == studio.revision


def read_text(path: str) -> dict[str, str]:
    with Image.open(path) as image:
        return dict(image.info)


def test_the_command_draws_large_faces(tmp_path, capsys):
    save_generator(tmp_path / "generator")
    options = ["--model", str(tmp_path / "generator"), "--seeds", "5"]
    sizes = {}
    for enlarger in ([], ["--enlarger", "none"]):
        out = tmp_path / ("own" if not enlarger else "none")
        assert studio_main([*options, "--size", "512", "--out", str(out), *enlarger]) == 0
        with Image.open(out / "seed0000000005.png") as image:
            assert image.size == (512, 512)
            sizes[out.name] = image.info["enlarger"]
    assert sizes["none"] == LANCZOS != sizes["own"]
    capsys.readouterr()
    assert studio_main([*options, "--size", "32", "--out", str(tmp_path)]) == 2
    assert "--size is a number of px from 64 to 1024, not 32" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------
# fitting.enlarge


def fill(pairs: fitting.Pairs) -> None:
    """Give every pair a smooth picture and its sharp enlargement."""
    rng = np.random.RandomState(0)
    for index in pairs.missing():
        coarse = rng.randint(0, 256, (16, 16, 3)).astype(np.uint8)
        large = Image.fromarray(coarse).resize((512, 512), Image.Resampling.NEAREST)
        pairs.high[index] = large
        pairs.low[index] = large.resize((128, 128), Image.Resampling.BILINEAR)


def test_a_student_learns_resumes_and_says_how_near_it_came(tmp_path, capsys, monkeypatch):
    G = save_generator(tmp_path / "generator")
    assert isinstance(G, Generator)
    monkeypatch.setattr(course, "SAVE_EVERY", 0.0)
    command = ["--model", str(tmp_path / "generator"), "--pairs", "52", "--width", "8"]
    command += ["--layers", "1", "--batch-size", "8"]
    for name in ("once", "twice"):
        fill(fitting.Pairs(tmp_path / name / fitting.WORK / "pairs", 52))
    assert fitting.main([*command, "--kimg", "0.256", "--out", str(tmp_path / "once")]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1].split(": ", 1)[1])
    assert scores["gradient_energy"] > 0 and scores["decibels"] > 5
    with interrupted_after(20, fitting.Enlarging):
        fitting.main([*command, "--kimg", "0.256", "--out", str(tmp_path / "twice")])
    assert fitting.main([*command, "--kimg", "0.256", "--out", str(tmp_path / "twice")]) == 0
    weights = [
        (tmp_path / name / "enlarger" / "model.safetensors").read_bytes()
        for name in ("once", "twice")
    ]
    assert weights[0] == weights[1]
    card = (tmp_path / "once" / "enlarger" / "README.md").read_text()
    assert "realesrgan-x4plus-anime" in card and "BSD-3-Clause" in card
    Enlarger.from_pretrained(tmp_path / "once" / "enlarger")
    capsys.readouterr()
    assert fitting.main([*command, "--kimg", "1", "--out", str(tmp_path / "once")]) == 2
    assert "was started with other settings; use another --out" in capsys.readouterr().err
    start = ["--init-from", str(tmp_path / "once" / "enlarger"), "--out", str(tmp_path / "other")]
    assert fitting.main([*command, *start, "--width", "16"]) == 2
    assert "has other sizes; give its --width 8 and --layers 1" in capsys.readouterr().err
    few = [*command, "--out", str(tmp_path / "few")]
    few[few.index("--pairs") + 1] = "48"
    assert fitting.main(few) == 2
    assert "--pairs must be more than the 48" in capsys.readouterr().err


def test_a_discriminator_is_no_generator_to_enlarge(tmp_path, capsys):
    Discriminator(16, (8, 8, 8)).save_pretrained(tmp_path / "d")
    assert fitting.main(["--model", str(tmp_path / "d"), "--out", str(tmp_path / "out")]) == 2
    assert "holds no generator with a w" in capsys.readouterr().err


@pytest.mark.skipif(
    not importlib.util.find_spec("ncnn"),
    reason="the teacher's package has no build for this Python",
)
def test_the_teacher_draws_lines(tmp_path):
    from fitting.teacher import Teacher, TeacherError

    face = np.asarray(Image.open(Path(BUNDLED).parent / "samples" / "seed0000000042.png"))
    large = Teacher("animevideov3")(face)
    assert large.shape == (512, 512, 3) and large.dtype == np.uint8
    plain = Enlarging()(face[None], 512)[0]
    assert fitting.decibels(large, plain) > 22  # the same face
    assert fitting.energy(large[None]) > fitting.energy(plain[None])  # with sharper lines
    with pytest.raises(TeacherError, match="a teacher is one of x4plus-anime, animevideov3"):
        Teacher("waifu")
