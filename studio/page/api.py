"""What programs may call: five named endpoints with typed arguments, also tools for MCP."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from model import SEED_MAX
from studio.match import match, open_upload
from studio.page.context import MAX_ADDRESS, PageContext, api_errors
from studio.page.mix import SHEET, cross
from studio.page.morph import FEWEST, KINDS, MOST, SECONDS, MorphTab
from studio.pictures import PAGE_SIZE, WALL_FACES
from studio.recipe import Recipe, RecipeError, check_number, parse_seeds, read_number

MATCH_LIMIT = (2.0, 30.0)  # seconds


class Api:
    """The endpoints; each answers with files, and a fault is one sentence."""

    def __init__(self, context: PageContext, morph: MorphTab) -> None:
        self.context, self.morph_tab = context, morph
        number: dict[str, Any] = {"visible": False, "precision": None}
        seed = gr.Number(42, label="seed", **number)
        psi = gr.Number(None, label="psi", **number)
        fine = gr.Number(None, label="fine", **number)
        size = gr.Number(PAGE_SIZE, label="size", **number)
        parts = gr.Textbox("", label="recipe", visible=False)
        first = gr.Number(0, label="first_seed", **number)
        seed_a = gr.Number(42, label="seed_a", **number)
        seed_b = gr.Number(43, label="seed_b", **number)
        seeds = gr.Textbox("42,43", label="seeds", visible=False)
        seconds = gr.Number(2, label="seconds", **number)
        loop = gr.Checkbox(True, label="loop", visible=False)
        kind = gr.Textbox("mp4", label="kind", visible=False)
        image = gr.File(label="image", visible=False)
        limit = gr.Number(10, label="seconds", **number)
        picture = gr.Image(label="face", format="png", visible=False)
        faces = gr.Gallery(label="faces", format="png", visible=False)
        film = gr.File(label="film", visible=False)
        address = gr.Textbox(label="recipe", visible=False)
        gr.on([], self.generate, [seed, psi, parts, size], picture, api_name="generate")
        gr.on([], self.wall, [first, psi, fine], faces, api_name="wall")
        gr.on([], self.mix, [seed_a, seed_b, psi, fine], faces, api_name="mix")
        gr.on([], self.morph, [seeds, psi, seconds, loop, kind, fine], film, api_name="morph",
              concurrency_limit=2)  # fmt: skip
        gr.on([], self.match, [image, limit], [picture, address], api_name="match",
              concurrency_limit=1)  # fmt: skip

    def generate(
        self, seed: float = 42, psi: float | None = None, recipe: str = "", size: float = PAGE_SIZE
    ) -> str:
        """Draw one face as a PNG that carries its recipe.

        Args:
            seed: a whole number from 0 to 4294967295.
            psi: variety, -2 to 2; 0 draws the average face, 1 the boldest. Without it 0.55, and
                0.9 for the fine layers; a "fine=0.9" in `recipe` sets that of the fine layers.
            recipe: the other parts of an address, such as "mix=77@middle&edit=smile:1.5".
            size: px: 512, or the generator's own size, usually 128.
        """
        with api_errors():
            query = dict(parse_qsl(str(recipe or "")[:MAX_ADDRESS].lstrip("?")))
            whole = self.whole(seed, psi, query)
            album = self.context.album_of(query.get("rev", ""))
            album.studio.check(whole)
            if size not in (own := album.studio.size, PAGE_SIZE):
                raise RecipeError(f"size is {own} or {PAGE_SIZE}, not {size!r:.40}")
            return album.face(whole) if size == PAGE_SIZE else album.faces([whole])[0]

    def wall(
        self, first_seed: float = 0, psi: float | None = None, fine: float | None = None
    ) -> list[tuple[str, str]]:
        """Draw the faces of 24 seeds in a row as PNGs of the generator's own size.

        Args:
            first_seed: a whole number from 0 to 4294967295.
            psi: variety, -2 to 2; without it 0.55, and 0.9 for the fine layers.
            fine: variety of the fine layers; that of the others if only `psi` is given.
        """
        with api_errors():
            seed: Any = first_seed  # a recipe takes a whole float
            first = Recipe(seed, psi, fine).seed
            last = min(first + WALL_FACES, SEED_MAX + 1)
            recipes = [Recipe(each, psi, fine) for each in range(first, last)]
            paths = self.context.album.faces(recipes)
        return list(zip(paths, (str(recipe.seed) for recipe in recipes), strict=True))

    def mix(
        self, seed_a: float, seed_b: float, psi: float | None = None, fine: float | None = None
    ) -> list[tuple[str, str]]:
        """Cross two faces: nine PNGs, each captioned with the layers it takes from B.

        Args:
            seed_a: a whole number from 0 to 4294967295.
            seed_b: another one.
            psi: variety, -2 to 2; without it 0.55, and 0.9 for the fine layers.
            fine: variety of the fine layers; that of the others if only `psi` is given.
        """
        with api_errors():
            a: Any = seed_a  # a recipe takes whole floats
            b: Any = seed_b
            recipes = cross(Recipe(a, psi, fine), Recipe(b).seed)
            paths = self.context.album.faces(recipes)
        names = ["between" if g is None else "+".join(g) or "A" for g in SHEET]
        return list(zip(paths, names, strict=True))

    def morph(
        self,
        seeds: str,
        psi: float | None = None,
        seconds: float = 2,
        loop: bool = True,
        kind: str = "mp4",
        fine: float | None = None,
    ) -> str:
        """Walk from face to face: a film as MP4 (H.264, 512 px) or animated WebP (256 px).

        Args:
            seeds: two to eight of them in order, such as "7,42,100-103".
            psi: variety, -2 to 2; without it 0.55, and 0.9 for the fine layers.
            seconds: 0.5 to 5, for each way from one face to the next.
            loop: whether it comes back to the first face.
            kind: "mp4" or "webp".
            fine: variety of the fine layers; that of the others if only `psi` is given.
        """
        with api_errors():
            some = parse_seeds(str(seeds)[:200])[: MOST + 1]
            recipes = [Recipe(seed, psi, fine) for seed in some]
            if not FEWEST <= len(recipes) <= MOST:
                raise RecipeError(f"a film has {FEWEST} to {MOST} faces")
            check_number(seconds, *SECONDS[:2], "seconds is a number")
            if kind not in KINDS:
                raise RecipeError(f"kind is {' or '.join(KINDS)}")
            return self.morph_tab.write(recipes, float(seconds), bool(loop), kind)

    def match(self, image: str, seconds: float = 10) -> tuple[str, str]:
        """Find the face nearest to a picture; answer its PNG and its recipe as an address' query.

        The picture is deleted as soon as it is read.

        Args:
            image: a PNG, JPEG, WebP or GIF of at most 10 MB and 40 megapixels.
            seconds: 2 to 30, how long to look.
        """
        with api_errors():
            check_number(seconds, *MATCH_LIMIT, "seconds is a number")
            path = self.context.take_upload(image)
            try:
                picture = open_upload(path)
            finally:
                self.context.forget_upload(path)
            recipe = match(self.context.studio, picture, seconds=float(seconds))
            return self.context.album.face(recipe), self.context.query(recipe)

    def whole(self, seed: Any, psi: Any, query: dict[str, str]) -> Recipe:
        """Return the recipe of an API call, strictly: any unusable part raises RecipeError."""
        parts: dict[str, Any] = {k: v for k, v in query.items() if k != "rev"}
        if "fine" in parts:
            parts["fine"] = read_number(parts["fine"])
        plain = Recipe(seed, psi, parts.get("fine"))
        values = {"seed": plain.seed, "psi": plain.psi, "fine": plain.truncation[1]}
        return Recipe.from_json(parts | values)
