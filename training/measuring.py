"""How a run measures itself: how many faces fit the time that was asked for, and their figures.

    run.samples, run.reals = plan(run)  # before the first step
    measure(run)                        # at a mark and at the end

With --max-minutes all measuring together may take a tenth of the time. Counts come from a short
ladder of round numbers, because figures compare only between equal counts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from model import latents_from_seeds
from training.evaluate import score
from training.metrics import (
    Extractor,
    Scores,
    build_extractor,
    cache_path,
    compute_features,
    frechet_distance,
    real_images,
)
from training.run import Run
from training.schedule import MEASURED_SHARE

RULE = (
    "the lowest Fréchet distance among those whose recall falls, against the first average's, by a "
    "smaller share than their distance does"
)
LEAST = 500  # faces; figures of fewer say little
LADDER = (500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
FOR_DISTANCES = 0.25  # of the time for faces, on top: kernels and neighbours
PROBE = {"cpu": 8, "cuda": 64}  # faces that are timed
SHRUNK = 3  # the probe's Fréchet distance has so many times fewer features, so 3³ times less work


@dataclass(frozen=True)
class Costs:
    """What measuring takes here, seconds.

    Attributes:
        draw: of drawing one face.
        look: of the features of one picture.
        fixed: of each average, whatever the counts: the Fréchet distance's matrices.
    """

    draw: float
    look: float
    fixed: float


def fit_counts(
    seconds: float, costs: Costs, *, samples: int, reals: int, known: bool, averages: int = 1
) -> tuple[int, int | None]:
    """Return how many faces to draw of each average, and how many real pictures to look at.

    Real pictures take at most half of the time; None means all of them.

    Args:
        seconds: that one measurement may take.
        samples: faces that were asked for, of each average.
        reals: real pictures that there are.
        known: whether the features of all of them are kept from an earlier measurement.
        averages: generators that are measured.
    Returns:
        (0, None) where fewer than LEAST faces, or than were asked for, fit.
    """
    left = (seconds - averages * costs.fixed) / (1 + FOR_DISTANCES)
    seen = reals if known or reals * costs.look <= left / 2 else _round(left / 2 / costs.look)
    left -= 0 if known else seen * costs.look
    drawn = left / (averages * (costs.draw + costs.look))
    drawn = samples if samples <= drawn else _round(drawn)
    if drawn < min(LEAST, samples) or seen < min(LEAST, reals):
        return 0, None
    return drawn, None if seen == reals else seen


def _round(count: float) -> int:
    """Return the largest number of the ladder up to `count`, or 0."""
    return max((step for step in LADDER if step <= count), default=0)


def plan(run: Run) -> tuple[int, int | None]:
    """Return the faces to draw and the real pictures to look at; the same on every process."""
    config = run.config
    if not (config.metric_samples and config.max_minutes):
        return config.metric_samples, None
    found: list = [None]
    if run.accelerator.is_main_process:
        found = [fit_to_time(run)]
    if run.accelerator.num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def fit_to_time(run: Run) -> tuple[int, int | None]:
    """Return what fits the run's share for measuring, and say where that is less than asked."""
    config = run.config
    extractor = build_extractor(config.metric_features, device=run.accelerator.device)
    where: dict[str, Any] = {"cache_dir": run.faces.path, "data_key": run.faces.key}
    end = run.schedule.end / 1000 or math.inf  # not known yet where time decides it
    ahead = [mark for mark in config.metric_marks() if run.nimg / 1000 < mark < end]
    seconds = 60 * config.max_minutes * MEASURED_SHARE / (1 + len(ahead))
    costs = time_probe(run, extractor)
    samples, reals = fit_counts(
        seconds,
        costs,
        samples=config.metric_samples,
        reals=len(run.faces),
        known=cache_path(run.faces.images, extractor, **where).exists(),
        averages=len(run.averages),
    )
    share = f"{MEASURED_SHARE:.0%} of --max-minutes {config.max_minutes:g} ({seconds:.2g} s)"
    if not samples:
        print(f"Nothing will be measured: even {LEAST} faces take more than {share}.")
    elif samples < config.metric_samples or reals:
        print(
            f"{samples:,} faces will be measured against {reals or len(run.faces):,} pictures "
            f"instead of {config.metric_samples:,} against {len(run.faces):,}, to fit {share}."
        )
    return samples, reals


def time_probe(run: Run, extractor: Extractor) -> Costs:
    """Time a few faces, their features and a small Fréchet distance; each once before it counts."""
    device = run.accelerator.device
    count = PROBE.get(device.type, PROBE["cuda"])
    latents = latents_from_seeds(range(count), run.config.z_dim).to(device)
    rows = np.arange(count) % len(run.faces)
    small = np.random.default_rng(0).standard_normal((LEAST, extractor.dim // SHRUNK))
    small = small.astype(np.float32)

    def look() -> np.ndarray:
        return compute_features(real_images(run.faces.images, rows), extractor)

    with torch.no_grad():
        draw = seconds_of(lambda: run.G_ema(latents).cpu()) / count
    return Costs(
        draw=draw,
        look=seconds_of(look) / count,
        fixed=seconds_of(lambda: frechet_distance(small, small)) * SHRUNK**3,
    )


def seconds_of(case: Callable[[], object]) -> float:
    """Return the seconds of a second call."""
    case()
    start = time.perf_counter()
    case()
    return time.perf_counter() - start


def measure(run: Run) -> bool:
    """Print and keep the metrics of each average at psi 1; tell whether another one is published.

    All go to metrics.jsonl, those of the published average to metrics.json too. A launch that made
    no step measures nothing.
    """
    before, started = run.published, time.monotonic()
    if run.samples and run.nimg == run.first_nimg:
        run.accelerator.print("No step was made, so nothing is measured.")
    elif run.samples:
        found = [score_averages(run) if run.accelerator.is_main_process else before]
        if run.accelerator.num_processes > 1:
            broadcast_object_list(found)
        run.published = found[0]
    run.accelerator.wait_for_everyone()
    run.measured += (time.monotonic() - started) / 60
    return run.published != before


def score_averages(run: Run) -> float:
    """Measure each average, print a table of several, and return the one to publish."""
    scores = {
        length: score(
            average,
            run.faces,
            samples=run.samples,
            reals=run.reals,
            features=run.config.metric_features,
            device=run.accelerator.device,
        )
        for length, average in run.averages.items()
    }
    published = choose(scores)
    lines = {
        length: {"kimg": run.nimg / 1000, "psi": 1.0, **found.to_dict()}
        for length, found in scores.items()
    }
    if len(scores) > 1:
        lines = {length: {**line, "ema_kimg": length} for length, line in lines.items()}
        print(table(scores, published))
    else:
        print(scores[published].line())
    (run.folder / "metrics.json").write_text(json.dumps(lines[published], indent=2) + "\n")
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines.values()))
    return published


def choose(scores: Mapping[float, Scores]) -> float:
    """Return which average to publish: see RULE.

    Args:
        scores: by half-life, the first one first.
    """
    length, first = next(iter(scores.items()))
    best, least = length, first.frechet
    for other, found in scores.items():
        gained = 1 - found.frechet / first.frechet if first.frechet else 0.0
        lost = 1 - found.recall / first.recall if first.recall else 0.0
        if found.frechet < least and lost < gained:
            best, least = other, found.frechet
    return best


def table(scores: Mapping[float, Scores], published: float) -> str:
    """Return the figures of several averages, and which one is published by which rule."""
    rows = [
        f"{f'{length:g} kimg':>12} {s.frechet:10.4g} {s.kid:10.4g} {s.precision:10.3f} "
        f"{s.recall:10.3f}"
        for length, s in scores.items()
    ]
    head = f"{'average of':>12} {'Fréchet':>10} {'KID':>10} {'precision':>10} {'recall':>10}"
    some = scores[published]
    return "\n".join(
        [
            f"{some.features} features of {some.num_real} real and {some.num_fake} fake images:",
            head,
            *rows,
            f"Published is the average of {published:g} kimg: {RULE}.",
        ]
    )
