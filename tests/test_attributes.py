"""Readers of tags: what they learn from drawn faces, and how strictly they travel."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fitting import readers
from fitting.attributes import (
    BUILDER,
    HELD_OUT,
    JUDGE,
    average_precision,
    calibrate,
    choose_tags,
    main,
    split,
    start_from,
)
from fitting.readers import (
    FeatureReader,
    PixelReader,
    TwoViewReader,
    blur,
    hide,
    open_reader,
    shake,
    tint,
)
from model import ModelError, load_network
from tests.conftest import draw_face
from training.data import pack

COUNT = 700


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """Return a folder of drawn faces whose tags follow from the seeds that drew them."""
    folder = tmp_path_factory.mktemp("labelled")
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "dark_hair", "red_eyes", "rare"])
        for seed in range(COUNT):
            rng = np.random.default_rng(seed)
            hair, eyes = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
            name = f"{seed:03}.png"
            draw_face(seed).save(folder / name)
            table.writerow([name, int(hair.sum() < 383), int(eyes[0] > eyes[1]), int(seed < 9)])
    return folder


def test_parts_are_disjoint_stable_and_of_the_stated_sizes():
    parts = split(20_000)
    shares = [float((parts == part).mean()) for part in (HELD_OUT, BUILDER, JUDGE)]
    assert np.allclose(shares, (0.15, 0.425, 0.425), atol=0.01)
    assert np.array_equal(parts[:777], split(777))


def test_average_precision_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=60), rng.integers(0, 2, 60)
    hits, precisions = 0, []
    for rank, index in enumerate(sorted(range(60), key=lambda i: -scores[i]), 1):
        if labels[index]:
            hits += 1
            precisions.append(hits / rank)
    assert average_precision(scores, labels) == pytest.approx(np.mean(precisions))
    assert average_precision(np.array([3.0, 2, 1]), np.array([1, 1, 0])) == 1
    assert np.isnan(average_precision(scores, np.zeros(60)))


def test_mirrored_features_are_those_of_mirrored_maps():
    rng = torch.Generator().manual_seed(0)
    sizes = ((24, 16), (40, 8), (112, 4))
    maps = [torch.randn(2, c, s, s, generator=rng) for c, s in sizes]
    reader = FeatureReader()
    assert torch.equal(reader.mirror(reader.gather(maps)), reader.gather([m.flip(3) for m in maps]))


def test_pictures_are_shaken_one_by_one_by_a_little():
    x = torch.linspace(-1, 1, 128).view(1, 1, 1, 128).expand(200, 3, 128, 128)
    torch.manual_seed(1)
    middle = shake(x)[:, 0, 64, 64]  # of a slope, whose height tells the shift
    assert middle.unique().numel() > 150
    assert middle.mean().abs() < 0.02 and middle.std() == pytest.approx(0.05, rel=0.2)


def test_blur_softens_edges_and_leaves_plain_areas():
    x = torch.cat([torch.ones(16, 3, 128, 63), -torch.ones(16, 3, 128, 65)], 3)
    y = blur(x)
    assert torch.equal(y[..., :48], x[..., :48]) and torch.equal(y[..., 80:], x[..., 80:])
    steps = (y[..., 1:] - y[..., :-1]).abs().amax(dim=(1, 2, 3))
    assert steps.min() < 1.5 and steps.max() <= 2


def test_a_grey_square_hides_a_part_of_every_other_picture():
    x = torch.full((20, 3, 128, 128), 3.0)  # a value that no grey has
    hidden = (hide(x) != 3).sum((1, 2, 3))
    assert hidden.tolist() == [3 * 32 * 32, 0] * 10


def test_tints_differ_by_picture_and_channel():
    y = tint(torch.zeros(64, 3, 4, 4))
    assert torch.equal(y, y[:, :, :1, :1].expand_as(y))
    assert y[:, :, 0, 0].std() == pytest.approx(0.04, rel=0.25)


def test_the_builder_reads_mouths_at_their_own_size():
    reader = TwoViewReader().eval()
    images = torch.rand(1, 3, 128, 128) * 2 - 1
    other = images.clone()
    other[:, :, 80, 64] += torch.tensor([1.0, -1.0, 1.0])  # at 64 px, half of it is gone
    with torch.no_grad():
        first, second = (reader.look(x)[:, 96:] for x in (images, other))
    assert not torch.equal(first, second)
    other = images.clone()
    other[:, :, :30] = 0  # above the middle
    with torch.no_grad():
        assert torch.equal(reader.look(other)[:, 96:], first)


@pytest.mark.parametrize("kind", [PixelReader, TwoViewReader, FeatureReader])
def test_readers_travel_strictly(kind, tmp_path):
    reader = kind(("smile", "hat")).eval()
    reader.threshold += torch.tensor([0.5, -1.0])
    reader.save_pretrained(tmp_path)
    images = torch.rand(3, 3, 96, 96) * 2 - 1
    loaded = open_reader(tmp_path)
    assert loaded.tags == ("smile", "hat") and isinstance(loaded, kind)
    with torch.no_grad():
        assert torch.equal(loaded(images), reader(images))
        plain = reader.score(reader.prepare(images))
        assert torch.allclose(reader(images), plain - reader.threshold)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"more": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="more"):
        load_network(tmp_path)


@pytest.mark.parametrize("tags", [(), "smile", [1], [""], 7])
def test_tags_of_a_strangers_file_are_checked(tags):
    with pytest.raises(ModelError, match="tags"):
        TwoViewReader(tags)


def test_a_generator_is_no_reader():
    with pytest.raises(ModelError, match="reads no tags"):
        open_reader(readers.READERS.parent / "generator")


def test_thresholds_call_as_many_positive_as_are_labelled():
    rng = torch.Generator().manual_seed(0)
    reader = TwoViewReader(("a", "b")).eval()
    inputs = torch.randn(200, 3, 128, 128, generator=rng)
    targets = (torch.rand(200, 2, generator=rng) < torch.tensor([0.1, 0.6])).to(torch.uint8)
    calibrate(reader, inputs, targets)
    with torch.no_grad():
        seen = reader.score(inputs) - reader.threshold > 0
    assert torch.equal(seen.sum(0), targets.sum(0))


@pytest.mark.parametrize(("role", "epochs"), [("builder", "5"), ("judge", "8")])
def test_a_reader_learns_and_its_figures_are_written(role, epochs, labelled, tmp_path, monkeypatch):
    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    options = ["--data", str(labelled), "--out", str(out), "--only", role, "--epochs", epochs]
    assert main(options) == 0
    figures = json.loads((out / role / "figures.json").read_text())
    assert figures["average_precision"]["dark_hair"] > 0.95
    assert (out / role / "model.safetensors").stat().st_size < 5e6
    card = (out / "README.md").read_text()
    assert "rare (9)" in card and "| dark_hair |" in card
    reader = open_reader(out / role)
    assert reader.tags == ("dark_hair", "red_eyes")
    faces = pack([str(labelled)], 64)
    apart = np.flatnonzero(split(len(faces)) == HELD_OUT)
    with torch.no_grad():
        logits = reader(torch.from_numpy(faces.images[apart]).permute(0, 3, 1, 2) / 127.5 - 1)
    right = (logits[:, 0] > 0).numpy() == (faces.labels[apart, 0] == 1)
    assert right.mean() > 0.85
    assert (reader.typical[1] > reader.typical[0]).all()


def test_a_reader_starts_from_an_earlier_one(tmp_path):
    old, new = TwoViewReader(("smile", "hat")), TwoViewReader(("smile", "hat", "blush"))
    tensors = {name: t for name, t in old.state_dict().items() if not name.startswith("middle.")}
    save_file(tensors, tmp_path / "model.safetensors")
    digest = start_from(new, tmp_path / "model.safetensors")
    assert digest == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert torch.equal(new.layers[0].weight, old.layers[0].weight)
    assert torch.equal(new.middle[0].weight, old.layers[0].weight)  # it has none of its own
    assert new.head[2].weight.shape[0] == 3  # of other tags, so it learns afresh
    with pytest.raises(ModelError, match="not readable as safetensors"):
        start_from(new, tmp_path / "none.safetensors")
    save_file({"more": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="no tensor that fits a TwoViewReader"):
        start_from(new, tmp_path / "other.safetensors")


def test_to_start_a_reader_one_must_be_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--data", str(tmp_path), "--start", str(tmp_path)])
    assert "name it with --only" in capsys.readouterr().err


def test_data_without_tags_is_one_sentence(faces_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    assert main(["--data", str(faces_dir), "--out", str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "attributes: the data has no labels.csv: give pictures with tags"


def test_rare_tags_are_left_out_by_name(labelled, tmp_path):
    faces = pack([str(labelled)], 64, cache_dir=tmp_path)
    tags, rare = choose_tags(faces)
    assert tags == ("dark_hair", "red_eyes") and rare == {"rare": 9}
