"""Directions in w that change what they are called after, fitted to one generator.

    python -m training.directions                                   # for the bundled generator
    python -m training.directions --model runs/mine/generator       # writes into that folder

Some ten thousand faces are drawn and read by the builder of `training.attributes`. Half of them
take their coarse, middle and fine styles from three different seeds, so that one linear fit tells
what each group of layers does by itself. From it come, in a file beside the weights:

- one direction for each tag: the likeliest step in w (Gaussian in w) that raises the tag's logit
  while those of all other tags stay, then refined by descent through generator and reader; in the
  groups of layers that measure best;
- principal directions of w (Härkönen et al. 2020, arXiv 2004.02546) and closed-form ones of the
  style weights (Shen & Zhou 2021, arXiv 2007.06600), scaled to equal visible change;
- maps from ws to the mean colour of hair and of eyes, and steps that move it.

Everything is a function of the weights and the reader: another run writes the same numbers, up to
the rounding of other machines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

BUNDLED = ASSETS.parent / "generator"
FILE_NAME = "directions.safetensors"
FORMAT = "kaogan-directions-1"
FULL = 2.0  # slider units at the end of a slider
STEP = 0.1  # slider units between two stops

FIRST_SEED = 2**31  # of the faces that are fitted to; people and benchmarks start at 0
PROBE_SEED = 2**31 + 2**30  # of the faces that steps are measured on
BATCH = 32  # faces drawn at once
RIDGE = 0.02  # of the fit, in units of the variance of whitened w
PROJECTION = 30.0  # weight of another tag's move against the step's length
REACH = 1.5  # gaps by which a full slider moves a tag's mean logit
REFINE_STEPS, REFINE_FACES, REFINE_RATE = 30, 16, 0.15  # of Adam, on a step in u
HOLD = 2.0  # weight of a flip of another tag against the tag's own
CHANGE = 0.15  # weight of the picture's change against the tag's own
LONGEST = 8.0  # of a full slider's step in one layer, in standard deviations of w
LEAST_SEEN = 0.2  # of faces in which another reader must see the tag at full slider
LEAST_GAIN = 0.35  # share of the way to a face with the tag, below which there is no slider
VISIBLE = 0.5  # of the difference of two faces: what an unnamed full slider changes
EXPLORERS = 6  # principal directions, and as many closed-form ones
REGION_FACES = 3000  # that the regions of hair and eyes are found in
COLOUR_SPREAD = 0.25  # Lab / 100, of the colour moves that the maps are fitted to
COLOUR_GROUPS = {"hair": ("middle", "fine"), "eyes": ("middle", "fine")}
MASKS = (
    ("fine",),
    ("middle", "fine"),
    ("middle",),
    ("coarse", "middle"),
    ("coarse",),
    ("coarse", "middle", "fine"),
)


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
def draw(G: Generator, ws: Tensor) -> Tensor:
    """Draw faces `[N, 3, 64, 64]` in [-1, 1], rounded to bytes as people see them."""
    batches = (quantise(G.synthesis(part)).float() / 127.5 - 1 for part in ws.split(BATCH))
    return torch.cat([resize(batch, SIZE) for batch in batches])


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
            faces = draw(G, ws)
            u.append(at.encode(ws))
            logits.append(read(reader, faces))
            images.append(quantise(faces))
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

    def __init__(self, G: Generator, reader: TagReader, count: int) -> None:
        self.G, self.reader = G, reader
        z = latents_from_seeds(range(PROBE_SEED, PROBE_SEED + count), G.z_dim)
        with torch.inference_mode():
            self.ws = G.mapping(z.to(G.w_avg.device), 0.7).contiguous()
        self.images = draw(G, self.ws)
        self.logits = read(reader, self.images)
        self.spread = (self.images - self.images.roll(1, 0)).square().mean().sqrt().item()

    def move(self, step: Tensor, count: int | None = None) -> tuple[Tensor, Tensor, float]:
        """Add a step `[num_ws, w_dim]` to the first `count` faces.

        Returns:
            images and logits after it, and the root mean square change as a share of `spread`.
        """
        images = draw(self.G, self.ws[:count] + step)
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
    step: Tensor  # [num_ws, w_dim], one slider unit
    gain: float = 1.0  # at full slider, share of the way to a face with the tag

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


def gaps(reader: TagReader) -> Tensor:
    """Return for each tag how far the logits of typical faces without and with it lie apart."""
    return (reader.typical[1] - reader.typical[0]).clamp(min=0.5)


def fit_attributes(
    probe: Probe, at: Coordinates, weight: Tensor, *, quick: int, careful: int
) -> tuple[list[Direction], list[Direction]]:
    """Fit one direction for each tag.

    Args:
        probe: faces to measure on.
        at: coordinates of the weights.
        weight: linear maps `[L, D]` from u to logits as shares of their gaps.
        quick: faces that each group of layers is tried on.
        careful: faces that the unit is calibrated on.
    Returns:
        the directions, and those that the generator cannot express.
    """
    tags = probe.reader.tags
    kin = families(tags)
    good, weak = [], []
    for index, tag in enumerate(tqdm(tags, desc="fitting", disable=None)):
        others = [k for k in range(len(tags)) if k not in kin[family(tag)]]
        trials = {
            names: solve_steps(weight[[index]], weight[others], at.mask(names))
            for names in MASKS
            if set(names) <= set(at.groups)
        }
        groups = choose_groups(probe, at, trials, index, others, quick)
        refined = {
            names: refine(probe, at, limit(trials[names], at), index, others)
            for names in dict.fromkeys((groups, tuple(at.groups)))
        }
        groups = choose_groups(probe, at, refined, index, others, quick)
        direction = calibrate(probe, at, refined[groups], index, careful)
        direction.name, direction.groups = slider_name(tag), groups
        (good if direction.gain >= LEAST_GAIN else weak).append(direction)
    return good, weak


def refine(probe: Probe, at: Coordinates, step: Tensor, index: int, others: list[int]) -> Tensor:
    """Descend from a full slider's linear step `[1, D]` through generator and reader.

    The linear fit knows how tags go with w on the whole; this sees what one step does to faces. It
    stays within the coordinates that the step uses, and one step serves all faces, which leaves
    little room for patterns that please this reader alone.
    """
    reader, spread = probe.reader, probe.spread
    used = step != 0
    target = reader.typical[0][index] + REACH * gaps(reader)[index]
    scale, other_scale = gaps(reader)[index], gaps(reader)[others]
    ws, before = probe.ws.clone(), probe.logits.clone()  # no inference tensors: they are kept
    images = probe.images.clone()
    step = step.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([step], REFINE_RATE, betas=(0.8, 0.95))
    rng = torch.Generator().manual_seed(index)
    for _ in range(REFINE_STEPS):
        rows = torch.randperm(len(ws), generator=rng)[:REFINE_FACES]
        moved = probe.G.synthesis(ws[rows] + at.decode(step * used)[0]).clamp(-1, 1)
        moved = resize(moved, SIZE)
        logits = reader(moved)
        missing = torch.nn.functional.softplus(4 * (target - logits[:, index]) / scale) / 4
        strayed = (logits - before[rows])[:, others] / other_scale
        changed = (moved - images[rows]).square().mean() / spread**2
        loss = missing.mean() + HOLD * strayed.square().mean() + CHANGE * changed
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return limit((step * used).detach(), at)


def drop_unseen(fitted: Fitted, G: Generator, judge: TagReader, count: int) -> None:
    """Move sliders whose tag another reader hardly sees at full slider to the weak ones.

    A step may please the reader that it was fitted with and still draw nothing that another one
    would call by that name: glasses, where the generator has never drawn any.
    """
    probe = Probe(G, judge, count)
    columns = {slider_name(tag): k for k, tag in enumerate(judge.tags)}
    for direction in [d for d in fitted.directions if d.name in columns]:
        _, logits, _ = probe.move(FULL * direction.step)
        if (logits[:, columns[direction.name]] > 0).float().mean() < LEAST_SEEN:
            fitted.directions.remove(direction)
            fitted.weak.append(direction)


def choose_groups(
    probe: Probe,
    at: Coordinates,
    trials: dict[tuple[str, ...], Tensor],
    index: int,
    others: list[int],
    count: int,
) -> tuple[str, ...]:
    """Return the groups of layers in which a full slider does most of its own and least else."""
    before = probe.logits[:count] > 0
    scores = {}
    for names, step in trials.items():
        step = limit(step, at)
        _, logits, change = probe.move(at.decode(step)[0], count)
        gain = ((logits - probe.logits[:count])[:, index].mean() / gaps(probe.reader)[index]).item()
        flipped = ((logits > 0) != before)[:, others].float().mean().item()
        reached = (logits[:, index] > 0).float().mean().item()
        scores[names] = min(gain, 1.0) + reached - 2 * flipped - 0.5 * change
    return max(scores, key=scores.get)


def limit(step: Tensor, at: Coordinates) -> Tensor:
    """Shorten a full slider's step `[1, D]` to LONGEST in its longest group."""
    longest = at.lengths(step).max().item()
    return step * min(1.0, LONGEST / longest)


def calibrate(probe: Probe, at: Coordinates, step: Tensor, index: int, count: int) -> Direction:
    """Scale a step `[1, D]` so that a full slider moves the mean logit by REACH gaps of its tag.

    One unit is then about three quarters of the way from a typical face without the tag to a
    typical one with it. A step longer than LONGEST is cut there.
    """
    gap = REACH * gaps(probe.reader)[index].item()
    longest = LONGEST / at.lengths(step).max().item()
    scale = min(1.0, longest)
    for _ in range(3):
        _, logits, _ = probe.move(at.decode(step * scale)[0], count)
        gain = (logits - probe.logits[:count])[:, index].mean().item() / gap
        if abs(gain - 1) < 0.05 or (gain < 1 and scale >= longest):
            break
        scale = min(longest, scale * min(2.0, max(0.5, 1 / max(gain, 1e-3))))
    return Direction("", "attribute", (), at.decode(step * scale)[0] / FULL, gain)


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
    """Scale unnamed steps to equal visible change, and turn them so that pictures grow lighter."""
    for index, (groups, step) in enumerate(steps):
        scale = 2 / at.lengths(step).max().item()
        for _ in range(3):
            images, _, change = probe.move(at.decode(step * scale)[0], count)
            scale *= min(2.0, max(0.5, VISIBLE / max(change, 1e-3)))
        lighter = (images - probe.images[:count]).mean() >= 0
        ws = at.decode(step * scale)[0] * (1 if lighter else -1) / FULL
        yield Direction(f"{kind}-{index + 1}", kind, groups, ws)


# ------------------------------------------------------------------------------------------
# Colours of hair and eyes


@dataclass
class ColourFit:
    """What the file holds of one part: see the reader in studio/directions.py."""

    weight: Tensor  # [3, num_ws * w_dim]
    bias: Tensor  # [3]
    step: Tensor  # [3, num_ws, w_dim]


def fit_colours(
    probe: Probe, at: Coordinates, samples: Samples, weight: Tensor, palette: Palette
) -> dict[str, ColourFit]:
    """Fit, for each part, the map from ws to its colour and the steps that move it.

    The map is fitted twice: the second time also to faces that were moved along the first steps,
    so that it tells the truth where an edit will ask it.
    """
    tags = probe.reader.tags
    kin = families(tags)
    colours = palette.measure(floats(samples.images))
    maps = {part: fit_linear(samples.u, colour) for part, colour in colours.items()}
    fits = {}
    for part in maps:
        others = [weight[k] for name, ks in kin.items() if name != part for k in ks]
        rest = torch.stack([*others, *(4 * row for p in maps if p != part for row in maps[p][0])])
        allowed = at.mask(COLOUR_GROUPS[part])
        steps = solve_steps(maps[part][0], rest, allowed)
        u, colour = moved_faces(probe, at, steps, palette, part)
        both = fit_linear(
            torch.cat([samples.u, *[u] * 3]), torch.cat([colours[part], *[colour] * 3])
        )
        steps = solve_steps(both[0], rest, allowed)
        flat = at.encode_map(both[0])
        bias = both[1] - flat @ at.mean.repeat(at.num_ws)
        fits[part] = ColourFit(flat, bias, at.decode(steps))
    return fits


def moved_faces(
    probe: Probe, at: Coordinates, steps: Tensor, palette: Palette, part: str
) -> tuple[Tensor, Tensor]:
    """Move the probe's faces by random colour steps; return their u and the part's colours."""
    rng = torch.Generator().manual_seed(0)
    ways = torch.randn(len(probe.ws), 3, generator=rng) * COLOUR_SPREAD
    ws = probe.ws + at.decode(ways @ steps)
    return at.encode(ws), palette.measure(draw(probe.G, ws))[part]


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
        tensors = {"directions": torch.stack([d.step for d in self.directions])}
        for part, colour in self.colours.items():
            tensors[f"colour_map.{part}"] = colour.weight
            tensors[f"colour_bias.{part}"] = colour.bias
            tensors[f"colour_step.{part}"] = colour.step
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


def fit(G: Generator, reader: TagReader, *, samples: int, quick: int, careful: int) -> Fitted:
    """Fit everything to one generator.

    Args:
        G: a generator with w, in evaluation mode.
        reader: the builder.
        samples: faces to draw for the fits.
        quick, careful: see `fit_attributes`.
    """
    at = Coordinates.of(G)
    drawn = Samples.draw(G, reader, at, samples)
    weight, _ = fit_linear(drawn.u, drawn.logits / gaps(reader))
    probe = Probe(G, reader, max(quick, careful))
    good, weak = fit_attributes(probe, at, weight, quick=quick, careful=careful)
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
    add("--quick", type=int, default=64, help="faces for each choice of layers")
    add("--careful", type=int, default=192, help="faces for each calibration")
    options = parser.parse_args(arguments)
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
        )
        drop_unseen(fitted, G, open_reader(options.judge), options.careful)
        path = options.out or options.model / FILE_NAME
        fitted.save(path, digest)
    except (ModelError, OSError) as error:
        print(f"directions: {error}", file=sys.stderr)
        return 2
    for direction in fitted.directions:
        print(f"{direction.name:16} {'+'.join(direction.groups):20} {direction.gain:.2f}")
    print("left out:", ", ".join(f"{d.name} ({d.gain:.2f})" for d in fitted.weak) or "none")
    print(f"{len(fitted.directions)} directions in {time.perf_counter() - start:.0f} s: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
