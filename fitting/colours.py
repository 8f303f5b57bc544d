"""Where hair and irises are in aligned faces, and which colour they have.

    palette = find_regions(images, logits, families)     # soft masks, from thousands of faces
    colours = palette.measure(images)                    # {"hair": [N, 3], "eyes": [N, 3]}

Nothing is painted by hand. The faces are aligned, so a place of the picture means the same part of
most faces; the hair is where a pixel's colour tells best which hair tag a reader sees, and the eyes
are where it tells best which eye tag (the part of it that the hair does not explain). In each face,
skin and white are then taken out of the mask.

Colours are CIE Lab (D65, 2°) divided by 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows and columns, as shares of the picture, that hold cheeks, nose and mouth of an aligned face
CHEEKS = (0.55, 0.68, 0.42, 0.58)
KEPT = 0.45  # of the best pixel's explained share; below it a pixel is outside the region
SKIN_RADIUS = 0.08  # Lab / 100; a pixel this far from the skin's colour counts two fifths
WHITE_RADIUS = 0.06
BLACK_RADIUS = 0.12  # around L = 0: outlines and lashes
BLOCK = 256  # faces converted at once

_TO_XYZ = (  # linear sRGB → XYZ, IEC 61966-2-1
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)


def to_lab(images: Tensor) -> Tensor:
    """Convert sRGB `[N, 3, H, W]` in [-1, 1] to CIE Lab / 100 of the same shape (CIE 15)."""
    srgb = (images.clamp(-1, 1) + 1) / 2
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(_TO_XYZ, device=images.device)
    xyz = torch.einsum("rc,nchw->nrhw", matrix / matrix.sum(1, keepdim=True), linear)
    cut = 6 / 29
    f = torch.where(xyz > cut**3, xyz.clamp(min=cut**3).pow(1 / 3), xyz / (3 * cut**2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([1.16 * y - 0.16, 5 * (x - y), 2 * (y - z)], 1)


@dataclass(frozen=True)
class Palette:
    """Soft masks `[H, W]` in 0 … 1 of the parts whose colour can be measured."""

    masks: Mapping[str, Tensor]

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """Return the mean colour `[N, 3]`, Lab / 100, of each part of faces `[N, 3, H, W]`."""
        blocks = [self._measure(to_lab(block)) for block in images.split(BLOCK)]
        return {part: torch.cat([block[part] for block in blocks]) for part in self.masks}

    def _measure(self, lab: Tensor) -> dict[str, Tensor]:
        """Measure one block of faces in Lab."""
        kept = distinct(lab)  # [N, H, W]
        means = {}
        for part, mask in self.masks.items():
            weight = mask * kept + 1e-4 * mask  # the small term: a face that is all white
            total = weight.sum((1, 2))[:, None]
            means[part] = (lab * weight[:, None]).sum((2, 3)) / total
        return means


def distinct(lab: Tensor) -> Tensor:
    """Return 0 … 1 `[N, H, W]`: how far each pixel is from its face's skin, white and black."""
    n, _, height, width = lab.shape
    top, bottom, left, right = CHEEKS
    rows = slice(round(top * height), round(bottom * height))
    columns = slice(round(left * width), round(right * width))
    skin = lab[:, :, rows, columns].flatten(2).median(2).values.view(n, 3, 1, 1)
    white = torch.tensor([1.0, 0.0, 0.0], device=lab.device).view(1, 3, 1, 1)
    return (
        _apart((lab - skin).square().sum(1), SKIN_RADIUS)
        * _apart((lab - white).square().sum(1), WHITE_RADIUS)
        * _apart(lab[:, 0].square(), BLACK_RADIUS)
    )


def _apart(squares: Tensor, radius: float) -> Tensor:
    """Turn squared distances into 0 (there) … 1 (far away)."""
    return 1 - torch.exp(-squares / (2 * radius**2))


def find_regions(images: Tensor, logits: Tensor, families: Mapping[str, list[int]]) -> Palette:
    """Find the mask of each part from faces and what a reader saw in them.

    For each pixel, the share of the tags' variance is computed that is linear in the pixel's three
    colour values, after what the other parts' tags explain was taken from the tags. The share is
    averaged over the part's tags and over both mirror images, cut at KEPT of its maximum and
    stretched to 0 … 1.

    Args:
        images: faces `[N, 3, H, W]` in [-1, 1], a few thousand.
        logits: of the reader, `[N, L]`.
        families: for each part the columns of its colour tags.
    """
    lab = torch.cat([to_lab(block).half() for block in images.split(BLOCK)])
    both = torch.cat([lab, lab.flip(3)])
    masks = {}
    for part, columns in families.items():
        rest = [k for other, ks in families.items() if other != part for k in ks]
        target = residual(logits[:, columns], logits[:, rest])
        share = explained(both, torch.cat([target, target]))
        share = F.avg_pool2d(share[None, None], 3, 1, 1)[0, 0]
        masks[part] = ((share / share.max() - KEPT) / (1 - KEPT)).clamp(min=0)
    return Palette(masks)


def residual(targets: Tensor, causes: Tensor) -> Tensor:
    """Take from standardised targets `[N, T]` what causes `[N, C]` explain linearly."""
    targets = (targets - targets.mean(0)) / targets.std(0)
    if not causes.shape[1]:
        return targets
    causes = causes - causes.mean(0)
    return targets - causes @ torch.linalg.lstsq(causes, targets).solution


def explained(lab: Tensor, targets: Tensor) -> Tensor:
    """Return the mean share `[H, W]` of the targets' variance that is linear in each pixel.

    Args:
        lab: `[N, 3, H, W]`.
        targets: `[N, T]`.
    """
    n, _, height, width = lab.shape
    targets = targets - targets.mean(0)
    rows = []
    for row in range(height):  # one row of pixels at a time bounds the memory
        x = lab[:, :, row].float().permute(2, 0, 1)  # [W, N, 3]
        x = x - x.mean(1, keepdim=True)
        scatter = x.mT @ x / n + 1e-5 * torch.eye(3, device=x.device)
        shared = x.mT @ targets / n  # [W, 3, T]
        caught = (shared * torch.linalg.solve(scatter, shared)).sum(1)
        rows.append((caught / targets.square().mean(0)).mean(1))
    return torch.stack(rows)
