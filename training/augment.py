"""Differentiable augmentation: the critic sees real and fake images through the same changes.

DiffAugment, Zhao et al. 2020, https://arxiv.org/abs/2006.10738. Every step is differentiable twice
in the pixels, so a gradient penalty may look through it, and none waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

SHIFT_RATIO = 1 / 8  # furthest translation, share of the side
CUTOUT_RATIO = 1 / 2  # side of the blanked square, share of the side


def parse_policy(text: str) -> tuple[str, ...]:
    """Turn `"translation,cutout,colour"` into the tuple of its names, in the order of application.

    Empty text means no augmentation and gives `()`; blanks and repetitions do not matter.

    Raises:
        ValueError: a name that is not in `POLICIES`.
    """
    return _in_order(name.strip() for name in text.split(",") if name.strip())


def augment(
    images: Tensor,
    policy: str | tuple[str, ...],
    *,
    strength: float | Tensor = 1.0,
    rng: torch.Generator | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """Change each image at random; give real and fake batches the same policy and strength.

    Each image undergoes each policy with probability `strength`, independently: 0 returns the
    input's values untouched, 1 is DiffAugment. A probability rather than a smaller extent, because
    changes that leave some images alone do not leak into what the generator draws
    (Karras et al. 2020, https://arxiv.org/abs/2006.06676, section 2.2).

    One table of `world_size * N` rows is drawn per call, whatever the policy and strength, and rows
    `rank * N` onward are used. Processes whose `rng` hold the same state therefore augment
    together exactly as one process would with the whole batch.

    Args:
        images: float `[N, C, H, W]` in [-1, 1], one or three channels. Colour may leave the range.
        policy: names from `POLICIES`, as a tuple or a comma-separated string; empty for none.
        strength: probability in [0, 1]; a scalar tensor on the images' device is not checked, as
            that would wait for the device.
        rng: generator on the images' device; None for that device's default one.
        rank: this process's place among `world_size`, each holding a batch of N.
        world_size: number of processes that share the global batch.

    Returns:
        Tensor of the input's shape, type and device.

    Raises:
        ValueError: unknown policy, strength outside [0, 1], rank outside the world, images that
            are not `[N, C, H, W]`.
    """
    names = parse_policy(policy) if isinstance(policy, str) else _in_order(policy)
    if not isinstance(strength, Tensor) and not 0.0 <= strength <= 1.0:
        raise ValueError(f"The augmentation strength is {strength}; it must lie in [0, 1].")
    if not 0 <= rank < world_size:
        raise ValueError(f"Rank {rank} is not one of {world_size} processes (0 to world_size - 1).")
    if images.ndim != 4:
        raise ValueError(f"Augmentation takes images [N, C, H, W], not {list(images.shape)}.")
    if not names:
        return images
    count = images.shape[0]
    table = torch.rand(world_size * count, _COLUMNS, generator=rng, device=images.device)
    table = table[rank * count : (rank + 1) * count]
    for name in names:
        change, first, last = POLICIES[name]
        gate, *draws = table[:, first:last].unbind(1)  # each [N], uniform in [0, 1)
        images = change(images, gate < strength, *draws)
    return images


class AdaptiveStrength(nn.Module):
    """A strength that follows how surely D knows its own pictures for real.

    ADA's rule (Karras et al. 2020, https://arxiv.org/abs/2006.06676, section 3.1): every few steps
    the mean sign of D's logits on real pictures, as D saw them, is compared with a target, and the
    strength grows or falls by a fixed amount. It starts at 0. All of its state is in buffers, so
    that a checkpoint holds it; nothing waits for the device.

    Args:
        target: of the mean sign, 0 to 1; the paper's is 0.6.
        kimg: thousand images in which the strength may go from 0 to 1; the paper's are 500.
        most: the strength's upper end.
    """

    INTERVAL = 4  # steps from one comparison to the next, as in the paper
    strength: Tensor
    signs: Tensor
    parts: Tensor

    def __init__(self, target: float, kimg: float = 500.0, most: float = 1.0) -> None:
        super().__init__()
        self.target, self.kimg, self.most = target, kimg, most
        for name in ("strength", "signs", "parts"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def accumulate(self, sign: Tensor) -> None:
        """Take in the mean sign of one part of a batch, a scalar."""
        self.signs += sign
        self.parts += 1

    @torch.no_grad()
    def adjust(self, images: int, reduce: Callable[[Tensor], Tensor]) -> None:
        """Move the strength by what so many images allow, and begin to sum anew.

        Args:
            images: seen since the last call, over all processes.
            reduce: mean of a scalar over all processes.
        """
        sign = reduce(self.signs / self.parts)
        self.strength += images / (1000 * self.kimg) * torch.sign(sign - self.target)
        self.strength.clamp_(0, self.most)
        self.signs.zero_()
        self.parts.zero_()


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Check names and sort them into the order of application."""
    wanted = set(names)
    unknown = sorted(wanted - set(POLICIES))
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise ValueError(f"no augmentation is called {names}; choose from {', '.join(POLICIES)}")
    return tuple(name for name in POLICIES if name in wanted)


def _colour(
    images: Tensor, gate: Tensor, bright: Tensor, saturate: Tensor, contrast: Tensor
) -> Tensor:
    """Shift brightness by up to 0.5, scale saturation by 0 to 2 and contrast by 0.5 to 1.5."""
    gate = gate.to(images.dtype)[:, None, None, None]
    bright, saturate, contrast = (
        u.to(images.dtype)[:, None, None, None] for u in (bright, saturate, contrast)
    )
    # Written as x + change, so that an image left alone keeps its bits.
    images = images + gate * (bright - 0.5)
    grey = images.mean(1, keepdim=True)  # of one channel: the image, so saturation does nothing
    images = images + gate * (2 * saturate - 1) * (images - grey)
    level = images.mean((1, 2, 3), keepdim=True)
    return images + gate * (contrast - 0.5) * (images - level)


def _translation(images: Tensor, gate: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Shift by whole pixels, up to an eighth of each side either way, and fill with zero.

    Zero is mid-grey, on purpose. Filled with the portraits' white, a shifted face would pass for
    a real composition, and the generator would learn to draw faces off centre; a grey border is
    in no real picture, so the shift does not leak.
    """
    for dim, draw in ((2, vertical), (3, horizontal)):
        size = images.shape[dim]
        reach = int(size * SHIFT_RATIO + 0.5)
        shift = _uniform_integer(draw, 2 * reach + 1) - reach
        source = torch.arange(size, device=images.device) - (shift * gate)[:, None]  # [N, size]
        shape = (-1, 1, size, 1) if dim == 2 else (-1, 1, 1, size)
        inside = ((source >= 0) & (source < size)).view(shape)
        index = source.clamp(0, size - 1).view(shape).expand_as(images)
        images = images.gather(dim, index) * inside.to(images.dtype)
    return images


def _cutout(images: Tensor, gate: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Blank a square of half the side with zero, centred anywhere, clipped at the borders."""
    rows = _cut_lines(images.shape[2], vertical)[:, None, :, None]
    columns = _cut_lines(images.shape[3], horizontal)[:, None, None, :]
    kept = ~(rows & columns & gate[:, None, None, None])
    return images * kept.to(images.dtype)


def _cut_lines(size: int, draw: Tensor) -> Tensor:
    """Mark the lines `[N, size]` that each image's square covers along one side."""
    width = int(size * CUTOUT_RATIO + 0.5)
    first = _uniform_integer(draw, size + 1 - width % 2) - width // 2
    line = torch.arange(size, device=draw.device)
    return (line >= first[:, None]) & (line < first[:, None] + width)


def _uniform_integer(draw: Tensor, count: int) -> Tensor:
    """Map uniform numbers in [0, 1) to integers in [0, count)."""
    # In float32 the largest draw times count can round up to count itself.
    return (draw * count).long().clamp(max=count - 1)


# Name: (change, first and last column of the table). The first column is the gate. Colour comes
# first, so that neither border nor square is tinted. A new policy appends columns.
POLICIES: dict[str, tuple[Callable[..., Tensor], int, int]] = {
    "colour": (_colour, 0, 4),
    "translation": (_translation, 4, 7),
    "cutout": (_cutout, 7, 10),
}
_COLUMNS = 10
