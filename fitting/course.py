"""A course of learning on a CPU, which resumes exactly from its last checkpoint.

class Enlarging(Course):
    def step(self) -> dict[str, float]: ...     # learn from one batch

begin(folder, settings)                         # refuses a folder of other settings
Enlarging(settings, pairs, folder / "checkpoints").run()
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from model import dequantise
from training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint

SAVE_EVERY = 300.0  # seconds between two checkpoints
LAST_RATE = 0.02  # of the step size, at the end of the cosine


class FittingError(ValueError):
    """Settings or files that nothing can be learned with; the message is one sentence."""


class Learning(Protocol):
    """What every course has among its settings."""

    @property
    def kimg(self) -> float:
        """Thousand pictures."""

    @property
    def batch_size(self) -> int:
        """Pictures of a step."""

    @property
    def lr(self) -> float:
        """Adam's step size, at first."""


def begin(folder: Path, settings: Any) -> None:
    """Write a dataclass of settings into a folder, or refuse one that was begun with others.

    Raises:
        FittingError: the folder's settings.json differs.
    """
    path = folder / "settings.json"
    if path.is_file():
        try:
            same = json.loads(path.read_text()) == asdict(settings)
        except ValueError:
            same = False
        if not same:
            raise FittingError(f"{folder} was started with other settings; use another --out")
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(settings), indent=2) + "\n")
    part.replace(path)


def to_tensor(images: np.ndarray) -> Tensor:
    """Turn uint8 `[N, H, W, C]` into floats `[N, C, H, W]` in [-1, 1]."""
    return dequantise(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2))


class Course:
    """Networks that learn, each with an Adam of its own.

    Args:
        networks: by name.
        settings: its numbers; a folder belongs to one set of them.
        folder: of the checkpoints; where it holds some, the newest is loaded.
        betas: of Adam.
        constant: share of the pictures before the step size begins to fall along a cosine.
    """

    unit = "face"

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        settings: Learning,
        folder: Path,
        *,
        betas: tuple[float, float],
        constant: float,
    ) -> None:
        self.networks, self.learning, self.folder = networks, settings, folder
        self.constant = constant
        self.optimizers = {
            f"{name}_opt": torch.optim.Adam(network.parameters(), settings.lr, betas=betas)
            for name, network in networks.items()
        }
        self.total = round(1000 * settings.kimg)
        self.seen = 0
        for network in networks.values():
            network.to(memory_format=torch.channels_last)
        if saved := list_checkpoints(folder):
            self.seen = load_checkpoint(saved[-1], networks, self.optimizers)["nimg"]

    def step(self) -> dict[str, float]:
        """Learn from one batch; return losses by name."""
        raise NotImplementedError

    def set_lr(self) -> None:
        """Set the step size of what was seen so far."""
        done = max(0.0, (self.seen / self.total - self.constant) / (1 - self.constant))
        share = (1 + math.cos(math.pi * min(done, 1))) / 2
        lr = self.learning.lr * (LAST_RATE + (1 - LAST_RATE) * share)
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = lr

    def descend(self, name: str, loss: Tensor) -> None:
        """Take one step of an optimizer."""
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def save(self) -> None:
        """Write a checkpoint."""
        save_checkpoint(self.folder, self.networks, self.optimizers, {"nimg": self.seen}, keep=1)

    def run(self) -> None:
        """Learn until all pictures were seen."""
        bar = tqdm(
            total=self.total, initial=self.seen, desc="learning", unit=self.unit, disable=None
        )
        saved = time.monotonic()
        while self.seen < self.total:
            self.set_lr()
            losses = self.step()
            self.seen += self.learning.batch_size
            bar.update(self.learning.batch_size)
            bar.set_postfix({name: f"{value:.4f}" for name, value in losses.items()})
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
                tqdm.write(f"{self.seen} of {self.total}: {json.dumps(losses)}")
        self.save()
        bar.close()
