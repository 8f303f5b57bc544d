"""Another hair, expression or colouring for a face that is liked otherwise.

    recipe = another(studio, Recipe(42), "hair", 5)      # 5: a seed that names the variation

What a face keeps is decided by where the variation is made. The second block (8 px) shapes hair,
and leaves pose and colours to the blocks around it; the fine layers colour hair, eyes and clothes,
and move no line. An expression is spread over layers that draw hair too, so sliders make it where
the weights have some. A new variation takes the place of the last one of its kind.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from model import Generator
from studio.directions import Slider
from studio.faces import Studio
from studio.recipe import Edit, Mix, Recipe, Vary

PARTS = ("hair", "expression", "colouring")
RADIUS = {"hair": 1.0, "expression": 1.2}  # of a step in one block; one below is hardly seen
REACH = 0.7  # of a slider's way to its ends, where faces begin to tear
EXPRESSIONS = ("smile", "open-mouth", "closed-eyes", "blush")  # sliders, where there are some
COLOURED = ("hair", "eyes")  # colours, and what the names of sliders of shades begin with


def another(studio: Studio, recipe: Recipe, part: str, seed: int) -> Recipe:
    """Return a face that differs in one part, as its address can hold it.

    Args:
        studio: its generator must have a w.
        recipe: the liked face.
        part: one of PARTS.
        seed: names the variation: the same one gives the same face.
    Raises:
        RecipeError: `seed` is none, or the edits do not fit into an address.
    """
    assert isinstance(studio.G, Generator)
    if part == "hair":
        return step(recipe, seed, block(studio.G, 1), RADIUS["hair"])
    if part == "colouring":
        return colour(studio.G, recipe, seed)
    sliders = studio.directions.sliders if studio.directions else {}
    if names := [name for name in EXPRESSIONS if name in sliders]:
        return replace(recipe, edits=move(recipe.edits, [sliders[name] for name in names], seed))
    return step(recipe, seed, block(studio.G, 2), RADIUS["expression"])


def move(edits: tuple[Edit, ...], sliders: list[Slider], seed: int) -> tuple[Edit, ...]:
    """Return edits with each of some sliders moved by at least a quarter of its reach."""
    values: dict[str, Any] = {edit.name: edit.value for edit in edits}
    shares = 0.25 + 0.5 * np.random.RandomState(seed).random_sample(len(sliders))
    for slider, share in zip(sliders, shares, strict=True):
        low, high = REACH * slider.low, REACH * slider.high
        place = min(max((values.get(slider.name, 0.0) - low) / (high - low), 0.0), 1.0)
        value = low + (place + share) % 1 * (high - low)
        values[slider.name] = round(round(value / slider.step) * slider.step, 6)
    return tuple(Edit(name, value) for name, value in values.items())


def block(G: Generator, index: int) -> str:
    """Name a block by its px, coarse first; the last one where there are fewer."""
    return [*G.blocks][: index + 1][-1]


def step(recipe: Recipe, seed: int, layers: str, radius: float) -> Recipe:
    """Return a face after a step in one block, in place of an earlier step there."""
    others = tuple(step for step in recipe.steps if step.layers != layers)
    return replace(recipe, steps=(*others, Vary(seed, radius, layers)))


def colour(G: Generator, recipe: Recipe, seed: int) -> Recipe:
    """Return a face with a seed's fine layers, and without what else colours it."""
    filled = [name for name, span in G.layer_groups.items() if span.start < span.stop]
    edits = tuple(e for e in recipe.edits if e.name.partition("-")[0] not in COLOURED)
    mixes = tuple(mix for mix in recipe.mix if mix.group != filled[-1])
    return replace(recipe, mix=(*mixes, Mix(seed, filled[-1])), edits=edits)
