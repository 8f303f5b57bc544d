"""Where a run ends and how its step sizes change: functions of the images seen.

With --max-minutes and no --total-kimg the end is not known at first. The run then measures how
many images a second it trains, computes from that how many fit into the time, and keeps this
number, also in its checkpoints: from then on nothing depends on a clock any more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from training.config import TrainConfig

DEFAULT_KIMG = 1000.0  # with neither --total-kimg nor --max-minutes
ANNEAL_FROM = 0.5  # of a run that fits its time, where --anneal-from says nothing
WINDOW_S = 60.0  # of measuring, at most …
WINDOW_SHARE = 0.1  # … this share of the time
MEASURED_SHARE = 0.1  # of --max-minutes, for the metrics
USED_SHARE = 0.97  # of the time left: sample grids and checkpoints take some of it


@dataclass
class Schedule:
    """The marks of one run, in images.

    Attributes:
        end: images after which the run ends; 0 while they are not known.
        projected_from: images after which the projected discriminator begins; -1 while not known.
        fitted: whether the end is what fits into --max-minutes.
        given: whether --total-kimg says the end.
    """

    end: int
    projected_from: int
    fitted: bool = False
    given: bool = False
    pace: Pace = field(default_factory=lambda: Pace())

    @property
    def state(self) -> dict[str, int]:
        """What a checkpoint keeps: nothing of a schedule that the settings alone decide."""
        if not self.fitted:
            return {}
        marks = {"end": self.end, "projected_from": self.projected_from}
        return {name: value for name, value in marks.items() if value > 0}

    def restore(self, state: dict[str, int]) -> None:
        """Take the marks that a checkpoint's run was fitted to, unless --total-kimg is given.

        Raises:
            ValueError: they are no numbers.
        """
        if not self.given and (self.fitted or "end" in state):
            self.fitted = True
            self.end = int(state.get("end", self.end))
            self.projected_from = int(state.get("projected_from", self.projected_from))


@dataclass
class Pace:
    """The speed of training, measured once every kind of step has been taken.

    The first steps compile and allocate, so a whole cycle of the lazy penalty goes by first, or,
    where that is slow, a measuring window's time.
    """

    warm_at: tuple[float, int] | None = None  # seconds and images when measuring began
    begun: tuple[float, int] | None = None  # … and when watching began

    def images_per_s(
        self, nimg: int, cycle: int, window: float, settle: Callable[[], None]
    ) -> float:
        """Return the speed once a window has been measured, else 0.

        Args:
            nimg: images seen.
            cycle: images from one penalty to the next.
            window: seconds to measure.
            settle: waits until the steps that are only queued are done.
        """
        self.begun = self.begun or (time.monotonic(), nimg)
        since, first = self.warm_at or self.begun
        seconds, images = time.monotonic() - since, nimg - first
        if self.warm_at is None:
            if images and (images >= cycle or seconds >= window):
                settle()
                self.warm_at = (time.monotonic(), nimg)
        elif images and seconds >= window:
            settle()
            return images / (time.monotonic() - since)
        return 0.0


def make_schedule(config: TrainConfig) -> Schedule:
    """Return the schedule that the settings decide, its end unknown where time decides."""
    if config.max_minutes and not config.total_kimg:
        return Schedule(0, -1 if config.projected_from else 0, fitted=True)
    end = round(1000 * (config.total_kimg or DEFAULT_KIMG))
    return Schedule(end, round(config.projected_from * end), given=bool(config.total_kimg))


def step_size(config: TrainConfig, schedule: Schedule, nimg: int) -> float:
    """Return the share of full step sizes after so many images.

    It rises from zero over --warmup-kimg; from --anneal-from on, a share of the run, or over
    --anneal-kimg it falls to --anneal-to by half a cosine (Loshchilov and Hutter 2017,
    arXiv 1608.03983).
    """
    share = 1.0
    if config.warmup_kimg:
        share = min(1.0, (nimg + config.batch_size) / (1000 * config.warmup_kimg))
    if config.anneal_kimg:
        return share * fall(nimg / (1000 * config.anneal_kimg), config.anneal_to)
    begin = config.anneal_from or (ANNEAL_FROM if schedule.fitted else 1.0)
    if begin < 1 and schedule.end:
        return share * fall((nimg / schedule.end - begin) / (1 - begin), config.anneal_to)
    return share


def fall(done: float, to: float) -> float:
    """Fall from 1 to `to` by half a cosine while `done` goes from 0 to 1; constant outside."""
    return to + (1 - to) * (1 + math.cos(math.pi * min(1.0, max(0.0, done)))) / 2


def fit(
    schedule: Schedule,
    config: TrainConfig,
    nimg: int,
    gone: float,
    whole: float,
    settle: Callable[[], None] = lambda: None,
) -> str:
    """Fix what can be fixed of a schedule by now, and return what there is to say of it.

    Args:
        nimg: images seen.
        gone: seconds of this launch.
        whole: seconds that it has for training.
        settle: waits until the steps that are only queued are done.
    """
    if schedule.projected_from < 0:  # it slows every step down, so the end is measured with it
        if gone < config.projected_from * whole:
            return ""
        schedule.projected_from = nimg
        return f"The projected discriminator begins, at {nimg / 1000:g} kimg."
    cycle = config.batch_size * config.penalty_interval
    window = min(WINDOW_S, WINDOW_SHARE * whole)
    speed = schedule.pace.images_per_s(nimg, cycle, window, settle)
    if not speed:
        return ""
    more = max(0.0, USED_SHARE * (whole - gone) * speed)
    schedule.end = nimg + math.ceil(more / config.batch_size) * config.batch_size
    return (
        f"{speed:.4g} images/s: {schedule.end / 1000:g} kimg fit into --max-minutes; step sizes "
        f"fall from {(config.anneal_from or ANNEAL_FROM) * schedule.end / 1000:.4g} kimg on."
    )
