"""Tiny drawn faces to test with: a folder of mixed formats, and a zip of the same files."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

pytest_plugins = ["tests.visitor"]

# Processes that test side by side get a thread each: at two, each would wait for the other's. And
# they keep freed memory, as train.py and app.py do.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    importlib.import_module("model").keep_freed_memory()

# The same examples in every run; HYPOTHESIS_PROFILE=default looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

SIZES = ((48, 40), (40, 56), (64, 64), (72, 72))  # width, height in px
FORMATS = ("png", "webp", "jpg")


def draw_face(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """Draw a face in the colours of `seed`: RGB, hair around a disc with eyes and a mouth."""
    rng = np.random.default_rng(seed)
    hair, eyes, ground = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(3))
    image = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(image)
    x, y, r = width / 2, height / 2, min(width, height) * 0.4
    draw.ellipse((x - r, y - r, x + r, y + r), fill=hair)
    draw.ellipse((x - 0.7 * r, y - 0.5 * r, x + 0.7 * r, y + 0.9 * r), fill=(250, 222, 205))
    for side in (-1, 1):
        eye = x + side * 0.33 * r
        draw.ellipse((eye - 0.15 * r, y, eye + 0.15 * r, y + 0.35 * r), fill=eyes)
    draw.line((x - 0.2 * r, y + 0.65 * r, x + 0.2 * r, y + 0.65 * r), fill=(170, 60, 70), width=1)
    return image


@pytest.fixture
def faces_dir(tmp_path: Path) -> Path:
    """Return a folder of 24 drawn faces, 00.png, 01.webp, 02.jpg, …, of four sizes."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for index in range(24):
        suffix = FORMATS[index % len(FORMATS)]
        image = draw_face(index, *SIZES[index % len(SIZES)])
        options = {"lossless": True} if suffix == "webp" else {}
        image.save(folder / f"{index:02d}.{suffix}", **options)
    return folder


@pytest.fixture
def faces_zip(faces_dir: Path, tmp_path: Path) -> Path:
    """Return a stored zip of the files of `faces_dir`."""
    path = tmp_path / "faces.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(faces_dir.iterdir()):
            archive.write(file, file.name)
    return path
