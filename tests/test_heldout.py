"""Pictures kept apart: D never learns from them, and its verdict on them tells when it overfits."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from children import Bench
from PIL import Image
from safetensors.torch import save_file
from test_train import checkpoints
from torch import nn

from training.checkpoint import list_checkpoints, load_checkpoint
from training.config import make_config
from training.data import pack, split
from training.heldout import PARTED, HeldOut, count_held, suggest


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Return a zip of 2,000 small pictures: the fewest of which some are kept apart."""
    path = tmp_path_factory.mktemp("many") / "many.zip"
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 4, 4, 3), np.uint8)
    with zipfile.ZipFile(path, "w") as file:
        for index, picture in enumerate(pixels):
            Image.fromarray(picture).resize((16, 16)).save(buffer := io.BytesIO(), "PNG")
            file.writestr(f"{index:04}.png", buffer.getvalue())
    return path


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Runs in forked processes."""
    made = Bench(tmp_path_factory.mktemp("bench"))
    yield made
    made.close()


class Memory(nn.Module):
    """A critic that knows some pictures by heart and takes all others for drawn."""

    def __init__(self, known):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.known = {self.sign(p) for picture in known for p in (picture, picture[:, ::-1])}

    @staticmethod
    def sign(picture):
        return picture.tobytes()

    def forward(self, images):
        self.norm(images)
        pixels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return torch.tensor([4.0 if self.sign(p) in self.known else -4.0 for p in pixels])


class DrawsGrey(nn.Module):
    """A generator of one picture."""

    def forward(self, z):
        return torch.zeros(len(z), 3, 16, 16)


def test_numbers_that_are_kept_apart():
    assert [count_held(n, 0.02) for n in (24, 1999, 2000, 20_000, 29_000)] == [0, 0, 40, 400, 500]
    assert count_held(29_000, 0.0) == 0


def test_a_critic_that_knows_its_pictures_by_heart_is_found_out(many, tmp_path):
    faces = pack([str(many)], 16, cache_dir=tmp_path, workers=1, progress=False)
    learned, held = split(2000, 500)
    config = make_config({"tick_kimg": 4.0})
    watch = HeldOut(faces, learned, held, config, torch.device("cpu"))
    assert watch.count == 124  # a 32nd of a tick, in groups of 4
    knows, fresh = Memory(faces.images[learned]), Memory(faces.images)
    G, z = DrawsGrey(), torch.zeros(watch.count, 8)
    means = knows.norm.running_mean.clone()
    honest = {"d_learned": 0.6, "d_held_out": 0.58, "d_drawn": 0.4}
    assert [watch.parted(honest) for _ in range(4)] == [0, 0, 0, 0]  # too few to tell
    assert watch.parted(honest) == pytest.approx(0.1)
    for tick in range(1, 6):
        found = watch.judge(knows, G, 4000 * tick, z, lambda images: images)
        assert found["d_learned"] > 0.98 and found["d_held_out"] == found["d_drawn"] < 0.02
        way = watch.parted(found)
    assert way > 0.98
    alike = watch.judge(fresh, G, 4000, z, lambda images: images)
    assert alike["d_learned"] == alike["d_held_out"] > 0.98
    fresh.compile(backend=lambda graph, _: pytest.fail("compiled for other batches"))
    assert watch.judge(fresh, G, 4000, z, lambda images: images) == alike
    assert knows.training and torch.equal(knows.norm.running_mean, means)
    assert "--augment translation,cutout,colour helps" in suggest(way, config)
    assert "96% of the way" in suggest(0.96, config)
    assert suggest(PARTED - 0.01, config) == ""
    everything = {"augment": "colour,cutout,translation"}
    assert suggest(way, make_config(everything)) == ""
    weak = make_config(everything, {"augment_strength": 0.5})
    assert "--augment-strength 1" in suggest(way, weak)


SHORT = ["--tick-kimg", "0.064", "--keep", "9"]


def test_a_run_keeps_pictures_apart_and_goes_on_exactly(bench, many):
    """With ADA's rule, whose strength is a part of the run."""
    flags = ["--data", str(many), *SHORT, "--augment-target", "0.1", "--augment-ramp-kimg", "0.2"]
    for name, kimg in (("whole", "0.256"), ("parts", "0.144")):
        status, printed = bench.run(name, *flags, "--total-kimg", kimg)
        assert status == 0, printed
        assert "2,000 pictures at 16 px, 40 of them kept apart" in printed
    status, printed = bench.run("parts", *flags, "--total-kimg", "0.256", "--resume", "latest")
    assert status == 0, printed
    whole, parts = (checkpoints(bench.folder / name)[-1] for name in ("whole", "parts"))
    assert [k for k in whole if not torch.equal(whole[k], parts[k])] == []
    lines = (bench.folder / "whole" / "stats.jsonl").read_text().splitlines()
    first, *rest = map(json.loads, lines)
    assert "d_held_out" not in first
    for line in rest:
        assert 0 < line["d_learned"] < 1 and 0 < line["d_held_out"] < 1
        assert 0 < line["d_drawn"] < 1
    assert any(line["augment_strength"] > 0 for line in rest)


def test_a_run_of_before_goes_on_with_all_of_its_pictures(bench, many):
    flags = ["--data", str(many), *SHORT]
    status, printed = bench.run("all", *flags, "--held-out", "0", "--total-kimg", "0.128")
    assert status == 0, printed
    assert "kept apart" not in printed
    status, printed = bench.run("old", *flags, "--held-out", "0", "--total-kimg", "0.064")
    assert status == 0, printed
    (path,) = list_checkpoints(bench.folder / "old" / "checkpoints")
    state = load_checkpoint(path, {}, {})
    del state["held_out"]
    old = {"format": "kaogan-checkpoint-1", "state": json.dumps(state)}
    save_file(checkpoints(bench.folder / "old")[0], path, metadata=old)
    status, printed = bench.run("old", *flags, "--total-kimg", "0.128", "--resume", "latest")
    assert status == 0, printed
    assert "has kept 0 pictures apart from its start on, so --held-out is ignored" in printed
    a, b = (checkpoints(bench.folder / name)[-1] for name in ("all", "old"))
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    status, printed = bench.run(
        "old", *flags, "--total-kimg", "0.144", "--resume", "latest", "--augment-target", "0.5"
    )
    assert status == 0, printed  # ADA's strength begins at 0 there
    assert "strength/strength" in checkpoints(bench.folder / "old")[-1]
