"""Export: the ONNX file draws what torch draws, and faults are one sentence."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from model import ArticleGenerator, Generator
from studio import export
from studio.faces import Studio


def save(folder: Path, G: torch.nn.Module, card: str = "") -> Path:
    """Save a network with a card and return its folder."""
    if G.num_ws:
        G.update_w_avg(256)
    G.save_pretrained(folder)
    (folder / "README.md").write_text(f"# Card\n\n{card}\n")
    return folder


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """Return a studio of a small random generator."""
    torch.manual_seed(0)
    # Weights that fp16 holds exactly, as those of every published generator are.
    G = Generator(resolution=16, channels=(16, 16, 16), z_dim=24, w_dim=20).half().float()
    return Studio.open(save(tmp_path_factory.mktemp("generator"), G, "Random, for tests."))


@pytest.fixture(scope="module")
def printed(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the command; return the file that it wrote and what it printed."""
    out = tmp_path_factory.mktemp("export") / "new" / "folder"
    arguments = ["--model", studio.source, "--out", str(out), "--check-seeds", "20"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert export.main(arguments) == 0
    return out / export.ONNX_NAME, text.getvalue()


@pytest.fixture(scope="module")
def from_z(printed: tuple[Path, str]) -> Path:
    return printed[0]


def test_faces_are_those_of_torch(studio: Studio, from_z: Path) -> None:
    assert export.check(studio, from_z, 200) < 0.01  # raises where a value is two levels off


def test_any_batch_and_psi(studio: Studio, from_z: Path) -> None:
    session = export.open_session(from_z, threads=1)
    for count, psi in ((1, 0.7), (2, -0.5), (37, 1.6)):
        (found,) = session.run(None, export.feed(studio, range(count), psi))
        assert found.dtype == np.uint8 and found.shape == (count, 16, 16, 3)
        expected = studio.draw(range(count), psi)
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_w_for_each_layer(studio: Studio, tmp_path: Path) -> None:
    path = export.export(studio, tmp_path, "ws")
    assert export.check(studio, path, 32, "ws") < 0.01
    ws = torch.from_numpy(export.feed(studio, range(2), 1.0, "ws")["ws"])
    mixed = torch.cat([ws[:1, :2], ws[1:, 2:]], 1)
    with torch.inference_mode():
        expected = ((studio.G.synthesis(mixed) + 1) * 127.5).round().clamp(0, 255)
    (found,) = export.open_session(path).run(None, {"ws": mixed.numpy()})
    assert np.abs(found[0].astype(int) - expected[0].permute(1, 2, 0).numpy()).max() <= 1
    assert np.abs(found[0].astype(int) - studio.draw([1], 1.0)[0]).max() > 8  # mixing does matter


def test_the_article_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    studio = Studio.open(save(tmp_path, ArticleGenerator(z_dim=1).eval()))
    assert export.check(studio, export.export(studio, tmp_path), 4) < 0.01
    with pytest.raises(export.ExportError, match="has no w"):
        export.export(studio, tmp_path, "ws")


def test_facts_for_a_page(studio: Studio, from_z: Path) -> None:
    facts = json.loads(from_z.with_name(export.FACTS_NAME).read_text())
    about = facts.pop("about")
    assert facts == {
        "input": "z", "revision": studio.revision, "size": 16, "channels": 3, "z_dim": 24,
        "psi": 0.55, "fine": 0.9,
    }  # fmt: skip
    assert about.startswith("Random, for tests.")


def test_weights_are_fp16_and_all_else_is_fp32(studio: Studio, from_z: Path) -> None:
    proto = onnx.load(from_z)
    large = [t for t in proto.graph.initializer if math.prod(t.dims) >= export.SMALL]
    assert large and all(t.data_type == onnx.TensorProto.FLOAT16 for t in large)
    casts = {n.input[0] for n in proto.graph.node if n.op_type == "Cast"}
    assert {t.name for t in large} <= casts


def test_weights_beyond_fp16(studio: Studio, tmp_path: Path) -> None:
    G = copy.deepcopy(studio.G)
    G.const.data[0, 0, 0] = 1e6
    G.blocks["16"].conv1.weight.data[0, 0, 0, 0] = 1e6
    large = Studio.open(save(tmp_path / "large", G))
    with pytest.raises(export.ExportError, match="fp16 cannot hold the weights .*conv1.weight"):
        export.export(large, tmp_path)
    assert not list(tmp_path.glob("*.onnx*"))
    path = export.export(large, tmp_path, weights="fp32")
    assert export.check(large, path, 2) < 0.05


def test_other_faces_are_refused(studio: Studio, from_z: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    G = Generator(resolution=16, channels=(16, 16, 16), z_dim=24, w_dim=20)
    other = Studio.open(save(tmp_path, G))
    with pytest.raises(export.ExportError, match=r"seed \d+ at psi 0.7 differs by \d+/255"):
        export.check(other, from_z, 4)


def test_command(studio: Studio, printed: tuple[Path, str]) -> None:
    path, text = printed
    assert f"revision {studio.revision}; 20 faces within 1/255 of torch" in text
    assert text.count("\n") == 1  # what torch says about itself stays away
    assert {p.name for p in path.parent.iterdir()} == {export.ONNX_NAME, export.FACTS_NAME}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "nowhere/at/all"], "neither a folder nor a Hub repository"),
        (["--check-seeds", "0"], "--check-seeds takes a number from 1 up"),
        (["--out", "{file}"], "cannot write {file}: File exists"),
    ],
)
def test_faults_are_sentences(
    arguments: list[str],
    sentence: str,
    studio: Studio,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "file"
    file.touch()
    common = ["--model", studio.source, "--out", str(tmp_path / "out")]
    assert export.main(common + [a.format(file=file) for a in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("python -m studio.export: ") and printed.count("\n") == 1
    assert sentence.format(file=file) in printed
