"""Choosing among candidates by the discriminator's score."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from studio.faces import Studio
from studio.recipe import Recipe


def best_of(studio: Studio, recipes: Sequence[Recipe], n: int) -> list[Recipe]:
    """Keep of each n recipes in a row the one whose face the discriminator finds most real.

    The n candidates are judged as one group of D's minibatch statistics, so that a choice does not
    depend on what else is drawn.

    Args:
        studio: with a discriminator.
        recipes: any number; the last group may be short.
        n: candidates for each place, at least 1.
    """
    faces = torch.from_numpy(studio.draw_recipes(recipes)).permute(0, 3, 1, 2)
    kept = []
    for start in range(0, len(recipes), n):
        group = faces[start : start + n].float() / 127.5 - 1
        scores = studio.drawing.run(lambda group=group: studio.D(group))
        kept.append(recipes[start + int(scores.argmax())])
    return kept
