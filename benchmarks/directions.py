"""Measure whether sliders do what they are called, and what else they do.

    python -m benchmarks.directions --data FACES                              # 1,000 seeds a slider
    python -m benchmarks.directions --data FACES --seeds 100                  # a quick look
    python -m benchmarks.directions --data FACES --docs docs/directions.md    # into the document

The seeds 0, 1, 2 … are edited one slider at a time, by the page's own code, at the page's
truncation and with the slider at its right end. What is seen before and after is said by the judge
of `fitting.attributes`, which shares no network and no training picture with the reader that the
directions were fitted by.
Times are of one CPU thread's own seconds, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import BenchError, finish, interleave, machine, make_parser, table
from fitting.colours import Palette, find_regions
from fitting.directions import COLOURED, families, family, slider_name
from fitting.readers import READERS, SIZE, FeatureReader, open_reader, resize
from model import dequantise, keep_freed_memory
from studio.directions import hex_to_lab
from studio.faces import Studio
from studio.recipe import DEFAULT_FINE, DEFAULT_PSI, Edit, Recipe
from training.data import pack
from training.metrics import (
    EfficientNetLite0,
    OrientedGradients,
    build_extractor,
    frechet_distance,
    real_features,
)

FACE = (slice(24, 58), slice(14, 50))  # rows and columns of 64, from the brows to the chin
SUCCESS, LEAKAGE, IDENTITY, REALISM = 0.85, 0.10, 0.50, 1.30  # what is aimed at
REAL_FACES = 10_000  # that Fréchet distances are taken to
REGION_FACES = 2000
FEWEST = 8  # seeds
TIMED = 128  # faces drawn together to time one
COLOURS = {
    "hair": ("#e8c66a", "#6b4a36", "#3a4a9a", "#e59ab8", "#8a68b0", "#4f9a68", "#b04040"),
    "eyes": ("#3f6fc0", "#a83a3a", "#7a5230", "#3f8a50", "#7a4fa8", "#c8a030"),
}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What is known of drawn faces."""

    logits: np.ndarray  # [N, L], of the judge
    features: np.ndarray  # [N, 1280]
    faces: np.ndarray  # [N, 512], gradients of the face without hair, in grey


@dataclass(frozen=True)
class Row:
    """What one slider does at its right end. Shares are 0 … 1."""

    name: str
    groups: str
    before: float  # share with the attribute before the edit
    success: float  # and after it
    leakage: float  # other attributes that flipped, mean share
    worst: str  # the one that flipped most
    identity: float  # distance to the unedited face as a share of that of two random faces
    face: float  # the same by gradients of the face alone, which know no colour
    realism: float  # Fréchet distance to real faces over that of the unedited ones

    @property
    def missed(self) -> list[str]:
        """Name the aims that it misses."""
        aims = {
            "success": self.success >= SUCCESS,
            "leakage": self.leakage <= LEAKAGE,
            "identity": self.identity <= IDENTITY,
            "realism": self.realism <= REALISM,
        }
        return [name for name, met in aims.items() if not met]


class Bench:
    """The studio, the judge and the unedited faces."""

    def __init__(
        self, studio: Studio, judge: FeatureReader, extractor: EfficientNetLite0, seeds: int
    ) -> None:
        self.studio, self.judge = studio, judge
        self.recipes = [Recipe(seed) for seed in range(seeds)]
        # One extractor gives the judge its maps and the distances their features.
        self.extractor = extractor
        self.pictures = self.draw(self.recipes)
        self.plain = self.look(self.pictures)
        self.apart = distance(self.plain.features, np.roll(self.plain.features, 1, 0))
        self.faces_apart = distance(self.plain.faces, np.roll(self.plain.faces, 1, 0))

    def draw(self, recipes: Iterable[Recipe]) -> Tensor:
        """Draw recipes as uint8 `[N, H, W, 3]`."""
        return torch.from_numpy(self.studio.draw_recipes(recipes))

    @torch.inference_mode()
    def look(self, faces: Tensor) -> Seen:
        """Say what the judge and the extractor see in faces uint8 `[N, H, W, 3]`."""
        logits, features, shapes = [], [], []
        gradients = OrientedGradients(None)
        for images in small(faces).split(64):
            maps = self.extractor.feature_maps(images)
            logits.append(self.judge.score(self.judge.gather(maps)) - self.judge.threshold)
            head = self.extractor.bn1(self.extractor.conv_head(maps[-1]))
            features.append(torch.nn.functional.relu6(head).mean((2, 3)))
            grey = images.mean(1, keepdim=True)[:, :, *FACE].expand(-1, 3, -1, -1)
            shapes.append(gradients(grey)[:, : -3 * gradients.CELLS**2])  # the rest are colours
        return Seen(*(torch.cat(parts).numpy() for parts in (logits, features, shapes)))

    def measure(self, tag: str, real: np.ndarray, frechet: float) -> Row:
        """Measure the slider of one tag; `frechet` is how far the unedited faces are from real."""
        name = slider_name(tag)
        slider = self.studio.directions.sliders[name]
        edit = (Edit(name, slider.high),)
        seen = self.look(self.draw(replace(r, edits=edit) for r in self.recipes))
        tags = self.judge.tags
        column = tags.index(tag)
        others = [k for k, t in enumerate(tags) if family(t) != family(tag)]
        flipped = ((seen.logits > 0) != (self.plain.logits > 0))[:, others].mean(0)
        worst = int(flipped.argmax())
        return Row(
            name=name,
            groups="+".join(slider.groups),
            before=float((self.plain.logits[:, column] > 0).mean()),
            success=float((seen.logits[:, column] > 0).mean()),
            leakage=float(flipped.mean()),
            worst=f"{tags[others[worst]]} {flipped[worst]:.0%}",
            identity=distance(self.plain.features, seen.features) / self.apart,
            face=distance(self.plain.faces, seen.faces) / self.faces_apart,
            realism=frechet_distance(real, seen.features) / frechet,
        )

    def colour(self, part: str, palette: Palette) -> tuple[float, float]:
        """Return how far faces are from picked colours before and after, mean ΔE*ab."""
        targets = [t for t, _ in zip(itertools.cycle(COLOURS[part]), self.recipes, strict=False)]
        edited = [
            replace(r, edits=(Edit(part, colour),))
            for r, colour in zip(self.recipes, targets, strict=True)
        ]
        wanted = torch.stack([hex_to_lab(colour) for colour in targets])
        before, after = (
            palette.measure(small(self.draw(recipes)))[part] for recipes in (self.recipes, edited)
        )
        return tuple(float(100 * (c - wanted).norm(dim=1).mean()) for c in (before, after))

    def find_regions(self) -> Palette:
        """Find hair and eyes by what the judge sees, not by what the directions were fitted to."""
        faces = self.draw(Recipe(seed, 1.0) for seed in range(REGION_FACES))
        named = {p: ks for p, ks in families(self.judge.tags).items() if p in COLOURED}
        return find_regions(small(faces), torch.from_numpy(self.look(faces).logits), named)

    def milliseconds(self, repeats: int = 3) -> tuple[float, float]:
        """Return ms of CPU time a face without and with three edits, the best of some repeats."""
        names = list(self.studio.directions.sliders)[:2]
        edits = (*(Edit(name, 1.0) for name in names), Edit("hair", "#3fa34d"))
        plain = self.recipes[:TIMED]
        edited = [replace(r, edits=edits) for r in plain]
        cases = {
            name: partial(self.studio.draw_recipes, recipes)
            for name, recipes in (("plain", plain), ("edited", edited))
        }
        seconds = interleave(cases, repeats, warm=0, clock=time.process_time)
        return tuple(1000 * min(taken) / len(plain) for taken in seconds.values())


def small(faces: Tensor) -> Tensor:
    """Turn uint8 `[N, H, W, 3]` into floats `[N, 3, 64, 64]` in [-1, 1]."""
    parts = (dequantise(part.permute(0, 3, 1, 2)) for part in faces.split(64))
    return torch.cat([resize(part, SIZE) for part in parts])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean Euclidean distance of rows."""
    return float(np.linalg.norm(a - b, axis=1).mean())


# ------------------------------------------------------------------------------------------
# The report


def report(rows: list[Row], missing: list[str], bench: Bench) -> str:
    """Write the figures as Markdown."""
    head = (
        "slider", "layers", "before", "success", "leakage", "most flipped", "identity", "face",
        "realism", "aims",
    )  # fmt: skip
    lines = [
        (
            row.name, row.groups, f"{row.before:.0%}", f"{row.success:.0%}", f"{row.leakage:.1%}",
            row.worst, f"{row.identity:.2f}", f"{row.face:.2f}", f"{row.realism:.2f}",
            f"not {', '.join(row.missed)}" if row.missed else "all",
        )
        for row in rows
    ]  # fmt: skip
    ranked = [row.name for row in sorted(rows, key=merit, reverse=True)]
    return (
        f"{table(head, lines)}\n\n"
        f"{sum(not row.missed for row in rows)} of {len(rows)} sliders meet all four aims. "
        f"Best: {', '.join(ranked[:4])}. Worst: {', '.join(ranked[-4:][::-1])}.\n"
        f"Without a slider, since these weights cannot draw it: {', '.join(missing) or 'none'}.\n\n"
        f"Seeds 0 … {len(bench.recipes) - 1}, psi {DEFAULT_PSI} and {DEFAULT_FINE}, weights "
        f"`{bench.studio.revision}`."
    )


def merit(row: Row) -> float:
    """Rank sliders: what they reach, less what they miss of the other aims."""
    excess = (row.leakage / LEAKAGE, row.identity / IDENTITY, row.realism / REALISM)
    return row.success - sum(max(0.0, share - 1) for share in excess)


def report_colours(bench: Bench) -> str:
    """Measure picked colours and times, and write them as Markdown."""
    palette = bench.find_regions()
    measured = {part: bench.colour(part, palette) for part in bench.studio.directions.colours}
    lines = [(p, f"ΔE {before:.1f}", f"ΔE {after:.1f}") for p, (before, after) in measured.items()]
    plain, edited = bench.milliseconds()
    return (
        f"{table(('colour', 'from the target before', 'after'), lines)}\n\n"
        f"{', '.join(f'{len(c)} targets for {p}' for p, c in COLOURS.items())}, in turn over the "
        f"seeds; ΔE*ab between the target and the mean colour of the part. Drawn among {TIMED}, "
        f"a face takes {plain:.1f} ms of one CPU thread, with two sliders and a colour "
        f"{edited:.1f} ms ({machine()})."
    )


def open_bench(options: argparse.Namespace) -> tuple[Studio, FeatureReader, EfficientNetLite0]:
    """Open the generator, the judge and the extractor of features.

    Raises:
        BenchError: the judge's folder holds another kind of reader, or seeds are too few.
    """
    if options.seeds < FEWEST:
        raise BenchError(f"at least {FEWEST} seeds are needed, not {options.seeds}")
    keep_freed_memory()
    studio, judge = Studio.open(options.model, fallback=False), open_reader(options.judge)
    if not isinstance(judge, FeatureReader):
        raise BenchError(f"{options.judge} holds a {type(judge).__name__}, not a FeatureReader")
    return studio, judge, build_extractor(EfficientNetLite0.name, input_size=None)


def open_parser(name: str, about: str, seeds: int) -> argparse.ArgumentParser:
    """Return the command line of a bench that asks the judge."""
    parser = make_parser(name, about, speed=False)
    add = parser.add_argument
    add("--model", help="folder or Hub repository of a generator (default: the bundled one)")
    add("--judge", type=Path, default=READERS / "judge", help="folder of the second reader")
    add("--seeds", type=int, default=seeds, help="faces (default: %(default)s)")
    return parser


def run(options: argparse.Namespace) -> str:
    """Measure what the command line asks for and return Markdown."""
    studio, judge, extractor = open_bench(options)
    if studio.directions is None:
        raise BenchError(studio.directions_notice)
    faces = pack(options.data, SIZE)
    known = {"cache_dir": faces.path, "data_key": faces.key, "limit": REAL_FACES}
    real = real_features(faces.images, extractor, **known)
    bench = Bench(studio, judge, extractor, options.seeds)
    frechet = frechet_distance(real, bench.plain.features)
    names = {slider_name(tag): tag for tag in judge.tags}
    there = [name for name in names if name in studio.directions.sliders]
    asked = [name for name in there if name in (options.only or there)]
    if not asked:
        raise BenchError("there is no such slider; leave out --only to measure all")
    rows = [bench.measure(names[name], real, frechet) for name in tqdm(asked, disable=None)]
    missing = [name for name in names if name not in there]
    text = report(rows, missing, bench)
    text += (
        f" Fréchet distance of the unedited faces to {len(real):,} real ones: {frechet:.0f} "
        f"({EfficientNetLite0.name} at {SIZE} px, {options.seeds:,} faces)."
    )
    return f"{text}\n\n{report_colours(bench)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = open_parser("directions", __doc__, 1000)
    add = parser.add_argument
    add("--data", required=True, nargs="+", help="real faces, as train.py takes them")
    add("--only", nargs="+", metavar="SLIDER", help="measure these alone")
    add("--docs", type=Path, help="document whose section gets the tables")
    return finish("directions", parser.parse_args(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
