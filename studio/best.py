"""Choosing among candidates by the discriminator's score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from model import dequantise
from studio.faces import Studio
from studio.recipe import Recipe


def best_of(studio: Studio, recipes: Sequence[Recipe], n: int) -> list[Recipe]:
    """Keep of each n recipes in a row the one whose face the discriminator finds most real.

    A group is judged by `Discriminator.most_real`, one at a time, so that other visitors' faces may
    be drawn in between.

    Args:
        studio: with a discriminator.
        recipes: any number; the last group may be short.
        n: candidates for each place, at least 1.
    """
    assert studio.D is not None
    faces = torch.from_numpy(studio.draw_recipes(recipes)).permute(0, 3, 1, 2)
    kept = []
    for start in range(0, len(recipes), n):
        group = dequantise(faces[start : start + n])
        kept.append(recipes[start + int(studio.drawing.run(partial(studio.D.most_real, group, n)))])
    return kept
