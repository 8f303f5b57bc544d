"""Rank training recipes by what they reach for the same computing.

    python -m benchmarks.recipes --data FACES                  # all variants, 10 CPU minutes each
    python -m benchmarks.recipes --data FACES --kimg 24 --variants base relativistic-lazy
    python -m benchmarks.recipes --data FACES --cpu-minutes 60 --docs docs/recipes.md

Every variant is the real `train.py` in a process of its own, with the same seed and pictures and
one thread. Computing is counted in seconds of CPU time, which other work on the machine hardly
changes; `--cpu-minutes` first measures what a thousand images cost and gives each variant as many
images as the time buys, `--kimg` gives all the same number. Finished runs are taken as they are, so
that a bench that was stopped goes on; the run it was stopped in begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import common
from model import Generator, keep_freed_memory, latents_from_seeds
from studio.faces import to_uint8
from training.config import PRESETS, make_config
from training.data import pack
from training.evaluate import score

# About a million parameters each at 32 px, and the fast start of docs/recipes.md: with larger
# batches so few minutes end before a face has begun.
SMALL = {
    "channel_base": 1024, "channel_max": 128, "z_dim": 64, "w_dim": 64, "ema_kimg": 5.0,
} | {k: PRESETS["quick-64"][k] for k in ("batch_size", "g_lr", "d_lr", "r1_gamma")}  # fmt: skip
PROJECTED = {
    "critic": "projected", "objective": "hinge", "r1_gamma": 0.0, "g_lr": 1e-3, "d_lr": 1e-4,
    "augment": "translation,cutout",
}  # fmt: skip
# What differs from `base`: non-saturating loss, R1 every 16th step. The first six decide most.
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "another-seed": {"seed": 1},  # how far two runs of one recipe lie apart
    "relativistic-lazy": {"objective": "relativistic", "r2_gamma": 0.1, "penalty_interval": 8},
    "both": {"projected_weight": 0.5},
    "projected": PROJECTED,
    "batch-32": {"batch_size": 32},
    "relativistic": {"objective": "relativistic", "r2_gamma": 0.1, "penalty_interval": 1},
    "projected-relativistic": PROJECTED | {"objective": "relativistic"},
    "translation": {"augment": "translation"},
    "patch": {"patch": 2},
    "wide": {"channel_base": 2048, "channel_max": 256},
    "narrow": {"channel_base": 512, "channel_max": 64},
    "batch-16": {"batch_size": 16},
    "batch-4": {"batch_size": 4},
    "lr-2e-3": {"g_lr": 2e-3, "d_lr": 2e-3},
    "lr-8e-3": {"g_lr": 8e-3, "d_lr": 8e-3},
    "hinge": {"objective": "hinge"},
    "gamma-1": {"r1_gamma": 1.0},
    "gamma-0.01": {"r1_gamma": 0.01},
    "r1-often": {"penalty_interval": 4},
    "projected-r1": PROJECTED | {"r1_gamma": 0.1},
    "anneal": {"anneal_to": 0.05},
    "longer-ema": {"ema_rampup": 0.3},
    "mapping-4": {"mapping_layers": 4},
    "slow": {"batch_size": 32, "g_lr": 2e-3, "d_lr": 2e-3, "r1_gamma": 1.0},
}  # fmt: skip
COLUMNS = (
    ("variant", "variant"), ("kimg", "kimg"), ("images_per_cpu_s", "images / CPU s"),
    ("frechet_hog", "Fréchet, hog"), ("precision_hog", "precision, hog"),
    ("recall_hog", "recall, hog"), ("frechet", "Fréchet, lite0"), ("kid", "KID, lite0"),
    ("precision", "precision, lite0"), ("recall", "recall, lite0"),
    ("nn_distance", "nearest real"), ("networks", "parameters"), ("ms_a_face", "ms a face"),
)  # fmt: skip
STRIP = 16  # faces of a variant in the picture beside the table
SPEED_KIMG = (0.256, 1.024)  # two short runs: their difference is free of start and finish


def settings(name: str, options: argparse.Namespace, kimg: float) -> dict[str, Any]:
    """Return the complete settings of one variant."""
    values = SMALL | {"resolution": options.resolution, "seed": options.seed} | VARIANTS[name]
    if "anneal_to" in values:
        values["anneal_kimg"] = kimg
    return values | {
        "data": options.data, "total_kimg": kimg, "tick_kimg": 2.0,
        "snapshot_ticks": 1000, "keep": 1, "metric_samples": 0,
    }  # fmt: skip


def launch(values: dict[str, Any], folder: Path) -> float:
    """Train in a process of its own; return its seconds of CPU time.

    Raises:
        common.BenchError: the run failed; the message holds its last words.
    """
    make_config(values)  # a fault here rather than in the child
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "run", ignore_errors=True)  # of a bench that was stopped in the middle
    settings_file = folder / "variant.json"
    settings_file.write_text(json.dumps(values | {"out": str(folder / "run")}), encoding="utf-8")
    before = common.seconds_of_children()
    command, env = [sys.executable, "train.py", "--config", str(settings_file)], dict(os.environ)
    env["OMP_NUM_THREADS"] = "1"
    with (folder / "log").open("w") as log:
        said = {"stdout": log, "stderr": subprocess.STDOUT}
        status = subprocess.run(command, cwd=common.ROOT, env=env, check=False, **said).returncode
    if status:
        raise common.BenchError(f"the run failed: {(folder / 'log').read_text()[-400:]}")
    return common.seconds_of_children() - before


def images_per_second(name: str, options: argparse.Namespace, folder: Path) -> float:
    """Measure the images that a second of CPU time trains."""
    kept = folder / "speed.json"
    if not kept.exists():
        short, long = (
            launch(settings(name, options, kimg), folder / f"speed-{kimg}") for kimg in SPEED_KIMG
        )
        if long <= short:
            raise common.BenchError(
                f"{name}: {SPEED_KIMG[1]} kimg took no longer than {SPEED_KIMG[0]}, so its speed "
                "is unknown; start the bench again with nothing else running"
            )
        speed = (SPEED_KIMG[1] - SPEED_KIMG[0]) * 1000 / (long - short)
        kept.write_text(json.dumps(speed))
    return json.loads(kept.read_text())


def folder_of(name: str, options: argparse.Namespace) -> Path:
    """Return where a variant's runs and figures are kept."""
    return options.out / f"{options.resolution}px" / name


def run_variant(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one variant, or read what an earlier call measured."""
    folder = folder_of(name, options)
    folder.mkdir(parents=True, exist_ok=True)
    speed = images_per_second(name, options, folder)
    kimg = options.kimg or round(speed * options.cpu_minutes * 60 / 1000, 3)
    result = folder / f"result-{kimg:g}.json"
    if not result.exists():
        trained = folder / f"kimg-{kimg:g}"
        if not (trained / "run" / "grid-psi1.png").exists():  # a run's last act
            launch(settings(name, options, kimg), trained)
        row = {"variant": name, "kimg": kimg, "images_per_cpu_s": speed}
        row |= measure(trained / "run", options)
        result.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    return json.loads(result.read_text(encoding="utf-8"))


def measure(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compare the averaged generator of a run with the real faces, in two kinds of features."""
    G = Generator.from_pretrained(run / "generator")
    facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
    faces = pack(options.data, options.resolution)
    lite, hog = (
        score(G, faces, samples=options.samples, features=features)
        for features in ("efficientnet-lite0", "hog")
    )
    return {
        "frechet_hog": hog.frechet, "precision_hog": hog.precision, "recall_hog": hog.recall,
        "frechet": lite.frechet, "kid": lite.kid, "kid_se": lite.kid_se,
        "precision": lite.precision, "recall": lite.recall,
        "nn_distance": lite.nn_distance, "nn_distance_real": lite.nn_distance_real,
        "samples": options.samples, "reals": len(faces),
        "networks": facts["parameters"], "ms_a_face": milliseconds(G),
    }  # fmt: skip


@torch.inference_mode()
def milliseconds(G: Generator) -> float:
    """Return the median milliseconds of one face on one thread."""
    z = latents_from_seeds([0], G.z_dim)
    return 1000 * median(common.interleave({"": lambda: G(z)}, 30, clock=time.process_time)[""])


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort by HOG's Fréchet distance: a critic on lite0's own features flatters the other."""
    return sorted(rows, key=lambda row: row["frechet_hog"])


def strips(rows: list[dict[str, Any]], options: argparse.Namespace) -> np.ndarray:
    """Draw the first seeds of each variant at psi 1, in the table's order, `[rows, N, H, W, C]`."""
    drawn = []
    for row in in_order(rows):
        run = folder_of(row["variant"], options) / f"kimg-{row['kimg']:g}" / "run"
        G = Generator.from_pretrained(run / "generator")
        with torch.inference_mode():
            drawn.append(to_uint8(G(latents_from_seeds(range(STRIP), G.z_dim))))
    return np.stack(drawn)


def listed(rows: list[dict[str, Any]]) -> str:
    """Write the rows as Markdown, the best Fréchet distance of HOG first."""
    lines = []
    for row in in_order(rows):
        row = row | {"kid": f"{row['kid']:.3f} ± {row['kid_se']:.3f}"}
        cells = [row[key] for key, _ in COLUMNS]
        lines.append([c if isinstance(c, str) else f"{c:.4g}" for c in cells])
    return common.table([title for _, title in COLUMNS], lines)


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Write the table with what it was measured on, and the faces where a document gets it."""
    row = rows[0]
    budget = f"{options.kimg:g} kimg" if options.kimg else f"{options.cpu_minutes:g} CPU minutes"
    text = (
        f"{listed(rows)}\n\n{options.resolution} px, {budget} a variant, seed {options.seed}, one "
        f"thread; {row['samples']:,} faces at psi 1 against {row['reals']:,} real ones; nearest "
        f"real in lite0 features (real to real {row['nn_distance_real']:.4g})."
    )
    if options.docs:
        sheet = options.docs.with_suffix("") / "variants.webp"
        sheet.parent.mkdir(exist_ok=True)
        common.save_sheet(strips(rows, options), sheet)
        shown = f"{STRIP} unselected faces of each, in the table's order"
        text += f"\n\n![{shown}]({options.docs.stem}/variants.webp)"
    return text


def run(options: argparse.Namespace) -> str:
    """Train and measure what the command line asks for and return Markdown."""
    options.data = [str(Path(d).resolve()) if Path(d).exists() else d for d in options.data]
    options.out = options.out.resolve()
    keep_freed_memory()
    torch.set_num_threads(1)
    pack(options.data, options.resolution)  # else the first run pays for it
    rows = []
    for name in options.variants:
        rows.append(run_variant(name, options))
        print(listed(rows), file=sys.stderr, flush=True)
    return report(rows, options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = common.make_parser("recipes", __doc__, speed=False)
    add = parser.add_argument
    add("--data", nargs="+", required=True, help="faces, as train.py takes them")
    add("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    add("--resolution", type=int, default=32)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--kimg", type=float, default=0.0, help="the same images for each variant")
    minutes = "the same CPU time for each"
    budget.add_argument("--cpu-minutes", type=float, default=10.0, help=minutes)
    add("--samples", type=int, default=5000, help="faces to measure")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/recipes"))
    add("--docs", type=Path, help="document whose section gets the table")
    return common.finish("recipes", parser.parse_args(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
