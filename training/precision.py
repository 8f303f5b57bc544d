"""The numbers that a run computes with: one autocast for the whole step, in the step's own hands.

Accelerate is left at float32. Asked for another precision, it wraps each prepared network's
`forward` in an autocast of its own, which also holds where the step has switched autocast off: for
a gradient penalty, whose squares lose too much in 16 bits. And it scales all losses by one number,
and that on GPUs alone. Here each optimizer has a scale of its own (Micikevicius et al. 2018,
arXiv 1710.03740): what overflows in D says nothing of G.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TENSOR_CORES = (7, 0)  # compute capability from which a GPU has them, for fp16


class Precision:
    """How products are computed on one device, and how losses are scaled for it.

    Args:
        name: "no" for float32, "bf16", or "fp16", whose gradients need scaled losses.
        device: where the networks are.
        hint: what to tell of it.
    """

    def __init__(self, name: str, device: torch.device, hint: str = "") -> None:
        self.name, self.device, self.dtype, self.hint = name, device, DTYPES[name], hint
        self.scalers: dict[str, torch.amp.GradScaler] = {}
        self.tried: dict[str, int] = {}  # steps since the last look, by optimizer
        self.taken: dict[str, int] = {}  # … and Adam's count at that time

    def autocast(self) -> Any:
        """Return the context for forward passes and losses."""
        if self.name == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scale(self, loss: Tensor, name: str) -> Tensor:
        """Return a loss as it is to be differentiated, for the optimizer of that name."""
        return self._scaler(name).scale(loss) if self.name == "fp16" else loss

    def unscale(self, optimizer: Any, name: str) -> None:
        """Divide an optimizer's gradients by the scale, so that they can be looked at."""
        if self.name == "fp16":
            self._scaler(name).unscale_(optimizer.optimizer)

    def step(self, optimizer: Any, name: str, whole: bool) -> None:
        """Take an optimizer's step, or leave it out where a scaled gradient overflowed.

        Args:
            optimizer: as Accelerate prepared it.
            name: of its scale.
            whole: whether the gradient is that of the whole batch; else nothing is done.
        """
        if self.name != "fp16":
            optimizer.step()
        elif whole:
            if name not in self.taken:  # once, for it waits for the device
                self.taken[name] = count_steps(optimizer.optimizer)
            self.tried[name] = self.tried.get(name, 0) + 1
            self._scaler(name).step(optimizer.optimizer)
            self._scaler(name).update()

    def skipped(self, optimizers: Mapping[str, Any]) -> dict[str, int]:
        """Return how many steps of each optimizer were left out since the last call.

        Nothing in float32 and bf16. Adam counts the steps that it took, so no step waits for this.
        """
        found = {}
        for name, tried in self.tried.items():
            taken = count_steps(optimizers[name].optimizer)
            found[name] = tried - (taken - self.taken[name])
            self.tried[name], self.taken[name] = 0, taken
        return found

    @property
    def state(self) -> dict[str, str]:
        """What a checkpoint keeps: scales, and steps since each last changed."""
        if not self.scalers:
            return {}
        kept = {name: scaler.state_dict() for name, scaler in self.scalers.items()}
        return {
            "scales": json.dumps({k: [v["scale"], v["_growth_tracker"]] for k, v in kept.items()})
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the scales of a checkpoint.

        Raises:
            ValueError: they are no scales.
        """
        if self.name != "fp16" or "scales" not in state:
            return
        for name, (scale, steps) in json.loads(state["scales"]).items():
            if not (0 < float(scale) < math.inf and int(steps) >= 0):
                raise ValueError(f"the scale of {name:.20} is {scale!r:.40}")
            whole = self._scaler(name).state_dict()
            self._scaler(name).load_state_dict(
                whole | {"scale": float(scale), "_growth_tracker": int(steps)}
            )

    def _scaler(self, name: str) -> torch.amp.GradScaler:
        """Return the scaler of an optimizer, made when it is first wanted."""
        if name not in self.scalers:
            self.scalers[name] = torch.amp.GradScaler(self.device.type)
        return self.scalers[name]


def count_steps(optimizer: Optimizer) -> int:
    """Return how many steps an Adam took."""
    return next((int(slots["step"]) for slots in optimizer.state.values() if "step" in slots), 0)


def choose_precision(asked: str, device: torch.device) -> Precision:
    """Turn `--mixed-precision` into what a device can do; a CPU always computes in float32."""
    if device.type != "cuda":
        return Precision("no", device)
    if asked != "auto":
        return Precision(asked, device)
    # Emulated bf16 (before compute capability 8.0) would be slower than float32.
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("bf16", device)
    fast = torch.cuda.get_device_capability(device) >= TENSOR_CORES
    hint = "; this GPU has no bf16, but its tensor cores take --mixed-precision fp16"
    return Precision("no", device, hint if fast else "")
