"""Directions in w that change what they are called after, fitted to one generator.

    python -m training.directions                                   # for the bundled generator
    python -m training.directions --model runs/mine/generator       # writes into that folder

Some ten thousand faces are drawn and read by the builder of `training.attributes`. Half of them
take their coarse, middle and fine styles from three different seeds, so that one linear fit tells
what each group of layers does by itself. From it come, in a file beside the weights:

- one direction for each tag: the likeliest step in w (Gaussian in w) that raises the tag's logit
  while those of all other tags stay, then refined by `training.descent`, in the groups of layers
  that measure best; and a map from ws to how far a face has already gone that way;
- principal directions of w (Härkönen et al. 2020, arXiv 2004.02546) and closed-form ones of the
  style weights (Shen & Zhou 2021, arXiv 2007.06600), scaled to equal visible change;
- maps from ws to the mean colour of hair and of eyes, steps that move it, and the colours that
  faces have.

Everything is a function of the weights and the reader: another run writes the same numbers, up to
the rounding of other machines.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from model import (
    WEIGHTS_NAME,
    Generator,
    ModelError,
    keep_freed_memory,
    latents_from_seeds,
    load_network,
    quantise,
)
from training.attributes import ASSETS, SIZE, TagReader, open_reader, resize
from training.colours import Palette, find_regions
from training.descent import Faces, gaps, refine_colour, refine_tag

BUNDLED = ASSETS.parent / "generator"
FILE_NAME = "directions.safetensors"
FORMAT = "kaogan-directions-2"
FULL = 2.0  # slider units at the end of a slider
STEP = 0.1  # slider units between two stops

FIRST_SEED = 2**31  # of the faces that are fitted to; people and benchmarks start at 0
PROBE_SEED = 2**31 + 2**30  # of the faces that steps are measured on
TRIED_SEED = PROBE_SEED + 2**20  # and of those that they are refined on
TRIED = 128
BATCH = 32  # faces drawn at once
RIDGE = 0.02  # of the fit, in units of the variance of whitened w
PROJECTION = 30.0  # weight of another tag's move against the step's length
REACH = 1.1  # gaps above a typical face without the tag, that a full slider leads to
HALF = REACH - 0.5  # gaps from the middle of a slider, between both typical faces, to its end
LEAST_WAY, MOST_WAY = 0.2, 2.5  # of a slider, in lengths of HALF; studio/directions.py has them too
EASES = (3.0, 1.0, 0.3)  # of what holds a step back, until …
ENOUGH, PLENTY = 0.9, 0.985  # … so many faces have the tag; beyond PLENTY a step is shortened
LONE_EASES, LONE_ENOUGH = (1.0, 0.4, 0.2), 0.95  # the same for tags that exclude no other
SHORTER = 0.85  # of its length, at a time
REFINE_STEPS = 24  # of Adam, the first time; half of it after each ease
MOST_FLIPPED = 0.75  # of faces in which a slider may flip any one other tag
LEAST_SEEN = 0.5  # of faces in which each reader must see the tag at full slider
CLEAR, LEAST_CLEAR = 0.5, 0.4  # of a typical face's logit, and of faces that must get so far
MOST_CHANGED = 0.8  # of the distance of two faces, as the judge sees them: beyond, it is another
ROOM, LONGER, LONGEST = 0.42, 1.05, 1.25  # a step is lengthened while a face has room to change
VISIBLE = 0.5  # of the difference of two faces: what an unnamed full slider changes
FARTHEST = 5.0  # standard deviations of w that it may go for that; farther, faces come apart
EXPLORERS = 6  # principal directions, and as many closed-form ones
REGION_FACES = 3000  # that the regions of hair and eyes are found in
COLOUR_STEPS = 60  # of Adam
MOVED = 4  # times that each face is moved to some colour, to learn where steps lead
MOVED_WEIGHT = 0.5  # of all these against all that were drawn
WIDE = (0.5, 2.0)  # of the way from the mean colour to another face's, in such moves
COLOUR_GROUPS = {"hair": ("middle", "fine"), "eyes": ("middle", "fine")}
COLOURED = ("middle", "fine")  # groups of layers that a colour's slider may use; others all


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
    batches = (floats(quantise(G.synthesis(part))) for part in ws.split(BATCH))
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


def floats(images: Tensor) -> Tensor:
    """Turn uint8 images into floats in [-1, 1]."""
    return images.float() / 127.5 - 1


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
    inner += 1e-6 * inner.diagonal().mean() * torch.eye(len(inner), dtype=rows.dtype)
    steps = wanted.new_zeros(wanted.shape)
    steps[:, allowed] = torch.linalg.solve(inner, ways.T).float()
    return steps


# ------------------------------------------------------------------------------------------
# Measuring a step


class Probe:
    """Unselected faces at psi 0.7 on which steps are tried.

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
            self.ws = G.mapping(z.to(G.w_avg.device), 0.7).contiguous()
        self.images = draw(G, self.ws, reader.size)
        self.logits = read(reader, self.images)
        self.spread = (self.images - self.images.roll(1, 0)).square().mean().sqrt().item()

    @functools.cached_property
    def looks(self) -> Tensor:
        """What the reader reads tags from, one row for each face."""
        return look(self.reader, self.images)

    def faces(self, at: Coordinates) -> Faces:
        """Return the faces as `training.descent` takes them."""
        # Clones, since what inference mode made takes no part in a gradient.
        return Faces(
            self.G, self.reader, self.ws.clone(), self.images.clone(), at.whiten, at.colour
        )

    def move(self, step: Tensor, count: int | None = None) -> tuple[Tensor, Tensor, float]:
        """Add a step, `[num_ws, w_dim]` or one for each, to the first `count` faces.

        Returns:
            images and logits after it, and the root mean square change as a share of `spread`.
        """
        images = draw(self.G, self.ws[:count] + step, self.reader.size)
        change = (images - self.images[:count]).square().mean().sqrt().item() / self.spread
        return images, read(self.reader, images), change


# ------------------------------------------------------------------------------------------
# Named attributes


@dataclass(eq=False)
class Direction:
    """One slider."""

    name: str
    kind: str  # attribute, principal or closed-form
    groups: tuple[str, ...]
    step: Tensor  # [num_ws, w_dim], one slider unit from its middle
    place_map: Tensor  # [num_ws * w_dim]: with the bias, where on the slider a face stands
    place_bias: Tensor  # []
    seen: float = 1.0  # at full slider, share of faces with the tag
    fault: str = ""  # why it is left out

    def ways(self, ws: Tensor) -> Tensor:
        """Return how far ws `[N, num_ws, w_dim]` are from the right end, `[N]`; the middle is 1."""
        place = ws.flatten(1) @ self.place_map + self.place_bias
        return (1 - place).clamp(LEAST_WAY, MOST_WAY)

    def full(self, ws: Tensor) -> Tensor:
        """Return what the slider at its right end adds to ws, of the same shape."""
        return FULL * self.ways(ws)[:, None, None] * self.step

    def entry(self) -> dict:
        """Return what the file says of it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "low": -FULL,
            "high": FULL,
            "step": STEP,
            "groups": list(self.groups),
        }


def slider_name(tag: str) -> str:
    """Turn a tag into a slider's name: `blonde_hair` → `hair-blonde`, `long_hair` → `long-hair`."""
    words = tag.lower().split("_")
    if family(tag) in ("hair", "eyes"):
        words = [words[-1], *words[:-1]]
    return "-".join(words)


def family(tag: str) -> str:
    """Name the tags that exclude each other with this one: hair colour, eye colour, hair length."""
    first, _, part = tag.rpartition("_")
    if part == "hair" and first in ("long", "short"):
        return "length"
    return part if part in ("hair", "eyes") and first else tag


def families(tags: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of the tags of each family."""
    found: dict[str, list[int]] = {}
    for index, tag in enumerate(tags):
        found.setdefault(family(tag), []).append(index)
    return found


@dataclass(frozen=True)
class Workshop:
    """What one direction after another is fitted with.

    Attributes:
        probe: faces to measure on.
        tried: faces to descend on.
        weight, bias: linear maps `[L, D]` and `[L]` from u to logits as shares of their gaps.
    """

    probe: Probe
    tried: Faces
    at: Coordinates
    weight: Tensor
    bias: Tensor

    def fit(self, index: int) -> Direction:
        """Fit the direction of one tag."""
        tag = self.probe.reader.tags[index]
        limited = family(tag) in COLOUR_GROUPS
        names = tuple(name for name in self.at.groups if name in COLOURED or not limited)
        direction = fit_tag(self.probe, self.tried, self.at, self.weight, self.bias, index, names)
        if not lone(self.probe.reader.tags, tag):
            shorten(self.probe, direction, index)
        return direction


_workshop: list[Workshop] = []  # of a process that fits tags for another


def _enter(G: Generator, reader: TagReader, at: Coordinates, linear: tuple, careful: int) -> None:
    """Set up a process that fits tags."""
    torch.set_num_threads(1)
    _workshop[:] = [open_workshop(G, reader, at, linear, careful)]


def _fit_one(index: int) -> Direction:
    """Fit one tag in such a process."""
    return _workshop[0].fit(index)


def open_workshop(
    G: Generator, reader: TagReader, at: Coordinates, linear: tuple, careful: int
) -> Workshop:
    """Draw the faces that directions are fitted with."""
    tried = Probe(G, reader, TRIED, TRIED_SEED).faces(at)
    return Workshop(Probe(G, reader, careful), tried, at, *linear)


def fit_attributes(
    G: Generator, reader: TagReader, at: Coordinates, linear: tuple, *, careful: int, workers: int
) -> tuple[list[Direction], list[Direction]]:
    """Fit one direction for each tag; each is the same whichever process fits it.

    Args:
        at: coordinates of the weights.
        linear: see `Workshop`.
        careful: faces to measure on.
        workers: processes; 1 is this one.
    Returns:
        the directions, and those that the generator cannot express.
    """
    count, setup = len(reader.tags), (G, reader, at, linear, careful)
    if workers == 1:
        found = map(open_workshop(*setup).fit, range(count))
        fitted = list(tqdm(found, "fitting", count, disable=None))
    else:
        spawn = get_context("spawn")
        with ProcessPoolExecutor(workers, spawn, _enter, setup) as pool:
            found = pool.map(_fit_one, range(count))
            fitted = list(tqdm(found, "fitting", count, disable=None))
    good = [direction for direction in fitted if direction.seen >= LEAST_SEEN]
    return good, [direction for direction in fitted if direction.seen < LEAST_SEEN]


def lone(tags: Sequence[str], tag: str) -> bool:
    """Say whether a tag excludes no other. Such ones, as smile or hat, are read less surely.

    What satisfies one reader does not yet satisfy another, so their steps are kept long.
    """
    return len(families(tags)[family(tag)]) == 1


def others_of(tags: Sequence[str], tag: str) -> list[int]:
    """Return the indices of the tags that can go with this one."""
    return [k for k, other in enumerate(tags) if family(other) != family(tag)]


def fit_tag(
    probe: Probe,
    tried: Faces,
    at: Coordinates,
    weight: Tensor,
    bias: Tensor,
    index: int,
    names: tuple[str, ...],
) -> Direction:
    """Fit the direction of one tag in some groups of layers.

    The slider's middle is between typical faces without and with the tag, and its end a little
    beyond the latter. Each face walks from where the linear map sees it; what holds the step back
    is eased until nearly all faces arrive.
    """
    reader = probe.reader
    tag = reader.tags[index]
    others, gap, low = others_of(reader.tags, tag), gaps(reader)[index], reader.typical[0, index]
    middle = low / gap + 0.5
    place_map, place_bias = at.flatten(weight[[index]] / HALF, (bias[[index]] - middle) / HALF)
    step = HALF * at.decode(solve_steps(weight[[index]], weight[others], at.mask(names)))[0]
    direction = Direction(
        slider_name(tag), "attribute", names, step / FULL, place_map[0], place_bias[0]
    )
    alone = lone(reader.tags, tag)
    for turn, ease in enumerate(LONE_EASES if alone else EASES):
        step = refine_tag(
            tried,
            step,
            direction.ways(tried.ws),
            index=index,
            others=others,
            recoloured=family(tag) in COLOUR_GROUPS,
            target=float(low + REACH * gap),
            ease=ease,
            steps=REFINE_STEPS // (2 if turn else 1),
        )
        direction.step = step / FULL
        direction.seen = measure(probe, direction, index)
        if direction.seen >= (LONE_ENOUGH if alone else ENOUGH):
            break
    return direction


def measure(probe: Probe, direction: Direction, index: int) -> float:
    """Return in which share of the faces the probe's reader sees a tag at full slider."""
    _, logits, _ = probe.move(direction.full(probe.ws))
    return (logits[:, index] > 0).float().mean().item()


def shorten(probe: Probe, direction: Direction, index: int) -> None:
    """Take from a step what more than PLENTY of the faces do not need."""
    while direction.seen > PLENTY:
        step, seen = direction.step, direction.seen
        direction.step = SHORTER * step
        direction.seen = measure(probe, direction, index)
        if direction.seen < PLENTY:
            direction.step, direction.seen = step, seen
            return


def drop_unseen(fitted: Fitted, G: Generator, judge: TagReader, count: int) -> None:
    """Move sliders that another reader finds at fault to the weak ones, with the reason.

    A step may please the reader that it was fitted with and still draw nothing that another one
    would call by that name, or just so, where a person would not: glasses, where the generator has
    never drawn any; or draw another thing, pink hair for pink eyes, or another face.
    """
    probe = Probe(G, judge, count)
    columns = {slider_name(tag): k for k, tag in enumerate(judge.tags)}
    for direction in [d for d in fitted.directions if d.name in columns]:
        lengthen(direction, probe)
        direction.fault = find_fault(direction, probe, columns[direction.name])
        if direction.fault:
            fitted.directions.remove(direction)
            fitted.weak.append(direction)


def lengthen(direction: Direction, probe: Probe) -> None:
    """Let a slider go farther while its faces stay near to themselves, as the probe's reader sees.

    The builder is sure of an eye's colour before others are; where a longer step costs little of
    the face, it goes on. What the reader takes the tag for has no part in this.
    """
    step = direction.step
    for times in range(1, round(math.log(LONGEST, LONGER)) + 1):
        direction.step = LONGER**times * step
        if change(probe, probe.move(direction.full(probe.ws))[0]) > ROOM:
            direction.step = LONGER ** (times - 1) * step
            return


def change(probe: Probe, images: Tensor) -> float:
    """Return how far the probe's faces are from `images`, as a share of the way to another one."""
    before = probe.looks
    return distance(before, look(probe.reader, images)) / distance(before, before.roll(1, 0))


def find_fault(direction: Direction, probe: Probe, index: int) -> str:
    """Say why the probe's reader would not have a slider of its tag `index`, "" if it would."""
    images, logits, _ = probe.move(direction.full(probe.ws))
    tags = probe.reader.tags
    share = (logits[:, index] > 0).float().mean().item()
    direction.seen = min(direction.seen, share)
    clear = (logits[:, index] > CLEAR * probe.reader.typical[1, index]).float().mean().item()
    others = others_of(tags, tags[index])
    flipped = ((logits > 0) != (probe.logits > 0)).float().mean(0)[others]
    changed = change(probe, images)
    if share < LEAST_SEEN:
        return f"another reader sees it in {share:.0%}"
    if clear < LEAST_CLEAR:
        return f"another reader sees it clearly in {clear:.0%}"
    if flipped.max() > MOST_FLIPPED:
        return f"{tags[others[flipped.argmax()]]} flips in {flipped.max():.0%}"
    return f"the face changes by {changed:.2f} of another" if changed > MOST_CHANGED else ""


@torch.inference_mode()
def look(reader: TagReader, images: Tensor) -> Tensor:
    """Return what a reader reads tags from, one row for each image."""
    return torch.cat([reader.see(batch)[0].flatten(1) for batch in images.split(BATCH)])


def distance(a: Tensor, b: Tensor) -> float:
    """Return the mean distance of two sets of rows, one to one."""
    return (a - b).norm(dim=1).mean().item()


# ------------------------------------------------------------------------------------------
# Directions without a name


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
    convolutions = []
    for block in G.blocks.values():
        convolutions += [conv for conv in (block.conv0, block.conv1) if conv is not None]
    affines = [conv.affine for conv in convolutions]
    # Without the gain of the convolution, which demodulation takes out again.
    return [layer.weight.detach() * (layer.weight_gain / layer.gain) for layer in affines]


def explore(
    probe: Probe, at: Coordinates, kind: str, steps: Iterator, count: int
) -> Iterator[Direction]:
    """Scale unnamed steps to equal visible change, and turn them so that pictures grow lighter.

    One that would have to leave what seeds draw for that changes less.
    """
    for index, (groups, step) in enumerate(steps):
        length = at.lengths(step).max().item()
        scale = 2 / length
        for _ in range(3):
            images, _, change = probe.move(at.decode(step * scale)[0], count)
            scale *= min(2.0, max(0.5, VISIBLE / max(change, 1e-3)))
            scale = min(scale, FARTHEST / length)
        lighter = (images - probe.images[:count]).mean() >= 0
        ws = at.decode(step * scale)[0] * (1 if lighter else -1) / FULL
        nowhere = torch.zeros(ws.numel())  # every face stands in the middle
        yield Direction(f"{kind}-{index + 1}", kind, groups, ws, nowhere, torch.zeros(()))


# ------------------------------------------------------------------------------------------
# Colours of hair and eyes


@dataclass
class ColourFit:
    """What the file holds of one part: see the reader in studio/directions.py."""

    weight: Tensor  # [3, num_ws * w_dim]
    bias: Tensor  # [3]
    step: Tensor  # [3, num_ws, w_dim]
    mean: Tensor  # [3]
    bounds: Tensor  # [3, 3]
    aim: Tensor  # [3, 10]


def fit_colours(
    probe: Probe, at: Coordinates, samples: Samples, weight: Tensor, palette: Palette
) -> dict[str, ColourFit]:
    """Fit, for each part, the map from ws to its colour, the steps that move it, and its bounds.

    The map is fitted a second time, also to faces that were moved along the steps, so that it tells
    the truth where an edit leads. Where a linear map cannot, the aim makes up for it: faces are
    moved to colours by the map, and what to ask of it is fitted to what they got.
    """
    tags = probe.reader.tags
    kin = families(tags)
    tried = Probe(probe.G, probe.reader, TRIED, TRIED_SEED).faces(at)
    colours = palette.measure(floats(samples.images))
    maps = {part: fit_linear(samples.u, colour) for part, colour in colours.items()}
    fits = {}
    for part, (rows, bias) in maps.items():
        others = [k for name, ks in kin.items() if name != part for k in ks]
        rest = [weight[others], *(4 * maps[p][0] for p in maps if p != part)]
        steps = at.decode(solve_steps(rows, torch.cat(rest), at.mask(COLOUR_GROUPS[part])))
        steps = refine_colour(
            tried,
            steps,
            at.encode(tried.ws) @ rows.T + bias,
            part=part,
            palette=palette,
            targets=colours[part],
            others=others,
            steps=COLOUR_STEPS,
        )
        mean = colours[part].mean(0)
        moves = Moves(probe, at, steps, palette, part, colours[part])
        u, _, moved = moves.draw((rows, bias), seed=1)
        times = max(1, round(MOVED_WEIGHT * len(samples.u) / len(u)))
        both = torch.cat([samples.u, *[u] * times]), torch.cat([colours[part], *[moved] * times])
        linear = fit_linear(*both)
        _, asked, got = moves.draw(linear, seed=2)
        aim = fit_aim(asked - mean, got - mean)
        root = torch.linalg.cholesky(torch.cov(colours[part].T) + 1e-6 * torch.eye(3))
        fits[part] = ColourFit(*at.flatten(*linear), steps, mean, torch.linalg.inv(root), aim)
    return fits


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
    steps: Tensor  # [3, num_ws, w_dim]
    palette: Palette
    part: str
    colours: Tensor  # [N, 3], of other faces

    def draw(self, seen_by: tuple[Tensor, Tensor], *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Move each face MOVED times, as a linear map from u sees it.

        Returns:
            u `[M, D]` after it, the colours asked for and those that the part got, `[M, 3]`.
        """
        rng = torch.Generator().manual_seed(seed)
        ws = self.probe.ws.repeat(MOVED, 1, 1)
        far = WIDE[0] + (WIDE[1] - WIDE[0]) * torch.rand(len(ws), 1, generator=rng)
        mean = self.colours.mean(0)
        some = self.colours[torch.randint(len(self.colours), (len(ws),), generator=rng)]
        asked = mean + far * (some - mean)
        rows, bias = seen_by
        ways = asked - (self.at.encode(ws) @ rows.T + bias)
        ws = ws + torch.einsum("nc,cld->nld", ways, self.steps)
        return (
            self.at.encode(ws),
            asked,
            self.palette.measure(draw(self.probe.G, ws, SIZE))[self.part],
        )


# ------------------------------------------------------------------------------------------
# The file


@dataclass
class Fitted:
    """All that was fitted to one generator."""

    directions: list[Direction]
    weak: list[Direction]  # tags that the generator cannot express; not in the file
    colours: dict[str, ColourFit]
    palette: Palette

    def save(self, path: Path, generator: str) -> None:
        """Write the file, whole or not at all.

        Args:
            path: of the file.
            generator: SHA-256 of the generator's `model.safetensors`, 64 hex digits.
        """
        tensors = {
            "directions": torch.stack([d.step for d in self.directions]),
            "place_map": torch.stack([d.place_map for d in self.directions]),
            "place_bias": torch.stack([d.place_bias for d in self.directions]),
        }
        for part, colour in self.colours.items():
            tensors[f"colour_map.{part}"] = colour.weight
            for name in ("bias", "step", "mean", "bounds", "aim"):
                tensors[f"colour_{name}.{part}"] = getattr(colour, name)
        metadata = {
            "format": FORMAT,
            "generator": generator,
            "entries": json.dumps([d.entry() for d in self.directions]),
        }
        tensors = {name: t.float().cpu().contiguous() for name, t in tensors.items()}
        part = path.with_suffix(".part")
        save_file(tensors, part, metadata=metadata)
        part.chmod(0o644)  # safetensors makes files for the owner alone
        part.replace(path)


def fit(
    G: Generator, reader: TagReader, *, samples: int, quick: int, careful: int, workers: int = 1
) -> Fitted:
    """Fit everything to one generator.

    Args:
        G: a generator with w, in evaluation mode.
        reader: the builder.
        samples: faces to draw for the fits.
        quick: faces that an unnamed direction's unit is measured on.
        careful: faces that named ones are measured on.
        workers: processes that fit tags.
    """
    at = Coordinates.of(G)
    drawn = Samples.draw(G, reader, at, samples)
    weight, bias = fit_linear(drawn.u, drawn.logits / gaps(reader))
    good, weak = fit_attributes(G, reader, at, (weight, bias), careful=careful, workers=workers)
    probe = Probe(G, reader, max(quick, careful))
    named = {part: ks for part, ks in families(reader.tags).items() if part in COLOUR_GROUPS}
    count = min(samples, REGION_FACES)
    palette = find_regions(floats(drawn.images[:count]), drawn.logits[:count], named)
    colours = fit_colours(probe, at, drawn, weight, palette)
    ways = {
        "principal": principal_steps(at, EXPLORERS),
        "closed-form": closed_form_steps(G, at, EXPLORERS),
    }
    for kind, steps in ways.items():
        good += explore(probe, at, kind, steps, quick)
    return Fitted(good, weak, colours, palette)


def open_generator(folder: Path) -> tuple[Generator, str]:
    """Load a generator and the SHA-256 of its weights, or raise ModelError."""
    G = load_network(folder)
    if not isinstance(G, Generator) or G.img_channels != 3:
        raise ModelError(f"{folder} holds no generator of coloured faces with a w to move in")
    digest = hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest()
    return G.requires_grad_(False), digest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m training.directions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, default=BUNDLED, help="generator's folder (default: bundled)")
    add("--reader", type=Path, default=ASSETS / "builder", help="folder of the reader of tags")
    add("--judge", type=Path, default=ASSETS / "judge", help="another reader, which must agree")
    add("--out", type=Path, help=f"file to write (default: {FILE_NAME} beside the weights)")
    add("--samples", type=int, default=10_000, help="faces to draw (default: %(default)s)")
    add("--quick", type=int, default=64, help="faces that unnamed directions are scaled on")
    add("--careful", type=int, default=96, help="faces that named ones are measured on")
    add("--workers", type=int, default=1, help="processes that fit (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, not {options.workers}")
    keep_freed_memory()
    start = time.perf_counter()
    try:
        G, digest = open_generator(options.model)
        fitted = fit(
            G,
            open_reader(options.reader),
            samples=options.samples,
            quick=options.quick,
            careful=options.careful,
            workers=options.workers,
        )
        drop_unseen(fitted, G, open_reader(options.judge), options.careful)
        path = options.out or options.model / FILE_NAME
        fitted.save(path, digest)
    except (ModelError, OSError) as error:
        print(f"directions: {error}", file=sys.stderr)
        return 2
    for direction in fitted.directions:
        print(f"{direction.name:16} {'+'.join(direction.groups):20} {direction.seen:.0%}")
    for direction in fitted.weak:
        print(f"{direction.name:16} left out: {direction.fault or f'seen in {direction.seen:.0%}'}")
    print(f"{len(fitted.directions)} directions in {time.perf_counter() - start:.0f} s: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
