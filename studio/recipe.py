"""A face's recipe: what must be kept to draw the same face again.

Recipe ⇄ the query of an address (`?seed=42&psi=0.7&rev=…`), Recipe → the text inside a PNG.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np

from model import SEED_MAX, check_seed

DEFAULT_PSI = 0.7  # truncation: good faces, still varied
PSI_LIMIT = 2.0  # |psi| beyond this leaves what a generator can draw
MAX_SEEDS = 1_000_000  # seeds that one list may name
SEED_RULE = f"a seed is a whole number from 0 to {SEED_MAX}"


class RecipeError(ValueError):
    """A seed, psi or list of seeds that cannot be drawn; the message is for people."""


@dataclass(frozen=True)
class Recipe:
    """One face of a generator.

    Args:
        seed: 0 … 2³²−1; a whole float (42.0, as forms and JSON may send it) becomes an int.
        psi: truncation, -2 … 2; 0 is the average face, 1 the untouched one.
    Raises:
        RecipeError: anything else.
    """

    seed: int
    psi: float = DEFAULT_PSI

    def __post_init__(self) -> None:
        seed = self.seed
        if isinstance(seed, float | np.floating) and math.isfinite(seed) and seed == int(seed):
            seed = int(seed)
        try:
            object.__setattr__(self, "seed", check_seed(seed))
        except ValueError as error:
            raise RecipeError(str(error)) from None
        object.__setattr__(self, "psi", check_psi(self.psi))

    def query(self, revision: str = "") -> str:
        """Return the query of an address that shows this face: `?seed=42&psi=0.7`.

        A `revision` (first 12 hex digits of the weights' SHA-256) is added as `rev`, so that a
        page with other weights can say that its face is another one.
        """
        values = {"seed": self.seed, "psi": psi_text(self.psi)}
        return "?" + urlencode(values | ({"rev": revision} if revision else {}))

    def png_text(self, revision: str) -> dict[str, str]:
        """Return the keys and values that a PNG of this face carries as text."""
        return {"seed": str(self.seed), "psi": psi_text(self.psi), "revision": revision}


def check_psi(psi: Any, low: float = -PSI_LIMIT, high: float = PSI_LIMIT) -> float:
    """Return psi as a float of low … high, or raise RecipeError with a sentence."""
    number = isinstance(psi, int | float | np.integer | np.floating) and not isinstance(psi, bool)
    if not number or not low <= psi <= high:  # which NaN is not, and no integer is too long for
        raise RecipeError(f"psi is a number from {low:g} to {high:g}, not {psi!r:.60}")
    return float(psi) + 0.0  # -0.0 would be another file name for the same face


def psi_text(psi: float) -> str:
    """Write psi as shortly as it can be without changing it: `0.7`, `1`."""
    return f"{psi:g}" if float(f"{psi:g}") == psi else repr(psi)


def recipe_from_query(
    query: Mapping[str, str], fallback_seed: int, revision: str = ""
) -> tuple[Recipe, str]:
    """Read `seed`, `psi` and `rev` from the query of an address that anyone may have typed.

    Args:
        query: names and values; a missing one is not a fault.
        fallback_seed: the face to show where no usable seed is given.
        revision: of the weights in use; another `rev` gets a sentence.
    Returns:
        the recipe, psi within 0 … 1, and a sentence about each part that could not be used,
        or "". They never repeat what the address said.
    """
    seed, psi, faults = fallback_seed, DEFAULT_PSI, []
    if "seed" in query:
        if re.fullmatch("[0-9]{1,10}", query["seed"]) and int(query["seed"]) <= SEED_MAX:
            seed = int(query["seed"])
        else:
            faults.append(
                f"The seed in this address cannot be used ({SEED_RULE}), so here is another face."
            )
    if "psi" in query:
        try:
            psi = check_psi(float(query["psi"][:40]), 0, 1)
        except ValueError:
            faults.append(
                f"The psi in this address cannot be used (psi is a number from 0 to 1), "
                f"so here it is {DEFAULT_PSI}."
            )
    if query.get("rev", revision) != revision:
        faults.append("This address was made with other weights, so its face may differ here.")
    return Recipe(seed, psi), " ".join(faults)


def parse_seeds(text: str) -> list[int]:
    """Read a list of seeds such as `0-63,100`, both ends included, in the order written.

    A seed that is named twice is drawn once.

    Raises:
        RecipeError: no such list, a backward range, or more than a million seeds.
    """
    ranges = [_parse_range(part.strip()) for part in text.split(",")]
    if sum(len(r) for r in ranges) > MAX_SEEDS:
        raise RecipeError(f"these are more than {MAX_SEEDS:,} seeds; draw them in several runs")
    return list(dict.fromkeys(seed for r in ranges for seed in r))


def _parse_range(part: str) -> range:
    """Read `7` or `0-63`."""
    match = re.fullmatch(r"([0-9]{1,10})(?:\s*-\s*([0-9]{1,10}))?", part)
    if match is None:
        raise RecipeError(f"{part!r:.60} is no seed and no range; write seeds like 0-63,100")
    first = int(match[1])
    last = int(match[2] or first)
    if last > SEED_MAX or first > SEED_MAX:
        raise RecipeError(f"{max(first, last)} is too large: {SEED_RULE}")
    if last < first:
        raise RecipeError(f"the range {part:.60} runs backwards; write {last}-{first}")
    return range(first, last + 1)
