"""Draw what a run logged: losses, how D judges pictures, the spread of its faces.

    python -m benchmarks.curves runs/mine        # writes runs/mine/curves.svg

Where a run keeps pictures apart (--held-out), the second panel shows whether D overfits: its
verdicts on pictures that it learns from and on those that it never saw then part.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import svg_pyplot

# Title → what stats.jsonl calls the lines in it, and what the legend calls them.
PANELS: dict[str, dict[str, str]] = {
    "D's loss": {"d_loss": ""},
    "real, says D": {"d_learned": "of pictures it learns from", "d_held_out": "of unseen ones",
                     "d_drawn": "of drawn ones"},
    "G's loss": {"g_loss": ""},
    "spread of 64 faces": {"diversity": ""},
}  # fmt: skip
COLOURS = ("#2166ac", "#c0392b", "#7f7f7f")


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw the lines of stats.jsonl, one run after the other, as SVG.

    A panel whose first line was never logged is left out.
    """
    pyplot = svg_pyplot()
    logged = {key for line in lines for key in line}
    panels = {title: keys for title, keys in PANELS.items() if next(iter(keys)) in logged}
    size = (3 * len(panels), 3)
    picture, axes = pyplot.subplots(
        1, len(panels), figsize=size, layout="constrained", squeeze=False
    )
    start = 0.0
    for run in sorted({line.get("run", 1) for line in lines}):
        ticks = [line for line in lines if line.get("run", 1) == run]
        for axis, keys in zip(axes[0], panels.values(), strict=True):
            for key, colour in zip(keys, COLOURS, strict=False):
                points = [(start + tick["kimg"], tick[key]) for tick in ticks if key in tick]
                axis.plot(*zip(*points, strict=True), color=colour)
            axis.axvline(start, color="#bbbbbb", linewidth=0.8, linestyle=":") if start else None
        start += ticks[-1]["kimg"]
    for axis, (title, keys) in zip(axes[0], panels.items(), strict=True):
        axis.set(title=title, xlabel="thousand images; dotted: the next run", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
        for (key, label), colour in zip(keys.items(), COLOURS, strict=False):
            axis.plot([], [], color=colour, label=label) if label and key in logged else None
        axis.legend(frameon=False) if len(keys) > 1 else None
    picture.savefig(path, metadata={"Date": None})
    pyplot.close(picture)


def main() -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    options = parser.parse_args()
    path = options.run / "stats.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not any("d_loss" in line for line in lines):
            raise ValueError("no step was logged yet")
        draw_curves(lines, options.run / "curves.svg")
    except (OSError, ValueError) as error:
        print(f"benchmarks.curves: {path} cannot be drawn: {error}", file=sys.stderr)
        return 2
    print(options.run / "curves.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
