"""Where in a picture the face is: the square that looks most like the generator's mean face.

    whole, other = align(mean_face, image)              # two squares; the second may be None
    pictures = cut_all(G, image, [whole])               # [1, C, H, W] in [-1, 1]

Drawn faces are aligned, so the correlation with their mean at 16 px tells place and size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from model import Generator, dequantise

CLEARLY = 0.22  # of correlation: a box that wins by less is not worth leaving the whole for
RIM = 0.08  # weight of a picture's corners, against its middle, where a face is looked for
SMALL = 16  # px, of the pictures that are compared


@dataclass(frozen=True)
class Box:
    """A square of a picture, in px; it may reach beyond, where the ground is white."""

    x: float  # of the centre
    y: float
    side: float

    def cut(self, image: Image.Image, size: int, channels: int) -> np.ndarray:
        """Return the square as uint8 `[size, size, channels]`."""
        side = max(1, round(self.side))
        left, top = round(self.x - side / 2), round(self.y - side / 2)
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, (-left, -top))
        square = square.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
        pixels = np.asarray(square if channels == 3 else square.convert("L"))
        return pixels.reshape(size, size, channels)


def cut_all(G: Generator, image: Image.Image, boxes: list[Box]) -> Tensor:
    """Return squares of a picture as `[N, C, H, W]` in [-1, 1]."""
    pixels = np.stack([box.cut(image, G.resolution, G.img_channels) for box in boxes])
    return dequantise(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def whole_boxes(image: Image.Image) -> list[Box]:
    """Return the largest square inside a picture, and the smallest around it if it is another."""
    sides = sorted({image.width, image.height})
    return [Box(image.width / 2, image.height / 2, side) for side in sides]


def likely_boxes(image: Image.Image) -> list[Box]:
    """Return squares of five sizes all over a picture."""
    longer = max(image.size)
    places = [0.25, 0.375, 0.5, 0.625, 0.75]
    return [
        Box(x * image.width, y * image.height, longer * share)
        for share in (0.4, 0.55, 0.75, 1.0, 1.3)
        for x in places
        for y in places
    ]


def boxes_near(box: Box) -> list[Box]:
    """Return squares that are shifted and scaled a little."""
    return [
        Box(box.x + dx * box.side, box.y + dy * box.side, box.side * scale)
        for scale in (0.87, 1.0, 1.15)
        for dx in (-0.07, 0, 0.07)
        for dy in (-0.07, 0, 0.07)
    ]


def outside(box: Box, image: Image.Image) -> float:
    """Return the share of a square, 0 … 1, that lies beyond a picture."""
    covered = [
        max(0.0, min(middle + box.side / 2, size) - max(middle - box.side / 2, 0.0)) / box.side
        for middle, size in ((box.x, image.width), (box.y, image.height))
    ]
    return 1.0 - covered[0] * covered[1]


def likeness(mean_face: Tensor, pictures: Tensor) -> Tensor:
    """Return how well pictures `[N, C, H, W]` lie over a mean face `[C, SMALL, SMALL]`.

    It is a weighted correlation `[N]`, -1 … 1. The mean face has a white ground, so the rim counts
    little; otherwise a face on a dark ground would be found in its corners.
    """
    x = shrink(pictures, SMALL)
    size, channels = x.shape[-1], x.shape[1]
    weights = RIM + (1 - RIM) * centre_weights(size, 0.3, 0.3)
    weights = (weights / (channels * weights.sum())).repeat(channels, 1, 1).flatten()
    x, mean = x.flatten(1), mean_face.flatten()
    mean = mean - mean @ weights
    x = x - (x @ weights)[:, None]
    spread = (x.square() @ weights) * (mean.square() @ weights)
    return (x * weights) @ mean / (spread.sqrt() + 1e-4)


def centre_weights(size: int, height: float, width: float) -> Tensor:
    """Return 1 in the middle of a square `[size, size]`, falling off steeply towards its rim.

    It is 0.6 at `height` and `width` from the middle: shares of a side.
    """
    place = (torch.arange(size) + 0.5) / size - 0.5
    return torch.exp(-0.5 * ((place / height)[:, None] ** 4 + (place / width) ** 4))


def shrink(pictures: Tensor, size: int) -> Tensor:
    """Average pictures `[N, C, H, W]` down to `size` px; smaller ones stay."""
    return F.adaptive_avg_pool2d(pictures, size) if pictures.shape[-1] > size else pictures


def align(
    G: Generator, mean_face: Tensor, image: Image.Image, check: Callable[[], None]
) -> tuple[Box, Box | None]:
    """Find the square of a picture that is cut like the faces that the generator draws.

    Args:
        mean_face: `[C, SMALL, SMALL]`.
        check: called now and then; may raise to stop.
    Returns:
        the whole picture's square, and another one if that looks clearly more like a face.
    """

    def best(boxes: list[Box]) -> tuple[float, Box]:
        scores = []
        for start in range(0, len(boxes), 32):
            check()
            scores.append(likeness(mean_face, cut_all(G, image, boxes[start : start + 32])))
        # White paper around a picture on another ground would make it more like the mean face.
        found = torch.cat(scores) - torch.tensor([outside(box, image) for box in boxes])
        return float(found.max()), boxes[int(found.argmax())]

    whole_score, whole = best(whole_boxes(image))
    _, rough = best(likely_boxes(image))
    score, box = best(boxes_near(rough))
    return whole, box if score > whole_score + CLEARLY else None
