"""Measure what "another hair", "another expression" and "another colouring" keep and change.

    python -m benchmarks.another                                  # 200 faces of the bundled weights
    python -m benchmarks.another --model runs/mine/generator --seeds 50 --sheet another.png

Each of the seeds 0, 1, 2 … gets each change once, by the page's own code. What is seen before
and after is said by the judge of tags, which fitted no direction, and by the mean colours of hair
and eyes. The last line is another face altogether, which says how large a figure can be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.common import BenchError, finish, table
from benchmarks.directions import FEWEST as SHOWN  # faces a row of the sheet
from benchmarks.directions import Bench, distance, open_bench, open_parser, small
from fitting.directions import families
from studio.another import PARTS, another
from studio.pictures import Sheet, png_bytes, to_image
from training.metrics import EfficientNetLite0

VARIATION = 1_000_000  # the first seed that names a variation; faces have those from 0 on
KINDS = {
    "hair shape": ("length", "twintails"),
    "hair colour": ("hair",),
    "eye colour": ("eyes",),
    "expression": ("blush", "smile", "open_mouth"),
}  # families of tags


@dataclass(frozen=True)
class Row:
    """What one change does. Shares are 0 … 1."""

    name: str
    flips: dict[str, float]  # kind of tags → share of faces in which a tag of it came or went
    colours: dict[str, float]  # part → mean ΔE*ab of its colour
    identity: float  # distance to the face before as a share of that of two random faces
    face: float  # the same by gradients between brows and chin, which know no colour


class Keeping(Bench):
    """The studio, the judge, and the faces before."""

    def __init__(self, *opened: Any) -> None:
        super().__init__(*opened)
        self.palette = self.find_regions()
        self.coloured = self.palette.measure(small(self.pictures))

    def change(self, part: str) -> Tensor:
        """Draw every face with another part, uint8 `[N, H, W, 3]`."""
        return self.draw(
            another(self.studio, recipe, part, VARIATION + at)
            for at, recipe in enumerate(self.recipes)
        )

    def compare(self, name: str, pictures: Tensor) -> Row:
        """Compare faces uint8 `[N, H, W, 3]` with those before."""
        seen, groups = self.look(pictures), families(self.judge.tags)
        flipped = (seen.logits > 0) != (self.plain.logits > 0)  # [N, tags]
        flips = {}
        for kind, names in KINDS.items():
            if columns := [k for name in names for k in groups.get(name, ())]:
                flips[kind] = float(flipped[:, columns].any(1).mean())
        colours = self.palette.measure(small(pictures))
        return Row(
            name,
            flips,
            {p: float(100 * (c - self.coloured[p]).norm(dim=1).mean()) for p, c in colours.items()},
            distance(self.plain.features, seen.features) / self.apart,
            distance(self.plain.faces, seen.faces) / self.faces_apart,
        )


def report(rows: list[Row], bench: Keeping) -> str:
    """Write the figures as Markdown."""
    head = ["another", *rows[0].flips, *(f"{p} ΔE" for p in rows[0].colours), "identity", "face"]
    lines = []
    for row in rows:
        shares = [f"{share:.0%}" for share in row.flips.values()]
        colours = [f"{apart:.1f}" for apart in row.colours.values()]
        lines.append([row.name, *shares, *colours, f"{row.identity:.2f}", f"{row.face:.2f}"])
    expression = "sliders" if bench.studio.directions else "a step in layers"
    return (
        f"{table(head, lines)}\n\n"
        f"Seeds 0 … {len(bench.recipes) - 1}, the page's truncation, weights "
        f"`{bench.studio.revision}`, expression by {expression}. Shares of faces in which the "
        f"judge sees a tag come or go; ΔE*ab of mean colours; distances as shares of those of two "
        f"faces ({EfficientNetLite0.name})."
    )


def write_sheet(path: Path, bench: Keeping, changed: dict[str, Tensor]) -> None:
    """Write the first faces, and below them what each change made of them."""
    rows = [bench.pictures, *changed.values()]
    sheet = Sheet(SHOWN**2, bench.studio.size, bench.studio.G.img_channels)
    for pictures in rows:
        sheet.add(pictures[:SHOWN].numpy())
    path.write_bytes(png_bytes(to_image(sheet.pixels), {"weights": bench.studio.revision}))


def run(options: argparse.Namespace) -> str:
    """Measure what the command line asks for and return Markdown."""
    studio, judge, extractor = open_bench(options)
    if not studio.G.num_ws:
        raise BenchError("this generator has no w, so nothing of a face can be kept")
    bench = Keeping(studio, judge, extractor, options.seeds)
    changed = {part: bench.change(part) for part in PARTS}
    if options.sheet:
        write_sheet(options.sheet, bench, changed)
    rows = [bench.compare(part, pictures) for part, pictures in changed.items()]
    rows.append(bench.compare("face", bench.pictures.roll(1, 0)))
    return report(rows, bench)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = open_parser("another", __doc__, 200)
    sheet = "also write the first faces, before and after, to this PNG"
    parser.add_argument("--sheet", type=Path, help=sheet)
    return finish("another", parser.parse_args(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
