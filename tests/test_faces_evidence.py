"""The evidence beside the model card: distances to the nearest real faces, and the curves."""

from __future__ import annotations

import json

import numpy as np
import torch

from benchmarks import faces
from model import Generator
from training.data import pack


def test_nearest_distances_are_those_of_plain_loops() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 5)).astype(np.float32)
    queries = np.concatenate([points[:1], rng.normal(size=(3, 5)).astype(np.float32)])
    found = faces.nearest_distances(queries, points, 8)
    for query, row in zip(queries, found, strict=True):
        plain = sorted(float(np.linalg.norm(query.astype(float) - p)) for p in points)
        np.testing.assert_allclose(row, plain[:8], atol=1e-6)
    assert found[0, 0] == 0  # a copy shows
    own = faces.nearest_distances(points[:1], points, 8, np.array([0]))
    assert own[0, 0] > 0


def test_a_copying_generator_is_found_out_and_the_plots_are_drawn(tmp_path, monkeypatch) -> None:
    from conftest import draw_face

    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "faces").mkdir()
    for seed in range(40):
        draw_face(seed, 32).save(tmp_path / "faces" / f"{seed}.png")
    packed = pack([str(tmp_path / "faces")], 32)
    torch.manual_seed(0)
    G = Generator(resolution=32, channels=(16, 16, 16, 16), z_dim=16, w_dim=16)
    honest = faces.measure(G, packed)
    assert honest.keys() == set(faces.FEATURES)
    copies = iter(np.tile(packed.images[:16], (4, 1, 1, 1)).reshape(4, 16, 32, 32, 3))

    def copy(_z):
        return torch.from_numpy(next(copies).copy()).permute(0, 3, 1, 2) / 127.5 - 1

    monkeypatch.setattr(G, "forward", copy)
    monkeypatch.setattr(faces, "FEATURES", ("hog",))
    copied = faces.measure(G, packed)
    assert copied["hog"]["closer_than_1_percent_of_reals"] == faces.SAMPLES
    faces.draw_neighbours(honest, tmp_path / "n.svg")
    lines = [
        {"run": run, "kimg": kimg, "d_loss": 1.0, "g_loss": 2.0, "diversity": 0.5}
        for run in (1, 2)
        for kimg in (0.0, 4.0)
    ]
    faces.draw_curves(lines, tmp_path / "c.svg")
    for name in ("n", "c"):
        assert b"<svg" in (tmp_path / f"{name}.svg").read_bytes()
    json.dumps(honest)  # it is written as it stands


def test_a_weave_shows_in_the_power_along_the_axes() -> None:
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(64, 32, 32, 3))
    woven = plain + np.cos(2 * np.pi * 0.4 * np.arange(32))[:, None, None]
    before, after = faces.power([plain]), faces.power([woven[:24], woven[24:]])
    there = int(0.4 * 2 * 8)
    grown = {name: after[name] / before[name] for name in before}
    assert grown["along the axes"].argmax() == there
    assert grown["along the axes"][there] > 2 * grown["all directions"][there] > 2
    np.testing.assert_allclose(grown["along the axes"][: there - 2], 1, rtol=0.2)


def test_a_generator_is_held_against_the_reals(tmp_path, faces_dir, monkeypatch) -> None:
    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    packed = pack([str(faces_dir)], 32)
    torch.manual_seed(0)
    G = Generator(resolution=32, channels=(16, 16, 16, 16), z_dim=16, w_dim=16)
    reals = torch.from_numpy(packed.images[:].copy()).permute(0, 3, 1, 2) / 127.5 - 1
    monkeypatch.setattr(G, "forward", lambda z, psi, fine=None: reals[: len(z)])
    monkeypatch.setattr(faces, "SPECTRUM_FACES", len(reals))
    ratios = faces.compare_power(G, packed)
    monkeypatch.setattr(G, "forward", lambda z, psi, fine=None: reals[: len(z)] / 2)
    fainter = faces.compare_power(G, packed)
    faces.draw_spectrum(ratios, tmp_path / "s.svg")
    assert b"<svg" in (tmp_path / "s.svg").read_bytes()
    for name, ratio in ratios.items():
        assert 0.8 < np.median(ratio) < 1.25
        np.testing.assert_allclose(np.median(fainter[name] / ratio), 0.25, rtol=0.05)
