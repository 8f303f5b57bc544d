"""Averages of G of several lengths: what a checkpoint calls them, and where each begins.

    averages = {length: make_average(G, config) for length in config.ema_kimg}
    restore_averages(averages, checkpoint, networks, load)

A checkpoint's first average is `G_ema`, the others are `G_ema_60` and so on; its counters tell the
lengths. A resumed run may ask for others: each takes up the stored one of the nearest length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

FIRST = "G_ema"


def names_of(lengths: Sequence[float]) -> dict[float, str]:
    """Return what a checkpoint calls the averages of these half-lives, thousand images."""
    return {
        length: f"{FIRST}_{length:g}" if index else FIRST for index, length in enumerate(lengths)
    }


def lengths_text(lengths: Sequence[float]) -> str:
    """Write half-lives as the command line takes them."""
    return " ".join(f"{length:g}" for length in lengths)


def stored_averages(state: Mapping[str, Any], held: set[str]) -> dict[float, str]:
    """Return the averages of a checkpoint by half-life; one from before they had names has NaN.

    Args:
        state: its counters.
        held: names of the networks in it.
    """
    try:
        lengths = [float(word) for word in str(state.get("ema_kimg", "")).split()]
    except ValueError:
        lengths = []
    found = {length: name for length, name in names_of(lengths).items() if name in held}
    return found or ({math.nan: FIRST} if FIRST in held else {})


def nearest(length: float, stored: Mapping[float, str]) -> float:
    """Return the stored half-life nearest to one, by their ratio; the first of several alike."""

    def apart(other: float) -> float:
        return abs(math.log(other / length)) if other > 0 else math.inf  # NaN is no shorter

    return min(stored, key=apart)


def restore_averages(
    averages: Mapping[float, nn.Module],
    stored: Mapping[float, str],
    load: Callable[[dict[str, nn.Module]], Any],
    say: Callable[[str], None],
) -> Any:
    """Load a checkpoint's averages into those that are asked for, and return what `load` returns.

    Args:
        averages: by half-life, thousand images.
        stored: what `stored_averages` returns.
        load: reads networks by the names that the checkpoint has for them.
        say: prints one line.
    """
    if not stored:  # `load` says what is missing
        return load({name: averages[length] for length, name in names_of(list(averages)).items()})
    wanted: dict[str, list[nn.Module]] = {}
    for length, average in averages.items():
        source = nearest(length, stored)
        wanted.setdefault(stored[source], []).append(average)
        if len(averages) + len(stored) > 2 and source != length:
            known = "" if math.isnan(source) else f" of {source:g} kimg"
            say(f"The average of {length:g} kimg begins as the one{known} in the checkpoint.")
    found = load({name: those[0] for name, those in wanted.items()})
    for first, *others in wanted.values():
        for other in others:
            other.load_state_dict(first.state_dict())
    return found
