"""What every feature network is: images `[N, C, H, W]` → features `[N, dim]`."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from training.metrics.errors import MetricsError


class Extractor(nn.Module):
    """Frozen map from images `[N, C, H, W]` in [-1, 1], C of 1 or 3, to features `[N, dim]`.

    `input_size` is the side in pixels that images are resized to; None leaves them as they are.
    """

    name: ClassVar[str]
    dim: ClassVar[int]

    def __init__(self, input_size: int | None) -> None:
        super().__init__()
        self.input_size = input_size

    def prepare(self, images: Tensor) -> Tensor:
        """Repeat grey images to three channels and resize without aliasing."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise MetricsError(
                f"Features need images [N, C, H, W] of 1 or 3 channels, not {list(images.shape)}."
            )
        images = images.expand(-1, 3, -1, -1)
        if self.input_size is None:
            return images
        size = (self.input_size, self.input_size)
        if images.shape[2:] == size:
            return images
        return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
