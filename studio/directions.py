"""Named directions in w: read strictly from the file that `python -m fitting.directions` writes,
applied as pure functions.

`directions.safetensors` stands beside the generator's `model.safetensors` and names it by its
SHA-256. Tensors, float32, K the sliders that are plain steps, r the tags of a family:

    directions [K, num_ws, w_dim]          Δws of one slider unit
    family_map.F [r, num_ws * w_dim], family_bias.F [r]     ws → where a face stands in the family
    family_step.F [r, num_ws, w_dim]       Δws that moves each of these numbers by 1
    target.NAME [2, r]                     where a slider's left and right end lead
    colour_map.PART [3, num_ws * w_dim], colour_bias.PART [3]    ws → the part's mean colour
    colour_step.PART [3, num_ws, w_dim]    Δws that moves the colour by one unit of L, a, b
    colour_mean.PART [3], colour_bounds.PART [3, 3]              the colours that faces have
    colour_aim.PART [3, 10], where there is one    picked colour → the one to move to by the map

Colours are CIE Lab (D65) divided by 100; `colour_bounds` maps a colour's offset from the mean one
to standard deviations of generated faces; `colour_aim` maps the offset, its products and 1 to
another offset, since a map that is linear tells too much of strong colours. Metadata: `format`,
`generator` and `entries`, a JSON list of `{"name", "kind", "low", "high", "step", "groups",
"family"}`, one for each slider; the K with family "" come first.

Format 2, of the first release, has no families. Each slider is a step there, and `place_map`
`[K, num_ws * w_dim]` and `place_bias` `[K]` tell where a face stands already: -1 where its left end
leads, +1 where its right end does. One that stands at +1 has no way to go there, and one at -1
twice that of the middle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model import Generator
from studio.recipe import GROUPS, MAX_EDIT, NAME, Edit

FORMAT, FIRST_FORMAT = "kaogan-directions-3", "kaogan-directions-2"
KINDS = ("attribute", "principal", "closed-form")
MAX_ENTRIES = 64
MAX_PARTS = 4  # coloured parts of a face
MAX_TAGS = 32  # of a family
MAX_HEADER = 64 * 1024  # bytes
LEAST_WAY, MOST_WAY = 0.2, 2.5  # of a slider, in lengths of the way from its middle
FARTHEST = 5.0  # in units of colour_bounds: what is picked beyond is drawn at this distance
FARTHEST_AIM = 7.5  # likewise: no face is moved farther than this by the map
KEYS = {"name", "kind", "low", "high", "step", "groups"}  # of format 2; later ones have "family"


class DirectionsError(ValueError):
    """A directions file that cannot be used; the message is one sentence without a full stop."""


@dataclass(frozen=True)
class Slider:
    """What one direction is called and how far it may be pushed, in its own units."""

    name: str
    kind: str  # one of KINDS
    low: float
    high: float
    step: float
    groups: tuple[str, ...]  # the layers that it moves
    family: str = ""  # "": a plain step


@dataclass(frozen=True)
class Step:
    """A slider that adds a step: Δws of one unit and, in format 2, the face's place on it."""

    unit: Tensor  # [num_ws, w_dim]
    place_map: Tensor | None = None  # [num_ws * w_dim]
    place_bias: Tensor | None = None  # []

    def move(self, ws: Tensor, value: float, slider: Slider) -> Tensor:
        """Return what the slider at `value` adds to ws `[num_ws, w_dim]`."""
        if self.place_map is None or self.place_bias is None:
            return value * self.unit
        place = self.place_map @ ws.reshape(-1) + self.place_bias
        return way(value, place.item()) * self.unit


@dataclass(frozen=True)
class Lead:
    """A slider that leads a face from where it stands in a family to a target."""

    weight: Tensor  # [r, num_ws * w_dim]
    bias: Tensor  # [r]
    step: Tensor  # [r, num_ws, w_dim]
    targets: Tensor  # [2, r]

    def move(self, ws: Tensor, value: float, slider: Slider) -> Tensor:
        """Return what the slider at `value` adds to ws `[num_ws, w_dim]`."""
        right = value > 0
        share = value / slider.high if right else value / slider.low
        missing = self.targets[int(right)] - (self.weight @ ws.reshape(-1) + self.bias)
        return share * torch.einsum("r,rld->ld", missing, self.step)


@dataclass(frozen=True)
class Colour:
    """How the colour of one part of the face follows from ws, and how to move it."""

    weight: Tensor  # [3, num_ws * w_dim]
    bias: Tensor  # [3]
    step: Tensor  # [3, num_ws, w_dim]
    mean: Tensor  # [3]
    bounds: Tensor  # [3, 3]
    aim: Tensor  # [3, 10]

    def predict(self, ws: Tensor) -> Tensor:
        """Return the colour `[3]` (Lab / 100) that ws `[num_ws, w_dim]` should give the part."""
        return self.weight @ ws.reshape(-1) + self.bias

    def within(self, way: Tensor, farthest: float) -> Tensor:
        """Shorten an offset `[3]` from the mean colour to what is no farther."""
        return way * min(1.0, farthest / max((self.bounds @ way).norm().item(), 1e-6))

    def reachable(self, target: Tensor) -> Tensor:
        """Return the colour `[3]` nearest to `target` on the line to the mean that faces have."""
        return self.mean + self.within(target - self.mean, FARTHEST)

    def aimed(self, target: Tensor) -> Tensor:
        """Return the colour `[3]` that the map must foretell for the part to get `target`."""
        way = self.aim @ terms((self.reachable(target) - self.mean)[None])[0]
        return self.mean + self.within(way, FARTHEST_AIM)

    def move(self, ws: Tensor, target: Tensor) -> Tensor:
        """Return ws moved towards the colour `target` `[3]`, as far as there are such faces."""
        way = self.aimed(target) - self.predict(ws)
        return ws + torch.einsum("c,cld->ld", way, self.step)


def terms(way: Tensor) -> Tensor:
    """Return 1, offsets `[N, 3]` and their products with each other, `[N, 10]`."""
    first, second = torch.triu_indices(3, 3)
    products = way[:, first] * way[:, second]
    return torch.cat([torch.ones_like(way[:, :1]), way, products], 1)


@dataclass(frozen=True)
class Directions:
    """The sliders and colours of one generator.

    Attributes:
        sliders: by name, in the file's order.
        colours: by the part's name.
        moves: what each slider does, by its name.
    """

    sliders: dict[str, Slider]
    colours: dict[str, Colour]
    moves: dict[str, Step | Lead]

    def list_faults(self, edits: Sequence[Edit]) -> Iterator[tuple[Edit, str]]:
        """Yield each edit that cannot be done, with a sentence for people."""
        for edit in edits:
            if isinstance(edit.value, str):
                if edit.name not in self.colours:
                    yield edit, f"{edit.name} takes no colour here; {told(self.colours)}"
            elif edit.name not in self.sliders:
                yield edit, f"there is no slider {edit.name} here; {told(self.sliders)}"
            else:
                slider = self.sliders[edit.name]
                if not slider.low <= edit.value <= slider.high:
                    bounds = f"from {slider.low:g} to {slider.high:g}"
                    yield edit, f"{edit.name} takes a number {bounds}, not {edit.value:g}"

    def apply(self, ws: Tensor, edits: Sequence[Edit]) -> Tensor:
        """Return ws `[num_ws, w_dim]` after all edits: sliders first, then colours.

        Each slider's way is measured on the face as it was, so that their order does not matter.
        """
        before = ws
        for edit in edits:
            if not isinstance(edit.value, str):
                move, slider = self.moves[edit.name], self.sliders[edit.name]
                ws = ws + move.move(before, edit.value, slider)
        for edit in edits:
            if isinstance(edit.value, str):
                ws = self.colours[edit.name].move(ws, hex_to_lab(edit.value))
        return ws


def way(value: float, place: float) -> float:
    """Return how many units a slider at `value` moves a face that stands at `place`.

    The end it is pushed to is at +1 or -1; a face that is there already moves little.
    """
    return value * min(MOST_WAY, max(LEAST_WAY, 1 - math.copysign(1, value) * place))


def told(names: Any) -> str:
    """Name what there is."""
    return f"there are {', '.join(names)}" if names else "there are none"


def hex_to_lab(colour: str) -> Tensor:
    """Convert sRGB "#rrggbb" to CIE Lab (D65, 2°) / 100, `[3]`.

    Formulas and matrix: IEC 61966-2-1 and CIE 15.
    """
    srgb = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=torch.float64)
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ],
        dtype=torch.float64,
    )
    xyz = to_xyz @ linear / to_xyz.sum(1)  # relative to white
    f = torch.where(xyz > (6 / 29) ** 3, xyz.pow(1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lab = torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
    return (lab / 100).float()


# ------------------------------------------------------------------------------------------
# Reading


def largest_file(G: Generator) -> int:
    """Return the size in bytes that no directions file of a generator can exceed."""
    numbers = (2 * MAX_ENTRIES + 6 * MAX_PARTS) * G.num_ws * G.w_dim + MAX_ENTRIES + 45 * MAX_PARTS
    return MAX_HEADER + 4 * numbers


def read_directions(path: Path, G: Generator, generator: str) -> Directions:
    """Read a directions file that a stranger may have made.

    Args:
        path: the file.
        G: the generator it must fit.
        generator: SHA-256 of that generator's `model.safetensors`, 64 hex digits.
    Raises:
        DirectionsError: larger than it can be, unreadable, of another generator, or any entry,
            tensor or number that does not fit.
    """
    if not G.num_ws:
        raise DirectionsError("this generator has no w, so it has no directions")
    if not path.is_file() or path.stat().st_size > largest_file(G):
        raise DirectionsError("the directions file is larger than it can rightly be")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())  # noqa: SIM118
            check_metadata(metadata, generator)
            sliders = read_sliders(metadata)
            first = metadata["format"] == FIRST_FORMAT
            sizes = {} if first else family_sizes(file, names)
            shapes = expected_shapes(names, sliders, sizes, G, first)
            tensors = {name: read_tensor(file, name, shape) for name, shape in shapes.items()}
    except (SafetensorError, OSError):
        raise DirectionsError("the directions file is not readable as safetensors") from None
    parts = [name.partition(".")[2] for name in names if name.startswith("colour_map.")]
    if clash := sorted(set(parts) & set(sliders)):
        raise DirectionsError(f"in the directions file {clash[0]} is both a slider and a colour")
    straight = torch.eye(10)[1:4]  # the aim of a file without one: the picked colour itself
    colours = {
        part: Colour(
            tensors[f"colour_map.{part}"],
            tensors[f"colour_bias.{part}"],
            tensors[f"colour_step.{part}"],
            tensors[f"colour_mean.{part}"],
            tensors[f"colour_bounds.{part}"],
            tensors.get(f"colour_aim.{part}", straight),
        )
        for part in sorted(parts, reverse=True)  # hair before eyes
    }
    return Directions(sliders, colours, read_moves(sliders, tensors))


def read_moves(sliders: dict[str, Slider], tensors: dict[str, Tensor]) -> dict[str, Step | Lead]:
    """Return what each slider does, from tensors of the right shapes."""
    moves: dict[str, Step | Lead] = {}
    for index, (name, slider) in enumerate(sliders.items()):
        if slider.family:
            weight, bias, step = (
                tensors[f"family_{part}.{slider.family}"] for part in ("map", "bias", "step")
            )
            moves[name] = Lead(weight, bias, step, tensors[f"target.{name}"])
        elif "place_map" in tensors:
            places = (tensors[part][index] for part in ("place_map", "place_bias"))
            moves[name] = Step(tensors["directions"][index], *places)
        else:
            moves[name] = Step(tensors["directions"][index])
    return moves


def check_metadata(metadata: dict[str, str], generator: str) -> None:
    """Raise DirectionsError unless the file is of our format and of this generator."""
    if metadata.get("format") not in (FORMAT, FIRST_FORMAT):
        raise DirectionsError(f"the directions file is not of the format {FORMAT}")
    if metadata.get("generator") != generator:
        raise DirectionsError(
            "the directions file belongs to another generator; make a new one with "
            "python -m fitting.directions"
        )


def read_sliders(metadata: dict[str, str]) -> dict[str, Slider]:
    """Read the metadata's list of entries."""
    try:
        entries = json.loads(metadata.get("entries", ""))
    except (ValueError, RecursionError):
        raise DirectionsError("the entries of the directions file are no JSON") from None
    if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
        raise DirectionsError(f"the directions file must list at most {MAX_ENTRIES} entries")
    keys = KEYS if metadata["format"] == FIRST_FORMAT else KEYS | {"family"}
    sliders = [read_slider(entry, at, keys) for at, entry in enumerate(entries)]
    found = {slider.name: slider for slider in sliders}
    if len(found) < len(sliders):
        raise DirectionsError("the directions file names two entries alike")
    return found


def read_slider(entry: Any, at: int, keys: set[str]) -> Slider:
    """Read one entry, the one at index `at`."""
    if not isinstance(entry, dict) or set(entry) != keys:
        listed = ", ".join(sorted(keys))
        raise DirectionsError(f"entry {at} of the directions file must have {listed}")
    name, groups = entry["name"], entry["groups"]
    if not isinstance(name, str) or len(name) > 40 or not NAME.fullmatch(name):
        raise DirectionsError(f"entry {at} of the directions file has no usable name")
    if entry["kind"] not in KINDS:
        raise DirectionsError(f"{name} in the directions file is of an unknown kind")
    if not isinstance(groups, list) or not groups or not all(g in GROUPS for g in groups):
        raise DirectionsError(f"{name} in the directions file has unknown layer groups")
    low, high, step = (entry[key] for key in ("low", "high", "step"))
    if not all(type(v) in (int, float) and math.isfinite(v) for v in (low, high, step)):
        raise DirectionsError(f"{name} in the directions file has a range that is no numbers")
    if not (-MAX_EDIT <= low <= 0 <= high <= MAX_EDIT and low < high and 0 < step <= high - low):
        raise DirectionsError(f"{name} in the directions file has an impossible range")
    family = entry.get("family", "")
    if family and (not isinstance(family, str) or len(family) > 40 or not NAME.fullmatch(family)):
        raise DirectionsError(f"{name} in the directions file has no usable family")
    return Slider(name, entry["kind"], float(low), float(high), float(step), tuple(groups), family)


def family_sizes(file: Any, names: list[str]) -> dict[str, int]:
    """Return how many numbers tell a face's place in each family."""
    biases = [name for name in names if name.startswith("family_bias.")][:MAX_ENTRIES]
    sizes = {name.partition(".")[2]: file.get_slice(name).get_shape() for name in biases}
    if not all(len(s) == 1 and 1 <= s[0] <= MAX_TAGS for s in sizes.values()):
        raise DirectionsError(f"a family in the directions file has 1 to {MAX_TAGS} tags")
    if sum(s[0] for s in sizes.values()) > MAX_ENTRIES:
        raise DirectionsError(
            f"the families in the directions file have at most {MAX_ENTRIES} tags"
        )
    return {name: shape[0] for name, shape in sizes.items()}


def expected_shapes(
    names: list[str],
    sliders: dict[str, Slider],
    sizes: dict[str, int],
    G: Generator,
    first: bool,
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the file's tensors must have; its names must be just these.

    Args:
        names: of the file's tensors.
        sizes: numbers of each family.
        first: whether the file is of format 2.
    """
    flat = G.num_ws * G.w_dim
    steps = [slider for slider in sliders.values() if not slider.family]
    if list(sliders.values())[: len(steps)] != steps:
        raise DirectionsError("the sliders without a family must come first in the directions file")
    if {slider.family for slider in sliders.values()} - {""} != set(sizes):
        raise DirectionsError("the directions file lacks a family, or has an unknown one")
    shapes: dict[str, tuple[int, ...]] = {"directions": (len(steps), G.num_ws, G.w_dim)}
    if first:
        shapes |= {"place_map": (len(steps), flat), "place_bias": (len(steps),)}
    for family, size in sizes.items():
        shapes[f"family_map.{family}"] = (size, flat)
        shapes[f"family_bias.{family}"] = (size,)
        shapes[f"family_step.{family}"] = (size, G.num_ws, G.w_dim)
    for slider in sliders.values():
        if slider.family:
            shapes[f"target.{slider.name}"] = (2, sizes[slider.family])
    shapes |= colour_shapes(names, G)
    if set(names) != set(shapes):
        raise DirectionsError("the directions file lacks a tensor, or has an unknown one")
    return shapes


def colour_shapes(names: list[str], G: Generator) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of coloured parts."""
    parts = [name.partition(".")[2] for name in names if name.startswith("colour_map.")]
    if len(parts) > MAX_PARTS or not all(len(p) <= 40 and NAME.fullmatch(p) for p in parts):
        raise DirectionsError("the directions file colours parts that cannot be")
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        shapes[f"colour_map.{part}"] = (3, G.num_ws * G.w_dim)
        shapes[f"colour_bias.{part}"] = (3,)
        shapes[f"colour_step.{part}"] = (3, G.num_ws, G.w_dim)
        shapes[f"colour_mean.{part}"] = (3,)
        shapes[f"colour_bounds.{part}"] = (3, 3)
        if f"colour_aim.{part}" in names:
            shapes[f"colour_aim.{part}"] = (3, 10)
    return shapes


def read_tensor(file: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """Read one float32 tensor of just this shape, all of it finite."""
    view = file.get_slice(name)
    if tuple(view.get_shape()) != shape or view.get_dtype() != "F32":
        raise DirectionsError(f"tensor {name} of the directions file is not {list(shape)} float32")
    tensor = file.get_tensor(name)
    if not torch.isfinite(tensor).all():
        raise DirectionsError(f"tensor {name} of the directions file holds no finite numbers")
    return tensor
