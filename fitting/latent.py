"""Drawn faces as numbers: whitened w, what a reader sees, and linear fits between both.

    at = Coordinates.of(G)
    samples = Samples.draw(G, reader, at, 10_000)
    weight, bias = fit_linear(samples.u, samples.logits)     # u [N, D] → what a reader sees [N, L]
    steps = solve_steps(weight[:1], weight[1:], at.mask(("fine",)))  # what moves the first alone

Everything is a function of the weights and the reader: another run gives the same numbers, up to
the rounding of other machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from fitting.readers import SIZE, TagReader, resize
from model import Generator, dequantise, latents_from_seeds, quantise

FIRST_SEED = 2**31  # of the faces that are fitted to; people and benchmarks start at 0
BATCH = 32  # faces drawn at once
RIDGE = 0.02  # of the fit, in units of the variance of whitened w
PROJECTION = 30.0  # weight of what should stay against the step's length
ALIKE = 1e-2  # of a wanted value's own size: values that nearly move together are not torn apart


# ------------------------------------------------------------------------------------------
# Coordinates: w by groups of layers, whitened


@dataclass(frozen=True)
class Coordinates:
    """Whitened w of each group of layers, side by side: u `[D]`, D = groups × w_dim.

    In u, a seed's w is standard normal, so that a step's length says how unlikely it is.
    """

    groups: dict[str, slice]
    num_ws: int
    mean: Tensor  # [w_dim]
    values: Tensor  # [w_dim], standard deviations along …
    axes: Tensor  # [w_dim, w_dim] … these columns

    @classmethod
    @torch.no_grad()
    def of(cls, G: Generator, samples: int = 8192) -> Coordinates:
        """Measure mean and covariance of w."""
        z = latents_from_seeds(range(FIRST_SEED, FIRST_SEED + samples), G.z_dim)
        w = G.mapping_network(z.to(G.w_avg.device)).double()
        values, axes = torch.linalg.eigh(torch.cov(w.T))
        values = values.clamp(min=1e-4 * values.max()).sqrt()
        order = values.argsort(descending=True)
        groups = {name: part for name, part in G.layer_groups.items() if part.stop > part.start}
        return cls(
            groups, G.num_ws, w.mean(0).float(), values[order].float(), axes[:, order].float()
        )

    def encode(self, ws: Tensor) -> Tensor:
        """Map ws `[N, num_ws, w_dim]` to u `[N, D]`; layers of a group are averaged."""
        w = torch.stack([ws[:, part].mean(1) for part in self.groups.values()], 1)
        return ((w - self.mean) @ self.axes / self.values).flatten(1)

    def decode(self, steps: Tensor) -> Tensor:
        """Map steps in u `[K, D]` to steps in w `[K, num_ws, w_dim]`."""
        parts = steps.view(len(steps), len(self.groups), -1) * self.values @ self.axes.T
        ws = parts.new_zeros(len(steps), self.num_ws, parts.shape[2])
        for index, layers in enumerate(self.groups.values()):
            ws[:, layers] = parts[:, index, None]
        return ws

    def whiten(self, steps: Tensor) -> Tensor:
        """Map steps in w `[..., w_dim]` to standard deviations."""
        return steps @ self.axes / self.values

    def colour(self, white: Tensor) -> Tensor:
        """Undo `whiten`."""
        return white * self.values @ self.axes.T

    def flatten(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Map linear maps of u, `[K, D]` and `[K]`, to maps of flat ws, `[K, …]` and `[K]`."""
        flat = self.encode_map(weight)
        return flat, bias - flat @ self.mean.repeat(self.num_ws)

    def encode_map(self, weight: Tensor) -> Tensor:
        """Map linear maps of u `[K, D]` to linear maps of flat ws minus the mean, `[K, …]`."""
        parts = weight.view(len(weight), len(self.groups), -1) / self.values @ self.axes.T
        ws = parts.new_zeros(len(weight), self.num_ws, parts.shape[2])
        for index, layers in enumerate(self.groups.values()):
            ws[:, layers] = parts[:, index, None] / (layers.stop - layers.start)
        return ws.flatten(1)

    def mask(self, names: Sequence[str]) -> Tensor:
        """Return bool `[D]`: the coordinates of these groups."""
        width = len(self.mean)
        return torch.cat([torch.full((width,), name in names) for name in self.groups])

    def lengths(self, steps: Tensor) -> Tensor:
        """Return the length of steps `[K, D]` in each group, `[K, groups]`."""
        return steps.view(len(steps), len(self.groups), -1).norm(dim=2)


# ------------------------------------------------------------------------------------------
# Faces and what is seen in them


def sample_ws(G: Generator, start: int, count: int) -> Tensor:
    """Return ws `[count, num_ws, w_dim]`: at psi 1 and 0.7 by turns, every other batch mixed.

    In a mixed batch, each group of layers has the w of another seed.
    """
    z = latents_from_seeds(range(start, start + count), G.z_dim).to(G.w_avg.device)
    index = start // BATCH
    ws = G.mapping(z, (1.0, 0.7)[index % 2]).clone()
    if index % 4 >= 2:
        for shift, layers in enumerate(G.layer_groups.values()):
            ws[:, layers] = ws[:, layers].roll(shift, 0)
    return ws


@torch.inference_mode()
def draw(G: Generator, ws: Tensor, size: int) -> Tensor:
    """Draw faces `[N, 3, size, size]` in [-1, 1], rounded to bytes as people see them."""
    batches = (dequantise(quantise(G.synthesis(part))) for part in ws.split(BATCH))
    return torch.cat([resize(batch, size) for batch in batches])


@torch.inference_mode()
def read(reader: TagReader, images: Tensor) -> Tensor:
    """Return the reader's logits `[N, L]`."""
    return torch.cat([reader(part) for part in images.split(BATCH)])


@dataclass(frozen=True)
class Samples:
    """Faces that directions are fitted to."""

    u: Tensor  # [N, D]
    logits: Tensor  # [N, L]
    images: Tensor  # uint8 [N, 3, 64, 64]

    @classmethod
    def draw(cls, G: Generator, reader: TagReader, at: Coordinates, count: int) -> Samples:
        """Draw `count` faces and read them."""
        u, logits, images = [], [], []
        steps = range(FIRST_SEED, FIRST_SEED + count, BATCH)
        for start in tqdm(steps, desc="drawing", unit="batch", disable=None):
            with torch.inference_mode():
                ws = sample_ws(G, start, min(BATCH, FIRST_SEED + count - start))
            faces = draw(G, ws, reader.size)
            u.append(at.encode(ws))
            logits.append(read(reader, faces))
            images.append(quantise(resize(faces, SIZE)))
        return cls(torch.cat(u), torch.cat(logits), torch.cat(images))


def fit_linear(u: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression of targets `[N, T]` on u `[N, D]`: weight `[T, D]` and bias `[T]`."""
    x, y = u.double(), targets.double()
    mean, middle = x.mean(0), y.mean(0)
    x, y = x - mean, y - middle
    scatter = x.T @ x / len(x) + RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(scatter, x.T @ y / len(x)).T
    return weight.float(), (middle - weight @ mean).float()


def solve_steps(wanted: Tensor, others: Tensor, allowed: Tensor) -> Tensor:
    """Return steps `[T, D]`, each the likeliest that raises one wanted value by 1.

    Minimises |step|² + PROJECTION · Σ (others · step)² under wanted · step = unit vector: with a
    large weight, the others' directions are projected out, as Gram and Schmidt would.

    Args:
        wanted: linear maps `[T, D]`, whose values move one at a time.
        others: linear maps `[O, D]`, whose values should stay.
        allowed: bool `[D]`, the coordinates that a step may use.
    """
    rows, rest = wanted[:, allowed].double(), others[:, allowed].double()
    metric = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    metric += PROJECTION * rest.T @ rest
    ways = torch.linalg.solve(metric, rows.T)  # [d, T]
    inner = rows @ ways
    inner += ALIKE * inner.diagonal().mean() * torch.eye(len(inner), dtype=rows.dtype)
    steps = wanted.new_zeros(wanted.shape)
    steps[:, allowed] = torch.linalg.solve(inner, ways.T).float()
    return steps


# ------------------------------------------------------------------------------------------
# Measuring a step

PROBE_SEED = 2**31 + 2**30  # of the faces that steps are measured on
PROBE_PSI = (0.55, 0.9)  # their truncation, as the page draws


class Probe:
    """Unselected faces on which steps are tried.

    Attributes:
        ws, images, logits: of the faces as they are.
        spread: root mean square difference of the pixels of two of them.
    """

    def __init__(
        self, G: Generator, reader: TagReader, count: int, first: int = PROBE_SEED
    ) -> None:
        self.G, self.reader = G, reader
        z = latents_from_seeds(range(first, first + count), G.z_dim)
        with torch.inference_mode():
            self.ws = G.mapping(z.to(G.w_avg.device), *PROBE_PSI).contiguous()
        self.images = draw(G, self.ws, reader.size)
        self.logits = read(reader, self.images)
        self.spread = (self.images - self.images.roll(1, 0)).square().mean().sqrt().item()
        self.looks = look(reader, self.images)

    def move(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Add a step, `[num_ws, w_dim]` or one for each face; return images and logits after it."""
        images = draw(self.G, self.ws + step, self.reader.size)
        return images, read(self.reader, images)

    def change(self, images: Tensor) -> float:
        """Return how far its faces are from `images`, as a share of the way to another face.

        Distances are those of what the reader reads tags from.
        """
        apart = distance(self.looks, self.looks.roll(1, 0))
        return distance(self.looks, look(self.reader, images)) / apart


@torch.inference_mode()
def look(reader: TagReader, images: Tensor) -> Tensor:
    """Return what a reader reads tags from, one row for each image."""
    return torch.cat([reader.see(batch)[0].flatten(1) for batch in images.split(BATCH)])


def distance(a: Tensor, b: Tensor) -> float:
    """Return the mean distance of two sets of rows, one to one."""
    return (a - b).norm(dim=1).mean().item()
