"""Sliders and colours for one generator: directions in w, named after what they change.

    python -m fitting.directions                                   # for the bundled generator
    python -m fitting.directions --model runs/mine/generator       # writes into that folder

Ten thousand faces are drawn and read by the builder of `fitting.attributes`. Half of them take
their coarse, middle and fine styles from three different seeds, so that one ridge regression of
what the reader sees on w tells what each group of layers does by itself. All else follows from it:

- Tags that exclude each other form a family: the colours of hair, those of eyes, the lengths of
  hair. A slider moves a face from where the map sees it in its family to a target: the mean of the
  faces that have the tag, taken a little farther or less far. The way there is the shortest one (in
  standard deviations of w) that leaves what the map sees of all other families as it is.
- Each family uses those groups of layers that keep its faces nearest to themselves, and each target
  is the nearest one at which nearly all faces have their tag.
- A picked colour is reached in the same way: hair and eyes are families of L, a and b.
- Directions without a name: see `fitting.unnamed`.

The command leaves out a slider whose tag another reader, the judge, does not see.
"""

from __future__ import annotations

import argparse
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

from fitting.colours import find_regions
from fitting.generator import BUNDLED, open_generator
from fitting.latent import Coordinates, Probe, Samples, fit_linear, solve_steps
from fitting.readers import READERS, TagReader, open_reader
from fitting.recolour import ColourFit, fit_colours
from fitting.unnamed import Unnamed, find_unnamed
from model import Generator, ModelError, dequantise, keep_freed_memory

FILE_NAME = "directions.safetensors"
FORMAT = "kaogan-directions-3"
FULL = 2.0  # slider units at the end of a slider
STEP = 0.1  # slider units between two stops

COLOURED = ("hair", "eyes")  # families that are colours of a part of the face
COLOUR_GROUPS = ("middle", "fine")  # layers that may change them
# Sets of layer groups to choose from.
GROUP_SETS = (("fine",), ("middle",), ("middle", "fine"), ("coarse", "middle", "fine"))
SHARES = (0.5, 0.65, 0.8, 1.0, 1.25, 1.5)  # of the way from the mean of all faces to a tag's
SURE = 0.94  # of faces that must have the tag for a target to be far enough
AS_GOOD = 0.05  # a set of groups whose share is this much lower is as good as the best
LEAST_SEEN = 0.5  # of faces in which the judge must see the tag
MOST_FLIPPED = 0.75  # of faces in which the judge may see any one other tag flip
REGION_FACES = 3000  # that the regions of hair and eyes are found in


# ------------------------------------------------------------------------------------------
# Tags and families


def slider_name(tag: str) -> str:
    """Turn a tag into a slider's name: `blonde_hair` → `hair-blonde`, `long_hair` → `long-hair`."""
    words = tag.lower().split("_")
    if family(tag) in COLOURED:
        words = [words[-1], *words[:-1]]
    return "-".join(words)


def family(tag: str) -> str:
    """Name the tags that exclude each other with this one: hair colour, eye colour, hair length."""
    first, _, part = tag.rpartition("_")
    if part == "hair" and first in ("long", "short"):
        return "length"
    return part if part in COLOURED and first else tag


def families(tags: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of the tags of each family."""
    found: dict[str, list[int]] = {}
    for index, tag in enumerate(tags):
        found.setdefault(family(tag), []).append(index)
    return found


def others_of(tags: Sequence[str], tag: str) -> list[int]:
    """Return the indices of the tags that can go with this one."""
    return [k for k, other in enumerate(tags) if family(other) != family(tag)]


def gaps(reader: TagReader) -> Tensor:
    """Return for each tag how far the logits of typical faces without and with it lie apart."""
    return (reader.typical[1] - reader.typical[0]).clamp(min=0.5)


# ------------------------------------------------------------------------------------------
# One family


@dataclass(frozen=True)
class FamilyFit:
    """How a family's place follows from w, and how to move it.

    A place is `[r]`, one number for each of the family's tags: the tag's logit in units of its gap.
    """

    name: str
    tags: list[int]
    groups: tuple[str, ...]
    weight: Tensor  # [r, D]
    bias: Tensor  # [r]
    steps: Tensor  # [r, D]: what moves each number by 1 and leaves the others

    def move(self, u: Tensor, target: Tensor) -> Tensor:
        """Return the steps in u `[N, D]` that lead faces u `[N, D]` to a target `[r]`."""
        return (target - (u @ self.weight.T + self.bias)) @ self.steps


@dataclass
class SliderFit:
    """One slider: where its family is led to at both ends."""

    tag: int
    name: str
    family: FamilyFit
    right: Tensor  # [r]
    left: Tensor | None  # [r]; None: the slider has no left half
    seen: float = 1.0  # share of faces with the tag at the right end
    fault: str = ""  # why it is left out

    def entry(self) -> dict:
        """Return what the file says of it."""
        return {
            "name": self.name,
            "kind": "attribute",
            "low": 0.0 if self.left is None else -FULL,
            "high": FULL,
            "step": STEP,
            "groups": list(self.family.groups),
            "family": self.family.name,
        }


@dataclass(frozen=True)
class Fitter:
    """What families are fitted with.

    Attributes:
        places: logits of the drawn faces in units of their gaps, `[N, L]`.
        weight, bias: linear maps `[L, D]` and `[L]` from u to places.
        probe: faces to measure on.
    """

    at: Coordinates
    places: Tensor
    weight: Tensor
    bias: Tensor
    probe: Probe

    @property
    def reader(self) -> TagReader:
        """The reader that the faces were read by."""
        return self.probe.reader

    def fit(self, name: str, tags: list[int]) -> list[SliderFit]:
        """Fit the sliders of one family."""
        choices = [groups for groups in GROUP_SETS if set(groups) <= set(self.at.groups)]
        if name in COLOURED:
            choices = [groups for groups in choices if set(groups) <= set(COLOUR_GROUPS)]
        tried = [self.try_groups(name, tags, groups) for groups in choices]
        best = max(seen for _, seen, _ in tried)
        good = [(change, fit) for fit, seen, change in tried if seen >= best - AS_GOOD]
        _, fit = min(good, key=lambda pair: pair[0])
        return [self.fit_slider(fit, tag) for tag in tags]

    def try_groups(
        self, name: str, tags: list[int], groups: tuple[str, ...]
    ) -> tuple[FamilyFit, float, float]:
        """Return a family in some groups of layers, the share of its tags seen, and the change."""
        others = others_of(self.reader.tags, self.reader.tags[tags[0]])
        steps = solve_steps(self.weight[tags], self.weight[others], self.at.mask(groups))
        fit = FamilyFit(name, tags, groups, self.weight[tags], self.bias[tags], steps)
        results = [self.measure(fit, tag, self.target(fit, tag, 1.0)) for tag in tags]
        seen, change = torch.tensor(results).mean(0).tolist()
        return fit, seen, change

    def target(self, fit: FamilyFit, tag: int, share: float) -> Tensor:
        """Return the place `[r]` a share of the way from all faces' mean to that of the tag's."""
        tags, row = fit.tags, fit.tags.index(tag)
        if len(tags) == 1:  # typical real faces without and with it: generated ones may lack it
            low = self.reader.typical[0, tags] / gaps(self.reader)[tags]
            return low + 0.5 + (share - 0.5)
        places = self.places[:, tags]
        mean = places.mean(0)
        # Those of its faces that are surest: where a tag is rare, half of what is called so is not.
        top = places[:, row].topk(max(16, int((places[:, row] > 0).sum()) // 2)).indices
        return mean + share * (places[top].mean(0) - mean)

    def measure(self, fit: FamilyFit, tag: int, target: Tensor) -> tuple[float, float]:
        """Return which share of the probe's faces have the tag at a target, and their change."""
        probe = self.probe
        step = self.at.decode(fit.move(self.at.encode(probe.ws), target))
        images, logits = probe.move(step)
        return (logits[:, tag] > 0).float().mean().item(), probe.change(images)

    def fit_slider(self, fit: FamilyFit, tag: int) -> SliderFit:
        """Choose a slider's targets: the nearest one at which nearly all faces have the tag."""
        seen = {}
        for share in SHARES:
            seen[share], _ = self.measure(fit, tag, self.target(fit, tag, share))
            if seen[share] >= SURE:
                break
        share = max(seen, key=lambda share: min(seen[share], SURE))
        left = None
        if len(fit.tags) == 1:
            left = self.target(fit, tag, min(0.0, 1 - share))  # typical faces without it
        elif len(fit.tags) == 2:
            (opposite,) = (other for other in fit.tags if other != tag)
            left = self.target(fit, opposite, share)
        right = self.target(fit, tag, share)
        return SliderFit(tag, slider_name(self.reader.tags[tag]), fit, right, left, seen[share])


def find_fault(slider: SliderFit, at: Coordinates, probe: Probe) -> str:
    """Say why the judge, the probe's reader, would not have a slider, "" if it would."""
    tags = probe.reader.tags
    name = next((tag for tag in tags if slider_name(tag) == slider.name), None)
    if name is None:  # the judge does not know it
        return ""
    step = at.decode(slider.family.move(at.encode(probe.ws), slider.right))
    _, logits = probe.move(step)
    slider.seen = (logits[:, tags.index(name)] > 0).float().mean().item()
    others = others_of(tags, name)
    flipped = ((logits > 0) != (probe.logits > 0)).float().mean(0)[others]
    if slider.seen < LEAST_SEEN:
        return f"the judge sees it in {slider.seen:.0%}"
    if flipped.max() > MOST_FLIPPED:
        return f"{tags[others[flipped.argmax()]]} flips in {flipped.max():.0%}"
    return ""


# ------------------------------------------------------------------------------------------
# The file


@dataclass
class Fitted:
    """All that was fitted to one generator."""

    at: Coordinates
    sliders: list[SliderFit]
    weak: list[SliderFit]  # tags that the generator cannot express; not in the file
    unnamed: list[Unnamed]
    colours: dict[str, ColourFit]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what the file holds; studio/directions.py says what each is."""
        yield "directions", torch.stack([direction.step for direction in self.unnamed])
        for fit in {slider.family.name: slider.family for slider in self.sliders}.values():
            weight, bias = self.at.flatten(fit.weight, fit.bias)
            yield f"family_map.{fit.name}", weight
            yield f"family_bias.{fit.name}", bias
            yield f"family_step.{fit.name}", self.at.decode(fit.steps)
        for slider in self.sliders:
            left = slider.right if slider.left is None else slider.left
            yield f"target.{slider.name}", torch.stack([left, slider.right])
        for part, colour in self.colours.items():
            for name, tensor in vars(colour).items():
                yield f"colour_{name}.{part}", tensor

    def save(self, path: Path, generator: str) -> None:
        """Write the file, whole or not at all.

        Args:
            path: of the file.
            generator: SHA-256 of the generator's `model.safetensors`, 64 hex digits.
        """
        entries = [d.entry(FULL, STEP) for d in self.unnamed] + [s.entry() for s in self.sliders]
        metadata = {"format": FORMAT, "generator": generator, "entries": json.dumps(entries)}
        tensors = {name: t.float().cpu().contiguous() for name, t in self.tensors()}
        part = path.with_suffix(".part")
        save_file(tensors, part, metadata=metadata)
        part.chmod(0o644)  # safetensors makes files for the owner alone
        part.replace(path)


def fit(
    G: Generator, reader: TagReader, judge: TagReader, samples: Samples, at: Coordinates, count: int
) -> Fitted:
    """Fit everything to one generator.

    Args:
        G: a generator with w, in evaluation mode.
        reader: the builder, which everything is fitted by.
        judge: another reader, which must see what a slider is called after.
        samples: faces that the linear maps are fitted to.
        count: faces that steps are measured on.
    """
    places = samples.logits / gaps(reader)
    weight, bias = fit_linear(samples.u, places)
    probe = Probe(G, reader, count)
    fitter = Fitter(at, places, weight, bias, probe)
    kin = families(reader.tags)
    sliders: list[SliderFit] = []
    for name, tags in tqdm(kin.items(), "fitting", unit="family", disable=None):
        sliders += fitter.fit(name.replace("_", "-"), tags)
    judged = Probe(G, judge, count)
    for slider in sliders:
        slider.fault = find_fault(slider, at, judged)
    shown = samples.images[:REGION_FACES]
    named = {part: kin[part] for part in COLOURED if part in kin}
    palette = find_regions(dequantise(shown), samples.logits[:REGION_FACES], named)
    rest = {part: weight[[k for k in range(len(weight)) if k not in named[part]]] for part in named}
    colours = fit_colours(probe, at, samples, palette, rest)
    good = [slider for slider in sliders if not slider.fault]
    weak = [slider for slider in sliders if slider.fault]
    return Fitted(at, good, weak, list(find_unnamed(G, probe, at)), colours)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m fitting.directions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, default=BUNDLED, help="generator's folder (default: bundled)")
    add("--reader", type=Path, default=READERS / "builder", help="folder of the reader of tags")
    add("--judge", type=Path, default=READERS / "judge", help="another reader, which must agree")
    add("--out", type=Path, help=f"file to write (default: {FILE_NAME} beside the weights)")
    add("--samples", type=int, default=10_000, help="faces to draw (default: %(default)s)")
    add("--probe", type=int, default=64, help="faces to measure on (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.samples < 64 or options.probe < 2:
        parser.error("--samples must be at least 64 and --probe at least 2")
    keep_freed_memory()
    start = time.perf_counter()
    try:
        G, digest = open_generator(options.model)
        if G.img_channels != 3:
            raise ModelError(f"{options.model} draws grey faces; readers of tags see coloured ones")
        reader, judge = open_reader(options.reader), open_reader(options.judge)
        at = Coordinates.of(G)
        samples = Samples.draw(G, reader, at, options.samples)
        fitted = fit(G, reader, judge, samples, at, options.probe)
        path = options.out or options.model / FILE_NAME
        fitted.save(path, digest)
    except (ModelError, OSError) as error:
        print(f"directions: {error}", file=sys.stderr)
        return 2
    for slider in fitted.sliders:
        print(f"{slider.name:16} {'+'.join(slider.family.groups):20} {slider.seen:.0%}")
    for slider in fitted.weak:
        print(f"{slider.name:16} left out: {slider.fault}")
    count = len(fitted.sliders) + len(fitted.unnamed)
    print(f"{count} directions in {time.perf_counter() - start:.0f} s: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
