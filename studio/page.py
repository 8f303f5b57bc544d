"""What the page does when somebody touches it; app.py wires these to its components."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from model import SEED_MAX
from studio.faces import Studio
from studio.pictures import WALL_FACES, Album
from studio.recipe import DEFAULT_PSI, SEED_RULE, Recipe, RecipeError, recipe_from_query

ROLL_SEEDS = 1_000_000  # the dice stay among these: six digits are easy to say and to send
SPACE = os.environ.get("SPACE_ID")  # set on a Space, whose page is shown inside another address
HOME = f"https://huggingface.co/spaces/{SPACE}" if SPACE else ""


class Page:
    """What the page does when somebody touches it."""

    def __init__(self, studio: Studio, cache: str) -> None:
        # A folder of its own inside Gradio's: files need no copy there, and delete_cache finds
        # them. It goes when this object goes.
        Path(cache).mkdir(parents=True, exist_ok=True)
        self.folder = tempfile.TemporaryDirectory(
            prefix="kaogan-", dir=cache, ignore_cleanup_errors=True
        )
        self.album = Album(studio, self.folder.name)

    def open(self, request: gr.Request) -> tuple[Any, ...]:
        """Show the face that the address names, else any face, and the wall around it."""
        recipe, line = recipe_from_query(
            request.query_params, random.randrange(ROLL_SEEDS), self.album.studio.revision
        )
        first = recipe.seed - recipe.seed % WALL_FACES
        return recipe.psi, first, self.hang(first, recipe.psi), *self._face(recipe, line)

    def show(self, seed: Any, psi: Any) -> tuple[Any, ...]:
        """Show the face of a typed seed, or say what is wrong with it."""
        try:
            return gr.skip(), *self._face(Recipe(seed, slide(psi)))[1:]
        except RecipeError as error:
            line = SEED_RULE if seed is None else f"{error}"
            return gr.skip(), gr.skip(), gr.skip(), f"{line[0].upper()}{line[1:]}."

    def roll(self, psi: Any) -> tuple[Any, ...]:
        """Show a face that nobody asked for."""
        return self._face(Recipe(random.randrange(ROLL_SEEDS), slide(psi)))

    def take(self, psi: Any, picked: gr.SelectData) -> tuple[Any, ...]:
        """Show the face that was clicked on the wall."""
        return self._face(Recipe(int(picked.value["caption"]), slide(psi)))

    def hang(self, first: Any, psi: Any) -> list[tuple[str, str]]:
        """Return the wall's pictures from one seed on."""
        seeds = range(int(first), min(int(first) + WALL_FACES, SEED_MAX + 1))
        return self.album.wall(list(seeds), slide(psi))

    def turn(self, first: Any, psi: Any, pages: int) -> tuple[int, list[tuple[str, str]]]:
        """Turn the wall by some pages; after the last comes the first."""
        count = -(-(SEED_MAX + 1) // WALL_FACES)
        first = (int(first) // WALL_FACES + pages) % count * WALL_FACES
        return first, self.hang(first, psi)

    def generate(self, seed: float, psi: float) -> str:
        """Draw the face of a seed, 0 to 4294967295, at psi, -2 to 2, as a 512 px PNG."""
        with api_errors():
            return self.album.face(Recipe(seed, psi))

    def wall(self, first_seed: float, psi: float) -> list[tuple[str, str]]:
        """Draw the faces of 24 seeds in a row at the generator's own size; captions are seeds."""
        with api_errors():
            first = Recipe(first_seed, psi).seed
            seeds = range(first, min(first + WALL_FACES, SEED_MAX + 1))
            return self.album.wall(list(seeds), psi)

    def _face(self, recipe: Recipe, line: str = "") -> tuple[Any, ...]:
        """Return seed, picture, address and line for one face."""
        return (
            recipe.seed,
            self.album.face(recipe),
            HOME + recipe.query(self.album.studio.revision),
            line,
        )


def slide(psi: Any) -> float:
    """Return what the slider says, moved into its range where its number field was overtyped."""
    return min(max(float(psi), 0.0), 1.0) if isinstance(psi, int | float) else DEFAULT_PSI


@contextlib.contextmanager
def api_errors() -> Iterator[None]:
    """Hand a caller of the API the sentence of a RecipeError."""
    try:
        yield
    except RecipeError as error:
        raise gr.Error(f"{error}", print_exception=False) from None
