"""Drawn faces → pictures and PNG files."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo, putchunk

from studio.faces import Studio
from studio.recipe import Recipe, RecipeError

PAGE_SIZE = 512  # px, the large face on the page
WALL_FACES = 24
SHEET_CELL = 256  # px, a face on the contact sheet
PAPER, INK = "#faf7f1", "#2b2623"
MAX_SHEET_PIXELS = 100_000_000


def to_image(face: np.ndarray) -> Image.Image:
    """Turn one face, uint8 `[H, W, C]`, into a picture: mode L for C = 1, RGB for C = 3."""
    return Image.fromarray(face[:, :, 0] if face.shape[2] == 1 else face)


def png_bytes(image: Image.Image, text: dict[str, str]) -> bytes:
    """Return a picture of mode L or RGB as a PNG that carries `text`.

    Pillow tries every filter on every row; what the generator draws is smooth enough for one. At
    512 px that takes 8 ms for 274 kB, where Pillow takes 17 ms for 269 kB and at its usual level
    50 ms for 241 kB; most of a request was this.
    """
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    rows = np.asarray(image).reshape(image.height, -1)
    # Each line starts with its filter; 2 is the difference to the line above.
    lines = np.full((image.height, 1 + rows.shape[1]), 2, np.uint8)
    lines[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
    colours = {"L": 0, "RGB": 2}[image.mode]
    data = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    data.seek(0, io.SEEK_END)
    putchunk(data, b"IHDR", struct.pack(">2I5B", image.width, image.height, 8, colours, 0, 0, 0))
    for name, content, _ in info.chunks:
        putchunk(data, name, content)
    putchunk(data, b"IDAT", zlib.compress(lines.data, 1))
    putchunk(data, b"IEND")
    return data.getvalue()


def save_png(image: Image.Image, path: Path, text: dict[str, str]) -> None:
    """Write a PNG that carries `text`, whole or not at all."""
    data = png_bytes(image, text)
    part = path.with_name(f"{path.name}.{os.urandom(4).hex()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def data_url(image: Image.Image) -> str:
    """Return a picture as a WebP inside an address."""
    data = io.BytesIO()
    image.save(data, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def contact_sheet(faces: list[np.ndarray], captions: list[str]) -> Image.Image:
    """Lay faces, uint8 `[H, W, C]` each, on paper, with a caption of letters and digits each."""
    columns = max(1, min(6, math.ceil(math.sqrt(len(faces)))))
    rows = math.ceil(len(faces) / columns)
    cell, gap, line = SHEET_CELL, 24, 30  # px
    width = columns * (cell + gap) + gap
    sheet = Image.new("RGB", (width, rows * (cell + gap + line) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(18)
    for index, (face, caption) in enumerate(zip(faces, captions, strict=True)):
        row, column = divmod(index, columns)
        x, y = gap + column * (cell + gap), gap + row * (cell + gap + line)
        small = to_image(face).convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS)
        sheet.paste(small, (x, y))
        draw.text((x + cell / 2, y + cell + 8), caption[:24], INK, font, "ma")
    return sheet


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

    def faces(self, recipes: list[Recipe]) -> list[str]:
        """Return the paths of faces at their own size."""
        return self._files(recipes, "small", 0)

    def blank(self) -> str:
        """Return the path of a picture of paper, of a face's size, for a place not yet drawn."""
        path = self.folder / "blank.png"
        if not refresh(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(Image.new("RGB", (self.studio.size,) * 2, PAPER), path, {})
        return str(path)

    def _files(self, recipes: list[Recipe], kind: str, size: int) -> list[str]:
        """Return a PNG's path for each recipe, drawing those that lack one."""
        paths = [self.folder / kind / f"{name_folder(r)}/kaogan-{r.seed}.png" for r in recipes]
        missing = [(r, p) for r, p in zip(recipes, paths, strict=True) if not refresh(p)]
        faces = self.studio.draw_recipes([recipe for recipe, _ in missing])
        for (recipe, path), face in zip(missing, self.studio.enlarge(faces, size), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(to_image(face), path, png_text(self.studio, recipe, size))
        return [str(path) for path in paths]


def png_text(studio: Studio, recipe: Recipe, size: int) -> dict[str, str]:
    """Return what a PNG of a face says: its recipe and, where it was made larger, by what."""
    larger = {"enlarger": studio.enlarging.name} if size > studio.size else {}
    return recipe.png_text(studio.revision) | larger


def name_folder(recipe: Recipe) -> str:
    """Return the folder of a recipe's picture: its file is named by the seed alone."""
    return hashlib.blake2s(recipe.query().encode(), digest_size=9).hexdigest()


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
