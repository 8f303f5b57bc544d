"""Steps in w, refined by descent through the generator and a reader of tags.

A linear fit knows how tags go with w on the whole; descent sees what one step does to faces. One
step serves all faces, and they are shown mirrored, shifted, in other contrast and with noise, which
leaves little room for patterns that please the reader alone.

Every layer has a step of its own, in coordinates in which w is white.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Generator
from training.attributes import SIZE, TagReader, resize
from training.colours import Palette

FACES = 10  # of one step of Adam
RATE = 0.1  # of Adam, in standard deviations of w
SHIFT = 1 / 32  # of the picture's side, of what the reader is shown
CONTRAST, NOISE = 0.15, 0.08  # standard deviations
HOLD = 2.0  # weight of another tag's move, in its gaps, against the tag's own
CHANGE = 0.3  # weight of the picture's change, as a share of the difference of two faces
TINT = 1.0  # weight of a change at 16 px where faces are alike, for tags that are no colour
NOVELTY = 0.25  # weight of the change of what the reader sees, likewise
FAR = 1.3  # of other faces' distance from the mean colour, in what colours' steps are tried on
SHARP = 4.0  # of the bend at the target, in 1 / gap


@dataclass(frozen=True)
class Faces:
    """Unedited faces that steps are tried on.

    Attributes:
        ws: `[N, num_ws, w_dim]`.
        images: `[N, 3, S, S]` in [-1, 1], as large as the reader looks at them.
        whiten: maps steps `[..., num_ws, w_dim]` to white coordinates; `colour` maps them back.
    """

    G: Generator
    reader: TagReader
    ws: Tensor
    images: Tensor
    whiten: Callable[[Tensor], Tensor]
    colour: Callable[[Tensor], Tensor]

    def draw(self, ws: Tensor) -> Tensor:
        """Draw ws as the reader looks at them, with a gradient."""
        return resize(self.G.synthesis(ws), self.images.shape[2])

    def tint(self, drawn: Tensor, rows: Tensor) -> Tensor:
        """Return the mean square change at 16 px, in units of how faces differ at each place.

        Skin and paper are alike in all faces, so a change there counts most.
        """
        small = F.adaptive_avg_pool2d(self.images, 16)
        change = F.adaptive_avg_pool2d(drawn, 16) - small[rows]
        return (change.square() / (2 * small.var(0) + 1e-3)).mean()

    def loss(self, rows: Tensor, drawn: Tensor, others: Tensor, rng: torch.Generator) -> Costs:
        """Compare faces after a step with the same faces before it, as the reader is shown them.

        Args:
            rows: indices of the faces, `[n]`.
            drawn: these faces after the step, `[n, 3, S, S]`.
            others: indices of the tags that should stay.
            rng: of how they are shown.
        """
        show = shown(len(rows), drawn.shape[2], rng)
        with torch.no_grad():
            seen_before, before = self.reader.see(show(self.images[rows]))
        seen, logits = self.reader.see(show(drawn))
        gap = gaps(self.reader)[others]
        return Costs(
            logits,
            ((logits - before)[:, others] / gap).square().mean(),
            relative(drawn, self.images[rows], self.images),
            self.tint(drawn, rows),
            relative(seen, seen_before, seen_before),
        )


@dataclass(frozen=True)
class Costs:
    """What a step does besides: each 0 where nothing else changes."""

    logits: Tensor  # [n, L], after it
    strayed: Tensor
    changed: Tensor
    tinted: Tensor
    novel: Tensor

    def total(self, *, recoloured: bool) -> Tensor:
        """Return the weighted sum; a face that is to be recoloured is not kept from it."""
        total = HOLD * self.strayed + CHANGE * self.changed + NOVELTY * self.novel
        return total if recoloured else total + TINT * self.tinted


def gaps(reader: TagReader) -> Tensor:
    """Return for each tag how far the logits of typical faces without and with it lie apart."""
    return (reader.typical[1] - reader.typical[0]).clamp(min=0.5)


def relative(after: Tensor, before: Tensor, spread: Tensor) -> Tensor:
    """Return the mean square change, as a share of that between two of the faces in `spread`."""
    return (after - before).square().mean() / (spread - spread.roll(1, 0)).square().mean()


def shown(count: int, size: int, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a way to show faces `[count, 3, size, size]`, the same for all it is applied to."""
    reach = round(SHIFT * size)
    left, top = torch.randint(2 * reach + 1, (2,), generator=rng).tolist()
    mirrored = bool(torch.randint(2, (1,), generator=rng))
    contrast = 1 + CONTRAST * torch.randn(count, 3, 1, 1, generator=rng)
    noise = NOISE * torch.randn(count, 3, size, size, generator=rng)

    def show(images: Tensor) -> Tensor:
        images = F.pad(images, [reach] * 4, mode="replicate")
        images = images[:, :, top : top + size, left : left + size]
        images = images.flip(3) if mirrored else images
        return (images * contrast + noise).clamp(-1, 1)

    return show


def descend(step: Tensor, steps: int, faces: Faces, loss: Callable[[Tensor, Tensor], Tensor]):
    """Take steps of Adam from `step` `[..., num_ws, w_dim]`; layers that are 0 stay so.

    Args:
        loss: of indices of some faces and a step.
    """
    used = (step != 0).any(-1, keepdim=True)
    white = faces.whiten(step).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([white], RATE, betas=(0.8, 0.95))
    rng = torch.Generator().manual_seed(0)
    for done in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2.05 - 2 * done / steps)
        rows = torch.randperm(len(faces.ws), generator=rng)[:FACES]
        value = loss(rows, faces.colour(white) * used)
        (white.grad,) = torch.autograd.grad(value, [white])
        optimizer.step()
    return (faces.colour(white) * used).detach()


def refine_tag(
    faces: Faces,
    step: Tensor,
    ways: Tensor,
    *,
    index: int,
    others: list[int],
    recoloured: bool,
    target: float,
    ease: float,
    steps: int,
) -> Tensor:
    """Refine one tag's step `[num_ws, w_dim]`: up to the target, and little else.

    Args:
        ways: how much of the step each face takes, `[N]`.
        index: of the tag.
        others: tags that should stay.
        recoloured: whether the tag is a colour.
        target: logit that is enough.
        ease: factor of all that holds the step back.
        steps: of Adam.
    """
    rng = torch.Generator().manual_seed(index)
    gap = gaps(faces.reader)[index]

    def loss(rows: Tensor, step: Tensor) -> Tensor:
        drawn = faces.draw(faces.ws[rows] + ways[rows, None, None] * step)
        costs = faces.loss(rows, drawn, torch.tensor(others), rng)
        missing = F.softplus(SHARP * (target - costs.logits[:, index]) / gap) / SHARP
        return missing.mean() + ease * costs.total(recoloured=recoloured)

    return descend(step, steps, faces, loss)


def refine_colour(
    faces: Faces,
    step: Tensor,
    predicted: Tensor,
    *,
    part: str,
    palette: Palette,
    targets: Tensor,
    others: list[int],
    steps: int,
) -> Tensor:
    """Refine the three steps `[3, num_ws, w_dim]` that move one part's colour.

    Args:
        predicted: the part's colour in each face, as the linear map has it, `[N, 3]`.
        targets: colours that faces have, `[T, 3]`; each step of Adam asks for some like them, but
            FAR times as far from the mean, as people pick them.
        others: tags that should stay.
        steps: of Adam.
    """
    rng = torch.Generator().manual_seed(0)
    middle = targets.mean(0)
    spread = (targets - middle).square().sum(1).mean()
    unit = spread.sqrt()  # so that Adam's rate means for colours what it means for tags

    def loss(rows: Tensor, step: Tensor) -> Tensor:
        wanted = targets[torch.randint(len(targets), (len(rows),), generator=rng)]
        wanted = middle + FAR * (wanted - middle)
        way = (wanted - predicted[rows]) / unit
        drawn = faces.draw(faces.ws[rows] + torch.einsum("nc,cld->nld", way, step))
        costs = faces.loss(rows, drawn, torch.tensor(others), rng)
        found = palette.measure(resize(drawn, SIZE))[part]
        missed = (found - wanted).square().sum(1).mean() / spread
        return missed + costs.total(recoloured=True)

    return descend(step * unit, steps, faces, loss) / unit
