"""Another hair, expression or colouring for a face that is liked otherwise.

    recipe = another(studio, Recipe(42), "hair", 5)      # 5: a seed that names the variation

What a face keeps is decided by where the variation is made. The second block (8 px) shapes hair,
and leaves pose and colours to the blocks around it; the fine layers colour hair, eyes and clothes,
and move no line. An expression is spread over layers that draw hair too, so sliders make it where
the weights have some. A new variation takes the place of the last one of its kind.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model import Generator
from studio.faces import Studio
from studio.recipe import Edit, Mix, Recipe, Vary

PARTS = ("hair", "expression", "colouring")
RADIUS = {"hair": 1.0, "expression": 1.2}  # of a step in one block; one below is hardly seen
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
    if part == "hair":
        return step(recipe, seed, block(studio.G, 1), RADIUS["hair"])
    if part == "colouring":
        return colour(studio.G, recipe, seed)
    sliders = studio.directions.sliders if studio.directions else {}
    if names := [name for name in EXPRESSIONS if name in sliders]:
        rng = np.random.RandomState(seed)
        edits = [e for e in recipe.edits if e.name not in names]
        for name in names:
            low, high, width = sliders[name].low, sliders[name].high, sliders[name].step
            value = round(rng.uniform(low, high) / width) * width
            edits.append(Edit(name, round(min(max(value, low), high), 6)))
        return replace(recipe, edits=tuple(edits))
    return step(recipe, seed, block(studio.G, 2), RADIUS["expression"])


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
