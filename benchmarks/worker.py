"""One contestant of `python -m benchmarks.training`, in a process of its own.

A worker reads commands from its input, one a line, and answers each with a line of JSON. It needs
torch and NumPy alone, so that the peers' environment can run it too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Contestant(Protocol):
    """A training run that can be driven step by step."""

    G: nn.Module
    D: nn.Module
    cycle: int  # steps after which penalties come round again

    def step(self) -> None:
        """Teach D and G one batch each."""

    def draw(self, count: int) -> np.ndarray:
        """Draw faces as uint8 `[N, H, W, 3]`."""


class Operations(TorchDispatchMode):
    """Counts FLOP; torch's own FlopCounterMode hooks modules, which gradient penalties refuse."""

    total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def parse_arguments(names: tuple[str, ...]) -> argparse.Namespace:
    """Read a worker's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=names)
    parser.add_argument("--size", type=int, required=True, help="px")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--images", type=Path, required=True, help="uint8 [N, H, W, 3], raw")
    parser.add_argument("--data", default="", help="where those came from")
    return parser.parse_args()


def real_batches(path: Path, size: int, batch: int, low: float = -1.0) -> Iterator[Tensor]:
    """Yield random batches `[N, 3, H, W]` of raw uint8 faces in [low, 1], half of them mirrored."""
    faces = np.memmap(path, np.uint8, "r").reshape(-1, size, size, 3)
    rng = np.random.default_rng(0)
    while True:
        pixels = torch.from_numpy(faces[np.sort(rng.integers(len(faces), size=batch))])
        mirrored = torch.from_numpy(rng.random(batch) < 0.5)[:, None, None, None]
        pixels = torch.where(mirrored, pixels.flip(2), pixels).permute(0, 3, 1, 2).float()
        yield pixels * ((1 - low) / 255) + low


def to_pixels(images: Tensor, low: float = -1.0) -> np.ndarray:
    """Turn images `[N, 3, H, W]` in [low, 1] into uint8 `[N, H, W, 3]`."""
    pixels = ((images - low) * (255 / (1 - low))).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def serve(build: Callable[[argparse.Namespace], Contestant], names: tuple[str, ...]) -> None:
    """Build the contestant and answer commands until the input ends."""
    args = parse_arguments(names)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    torch.set_num_threads(1)
    torch.manual_seed(0)
    contestant = build(args)
    commands = {
        "step": lambda count: timed(contestant, int(count)),
        "learn": lambda seconds: learn(contestant, float(seconds), args.batch),
        "count": lambda steps=0: count_operations(contestant, args.batch, int(steps)),
        "facts": lambda: facts(contestant),
        "draw": lambda count, path: draw(contestant, int(count), path),
    }
    for line in sys.stdin:
        name, *words = line.split()
        print(json.dumps(commands[name](*words)), file=answers, flush=True)


def timed(contestant: Contestant, count: int) -> dict[str, float]:
    """Take steps; return the processor's seconds of one, and of the process since it began."""
    start = time.process_time()
    for _ in range(count):
        contestant.step()
    now = time.process_time()
    return {"cpu": (now - start) / count, "whole": now}


def learn(contestant: Contestant, seconds: float, batch: int) -> dict[str, float]:
    """Take steps until this process has computed for some more seconds."""
    start, images = time.process_time(), 0
    while time.process_time() - start < seconds:
        contestant.step()
        images += batch
    return {"images": images, "cpu": time.process_time() - start}


def count_operations(contestant: Contestant, batch: int, steps: int = 0) -> dict[str, float]:
    """Return GFLOP an image of a training step, and what `timed` says: the mean of some steps.

    Those of a whole cycle when 0; of fewer, the share with a penalty is another.
    """
    steps = steps or contestant.cycle
    with Operations() as counter:
        seconds = timed(contestant, steps)
    gflop = counter.total / steps / batch / 1e9
    return {"gflop": gflop, "cycle": contestant.cycle, **seconds}


def facts(contestant: Contestant) -> dict[str, float]:
    """Return learned numbers of G and D, and the most memory that this process has had, MB."""
    return {
        "G": sum(p.numel() for p in contestant.G.parameters()),
        "D": sum(p.numel() for p in contestant.D.parameters()),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


@torch.no_grad()
def draw(contestant: Contestant, count: int, path: str) -> dict[str, Any]:
    """Write faces as .npy."""
    parts = [contestant.draw(min(64, count - start)) for start in range(0, count, 64)]
    np.save(path, np.concatenate(parts))
    return {"path": path}
