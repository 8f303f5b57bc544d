"""A projected discriminator: it sees features of a frozen network (Sauer et al. 2021).

    D = ProjectedDiscriminator(resolution=64)
    logits = D(images)                      # [N, heads' places]

After arXiv 2111.01007: EfficientNet-Lite0 turns a picture into maps at four strides. Fixed random
convolutions mix their channels, and then neighbouring strides. One small head judges each of the
four; only the heads learn. It needs the package of the metrics' features, so it is no part of
model.py, and a generator that it trained scores too well by "efficientnet-lite0".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from model import LRELU_SLOPE, NETWORKS, KaoganModel, ModelError
from training.metrics import EfficientNetLite0

MIN_PX = 64  # of the frozen network's input: smaller pictures are enlarged to this
SPREADS = (8.8, 5.1, 2.9, 1.4)  # of the mixed maps, so that no head sees larger numbers
HEAD_PX = 4  # a head halves its map down to this


class Head(nn.Module):
    """Judge one map: halve it down to 4 px with spectrally normalised convolutions."""

    def __init__(self, channels: int, size: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while size > HEAD_PX:
            layers += [
                spectral_norm(nn.Conv2d(channels, width, 4, 2, 1)),
                nn.LeakyReLU(LRELU_SLOPE),
            ]
            channels, size = width, size // 2
        layers += [spectral_norm(nn.Conv2d(channels, width, 3, 1, 1)), nn.LeakyReLU(LRELU_SLOPE)]
        layers += [spectral_norm(nn.Conv2d(width, 1, size))]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, channels, size, size]` to logits `[N, 1]`."""
        return self.layers(x).flatten(1)


class ProjectedDiscriminator(KaoganModel):
    """Four heads over randomly mixed, frozen features: a picture → how real it looks, four times.

    Args:
        resolution: height and width of the pictures, px.
        img_channels: 3 for RGB, 1 for grey.
        mixed: channels of each map after mixing.
        width: channels of the heads.
    Raises:
        ModelError: sizes that are out of range; on first use, MetricsError where the package with
            the frozen network's weights is missing.
    """

    def __init__(
        self, resolution: int = 64, img_channels: int = 3, mixed: int = 64, width: int = 64
    ) -> None:
        super().__init__()
        sizes = {"resolution": resolution, "mixed": mixed, "width": width}
        for name, value in sizes.items():
            if type(value) is not int or not 8 <= value <= 1024:
                raise ModelError(f"{name} must be a whole number from 8 to 1024, not {value!r:.40}")
        if img_channels not in (1, 3):
            raise ModelError(f"img_channels must be 1 or 3, not {img_channels!r:.40}")
        self.resolution, self.img_channels, self.mixed = resolution, img_channels, mixed
        self.side = max(MIN_PX, resolution - resolution % 32)
        # In a list: frozen weights of a package are neither saved nor counted as this network's.
        self._frozen: list[EfficientNetLite0] = []
        self.sizes = [self.side // stride for stride in EfficientNetLite0.STRIDES]
        rng = torch.Generator().manual_seed(0)
        for index, channels in enumerate(EfficientNetLite0.CHANNELS):
            self.register_buffer(f"mix_channels{index}", kaiming((mixed, channels, 1, 1), rng))
            self.register_buffer(f"mix_scales{index}", kaiming((mixed, mixed, 3, 3), rng))
        self.heads = nn.ModuleList(Head(mixed, max(size, 2), width) for size in self.sizes)

    def frozen(self, device: torch.device) -> EfficientNetLite0:
        """Return the frozen network on a device, made when it is first wanted there."""
        if not self._frozen or next(self._frozen[0].parameters()).device != device:
            self._frozen = [EfficientNetLite0(input_size=self.side).to(device)]
        return self._frozen[0]

    def embed(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` in [-1, 1] to what the heads judge, one row `[N, D]` each."""
        maps = self.frozen(images.device).feature_maps(images)
        mixed: list[Tensor] = []
        below: Tensor | None = None
        for index in reversed(range(len(maps))):  # from the coarsest map up
            x = F.conv2d(maps[index], getattr(self, f"mix_channels{index}").to(maps[index].dtype))
            if below is not None:
                x = (x + F.interpolate(below, size=x.shape[2:], mode="bilinear")) * math.sqrt(0.5)
            below = F.conv2d(x, getattr(self, f"mix_scales{index}").to(x.dtype), padding=1)
            mixed.append(below.flatten(1) / SPREADS[index])
        return torch.cat(mixed[::-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[N, C, H, W]`, or rows `[N, D]` of `embed`, to logits `[N, 4]`."""
        rows = self.embed(x) if x.ndim == 4 else x
        parts = rows.split([self.mixed * size**2 for size in self.sizes], 1)
        maps = [p.unflatten(1, (self.mixed, s, s)) for p, s in zip(parts, self.sizes, strict=True)]
        return torch.cat([head(m) for head, m in zip(self.heads, maps, strict=True)], 1)


def kaiming(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draw a fixed convolution that keeps the variance."""
    return torch.randn(shape, generator=rng) / math.sqrt(math.prod(shape[1:]))


NETWORKS[ProjectedDiscriminator.__name__] = ProjectedDiscriminator
