"""A picture → the latents of the face that is most like it.

    matcher = prepare(studio)                           # seconds, once for each studio
    ws = matcher.search(image, clock)                   # [num_ws, w_dim]

The encoder gives a first answer. L-BFGS (Liu & Nocedal 1989) then lowers a loss on v, latents
whitened as `model.Whitening` has it: first one v for all layers, then one for each. How near the
first comes tells whether the picture is a generated face. If so, only pixels count; else what the
discriminator and the encoder see counts too, since pixels alone are met best by blurs. Numbers of v
are divided by the root of the curvature of the pixels' loss along them (the fourth root for other
pictures), measured once on drawn faces: without that, twice as many steps are needed. Where a
generator has no encoder, the search starts from the most similar of some drawn faces.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from model import Generator, Whitening, latents_from_seeds, quantise
from studio.faces import Studio
from studio.match.align import SMALL, align, cut_all, shrink
from studio.morph import Stopped

FACES = 32  # drawn faces that `prepare` measures
FIRST_SEED = 2**30  # of them
NEARER = 0.85  # of what is left of the whole picture: another square that leaves more is not taken
TRIES = 18  # evaluations after which a generated face is told from others
GENERATED = 24.0  # RMSE of 255 below which a picture is taken for a generated face by then
EXACT = 1.5  # RMSE at which the search ends
EXACT_FLOOR, OTHER_FLOOR = 0.01, 0.03  # added to curvatures, of their mean
MOST = 10_000  # evaluations, where the time is not over before
HISTORY = 60  # steps that L-BFGS remembers
SCALES = 4  # of the pixels' loss
CHROMA = 3.0  # weight of colour against lightness, or small brown eyes come out blue
PULL = 2e-2  # weight of |v|² of a picture that no seed draws …
FAINT_PULL = 2e-4  # … and of one that a seed may have drawn
SEEN = 2.0  # weight of the discriminator's features; pixels alone are met best by blurs
READ = 0.1  # weight of the encoder's maps

Found = Callable[[Tensor], None]
_matchers: WeakKeyDictionary[Studio, Matcher] = WeakKeyDictionary()
_preparing = threading.Lock()


class Over(Exception):
    """The search shall end with what it has."""


@dataclass
class Clock:
    """Reports progress, and ends a search when it is asked to or when time is over."""

    seconds: float
    progress: Callable[[float], None] | None = None
    stop: threading.Event | None = None

    def __post_init__(self) -> None:
        self.start = time.monotonic()

    @property
    def share(self) -> float:
        """The share of the time that is over, 0 … 1."""
        return min(1.0, (time.monotonic() - self.start) / self.seconds)

    def check(self) -> None:
        """Report the time; raise Over when it is over or the work shall stop."""
        if self.progress is not None:
            self.progress(self.share)
        if self.share >= 1 or (self.stop is not None and self.stop.is_set()):
            raise Over


class Matcher:
    """What a search must know of a studio.

    Attributes:
        mean_face: `[C, SMALL, SMALL]`.
        curvature: of the pixels' loss along v, over the mean, `[num_ws, w_dim]`.
        shared_curvature: the same where all layers have one v, `[1, w_dim]`.
    """

    @torch.enable_grad()
    def __init__(self, studio: Studio) -> None:
        assert isinstance(studio.G, Generator)
        self.G, self.D, self.E = studio.G, studio.D, studio.encoder
        self.whitening = self.E.whitening if self.E else Whitening.of(self.G)
        with torch.no_grad():
            z = latents_from_seeds(range(FIRST_SEED, FIRST_SEED + FACES), self.G.z_dim)
            self.v = self.whitening.to_v(self.G.mapping(z, 0.8))  # [FACES, num_ws, w_dim]
        faces = []
        layers, shared = torch.zeros(self.G.num_ws, self.G.w_dim), torch.zeros(1, self.G.w_dim)
        noise = torch.Generator().manual_seed(0)
        for part in self.v.split(8):
            v = part.clone().requires_grad_()
            drawn = self.draw(v)
            direction = torch.randn(drawn.shape, generator=noise)
            (slopes,) = torch.autograd.grad((drawn * direction).sum(), v)
            layers += slopes.square().sum(0)
            shared += slopes.sum(1).square().sum(0)
            faces.append(drawn.detach())
        self.faces = torch.cat(faces)
        self.curvature, self.shared_curvature = layers / layers.mean(), shared / shared.mean()
        self.mean_face = shrink(self.faces, SMALL).mean(0)
        torch.optim.LBFGS([torch.zeros(1).requires_grad_()])  # imports for a second, once
        with torch.no_grad():
            self.units = [
                m.square().mean((0, 2, 3)).add(1e-6).rsqrt()[:, None, None]
                for _, m in self.features(self.faces)
            ]

    def to_ws(self, v: Tensor) -> Tensor:
        """Map v `[N, 1 or num_ws, w_dim]` to ws `[N, num_ws, w_dim]`."""
        return self.whitening.to_w(v).expand(-1, self.G.num_ws, -1)

    def draw(self, v: Tensor) -> Tensor:
        """Draw v `[N, 1 or num_ws, w_dim]` as pictures `[N, C, H, W]`."""
        return self.G.synthesis(self.to_ws(v))

    def features(self, pictures: Tensor) -> list[tuple[float, Tensor]]:
        """Return weights and maps `[N, channels, height, width]` of what networks see."""
        found = [(SEEN, m) for m in self.D.features(pictures)[1:]] if self.D else []
        return found + ([(READ, m) for m in self.E.maps(pictures)] if self.E else [])

    @torch.no_grad()
    def first(self, pictures: Tensor) -> Tensor:
        """Return a first v `[N, num_ws, w_dim]` of pictures `[N, C, H, W]`."""
        if self.E is not None:
            return self.E.encode(pictures)
        apart = (shrink(pictures, SMALL)[:, None] - shrink(self.faces, SMALL)).square()
        return self.v[apart.mean((2, 3, 4)).argmin(1)]

    def search(self, image: Image.Image, clock: Clock, found: Found | None = None) -> Tensor:
        """Return the best ws `[num_ws, w_dim]` that were found in the time.

        Args:
            image: RGB, any size.
            found: called once with the ws of the first answer.
        Raises:
            Stopped: the clock's `stop` was set before there was a first answer.
        """
        try:
            boxes = [b for b in align(self.G, self.mean_face, image, clock.check) if b]
        except Over:
            raise Stopped from None
        pictures = cut_all(self.G, image, boxes)
        v = self.first(pictures)
        with torch.no_grad():
            left = pixel_loss(visible_difference(self.draw(v), pictures))
        best = 1 if len(boxes) > 1 and left[1] < NEARER * left[0] else 0
        v, target = v[best : best + 1], pictures[best : best + 1]
        if found is not None:
            found(self.to_ws(v)[0])
        return self.to_ws(self.refine(v, target, clock))[0].detach()

    def refine(self, v: Tensor, target: Tensor, clock: Clock) -> Tensor:
        """Return a v `[1, 1 or num_ws, w_dim]` whose face is more like a target `[1, C, H, W]`."""
        shared = Descent(self, v.mean(1, keepdim=True), target, clock, exact=True)
        shared.run(TRIES)
        start = shared.best.expand(-1, self.G.num_ws, -1)
        layered = Descent(self, start, target, clock, exact=shared.rmse < GENERATED)
        layered.run(MOST)
        return layered.best


class Descent:
    """L-BFGS from a v `[1, 1 or num_ws, w_dim]`, one for all layers or one for each.

    Args:
        exact: lower the pixels' error alone; else what networks see counts too.
    Attributes:
        best, rmse: the best v so far, and its root mean square error of 255.
    """

    def __init__(
        self, matcher: Matcher, start: Tensor, target: Tensor, clock: Clock, *, exact: bool
    ) -> None:
        self.matcher, self.start, self.target, self.clock = matcher, start, target, clock
        self.exact = exact
        curvature = matcher.shared_curvature if start.shape[1] == 1 else matcher.curvature
        # The other loss has less uneven curvatures.
        self.scale = (
            (curvature + EXACT_FLOOR).rsqrt() if exact else (curvature + OTHER_FLOOR).pow(-0.25)
        )
        self.u = torch.zeros_like(start).requires_grad_()
        self.optimizer = torch.optim.LBFGS(
            [self.u], history_size=HISTORY, line_search_fn="strong_wolfe",
            tolerance_grad=1e-9, tolerance_change=1e-12,
        )  # fmt: skip
        with torch.no_grad():
            self.seen = [] if exact else [m for _, m in matcher.features(target)]
        self.lowest, self.rmse = float("inf"), float("inf")
        self.best = start

    def run(self, evaluations: int) -> None:
        """Take steps until so many evaluations, the end of the time, or an exact answer."""
        self.optimizer.param_groups[0].update(max_iter=evaluations, max_eval=evaluations)

        def evaluate() -> Tensor:
            self.clock.check()
            self.optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss.detach()

        with suppress(Over):
            self.optimizer.step(evaluate)

    def loss(self) -> Tensor:
        """Return the loss of u; remember v where it is the lowest so far."""
        v = self.start + self.u * self.scale
        drawn = self.matcher.draw(v)
        pull, chroma = (FAINT_PULL, 1.0) if self.exact else (PULL, CHROMA)
        loss = (
            pixel_loss(weigh_chroma(visible_difference(drawn, self.target), chroma)).sum()
            + pull * v.square().mean()
        )
        if not self.exact:
            found = self.matcher.features(drawn)
            for (weight, a), b, unit in zip(found, self.seen, self.matcher.units, strict=True):
                loss = loss + weight * ((a - b) * unit).square().mean()
        if loss.item() < self.lowest:
            self.lowest, self.best = loss.item(), v.detach().clone()
            error = (quantise(drawn.detach()).float() - quantise(self.target).float()).square()
            self.rmse = error.mean().sqrt().item()
        if self.rmse < EXACT:
            raise Over
        return loss


def visible_difference(drawn: Tensor, target: Tensor) -> Tensor:
    """Return drawn - target, 0 where both are beyond the same end of [-1, 1], which shows alike."""
    difference = drawn - target
    difference = torch.where(target >= 1, difference.clamp(max=0), difference)
    return torch.where(target <= -1, difference.clamp(min=0), difference)


def pixel_loss(difference: Tensor) -> Tensor:
    """Return the mean squares of differences `[N, C, H, W]` at SCALES scales, `[N]`."""
    loss = difference.square().mean((1, 2, 3))
    for _ in range(SCALES - 1):
        if difference.shape[-1] < 8:
            break
        difference = F.avg_pool2d(difference, 2)
        loss = loss + difference.square().mean((1, 2, 3))
    return loss


def weigh_chroma(difference: Tensor, chroma: float) -> Tensor:
    """Weigh what is colour in a difference `[N, C, H, W]`; the rest is lightness."""
    lightness = difference.mean(1, keepdim=True)
    return lightness + chroma * (difference - lightness)


def prepare(studio: Studio) -> Matcher:
    """Measure what a search must know of a studio, once; other threads wait for it."""
    with _preparing:
        if studio not in _matchers:
            _matchers[studio] = Matcher(studio)
        return _matchers[studio]
