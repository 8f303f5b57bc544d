"""The colour that a face shows: what a colour picker stands at before anybody touches it."""

from __future__ import annotations

import torch
from torch import Tensor

from studio.faces import Studio
from studio.recipe import Recipe


def shown_colours(studio: Studio, recipe: Recipe) -> dict[str, str]:
    """Return the predicted colour of each part that can be coloured: name → "#rrggbb"."""
    if studio.directions is None or not studio.directions.colours:
        return {}
    ws = studio.ws([recipe])[0]
    colours = studio.directions.colours
    return {part: lab_to_hex(colour.predict(ws)) for part, colour in colours.items()}


def lab_to_hex(lab: Tensor) -> str:
    """Convert CIE Lab (D65, 2°) / 100, `[3]`, to sRGB, clamped into its gamut.

    Formulas: CIE 15 and IEC 61966-2-1.
    """
    lightness, a, b = (100 * lab.double()).tolist()
    y = (lightness + 16) / 116
    f = torch.tensor([y + a / 500, y, y - b / 200], dtype=torch.float64)
    white = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)
    xyz = white * torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    to_rgb = torch.tensor(
        [
            [3.2404542, -1.5371385, -0.4985314],
            [-0.9692660, 1.8760108, 0.0415560],
            [0.0556434, -0.2040259, 1.0572252],
        ],
        dtype=torch.float64,
    )
    linear = (to_rgb @ xyz).clamp(0, 1)
    srgb = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * value):02x}" for value in srgb.clamp(0, 1).tolist())
