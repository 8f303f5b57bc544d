"""The bundled faces' evidence: how they were learned, that they are no copies, how fine they are.

    pip install -r requirements-bench.txt
    python -m benchmarks.faces --data FACES
    python -m benchmarks.faces --data FACES --beside "the weights before=OLD_GENERATOR"

Writes into assets/samples, for the model card: curves.svg, the losses of every run in stats.jsonl
over the images shown; neighbours.svg and neighbours.json, the distances of 64 faces to their eight
nearest real ones beside those from real faces to real ones; spectrum.svg, how much of each fineness
the faces have, compared with real ones. No picture of the data is written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import ROOT, svg_pyplot
from benchmarks.curves import draw_curves
from model import Generator, ModelError, keep_freed_memory, latents_from_seeds
from training.data import DataError, Faces, pack
from training.metrics import (
    Extractor,
    MetricsError,
    build_extractor,
    compute_features,
    real_features,
)
from training.release import draw

SAMPLES = 64  # faces, of the seeds 0 … 63 at psi 1
NEAREST = 8
REALS = 2000  # real faces, evenly spread, whose own neighbours are the measure
FEATURES = ("efficientnet-lite0", "hog")
SPECTRUM_FACES = 512  # drawn ones whose power is averaged, at psi 1


def evenly(count: int) -> np.ndarray:
    """Return at most REALS positions, evenly spread over so many, int64."""
    return np.linspace(0, count - 1, min(REALS, count)).round().astype(np.int64)


def nearest_distances(
    queries: np.ndarray, references: np.ndarray, count: int, own: np.ndarray | None = None
) -> np.ndarray:
    """Return Euclidean distances to the nearest references, ascending, float64 `[N, count]`.

    Args:
        queries: float `[N, D]`.
        references: float `[M, D]`, M over `count`.
        own: int `[N]`, the reference that each query is.
    """
    rows, known = torch.from_numpy(queries).double(), torch.from_numpy(references).double()
    distances = []
    for start in range(0, len(rows), 64):
        part = torch.cdist(rows[start : start + 64], known)
        if own is not None:
            columns = torch.from_numpy(own[start : start + 64])[:, None]
            part.scatter_(1, columns, torch.inf)
        distances.append(part.topk(count, largest=False).values)
    return torch.cat(distances).numpy()


@torch.inference_mode()
def fake_features(G: Generator, extractor: Extractor) -> np.ndarray:
    """Return the features of the faces of the first seeds, `[SAMPLES, D]`."""
    z = latents_from_seeds(range(SAMPLES), G.z_dim)
    return compute_features((G(part).clamp(-1, 1) for part in z.split(16)), extractor)


def measure(G: Generator, faces: Faces) -> dict[str, Any]:
    """Return the distances from faces to reals and from reals to reals, by features."""
    figures = {}
    for name in FEATURES:
        extractor = build_extractor(name)
        real = real_features(faces.images, extractor, cache_dir=faces.path, data_key=faces.key)
        own = evenly(len(real))
        between_reals = nearest_distances(real[own], real, NEAREST, own)
        to_reals = nearest_distances(fake_features(G, extractor), real, NEAREST)
        figures[name] = {
            "faces": to_reals.round(4).tolist(),
            "real_to_real_percent": {
                str(p): np.percentile(between_reals, p, axis=0).round(4).tolist()
                for p in (1, 5, 50, 95, 99)
            },
            "closer_than_1_percent_of_reals": int(
                (to_reals[:, 0] < np.percentile(between_reals[:, 0], 1)).sum()
            ),
        }
    return figures


def draw_neighbours(figures: dict[str, Any], path: Path) -> None:
    """Draw a line for each face over its first to eighth neighbour, on the band of the reals."""
    pyplot = svg_pyplot()
    picture, axes = pyplot.subplots(1, len(figures), figsize=(9, 3.4), layout="constrained")
    ranks = range(1, NEAREST + 1)
    for axis, (name, entry) in zip(axes, figures.items(), strict=True):
        for row in entry["faces"]:
            axis.plot(ranks, row, color="#c0392b", alpha=0.35, linewidth=0.8)
        reals = entry["real_to_real_percent"]
        axis.fill_between(ranks, reals["1"], reals["99"], color="#2166ac", alpha=0.25, linewidth=0)
        axis.plot(ranks, reals["50"], color="#2166ac")
        axis.set(title=name, xlabel="nearest real, rank", ylabel="distance", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].plot([], [], color="#c0392b", label=f"each of {SAMPLES} drawn faces")
    axes[0].plot([], [], color="#2166ac", label="real to other reals: median, 1 % to 99 %")
    picture.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    picture.savefig(path, metadata={"Date": None})
    pyplot.close(picture)


def power(batches: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the mean power of pictures over frequency, for directions of two kinds.

    Stems that paint several px from one place leave a weave: too much power along the axes, where
    a mean over all directions hardly shows it.

    Args:
        batches: of pictures, `[N, H, W, C]` in any range, H = W.
    Returns:
        for "all directions" and "along the axes", float64 `[H // 4]`; the middles of these bins are
        at (2 · i + 1) / H cycles a px.
    """
    total, count = 0.0, 0
    for batch in batches:
        grey = batch.astype(np.float64).mean(3)
        grey -= grey.mean((1, 2), keepdims=True)
        window = np.hanning(grey.shape[1])  # edges would else count as lines
        spectra = np.fft.fft2(grey * window[:, None] * window)
        total, count = total + (np.abs(spectra) ** 2).sum(0), count + len(batch)
    side, bins = len(total), len(total) // 4
    cycles = np.abs(np.fft.fftfreq(side))
    radius = np.hypot(cycles[:, None], cycles)
    axes = np.minimum(cycles[:, None], cycles) <= 1.5 / side
    places = np.minimum((radius * 2 * bins).astype(int), bins)  # the corners are left over
    means = {}
    for name, where in (("all directions", radius >= 0), ("along the axes", axes)):
        sums = np.bincount(places[where], total[where] / count, bins + 1)
        means[name] = (sums / np.maximum(np.bincount(places[where], minlength=bins + 1), 1))[:bins]
    return means


def compare_power(
    generators: dict[str, Generator], faces: Faces
) -> dict[str, dict[str, np.ndarray]]:
    """Return the power of each generator's faces over that of real ones, as `power` keeps them."""
    parts = np.array_split(evenly(len(faces.images)), 16)
    real = power(faces.images[part] for part in parts)
    ratios = {}
    for name, G in generators.items():
        drawn = power(face[None] for face in draw(G, range(SPECTRUM_FACES), 1.0))
        ratios[name] = {way: drawn[way] / np.maximum(real[way], 1e-9) for way in real}
    return ratios


def draw_spectrum(ratios: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Draw the ratios of `compare_power`, of each generator by its name, the first in red."""
    pyplot = svg_pyplot()
    picture, axes = pyplot.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
    for index, (name, entry) in enumerate(ratios.items()):
        for axis, (direction, ratio) in zip(axes, entry.items(), strict=True):
            cycles = (np.arange(len(ratio)) + 0.5) / (2 * len(ratio))
            color = "#999999" if index else "#c0392b"
            axis.semilogy(cycles, ratio, color=color, label=name, zorder=-index)
            axis.set(title=direction, xlabel="cycles a px")
            axis.spines[["top", "right"]].set_visible(False)
    for axis in axes:
        axis.axhline(1, color="#2166ac", linewidth=0.8)
    axes[0].set_ylabel("power over that of real faces")
    axes[0].legend(frameon=False)
    picture.savefig(path, metadata={"Date": None})
    pyplot.close(picture)


def main() -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faces", description=__doc__)
    parser.add_argument(
        "--data", required=True, nargs="+", help="real faces, as train.py takes them"
    )
    parser.add_argument("--model", type=Path, default=ROOT / "assets/generator", help="folder")
    parser.add_argument(
        "--beside", default="", metavar="NAME=FOLDER", help="another generator, for spectrum.svg"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "assets/samples", help="folder")
    options = parser.parse_args()
    keep_freed_memory()
    try:
        G = Generator.from_pretrained(options.model)
        faces = pack(options.data, G.resolution, channels=G.img_channels)
        figures = measure(G, faces)
        generators = {"these weights": G}
        if options.beside:
            name, _, folder = options.beside.rpartition("=")
            generators[name or folder] = Generator.from_pretrained(Path(folder))
        ratios = compare_power(generators, faces)
        lines = (options.model / "stats.jsonl").read_text(encoding="utf-8").splitlines()
        options.out.mkdir(parents=True, exist_ok=True)
        draw_curves([json.loads(line) for line in lines], options.out / "curves.svg")
        draw_spectrum(ratios, options.out / "spectrum.svg")
        draw_neighbours(figures, options.out / "neighbours.svg")
        text = json.dumps(figures) + "\n"
        (options.out / "neighbours.json").write_text(text, encoding="utf-8")
    except (ModelError, DataError, MetricsError, OSError) as error:
        print(f"benchmarks.faces: {error}", file=sys.stderr)
        return 2
    for name, entry in figures.items():
        first = np.array(entry["faces"])[:, 0]
        percent = entry["real_to_real_percent"]
        print(
            f"{name}: nearest real at {first.min():.3g} to {first.max():.3g}, median "
            f"{np.median(first):.3g}; real to real 1 %, 50 %, 99 %: "
            f"{percent['1'][0]:.3g}, {percent['50'][0]:.3g}, {percent['99'][0]:.3g}; nearer than "
            f"99 % of reals are to reals: {entry['closer_than_1_percent_of_reals']} of {SAMPLES}"
        )
    for name, entry in ratios.items():
        for direction, ratio in entry.items():
            bands = ", ".join(f"{r:.2f}" for r in map(np.mean, np.array_split(ratio, 8)))
            print(
                f"{name}, power over that of reals, {direction}, by sixteenths of 1 / px: {bands}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
