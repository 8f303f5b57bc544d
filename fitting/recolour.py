"""How to give hair or eyes a picked colour: linear maps from ws to a part's colour, and steps back.

    fits = fit_colours(probe, at, samples, palette, rest)      # {"hair": ColourFit, "eyes": …}

A ridge regression predicts a part's mean colour (CIE Lab / 100) from ws. The shortest step in w
that changes the predicted colour, and what is seen of everything else not, leads to the picked one.
The map is fitted a second time, also to faces that were moved so, and what a linear map cannot tell
of strong colours a quadratic one makes up for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fitting.colours import Palette
from fitting.latent import Coordinates, Probe, Samples, draw, fit_linear, solve_steps
from fitting.readers import SIZE
from model import dequantise

GROUP_SETS = (("fine",), ("middle", "fine"))  # layers that may colour a part
OTHER_PART = 4.0  # weight of the other part's colour among what should stay
MOVED = 6  # times that each probed face is moved to some colour, to learn where steps lead
MOVED_WEIGHT = 1.0  # of all these against all that were drawn
WIDE = (0.5, 2.0)  # of the way from the mean colour to another face's, in such moves


@dataclass
class ColourFit:
    """What the file holds of one part: see the reader in studio/directions.py."""

    map: Tensor  # [3, num_ws * w_dim]
    bias: Tensor  # [3]
    step: Tensor  # [3, num_ws, w_dim]
    mean: Tensor  # [3]
    bounds: Tensor  # [3, 3]
    aim: Tensor  # [3, 10]


def fit_colours(
    probe: Probe, at: Coordinates, samples: Samples, palette: Palette, rest: dict[str, Tensor]
) -> dict[str, ColourFit]:
    """Fit, for each part, the map from ws to its colour, the steps that move it, and its bounds.

    Args:
        rest: linear maps `[O, D]` of what should stay when the part is coloured.
    """
    colours = palette.measure(dequantise(samples.images))
    maps = {part: fit_linear(samples.u, colour)[0] for part, colour in colours.items()}
    fits = {}
    for part, rows in maps.items():
        stay = [rest[part], *(OTHER_PART * maps[p] for p in maps if p != part)]
        tried = []
        for groups in GROUP_SETS:
            mask = at.mask(groups)
            if mask.any():
                steps = solve_steps(rows, torch.cat(stay), mask)
                moves = Moves(probe, at, steps, palette, part, colours[part])
                tried.append(fit_part(moves, samples))
        fits[part], _ = min(tried, key=lambda pair: pair[1])
    return fits


def fit_part(moves: Moves, samples: Samples) -> tuple[ColourFit, float]:
    """Fit the maps of one part, given the steps that move its colour; return them and the miss.

    The miss is the mean distance from the colours asked for to those that faces got.
    """
    at, colours = moves.at, moves.colours
    mean = colours.mean(0)
    linear = fit_linear(samples.u, colours)
    for seed in (1, 2):
        u, _, moved = moves.draw(linear, seed=seed)
        times = max(1, round(MOVED_WEIGHT * len(samples.u) / len(u)))
        both = torch.cat([samples.u, *[u] * times]), torch.cat([colours, *[moved] * times])
        linear = fit_linear(*both)
    _, asked, got = moves.draw(linear, seed=3)
    root = torch.linalg.cholesky(torch.cov(colours.T) + 1e-6 * torch.eye(3))
    aim = fit_aim(asked - mean, got - mean)
    steps = at.decode(moves.steps)
    fit = ColourFit(*at.flatten(*linear), steps, mean, torch.linalg.inv(root), aim)
    return fit, (asked - got).norm(dim=1).mean().item()


def fit_aim(asked: Tensor, got: Tensor) -> Tensor:
    """Return `[3, 10]`: what to ask for, from `quadratic_terms` of what is wanted.

    Args:
        asked, got: offsets from the mean colour, `[N, 3]`.
    """
    terms = quadratic_terms(got).double()
    scatter = terms.T @ terms / len(terms)
    scatter += 1e-3 * torch.diag(scatter.diagonal())
    return torch.linalg.solve(scatter, terms.T @ asked.double() / len(terms)).T.float()


def quadratic_terms(way: Tensor) -> Tensor:
    """Return 1, offsets `[N, 3]` and their products with each other, `[N, 10]`."""
    first, second = torch.triu_indices(3, 3)
    return torch.cat([torch.ones_like(way[:, :1]), way, way[:, first] * way[:, second]], 1)


@dataclass(frozen=True)
class Moves:
    """Moves of the probe's faces to colours of other faces, and beyond."""

    probe: Probe
    at: Coordinates
    steps: Tensor  # [3, D]
    palette: Palette
    part: str
    colours: Tensor  # [N, 3], of other faces

    def draw(self, linear: tuple[Tensor, Tensor], *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Move each face MOVED times, from the colour that a linear map of u predicts.

        Returns:
            u `[M, D]` after it, the colours asked for and those that the part got, `[M, 3]`.
        """
        rng = torch.Generator().manual_seed(seed)
        ws = self.probe.ws.repeat(MOVED, 1, 1)
        far = WIDE[0] + (WIDE[1] - WIDE[0]) * torch.rand(len(ws), 1, generator=rng)
        mean = self.colours.mean(0)
        some = self.colours[torch.randint(len(self.colours), (len(ws),), generator=rng)]
        asked = mean + far * (some - mean)
        rows, bias = linear
        ws = ws + self.at.decode((asked - (self.at.encode(ws) @ rows.T + bias)) @ self.steps)
        found = self.palette.measure(draw(self.probe.G, ws, SIZE))[self.part]
        return self.at.encode(ws), asked, found
