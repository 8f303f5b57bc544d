"""Drawn faces → pictures and PNG files."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from studio.faces import Studio
from studio.recipe import Recipe, RecipeError, psi_text

PNG_LEVEL = 2  # zlib; at 512 px 13 ms and 220 kB, where level 6 takes 47 ms for 190 kB
PAGE_SIZE = 512  # px, the large face on the page
WALL_FACES = 24
MAX_SHEET_PIXELS = 100_000_000


def to_image(face: np.ndarray) -> Image.Image:
    """Turn one face, uint8 `[H, W, C]`, into a picture: mode L for C = 1, RGB for C = 3."""
    return Image.fromarray(face[:, :, 0] if face.shape[2] == 1 else face)


def enlarge(image: Image.Image, size: int) -> Image.Image:
    """Resize a square picture to `size` px by Lanczos' filter; never makes it smaller."""
    if image.width >= size:
        return image
    return image.resize((size, size), Image.Resampling.LANCZOS)


def save_png(image: Image.Image, path: Path, text: dict[str, str]) -> None:
    """Write a PNG that carries `text`, whole or not at all."""
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=info, compress_level=PNG_LEVEL)
    part = path.with_name(f"{path.name}.{os.urandom(4).hex()}.part")
    try:
        part.write_bytes(data.getbuffer())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


class Album:
    """PNG files of the faces that a running page shows, each drawn once and kept on disk.

    Args:
        studio: draws them.
        folder: must be new for each process: a file that is there is taken as it is. Something
            else may delete old files from it at any time.
    """

    def __init__(self, studio: Studio, folder: str | Path) -> None:
        self.studio, self.folder = studio, Path(folder)

    def face(self, recipe: Recipe) -> str:
        """Return the path of one face at the page's size."""
        return self._files([recipe], "face", PAGE_SIZE)[0]

    def wall(self, seeds: list[int], psi: float) -> list[tuple[str, str]]:
        """Return (path, caption) of faces at their own size; the caption is the seed."""
        recipes = [Recipe(seed, psi) for seed in seeds]
        paths = self._files(recipes, "wall", 0)
        return [(path, str(recipe.seed)) for path, recipe in zip(paths, recipes, strict=True)]

    def _files(self, recipes: list[Recipe], kind: str, size: int) -> list[str]:
        """Return a PNG's path for each recipe (all of one psi), drawing those that lack one."""
        psi = recipes[0].psi
        directory = self.folder / kind / f"psi{psi_text(psi)}"
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / f"kaogan-{recipe.seed}.png" for recipe in recipes]
        missing = [(r, p) for r, p in zip(recipes, paths, strict=True) if not refresh(p)]
        faces = self.studio.draw([r.seed for r, _ in missing], psi)
        for (recipe, path), face in zip(missing, faces, strict=True):
            text = recipe.png_text(self.studio.revision)
            save_png(enlarge(to_image(face), size), path, text)
        return [str(path) for path in paths]


def refresh(path: Path) -> bool:
    """Tell whether a file is there, and make it young, so that no cleaning takes it soon."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


class Sheet:
    """A grid of faces on one picture, filled in the order in which they are drawn.

    Args:
        count: faces in all; the grid is as square as it can be.
        size: px of a face.
        channels: 1 or 3.
    Raises:
        RecipeError: a sheet of more than 100 million pixels.
    """

    def __init__(self, count: int, size: int, channels: int) -> None:
        self.columns = max(1, math.ceil(math.sqrt(count)))
        rows = math.ceil(count / self.columns)
        if rows * self.columns * size**2 > MAX_SHEET_PIXELS:
            most = MAX_SHEET_PIXELS // size**2
            raise RecipeError(
                f"a grid of {count:,} faces of {size} px is too large; name at most {most:,} seeds"
            )
        self.pixels = np.full((rows * size, self.columns * size, channels), 255, np.uint8)
        self.size, self.filled = size, 0

    def add(self, faces: np.ndarray) -> None:
        """Place faces, uint8 `[N, H, W, C]`, at the next free places."""
        for face in faces:
            row, column = divmod(self.filled, self.columns)
            y, x = row * self.size, column * self.size
            self.pixels[y : y + self.size, x : x + self.size] = face
            self.filled += 1
