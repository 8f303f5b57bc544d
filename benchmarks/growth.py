"""What more work costs: packing, pages of the wall, visitors, batches, resolutions; plotted.

python -m benchmarks.growth                   # the bundled faces, repeated to 29,000 files
python -m benchmarks.growth --data FACES      # your own
python -m benchmarks.growth --quick

Each curve is fitted by seconds = c · amount^slope: a slope of 1 is linear growth, less is better.
Seconds are the processor's own, one thread, so that what else the machine does counts little.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from model import Generator, default_channels, latents_from_seeds, quantise
from studio.faces import BUNDLED, Studio, prepare_cpu
from studio.recipe import Recipe
from training.config import BUNDLED_FACES
from training.data import pack

PLOT = common.ROOT / "docs" / "performance" / "growth.svg"
WALL = 24  # faces of a page
SIZES = (32, 64, 128, 256)  # px
LEAST = 32  # channels of a level, as in the bundled generator
LINEAR = 1.1  # a slope up to this is near-linear
Points = dict[int, float]  # amount → seconds


def cpu(case: Callable[[], Any], repeats: int) -> float:
    """Return the least processor's seconds of some calls, all threads of this process together."""
    return min(common.interleave({"": case}, repeats, warm=0, clock=time.process_time)[""])


def write_zip(sources: Sequence[str], count: int, path: Path) -> None:
    """Write a stored zip of `count` pictures of zips, begun anew where they end."""
    with zipfile.ZipFile(path, "w") as target:
        written = 0
        while written < count:
            for source in sources:
                with zipfile.ZipFile(source) as archive:
                    names = [n for n in archive.namelist() if not n.endswith((".csv", "/"))]
                    for name in names[: count - written]:
                        suffix = name.rpartition(".")[2]
                        target.writestr(f"{written:06d}.{suffix}", archive.read(name))
                        written += 1


def grow_packing(args: argparse.Namespace) -> Points:
    """Pack more and more pictures to 64 px, by one process."""
    sources = [str(p) for s in args.data for p in (sorted(Path(s).glob("*.zip")) or [Path(s)])]
    points = {}
    for count in (50, 100) if args.quick else (1000, 3000, 10_000, 29_000):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "faces.zip"
            write_zip(sources, count, path)
            options = {"cache_dir": Path(folder), "workers": 1, "progress": False}
            points[count] = cpu(partial(pack, [str(path)], 64, **options), 1)
    return points


def grow_drawing(studio: Studio, quick: bool) -> dict[str, Points]:
    """Draw more and more pages of the wall, for more visitors at once, in larger batches."""

    def wall(pages: int) -> None:
        for page in range(pages):
            seeds = range(page * WALL, (page + 1) * WALL)
            studio.draw_recipes([Recipe(seed) for seed in seeds], batch_size=WALL)

    def ask(visitors: int) -> None:
        with ThreadPoolExecutor(visitors) as pool:
            list(pool.map(lambda seed: studio.draw([seed]), range(visitors)))

    many = (1, 4) if quick else (1, 2, 4, 8, 16, 32, 64)
    cases = {
        "wall": (wall, (1, 2) if quick else (1, 2, 4, 8), 2),
        "visitors": (ask, many, 5),
        "batches": (drawing(studio.G), many, 5),
    }
    return {
        name: {n: cpu(partial(draw, n), 1 if quick else repeats) for n in amounts}
        for name, (draw, amounts, repeats) in cases.items()
    }


def grow_resolutions(quick: bool) -> Points:
    """Draw faces of more and more pixels, by untrained generators of the bundled one's widths."""
    points = {}
    for size in SIZES[:2] if quick else SIZES:
        widths = [max(LEAST, width) for width in default_channels(size, 1536, 192)]
        draw = drawing(Generator(resolution=size, channels=widths).freeze())
        points[size * size] = cpu(partial(draw, 4), 2 if quick else 8) / 4
    return points


def drawing(G: torch.nn.Module) -> Callable[[int], Any]:
    """Return what draws n faces with G."""

    @torch.inference_mode()
    def draw(count: int) -> np.ndarray:
        return quantise(G(latents_from_seeds(range(count), G.z_dim), 0.7)).numpy()

    draw(2)
    return draw


def slope(points: Points) -> float:
    """Return the power of growth over the upper half of a curve, at least two points."""
    amounts, seconds = np.array(list(points.items()), float).T
    start = min(len(amounts) // 2, len(amounts) - 2)
    return float(np.polyfit(np.log(amounts[start:]), np.log(seconds[start:]), 1)[0])


# What grows, the unit of its cost, and why it grows as it does.
CURVES = {
    "packing": ("pictures packed", "s", "each is decoded once and written to its place"),
    "wall": ("pages of the wall, of 24 faces", "s", "pages share nothing"),
    "visitors": ("visitors at once, a face each", "s",
        "up to 16 who wait share one forward pass, so few cost more each than many"),
    "batches": ("faces in a batch", "s",
        "one face pays for every operator's call alone; from 8 on arithmetic is all"),
    "resolutions": ("pixels of a face", "s a face",
        "levels of more pixels have fewer channels, down to 32 at 64 px; from there all cost "
        "alike"),
}  # fmt: skip


def plot(curves: dict[str, Points], path: Path) -> None:
    """Draw every curve over its linear growth, as SVG."""
    with common.svg(path, len(curves), (3 * len(curves), 2.8)) as (_, axes):
        for axis, (name, points) in zip(axes, curves.items(), strict=True):
            amounts, seconds = list(points), list(points.values())
            axis.loglog(amounts, seconds, "o-", color="#d6336c", base=10)
            linear = [seconds[-1] * n / amounts[-1] for n in amounts]
            axis.loglog(amounts, linear, "--", color="#888888", linewidth=1)
            what, unit, _ = CURVES[name]
            axis.set(xlabel=what, ylabel=unit, title=f"slope {slope(points):.2f}")
            axis.minorticks_off()  # labels of less than a decade would overlap
            axis.set_xticks(ends := [amounts[0], amounts[-1]], [f"{n:,}" for n in ends])
            axis.set_yticks(ends := [seconds[0], seconds[-1]], [f"{n:.2g}" for n in ends])


def report(figures: dict[str, Any]) -> str:
    """Write the section."""
    lines = []
    for name, points in figures["curves"].items():
        (first, least), *_, (last, most) = points.items()
        verdict = "near-linear or better" if slope(points) <= LINEAR else "more than linear"
        what, _, why = CURVES[name]
        amounts = f"{int(first):,} → {int(last):,}", f"{least:.4g} → {most:.4g}"
        lines.append((what, *amounts, f"{slope(points):.2f}", f"{verdict}: {why}"))
    head = ("what grows", "from → to", "seconds", "slope", "verdict and reason")
    return (
        f"## Growth\n\n`python -m benchmarks.growth`; seconds of one thread by the process's own "
        f"clock; {figures['machine']}. The slope is that of the upper half of each curve: 1 is "
        f"linear. Dashed: linear growth.\n\n![Five curves](performance/growth.svg)\n\n"
        f"{common.table(head, lines)}"
    )


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Measure what the command line asks for; return Markdown and the figures."""
    prepare_cpu()
    torch.set_num_threads(1)
    studio = Studio.open(BUNDLED)
    curves = {
        "packing": grow_packing(args),
        **grow_drawing(studio, args.quick),
        "resolutions": grow_resolutions(args.quick),
    }
    plot(curves, args.results / "growth.svg" if args.quick else PLOT)
    figures = {"machine": common.machine(), "curves": curves}
    return report(figures), figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = common.make_parser("growth", __doc__)
    add = parser.add_argument
    add("--data", nargs="+", default=[str(BUNDLED_FACES)], help="zips, or folders of")
    return common.finish("growth", parser.parse_args(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
