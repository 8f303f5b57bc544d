"""What programs may call: named endpoints with typed arguments, also tools for MCP."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from model import SEED_MAX
from studio.pictures import WALL_FACES
from studio.recipe import Recipe
from studio.tabs.desk import Desk, api_errors
from studio.tabs.mix import SHEET, cross


class Programs:
    """The endpoints; each answers with files, and a fault is one sentence."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        number = {"visible": False, "precision": None}
        seed = gr.Number(42, label="seed", **number)
        psi = gr.Number(0.7, label="psi", **number)
        parts = gr.Textbox("", label="recipe", visible=False)
        first = gr.Number(0, label="first_seed", **number)
        seed_a = gr.Number(42, label="seed_a", **number)
        seed_b = gr.Number(43, label="seed_b", **number)
        picture = gr.Image(label="face", format="png", visible=False)
        faces = gr.Gallery(label="faces", format="png", visible=False)
        gr.on([], self.generate, [seed, psi, parts], picture, api_name="generate")
        gr.on([], self.wall, [first, psi], faces, api_name="wall")
        gr.on([], self.mix, [seed_a, seed_b, psi], faces, api_name="mix")

    def generate(self, seed: float = 42, psi: float = 0.7, recipe: str = "") -> str:
        """Draw one face as a PNG of 512 px that carries its recipe.

        Args:
            seed: a whole number from 0 to 4294967295.
            psi: variety, -2 to 2; 0 draws the average face, 1 the boldest.
            recipe: the other parts of an address, such as "mix=77@middle&edit=smile:1.5".
        """
        with api_errors():
            return self.desk.album.face(self.whole(seed, psi, recipe))

    def wall(self, first_seed: float = 0, psi: float = 0.7) -> list[tuple[str, str]]:
        """Draw the faces of 24 seeds in a row as PNGs of the generator's own size.

        Args:
            first_seed: a whole number from 0 to 4294967295.
            psi: variety, -2 to 2.
        """
        with api_errors():
            first = Recipe(first_seed, psi).seed
            last = min(first + WALL_FACES, SEED_MAX + 1)
            recipes = [Recipe(seed, psi) for seed in range(first, last)]
            paths = self.desk.album.faces(recipes)
        return list(zip(paths, (str(recipe.seed) for recipe in recipes), strict=True))

    def mix(self, seed_a: float, seed_b: float, psi: float = 0.7) -> list[tuple[str, str]]:
        """Cross two faces: nine PNGs, each captioned with the layers it takes from B.

        Args:
            seed_a: a whole number from 0 to 4294967295.
            seed_b: another one.
            psi: variety, -2 to 2.
        """
        with api_errors():
            recipes = cross(Recipe(seed_a, psi), Recipe(seed_b, psi).seed)
            paths = self.desk.album.faces(recipes)
        names = ["between" if g is None else "+".join(g) or "A" for g in SHEET]
        return list(zip(paths, names, strict=True))

    def whole(self, seed: Any, psi: Any, text: Any) -> Recipe:
        """Return the recipe of an API call, strictly: any unusable part raises RecipeError."""
        plain = Recipe(seed, psi)
        parts = dict(parse_qsl(str(text or "")[:8192].lstrip("?")))
        values = {**parts, "seed": plain.seed, "psi": plain.psi}
        return Recipe.from_json({k: v for k, v in values.items() if k != "rev"})
