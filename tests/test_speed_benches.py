"""The benches of training, data and growth in small: every contestant that needs no environment
of its own really trains, and every table says what was measured."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import contestants, data, growth, step, training, worker
from benchmarks.worker import Operations, real_batches, to_pixels
from studio.faces import Studio
from training import projected
from training.run import kaogan_networks


@pytest.fixture
def options(faces_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    return ["--quick", "--results", str(tmp_path / "results"), "--data", str(faces_dir)]


def test_contestants_train(options: list[str], tmp_path: Path) -> None:
    path = training.parse_arguments(options).data[0]
    faces = training.pack([path], 64, progress=False)
    sizes, work = {}, {}
    for name in ("kaogan", "kaogan-bare", "dcgan"):
        where = {"size": 64, "batch": 4, "images": faces.images.filename, "data": path}
        contestant = contestants.build(Namespace(name=name, **where))
        before = [p.clone() for p in contestant.G.parameters()]
        work[name] = worker.count_operations(contestant, 4, steps=4)["gflop"]
        assert not any(map(torch.equal, before, contestant.G.parameters()))
        sizes[name] = worker.facts(contestant)["G"]
        assert worker.timed(contestant, 1)["cpu"] > 0
        assert worker.learn(contestant, 0.01, 4)["images"] % 4 == 0
        worker.draw(contestant, 5, str(tmp_path / "faces.npy"))
        assert np.load(tmp_path / "faces.npy").shape == (5, 64, 64, 3)
    assert sizes["kaogan"] == sizes["kaogan-bare"] != sizes["dcgan"]
    assert work["kaogan"] == pytest.approx(work["kaogan-bare"], rel=0.02)


def test_equal_time_is_measured(options: list[str], tmp_path: Path) -> None:
    assert training.main([*options, "--batch", "4", "--part", "quality"]) == 0
    figures = json.loads((tmp_path / "results" / "training.json").read_text())
    assert [row["name"] for row in figures["quality"]] == ["dcgan"]
    for row in figures["quality"]:
        assert row["images"] > 0 and row["cpu"] >= 1 and np.isfinite(row["frechet"])
        faces = np.load(tmp_path / "results" / f"faces-{row['name']}.npy")
        assert faces.shape == (64, 64, 64, 3)


def test_steps_are_measured_and_tables_written_anew(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--batch", "4", "--contestants", "kaogan", "kaogan-bare"]
    assert training.main([*options, *short, "--part", "steps"]) == 0
    path = tmp_path / "results" / "training.json"
    figures = json.loads(path.read_text())
    assert [row["name"] for row in figures["steps"]] == ["kaogan", "kaogan-bare"]
    for row in figures["steps"]:
        assert row["images_per_s"] > 0 and row["gflop"] > 0.1 and row["launch_s"] > 0.5
    seconds = {"kaogan": [2.0, 4.0, 8.0], "kaogan-bare": [1.9, 4.0, 7.84]}
    text = training.report(figures | {"overhead": {"batch": 32, "seconds": seconds}})
    assert "takes 0.980 of the time" in text and "processes, is 2.0% of the step" in text
    assert "| Kaogan (train.py) | 64 | 4 |" in capsys.readouterr().out


def test_measured_rows_replace_old_ones() -> None:
    old = [{"name": "dcgan", "size": 64, "n": 1}, {"name": "article", "size": 96, "n": 1}]
    new = [{"name": "dcgan", "size": 64, "n": 2}, {"name": "kaogan", "size": 64, "n": 2}]
    assert training.merge_rows(old, new) == [new[1], new[0], old[1]]


def test_a_contestant_that_dies_says_why(options: list[str], tmp_path: Path) -> None:
    args = training.parse_arguments(options)
    faces = training.pack(args.data, 32, progress=False)
    with pytest.raises(RuntimeError, match="(?s)dcgan died: .*the plain DCGAN draws 64 px"):
        training.Worker("dcgan", faces, args, 4)


def test_operations_are_those_of_the_formula() -> None:
    layer, x = torch.nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 8, 8, requires_grad=True)
    with Operations() as forward:
        y = layer(x)
    assert forward.total == 2 * 2 * 5 * 3 * 9 * 8 * 8
    with Operations() as backward:
        y.square().sum().backward()
    assert backward.total == 2 * forward.total  # towards the picture and towards the weights


def test_pixels_survive_the_way_into_a_batch_and_out(tmp_path: Path) -> None:
    faces = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    faces.tofile(tmp_path / "images.bin")
    for low in (-1.0, 0.0):
        for batch, _ in zip(
            real_batches(tmp_path / "images.bin", 8, 2, low), range(4), strict=False
        ):
            assert low <= batch.min() and batch.max() <= 1
            for face in to_pixels(batch, low):
                assert (face == faces[0]).all() or (face == faces[0, :, ::-1]).all()


def test_packing_and_loading_are_measured(options: list[str], tmp_path: Path) -> None:
    assert data.main(options) == 0
    figures = json.loads((tmp_path / "results" / "data.json").read_text())
    assert figures["count"] == 24
    assert all(rate > 0 for name in ("packing", "loading") for rate in figures[name].values())
    large = figures["large"]
    assert not large["copied"] and large["owned_mb"] < 1024 < 1024 * large["set_gib"]
    assert large["shapes"] == [[32, 3, 64, 64]]


def test_plain_packing_is_what_pack_makes(faces_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pngs"
    folder.mkdir()
    for path in sorted(faces_dir.glob("*.png")):
        with Image.open(path) as image:
            if image.width == image.height:  # a crop's edges are resized otherwise than a box's
                image.save(folder / path.name)
    data.pack_plainly(folder, tmp_path / "plain.npy")
    ours = data.pack([str(folder)], data.TARGET, cache_dir=tmp_path / "cache", progress=False)
    difference = np.load(tmp_path / "plain.npy").astype(int) - ours.images
    assert np.abs(difference).max() <= 1


def test_growth_is_fitted_and_drawn(faces_zip: Path, tmp_path: Path) -> None:
    assert growth.slope({n: 3 * n**1.5 for n in (1, 2, 4, 8)}) == pytest.approx(1.5)
    studio = Studio.open(growth.BUNDLED)
    curves = growth.grow_drawing(studio, quick=True)
    assert all(seconds > 0 for points in curves.values() for seconds in points.values())
    growth.plot(curves, tmp_path / "growth.svg")
    assert (tmp_path / "growth.svg").read_text().count("slope") == 3
    growth.write_zip([str(faces_zip)], 30, tmp_path / "more.zip")
    assert len(growth.pack([str(tmp_path / "more.zip")], 16, cache_dir=tmp_path, workers=1)) == 30


SHORT = ["--preset", "tiny", "--batch-size", "4", "--penalty-interval", "2"]


def flattened(weights: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([w.detach().flatten() for w in weights])


def test_a_plain_layout_takes_the_same_step(options: list[str]) -> None:
    _, config = step.parse_arguments([*options[3:], *SHORT])
    weights, work, first = [], [], None
    for name in (step.OURS, "not channels_last"):
        stepper = step.Stepper(name, config)
        start = flattened(stepper.G.parameters())
        first = start if first is None else first
        assert torch.equal(first, start)
        work.append(stepper.flop_per_image())
        weights.append(list(stepper.G.parameters()))
        assert stepper.run.nimg == 8 and stepper.images_per_s() > 0
        stepper.close()
    assert work[0] == work[1] > 1e7
    kernels = [next(w for w in of if w.ndim == 4 and min(w.shape) > 1) for of in weights]
    assert kernels[0].is_contiguous(memory_format=torch.channels_last)
    assert kernels[1].is_contiguous()
    ours, plain = map(flattened, weights)
    assert (plain - ours).norm() < 0.05 * (ours - first).norm()


def test_a_step_is_set_against_a_convolution(
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert step.names_of_ways("cuda", True)[-1] == "not compiled"  # train.py compiles there
    assert step.names_of_ways("cpu", True)[-1] == "compiled"
    assert {"in fp32", "compiled"}.isdisjoint(step.names_of_ways("cpu", False))
    monkeypatch.setattr(step, "names_of_ways", lambda *_: [step.OURS])
    assert step.main([*options, *SHORT, "--profile"]) == 0
    figures = json.loads((tmp_path / "results" / "step.json").read_text())
    (row,) = figures["rows"]
    assert 0 < figures["flop"] * row["images_per_s"][0] < 2 * row["convolution"]
    said = capsys.readouterr().out
    assert "aten::" in said and "| train.py | float32 |" in said and "waits" not in said
    text = step.report(figures | {"device": "cuda", "waits": "called a synchronizing operation"})
    assert "The host waits: called a synchronizing operation." in text


def test_the_hosts_work_is_counted_at_the_real_depth(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SHORT, "--projected-weight", "1", "--resolution", "64"]
    small = step.shrink(step.parse_arguments(flags)[1])
    G, _ = kaogan_networks(small)
    assert small.resolution == 64 and len(G.blocks) == 5 and {*G.config["channels"]} == {4}
    images = torch.zeros(1, 3, 64, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projected, "EfficientNetLite0", step.NarrowEfficientNet)
        P = step.NarrowProjectedDiscriminator(64)
        assert P(images).shape == (1, 4)
        assert len(P.frozen(images.device).blocks) == 16
    assert step.main([*options, *flags, "--host"]) == 0
    figures = json.loads((tmp_path / "results" / "host.json").read_text())
    (row,) = figures["rows"]
    assert row["way"] == "not compiled" and 500 < row["operators"] < 5000
    assert row["host_ms"][0] > 1
    assert "| not compiled | " in capsys.readouterr().out
    rows = [row, row | {"way": "compiled", "operators": row["operators"] / 4}]
    assert "| 0.25× | " in step.report_host(figures | {"rows": rows})
