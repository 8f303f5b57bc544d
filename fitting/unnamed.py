"""Directions without a name: where faces differ most, and where styles move most.

    for direction in find_unnamed(G, probe, at):
        direction.step                      # Δws [num_ws, w_dim] of one slider unit

The first principal components of w (Härkönen et al. 2020, arXiv 2004.02546) and the first
eigenvectors of the style weights (Shen & Zhou 2021, arXiv 2007.06600), scaled to equal visible
change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fitting.latent import Coordinates, Probe
from model import Generator, StyledConv, SynthesisBlock

EXPLORERS = 6  # principal directions, and as many closed-form ones
FULL = 2.0  # slider units at the end of a slider
VISIBLE = 0.5  # of the difference of two faces: what a full slider changes
FARTHEST = 5.0  # standard deviations of w that it may go for that; farther, faces come apart


@dataclass(frozen=True)
class Unnamed:
    """One direction."""

    name: str
    kind: str  # principal or closed-form
    groups: tuple[str, ...]
    step: Tensor  # [num_ws, w_dim], one slider unit

    def entry(self, full: float, step: float) -> dict:
        """Return what the file says of it: its slider's ends and stops."""
        groups = list(self.groups)
        ends = {"low": -full, "high": full, "step": step}
        return {"name": self.name, "kind": self.kind, **ends, "groups": groups, "family": ""}


def find_unnamed(G: Generator, probe: Probe, at: Coordinates) -> Iterator[Unnamed]:
    """Yield all unnamed directions of a generator."""
    yield from explore(probe, at, "principal", principal_steps(at, EXPLORERS))
    yield from explore(probe, at, "closed-form", closed_form_steps(G, at, EXPLORERS))


def explore(probe: Probe, at: Coordinates, kind: str, steps: Iterator) -> Iterator[Unnamed]:
    """Scale steps to equal visible change, and turn them so that pictures grow lighter.

    One that would have to leave what seeds draw for that changes less.
    """
    for index, (groups, step) in enumerate(steps):
        length = at.lengths(step).max().item()
        scale = 2 / length
        for _ in range(3):
            images, _ = probe.move(at.decode(step * scale)[0])
            change = (images - probe.images).square().mean().sqrt().item() / probe.spread
            scale *= min(2.0, max(0.5, VISIBLE / max(change, 1e-3)))
            scale = min(scale, FARTHEST / length)
        lighter = (images - probe.images).mean() >= 0
        ws = at.decode(step * scale)[0] * (1 if lighter else -1) / FULL
        yield Unnamed(f"{kind}-{index + 1}", kind, groups, ws)


def principal_steps(at: Coordinates, count: int) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yield the first principal directions of w, for all layers, as steps in u `[1, D]`."""
    for k in range(count):
        step = torch.zeros(1, len(at.groups), len(at.mean))
        step[0, :, k] = 1
        yield tuple(at.groups), step.flatten(1)


def closed_form_steps(
    G: Generator, at: Coordinates, count: int
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yield eigenvectors of the stacked style weights, the groups of layers taking turns.

    They are the directions in which the styles themselves move most for a step of given length
    (Shen & Zhou 2021); each block's weights are those of its convolutions.
    """
    styles = style_weights(G)
    found = {}
    for name, layers in at.groups.items():
        stacked = torch.cat([styles[k] for k in range(layers.start, layers.stop)]).double()
        found[name] = torch.linalg.eigh(stacked.T @ stacked).eigenvectors.flip(1).T.float()
    for k in range(count):
        name = list(at.groups)[k % len(at.groups)]
        step = torch.zeros(1, len(at.groups), len(at.mean))
        way = found[name][k // len(at.groups)]
        step[0, list(at.groups).index(name)] = way @ at.axes / at.values
        yield (name,), step.flatten(1)


def style_weights(G: Generator) -> list[Tensor]:
    """Return the weight `[in, w_dim]` by which each of the num_ws styles enters a convolution."""
    convolutions: list[StyledConv] = []
    for block in G.blocks.values():
        assert isinstance(block, SynthesisBlock)
        convolutions += [conv for conv in (block.conv0, block.conv1) if conv is not None]
    affines = [conv.affine for conv in convolutions]
    # Without the gain of the convolution, which demodulation takes out again.
    return [layer.weight.detach() * (layer.weight_gain / layer.gain) for layer in affines]
