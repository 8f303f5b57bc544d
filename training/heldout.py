"""How D judges pictures that it never saw, beside those that it learns from.

    run.held_out = HeldOut(faces, rows_learned, rows_held, ...)
    stats |= run.held_out.judge(D, G, nimg, z, show)    # d_learned, d_held_out, d_drawn

While D learns what faces look like, it judges both alike. Once it learns its pictures by heart, it
takes the unseen ones for drawn (Karras et al. 2020, arXiv 2006.06676, section 3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.augment import POLICIES, parse_policy
from training.config import TrainConfig
from training.data import Batches, Faces

LEAST_PICTURES = 2000  # a set of fewer keeps none apart
MOST_HELD = 500
TICK_SHARE = 1 / 32  # pictures judged of each kind, as a share of those that a tick learns from
LEAST_JUDGED = 32  # of each kind at a tick
CHUNK = 64  # pictures judged at once
STEADY = 500  # pictures judged of each kind before a verdict
PARTED = 1 / 3  # of the way from learned pictures to drawn ones


def count_held(pictures: int, share: float) -> int:
    """Return how many of a set's pictures are kept apart: a share, at most MOST_HELD."""
    return min(MOST_HELD, round(share * pictures)) if pictures >= LEAST_PICTURES else 0


class HeldOut:
    """Judges pictures that D learned from and pictures that it never saw, in turns.

    Args:
        faces: the packed set.
        learned, held: indices of the pictures of each kind, int64.
        config: of the run.
        device: where D is.
    """

    def __init__(
        self,
        faces: Faces,
        learned: np.ndarray,
        held: np.ndarray,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        self.tick_images = max(1, round(config.tick_kimg * 1000))
        count = min(len(held), max(LEAST_JUDGED, int(self.tick_images * TICK_SHARE)))
        self.count = count - count % config.group_size or count  # D looks at whole groups
        # With the run's own seed, what is judged of the learned pictures comes in the order in
        # which D sees them, so D has seen it.
        options: dict[str, Any] = {"seed": config.seed, "xflip": config.xflip, "device": device}
        options |= {"batch_size_per_process": self.count, "on_device": False}
        self.learned = Batches(faces, rows=learned, **options)
        self.held = Batches(faces, rows=held, **options)
        self.enough = max(2, -(-STEADY // self.count))
        self.recent: deque[tuple[float, ...]] = deque(maxlen=self.enough)

    @torch.no_grad()
    def judge(
        self,
        D: nn.Module,
        G: nn.Module,
        nimg: int,
        z: Tensor,
        show: Callable[[Tensor], Tensor],
    ) -> dict[str, float]:
        """Return the mean probability of being real that D gives to pictures of each kind.

        Args:
            D: pictures `[N, C, H, W]` → logits `[N]` or `[N, K]`.
            G: latents `[N, z_dim]` → pictures.
            nimg: images that D has seen.
            z: latents of the drawn pictures, `[count, z_dim]`.
            show: what D's pictures go through, such as augmentation; `[N, C, H, W]` → the same.
        Returns:
            `d_learned`, `d_held_out` and `d_drawn`, each in [0, 1].
        """
        modes = [(network, network.training) for network in (D, G)]
        for network, _ in modes:
            network.eval()  # so that no running statistic moves
        try:
            # Batches of other sizes would have compiled networks compiled anew.
            with torch.compiler.set_stance("force_eager"):
                position = nimg // self.tick_images * self.count
                pictures = {
                    "d_learned": self.learned.batch(position),
                    "d_held_out": self.held.batch(position),
                    "d_drawn": torch.cat([G(part).float() for part in z.split(CHUNK)]),
                }
                found = {
                    name: torch.cat([D(part).float() for part in show(images).split(CHUNK)])
                    for name, images in pictures.items()
                }
        finally:
            for network, training in modes:
                network.train(training)
        return {name: torch.sigmoid(logits).mean().item() for name, logits in found.items()}

    def parted(self, judged: dict[str, float]) -> float:
        """Take in what `judge` returned; tell how far unseen pictures are on the way to drawn ones.

        0 as long as too few were judged to tell, or where D does not tell learned from drawn ones.
        """
        self.recent.append(tuple(judged[name] for name in ("d_learned", "d_held_out", "d_drawn")))
        learned, held, drawn = np.mean(self.recent, 0)
        if len(self.recent) < self.enough or learned <= drawn:
            return 0.0
        return float((learned - held) / (learned - drawn))


def suggest(way: float, config: TrainConfig) -> str:
    """Return the advice for a run whose D has overfitted; "" while it has not, or has all help.

    Args:
        way: what `HeldOut.parted` returns.
    """
    missing = [name for name in POLICIES if name not in parse_policy(config.augment)]
    weak = config.augment_strength < 1 and not config.augment_target
    if way < PARTED or not (missing or weak):
        return ""
    flags = f"--augment {','.join(sorted(POLICIES, reverse=True))}"
    flags += " --augment-strength 1" if weak else ""
    return (
        f"D judges pictures that it never saw {way:.0%} of the way from those that it learns from "
        f"to drawn ones: it overfits. {flags} helps against that, from --resume latest on too."
    )
