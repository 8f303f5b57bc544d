"""The bundled faces' evidence: how they were learned, that they are no copies, how fine they are.

    pip install -r requirements-bench.txt
    python -m benchmarks.faces --data FACES

Writes into assets/samples, for the model card: curves.svg, the losses of every run in stats.jsonl
over the images shown; neighbours.svg and neighbours.json, the distances of 64 faces to their eight
nearest real ones beside those from real faces to real ones; spectrum.svg, how much of each fineness
the faces have, compared with real ones. No picture of the data is written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import ROOT, finish, make_parser, svg, table
from model import Generator, keep_freed_memory, latents_from_seeds
from training.data import Faces, pack
from training.metrics import Extractor, build_extractor, compute_features, real_features
from training.release import draw

SAMPLES = 64  # faces, of the seeds 0 … 63 at psi 1
NEAREST = 8
LOGGED = {"d_loss": "D's loss", "g_loss": "G's loss", "diversity": "spread of 64 faces"}
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


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw the lines of stats.jsonl, one run after the other, as SVG."""
    start = 0.0
    with svg(path, len(LOGGED), (3 * len(LOGGED), 3)) as (_, axes):
        for run in sorted({line.get("run", 1) for line in lines}):
            ticks = [line for line in lines if line.get("run", 1) == run]
            for axis, (key, title) in zip(axes, LOGGED.items(), strict=True):
                points = [(start + tick["kimg"], tick[key]) for tick in ticks if key in tick]
                axis.plot(*zip(*points, strict=True), color="#2166ac")
                if start:
                    axis.axvline(start, color="#bbbbbb", linewidth=0.8, linestyle=":")
                xlabel = "thousand images; dotted: the next run"
                axis.set(title=title, xlabel=xlabel, ylim=(0, None))
            start += ticks[-1]["kimg"]


def draw_neighbours(figures: dict[str, Any], path: Path) -> None:
    """Draw a line for each face over its first to eighth neighbour, on the band of the reals."""
    ranks, red, blue = range(1, NEAREST + 1), "#c0392b", "#2166ac"
    with svg(path, len(figures), (9, 3.4)) as (picture, axes):
        for axis, (name, entry) in zip(axes, figures.items(), strict=True):
            for row in entry["faces"]:
                axis.plot(ranks, row, color=red, alpha=0.35, linewidth=0.8)
            reals = entry["real_to_real_percent"]
            axis.fill_between(ranks, reals["1"], reals["99"], color=blue, alpha=0.25, linewidth=0)
            axis.plot(ranks, reals["50"], color=blue)
            axis.set(title=name, xlabel="nearest real, rank", ylabel="distance", ylim=(0, None))
        axes[0].plot([], [], color=red, label=f"each of {SAMPLES} drawn faces")
        axes[0].plot([], [], color=blue, label="real to other reals: median, 1 % to 99 %")
        picture.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


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


def compare_power(G: Generator, faces: Faces) -> dict[str, np.ndarray]:
    """Return the power of G's faces over that of real ones, as `power` keeps them."""
    parts = np.array_split(evenly(len(faces.images)), 16)
    real = power(faces.images[part] for part in parts)
    drawn = power(face[None] for face in draw(G, range(SPECTRUM_FACES), 1.0))
    return {way: drawn[way] / np.maximum(real[way], 1e-9) for way in real}


def draw_spectrum(ratios: dict[str, np.ndarray], path: Path) -> None:
    """Draw the ratios of `compare_power`."""
    with svg(path, 2, (9, 3), sharey=True) as (_, axes):
        for axis, (direction, ratio) in zip(axes, ratios.items(), strict=True):
            cycles = (np.arange(len(ratio)) + 0.5) / (2 * len(ratio))
            axis.semilogy(cycles, ratio, color="#c0392b")
            axis.set(title=direction, xlabel="cycles a px")
            axis.axhline(1, color="#2166ac", linewidth=0.8)
        axes[0].set_ylabel("power over that of real faces")


def report(figures: dict[str, Any], ratios: dict[str, np.ndarray]) -> str:
    """Write what the plots show as Markdown."""
    rows = []
    for name, entry in figures.items():
        first, percent = np.array(entry["faces"])[:, 0], entry["real_to_real_percent"]
        reals = (percent[p][0] for p in ("1", "50", "99"))
        distances = (first.min(), np.median(first), first.max(), *reals)
        near = f"{entry['closer_than_1_percent_of_reals']} of {SAMPLES}"
        rows.append((name, *(f"{d:.3g}" for d in distances), near))
    head = ("nearest real", "least", "median", "most", "reals: 1 %", "50 %", "99 %", "nearer")
    bands = [
        (direction, ", ".join(f"{r.mean():.2f}" for r in np.array_split(ratio, 8)))
        for direction, ratio in ratios.items()
    ]
    power_head = ("power over that of reals", "by sixteenths of 1 / px")
    return f"{table(head, rows)}\n\n{table(power_head, bands)}"


def run(options: argparse.Namespace) -> str:
    """Measure, write the files, and return Markdown."""
    keep_freed_memory()
    G = Generator.from_pretrained(options.model)
    faces = pack(options.data, G.resolution, channels=G.img_channels)
    figures, ratios = measure(G, faces), compare_power(G, faces)
    lines = (options.model / "stats.jsonl").read_text(encoding="utf-8").splitlines()
    draw_curves([json.loads(line) for line in lines], options.out / "curves.svg")
    draw_spectrum(ratios, options.out / "spectrum.svg")
    draw_neighbours(figures, options.out / "neighbours.svg")
    (options.out / "neighbours.json").write_text(json.dumps(figures) + "\n", encoding="utf-8")
    return report(figures, ratios)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = make_parser("faces", __doc__, speed=False)
    add = parser.add_argument
    add("--data", required=True, nargs="+", help="real faces, as train.py takes them")
    add("--model", type=Path, default=ROOT / "assets/generator", help="folder")
    add("--out", type=Path, default=ROOT / "assets/samples", help="folder")
    return finish("faces", parser.parse_args(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
