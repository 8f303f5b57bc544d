"""A picture → the face of the generator that is nearest to it, as a recipe.

    from studio.match import match, open_upload

    recipe = match(studio, open_upload("her.png"))      # at most 15 s
    face = studio.draw_recipes([recipe])[0]

Three steps. A linear map to w from a small picture and from what the discriminator sees, fitted to
generated faces, gives a start. Then Levenberg-Marquardt looks for one w for all layers, with a
shift and a scale of the picture: with so few unknowns every derivative is a forward pass, and a
few steps bring a generated face back nearly exactly. A picture that one w does not meet gets a w
for each layer group, by Adam, under a loss on pixels and on what the discriminator sees.

Latents are searched as v: whitened, as they stand before the mapping network's last leaky ReLU.
There they are nearly Gaussian (Zhu et al. 2020, arXiv 2012.09036), so that |v|² is a pull towards
faces that seeds have.
"""

from __future__ import annotations

import io
import math
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from model import LRELU_GAIN, LRELU_SLOPE, Discriminator, Generator, latents_from_seeds
from studio.faces import Studio
from studio.latents import encode_ws, filled_groups
from studio.morph import Stopped
from studio.recipe import Recipe, check_number

MAX_BYTES = 10_000_000  # of an upload
MAX_PIXELS = 40_000_000
MAX_SCANS = 100  # of a JPEG; a progressive one has about ten, and each costs a whole pass
MAX_REMARKS = 2000  # of a GIF; Pillow joins them in quadratic time
KEPT_SIZE = 1024  # px, the longer side of what is kept of an upload
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
KINDS = "JPEG, PNG, WebP or GIF"

SAMPLES = 320  # generated faces that the start is fitted to
LATENTS = 2048  # latents that w is whitened by
CLEARLY = 0.25  # of correlation: a box that wins by less is not worth leaving the whole for
RIM = 0.08  # weight of a picture's corners, against its middle, where a face is looked for
NEARER = 0.85  # of what the search leaves of the whole: another box that leaves more is not taken
SMALL = 16  # px, of the pictures that the start looks at
RIDGE = 1.0  # relative to the variance of what the start is guessed from
GUESSES = 4  # of what is still missing, at most, after the first one
EXACT = 64  # px; Levenberg-Marquardt sees no more rows and columns
FIRST = 64  # directions of v that its first steps go along
SPENT = 0.5  # share of the loss that such a step must get below, or all directions take part
TRUST = 1e-3  # weight of |v|² relative to the remaining loss
CHEAP_STEPS = 12  # of Levenberg-Marquardt with slopes that are only carried on
CHEAP_GAIN = 0.95  # share of the loss that such a step must get below to be followed by another
OURS = 0.004  # share of a picture's variance: what is nearer is a generated face, and is done
REFINING = 0.6  # share of the time that is kept for Adam, as long as a picture is far from that
HELPED = 0.85  # share of the loss that a step must get below to have helped
ADAM_STEPS = 400
SEEN = 3.0  # weight of what the discriminator sees; pixels alone are met best by blurs
CHROMA = 3.0  # weight of colour against lightness, or small brown eyes come out blue
FACE = 2.0  # weight of pixels in the middle, where eyes and mouth are, against those of the rim
ADAM_RATE = 0.06
PULL = 2e-2  # weight of |v|²
SLOPE = 0.01  # of v, over which slopes are measured
WARP_UNIT = 0.05  # shift (of half a width) and log scale of one unit of the warp
WARP_PULL = 0.1  # a unit of warp is as unlikely as v is in one direction of ten

Progress = Callable[[float], None]
_turn = threading.Lock()  # one picture at a time: two would take the page's cores
_spaces: WeakKeyDictionary[Studio, Space] = WeakKeyDictionary()


class MatchError(ValueError):
    """A picture that cannot be matched; the message is one sentence for people."""


# ------------------------------------------------------------------------------------------
# Uploads


def open_upload(path: str | Path) -> Image.Image:
    """Open a picture that anyone may have made.

    Args:
        path: JPEG, PNG, WebP or GIF (its first frame) of at most 10 MB and 40 megapixels.
    Returns:
        mode RGB, turned as its EXIF says, transparency over white, at most 1024 px wide and high.
    Raises:
        MatchError: anything else.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError:
        raise MatchError("This file cannot be read; choose it once more.") from None
    if len(data) > MAX_BYTES:
        raise MatchError(
            f"This picture is too large: at most {MAX_BYTES // 10**6} MB; save it smaller."
        )
    if data.count(b"\xff\xda") > MAX_SCANS and data[:2] == b"\xff\xd8":
        raise MatchError("This JPEG is made of too many scans; save it once more.")
    if data[:3] == b"GIF" and data.count(b"!\xfe") > MAX_REMARKS:
        raise MatchError("This GIF holds too many remarks; save it once more.")
    try:
        return _decode(data)
    except MatchError:
        raise
    except UnidentifiedImageError:
        raise MatchError(f"This is no picture that can be read; send a {KINDS}.") from None
    except Exception:  # Pillow's decoders raise nearly anything on damaged data
        raise MatchError("This picture is damaged; save or download it once more.") from None


def _decode(data: bytes) -> Image.Image:
    """Decode a picture into RGB of at most KEPT_SIZE px."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise MatchError(
                f"This picture has too many pixels: at most {MAX_PIXELS // 10**6} megapixels; "
                f"save it smaller."
            )
        image.draft(None, (2 * KEPT_SIZE, 2 * KEPT_SIZE))  # a large JPEG is decoded smaller
        image.load()
        orientation = image.getexif().get(0x0112) if image.format == "JPEG" else None
        small = _shrink(image)
    if orientation:
        small.getexif()[0x0112] = orientation
    with suppress(Exception):  # a picture with damaged EXIF is still a picture
        small = ImageOps.exif_transpose(small)
    if small.mode == "RGBA":
        white = Image.new("RGBA", small.size, (255, 255, 255, 255))
        small = Image.alpha_composite(white, small)
    return small.convert("RGB")


def _shrink(image: Image.Image) -> Image.Image:
    """Return a copy in RGB or RGBA, at most KEPT_SIZE px wide and high."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow would clip it at 255
        grey = np.clip(np.asarray(image), 0, 65535) / 257
        image = Image.fromarray(grey.round().astype(np.uint8))
    see_through = "A" in image.getbands() or "transparency" in image.info
    image = image.convert("RGBA" if see_through else "RGB")
    image.thumbnail((KEPT_SIZE, KEPT_SIZE), Image.Resampling.LANCZOS)
    return image


# ------------------------------------------------------------------------------------------
# What is known of a generator


class Space:
    """The latents of one generator, whitened, and a first guess of them from a picture.

    Args:
        G, D: the networks; D may be None.
        tick: called with the share that is done, 0 … 1; may raise to stop.
    """

    def __init__(self, G: Generator, D: Discriminator | None, tick: Progress) -> None:
        self.G, self.D = G, D
        self.groups = filled_groups(G)
        z = latents_from_seeds(range(LATENTS), G.z_dim)
        p = before_activation(G.mapping_network(z))
        self.mean = p.mean(0)
        spread = torch.cov(p.t()) + 1e-4 * p.var() * torch.eye(G.w_dim)
        self.root = torch.linalg.cholesky(spread)  # [w_dim, w_dim], p = mean + root v
        p, z = p[:SAMPLES], z[:SAMPLES]
        v = torch.linalg.solve_triangular(self.root, (p - self.mean).t(), upper=False).t()
        self._fit(z, v, tick)
        self._rank(tick)

    def _rank(self, tick: Progress) -> None:
        """Sort directions of v by how much pictures change along them, seen from the mean face.

        Half of them make all but some 3 % of the change, also of other faces.
        """
        size = self.G.w_dim
        steps = (SLOPE * torch.eye(size)).split(32)
        mean = self.sketch(torch.zeros(1, 1, size))
        slopes = []
        for v in steps:
            tick(1.0)  # which may stop it
            slopes.append((self.sketch(v[:, None]) - mean).flatten(1))
        slopes = torch.cat(slopes)
        self.ranked = torch.linalg.eigh(slopes @ slopes.t())[1].t().flip(0)  # [w_dim, w_dim]

    def _fit(self, z: Tensor, v: Tensor, tick: Progress) -> None:
        """Fit the first guess, by ridge regression, and how much each feature of D varies."""
        small, last, squares = [], [], []
        for start in range(0, len(z), 32):
            tick(start / len(z))
            faces = self.G(z[start : start + 32])
            small.append(shrink(faces, SMALL).flatten(1))
            if self.D is not None:
                seen = self.D.features(faces)[1:]
                last.append(seen[-1].flatten(1))
                squares.append([f.square().mean((0, 2, 3)) for f in seen])
        self.small_mean = torch.cat(small).mean(0)
        means = [torch.stack(level).mean(0) for level in zip(*squares, strict=True)]
        self.feature_scales = [m.add(1e-8).rsqrt()[:, None, None] for m in means]
        blocks = [torch.cat(block) for block in (small, last) if block]
        self.block_scales = [(b - b.mean(0)).square().sum(1).mean().rsqrt() for b in blocks]
        x = self._join(blocks)
        self.guess_mean = x.mean(0)
        x = x - self.guess_mean
        kernel = x @ x.t()
        kernel += RIDGE * len(blocks) * torch.eye(len(x))
        self.guess_map = x.t() @ torch.linalg.solve(kernel, v)

    def _join(self, blocks: list[Tensor]) -> Tensor:
        """Put blocks `[N, …]` side by side, of which each counts alike."""
        return torch.cat([b * s for b, s in zip(blocks, self.block_scales, strict=True)], 1)

    def guess(self, pictures: Tensor) -> Tensor:
        """Return a first v `[N, w_dim]` of pictures `[N, C, H, W]`."""
        blocks = [shrink(pictures, SMALL).flatten(1)]
        if self.D is not None:
            blocks.append(self.D.features(pictures)[-1].flatten(1))
        return (self._join(blocks) - self.guess_mean) @ self.guess_map

    def to_ws(self, v: Tensor) -> Tensor:
        """Map v `[N, 1 or groups, w_dim]` to ws `[N, num_ws, w_dim]`."""
        w = LRELU_GAIN * F.leaky_relu(self.mean + v @ self.root.t(), LRELU_SLOPE)
        if w.shape[1] == 1:
            return w.expand(-1, self.G.num_ws, -1)
        counts = torch.tensor([group.stop - group.start for group in self.groups])
        return w.repeat_interleave(counts, 1)

    def draw(self, v: Tensor) -> Tensor:
        """Draw v `[N, 1 or groups, w_dim]` as pictures `[N, C, H, W]`."""
        return self.G.synthesis(self.to_ws(v))

    @property
    def stride(self) -> int:
        """Rows and columns between those of a sketch, so that EXACT of them are left."""
        whole = int(list(self.G.blocks)[-1]) == self.G.resolution  # no pixels painted in patches
        return max(1, self.G.resolution // EXACT) if whole else 1

    def sketch(self, v: Tensor) -> Tensor:
        """Draw every so manieth pixel of v `[N, 1 or groups, w_dim]`, for less work."""
        return self.G.synthesis(self.to_ws(v), self.stride)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Return D's features, each channel of unit mean square over faces; [] without D."""
        if self.D is None:
            return []
        found = self.D.features(pictures)[1:]
        return [f * scale for f, scale in zip(found, self.feature_scales, strict=True)]

    def likeness(self, pictures: Tensor) -> Tensor:
        """Return how well each picture `[N, C, H, W]` lies over the mean face, `[N]`, -1 … 1.

        Faces are drawn aligned, so the correlation with their mean at 16 px tells place and size;
        the discriminator, asked instead, took empty paper for more real than faces. The mean has a
        white ground, so the rim counts little, or dark corners of a face on another were the face.
        """
        x = shrink(pictures, SMALL)
        size, channels = x.shape[-1], x.shape[1]
        weights = RIM + (1 - RIM) * bell(size, 0.3, 0.3)
        weights = (weights / (channels * weights.sum())).repeat(channels, 1, 1).flatten()
        x, mean = x.flatten(1), self.small_mean - self.small_mean @ weights
        x = x - (x @ weights)[:, None]
        spread = (x.square() @ weights) * (mean.square() @ weights)
        return (x * weights) @ mean / (spread.sqrt() + 1e-4)


def before_activation(w: Tensor) -> Tensor:
    """Undo the gain and the leaky ReLU at the end of the mapping network."""
    return torch.where(w < 0, w / LRELU_SLOPE, w) / LRELU_GAIN


def shrink(pictures: Tensor, size: int) -> Tensor:
    """Average pictures `[N, C, H, W]` down to `size` px; smaller ones stay."""
    return F.adaptive_avg_pool2d(pictures, size) if pictures.shape[-1] > size else pictures


# ------------------------------------------------------------------------------------------
# Where the face is


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
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


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


def align(space: Space, image: Image.Image, tick: Progress) -> tuple[Box, Box | None]:
    """Find the square of a picture that is cut like the faces that the generator draws.

    Returns:
        the whole picture's square, and another one if that looks clearly more like a face.
    """

    def best(boxes: list[Box]) -> tuple[float, Box]:
        scores = []
        for start in range(0, len(boxes), 32):
            tick(0.0)
            scores.append(space.likeness(cut_all(space.G, image, boxes[start : start + 32])))
        # White paper around a picture on another ground would make it more like the mean face.
        found = torch.cat(scores) - torch.tensor([outside(box, image) for box in boxes])
        return float(found.max()), boxes[int(found.argmax())]

    whole_score, whole = best(whole_boxes(image))
    _, rough = best(likely_boxes(image))
    score, box = best(boxes_near(rough))
    return whole, box if score > whole_score + CLEARLY else None


# ------------------------------------------------------------------------------------------
# The search


@dataclass
class Clock:
    """Reports progress, and ends the work when it is asked to or when time is over."""

    seconds: float
    progress: Progress | None
    stop: threading.Event | None
    share: float = 0.0

    def __post_init__(self) -> None:
        self.start = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.seconds - (time.monotonic() - self.start)

    def check(self) -> None:
        """Raise Stopped if asked to stop."""
        if self.stop is not None and self.stop.is_set():
            raise Stopped

    def tick(self, share: float) -> None:
        """Report a share that is done, 0 … 1; raise Stopped if asked to stop."""
        self.check()
        self.share = max(self.share, min(1.0, share))
        if self.progress is not None:
            self.progress(self.share)

    def part(self, low: float, high: float) -> Progress:
        """Return a tick for the part of the work between two shares."""
        return lambda share: self.tick(low + share * (high - low))


def warp(pictures: Tensor, move: Tensor) -> Tensor:
    """Shift and scale pictures `[N, C, H, W]` by moves `[N, 3]`, in units of WARP_UNIT."""
    shift, scale = move[:, :2] * WARP_UNIT, (move[:, 2] * WARP_UNIT).exp()
    zero = torch.zeros_like(scale)
    rows = [torch.stack([scale, zero, shift[:, 0]], 1), torch.stack([zero, scale, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def differ(drawn: Tensor, target: Tensor) -> Tensor:
    """Return drawn - target, 0 where both are beyond the same end of [-1, 1], which shows alike."""
    difference = drawn - target
    white, black = target >= 1, target <= -1
    difference = torch.where(white, difference.clamp(max=0), difference)
    return torch.where(black, difference.clamp(min=0), difference)


def pyramid(difference: Tensor) -> Tensor:
    """Return residuals `[N, …]` of four scales; their squared sum is the sum of four MSEs."""
    levels = []
    for _ in range(4):
        levels.append(difference.flatten(1) / math.sqrt(difference[0].numel()))
        if difference.shape[-1] >= 8:
            difference = F.avg_pool2d(difference, 2)
    return torch.cat(levels, 1)


class Shared:
    """The search for one w for all layers, and a warp: u = (v, move) `[w_dim + 3]`."""

    def __init__(self, space: Space, target: Tensor, clock: Clock) -> None:
        self.space, self.full, self.clock = space, target, clock
        self.target = shrink(target[:, :, :: space.stride, :: space.stride], EXACT)
        self.directions = torch.block_diag(torch.eye(3), space.ranked).roll(-3, 1)  # of u
        self.used = min(FIRST, len(space.ranked)) + 3  # of them, so far
        self.u = torch.cat([space.guess(target)[0], torch.zeros(3)])
        self.pull = torch.ones_like(self.u)
        self.pull[-3:] = 1 / WARP_PULL
        self.y = self.residual(self.u[None])[0]
        self.damping = 1e-3
        self._guess_again()

    def _guess_again(self) -> None:
        """Guess what is still missing from what is guessed of the picture and of the drawn face."""
        v = self.space.guess(self.full)[0]
        for _ in range(GUESSES):
            missing = v - self.space.guess(self.space.draw(self.u[None, None, :-3]))[0]
            shares = torch.tensor([0.3, 0.6, 1.0, 1.5])
            tries = self.u + shares[:, None] * F.pad(missing, (0, 3))
            found = self.residual(tries)
            best = int(found.square().sum(1).argmin())
            if not found[best].square().sum() < self.loss:
                break
            self.u, self.y = tries[best], found[best]

    def residual(self, u: Tensor) -> Tensor:
        """Return residuals of many u `[N, w_dim + 3]`."""
        parts = []
        for some in u.split(32):
            self.clock.check()
            drawn = shrink(warp(self.space.sketch(some[:, None, :-3]), some[:, -3:]), EXACT)
            parts.append(pyramid(differ(drawn, self.target)))
        return torch.cat(parts)

    @property
    def loss(self) -> float:
        """The sum of four mean squared errors."""
        return float(self.y.square().sum())

    @property
    def away(self) -> float:
        """The loss, as a share of the picture's own variance."""
        own = self.target - self.target.mean((2, 3), keepdim=True)
        return self.loss / float(pyramid(own).square().sum() + 1e-3)

    def step(self) -> float:
        """Take a step with new slopes and, while they help, cheap ones; return the loss's share.

        Slopes cost a forward pass for each direction. Carried on by Broyden's formula (1965) they
        are good for some steps more, of four forward passes each.
        """
        before = self.loss
        along = self.directions[: self.used]
        self.slopes = (self.residual(self.u + SLOPE * along) - self.y) / SLOPE
        if self._try(along) >= 1:
            self.damping *= 10
            return 1.0
        for _ in range(CHEAP_STEPS):
            if self._try(along) > CHEAP_GAIN:
                break
        return self.loss / before

    def _try(self, along: Tensor) -> float:
        """Take the best of four steps of Levenberg-Marquardt; return the share of the cost left.

        A step that does not help is not taken.

        Args:
            along: the directions of u that slopes are known for, `[N, w_dim + 3]`, orthonormal.
        """
        trust = TRUST * self.loss * self.pull
        before = self.loss + float(self.u.square() @ trust)
        gradient = self.slopes @ self.y + along @ (trust * self.u)
        curvature = self.slopes @ self.slopes.t() + (along * trust) @ along.t()
        dampings = self.damping * torch.tensor([0.1, 0.5, 2.0, 10.0])
        damped = curvature + dampings[:, None, None] * torch.eye(len(along))
        moves = -torch.linalg.solve(damped, gradient)
        tries = self.u + moves @ along
        found = self.residual(tries)
        costs = found.square().sum(1) + tries.square() @ trust
        best = int(costs.argmin())
        if not costs[best] < before:
            return 1.0
        moved, changed = moves[best], found[best] - self.y
        self.slopes += torch.outer(moved, (changed - moved @ self.slopes) / moved.square().sum())
        self.u, self.y, self.damping = tries[best], found[best], max(float(dampings[best]), 1e-7)
        return float(costs[best]) / before

    def run(self, steps: int, low: float, high: float) -> Shared:
        """Take steps until two in a row hardly help, the picture is met, or time is short.

        Steps go along the first directions as long as these help: they cost half of what all do.
        Generated faces lose half of the loss or more in most steps, and real ones soon nothing.
        """
        idle, longest = 0, 0.5
        for done in range(steps):
            self.clock.tick(low + (high - low) * done / steps)
            left = self.clock.left
            kept = REFINING * self.clock.seconds if self.away > 10 * OURS else 0.0
            if idle == 2 or self.away < OURS / 8 or left < max(longest, kept):
                break
            share = self.step()
            if share > SPENT and self.used < len(self.directions):
                self.used = len(self.directions)
            else:
                idle = 0 if share < HELPED else idle + 1
            longest = max(longest, left - self.clock.left)
        return self


def refine(space: Space, target: Tensor, u: Tensor, clock: Clock, tick: Progress) -> Tensor:
    """Give each layer group its own v, by Adam; return v `[1, groups, w_dim]`."""
    v = u[:-3].expand(1, len(space.groups), -1).clone().requires_grad_()
    move = u[None, -3:].clone().requires_grad_()
    adam = torch.optim.Adam([v, move], lr=ADAM_RATE, betas=(0.9, 0.99))
    seen = [f.detach() for f in space.features(target)]
    weights = middle(target.shape[-1])
    began, left = time.monotonic(), max(clock.left, 0.1)
    for step in range(ADAM_STEPS):
        share = max(step / ADAM_STEPS, (time.monotonic() - began) / left)
        tick(share)
        if share >= 1:
            break
        adam.param_groups[0]["lr"] = ADAM_RATE * min(1, (step + 1) / 4) * _cosine(share)
        drawn = warp(space.draw(v), move)
        loss = pyramid(weights * vivid(differ(drawn, target))).square().sum()
        for a, b in zip(space.features(drawn), seen, strict=True):
            loss = loss + SEEN * (a - b).square().mean()
        loss = loss + PULL * (v.square().mean() + WARP_PULL * move.square().mean())
        v.grad, move.grad = torch.autograd.grad(loss, [v, move])
        adam.step()
    return v.detach()


def vivid(difference: Tensor) -> Tensor:
    """Weigh what is colour in a difference `[N, C, H, W]` by CHROMA; the rest is lightness."""
    lightness = difference.mean(1, keepdim=True)
    return lightness + CHROMA * (difference - lightness)


def middle(size: int) -> Tensor:
    """Return weights of pixels `[size, size]`, of unit mean square, FACE times as high in the face.

    Faces are drawn aligned: theirs is about the middle half, and a little higher than the middle.
    """
    weights = 1 + (FACE - 1) * bell(size, 0.2, 0.26, lift=0.03)
    return weights / weights.square().mean().sqrt()


def bell(size: int, height: float, width: float, lift: float = 0.0) -> Tensor:
    """Return 1 in the middle of a square `[size, size]`, falling off steeply towards its rim.

    It is 0.6 at `height` and `width` from the middle, which is lifted by `lift`: shares of a side.
    """
    place = (torch.arange(size) + 0.5) / size - 0.5
    down, across = ((place + lift) / height)[:, None], place / width
    return torch.exp(-0.5 * (down**4 + across**4))


def _cosine(share: float) -> float:
    """Return a learning rate's share of its first value."""
    return 0.5 * (1 + math.cos(math.pi * share))


def match(
    studio: Studio,
    image: Image.Image,
    *,
    seconds: float = 15,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Recipe:
    """Find the face that is nearest to a picture.

    Args, errors: as `search` has them.
    Returns:
        a recipe with the latent as its `w`, psi 1, and a seed that only names it.
    """
    ws = search(studio, image, seconds=seconds, progress=progress, stop=stop)
    w = encode_ws(studio.G, ws)
    return Recipe(zlib.crc32(w.encode()), 1.0, w=w)


def search(
    studio: Studio,
    image: Image.Image,
    *,
    seconds: float = 15,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Tensor:
    """Find the latents of the face that is nearest to a picture.

    Runs in a thread of its own, with less priority than drawing where the system can.

    Args:
        image: any size and mode; a face somewhere in it.
        seconds: 2 … 120, of the search; what `prepare` learns once comes on top in the first call.
        progress: called with the share that is done, 0 … 1, in that thread.
        stop: ends the work within half a second once it is set.
    Returns:
        ws `[num_ws, w_dim]`, the same in all layers of a group.
    Raises:
        MatchError: a generator without w, or another picture is being matched.
        Stopped: `stop` was set.
    """
    if not studio.G.num_ws:
        raise MatchError("This generator has no w, so no picture can be matched with it.")
    check_number(seconds, 2, 120, "a match takes seconds")
    if not _turn.acquire(blocking=False):
        raise MatchError("Another picture is being matched just now; try again in a few seconds.")
    try:
        clock = Clock(seconds, progress, stop)
        with ThreadPoolExecutor(1, "match", initializer=_stand_back) as own:
            return own.submit(_search, studio, image.convert("RGB"), clock).result()
    finally:
        _turn.release()


def _stand_back() -> None:
    """Let the threads that draw go first; on Linux a thread has its own priority."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)


def prepare(studio: Studio, tick: Progress = lambda share: None) -> Space:
    """Learn what `match` must know of a generator, once: some seconds, 2 MB."""
    if studio not in _spaces:
        with torch.no_grad():
            _spaces[studio] = Space(studio.G, studio.D, tick)
    return _spaces[studio]


def _search(studio: Studio, image: Image.Image, clock: Clock) -> Tensor:
    """Do the work of `search`."""
    space = prepare(studio, clock.part(0, 0.2))
    clock.start = time.monotonic()  # what is learned once must not spoil the first match
    with torch.no_grad():
        whole, other = align(space, image, clock.part(0.2, 0.25))
        found = start(space, image, whole, other, clock)
    if found.away > OURS and clock.left > 0.5:
        v = refine(space, found.full, found.u, clock, clock.part(0.5, 1))
    else:
        v = found.u[None, None, :-3]
    clock.tick(1)
    return space.to_ws(v)[0]


def start(space: Space, image: Image.Image, whole: Box, other: Box | None, clock: Clock) -> Shared:
    """Search one w in the whole picture and, if there is one, in the other square; take the better.

    A generated face comes back so nearly from the whole picture that no other square can win. Real
    ones elsewhere on a sheet left 0.43 to 0.79 of what the whole did; a dark corner, 0.90.
    """
    best = None
    for box, low in ((whole, 0.25), (other, 0.3)):
        if box is None or (best is not None and best.away < 0.1):
            continue
        found = Shared(space, cut_all(space.G, image, [box]), clock).run(3, low, low + 0.05)
        if best is None or found.away < NEARER * best.away:
            best = found
    return best.run(16, 0.35, 0.5)
