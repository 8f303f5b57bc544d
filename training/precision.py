"""The numbers that a run computes with: one autocast for the whole step, in the step's own hands.

Accelerate is left at float32. Asked for another precision, it wraps each prepared network's
`forward` in an autocast of its own, which also holds where the step has switched autocast off: for
a gradient penalty, whose squares lose too much in 16 bits.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}


class Precision:
    """How products are computed on one device.

    Args:
        name: "no" for float32, or "bf16".
        device: where the networks are.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device, self.dtype = name, device, DTYPES[name]

    def autocast(self) -> Any:
        """Return the context for forward passes and losses."""
        if self.name == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def choose_precision(asked: str, device: torch.device) -> Precision:
    """Turn `--mixed-precision` into what a device can do; a CPU always computes in float32."""
    if device.type != "cuda":
        return Precision("no", device)
    # Emulated bf16 (before compute capability 8.0) would be slower than float32.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    name = ("bf16" if has_bf16 else "no") if asked == "auto" else asked
    return Precision(name, device)
