"""Feature networks by name.

    extractor = build_extractor("efficientnet-lite0", device="cuda")
    features = extractor(images)                        # [N, C, H, W] in [-1, 1] → [N, dim]

A discriminator that looks through EfficientNet-Lite0 is flattered by "efficientnet-lite0"; "hog"
has learned nothing from ImageNet, nor from anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import quantise
from training.metrics.efficientnet import EfficientNetLite0
from training.metrics.errors import UNREADABLE, MetricsError
from training.metrics.extractor import Extractor


class OrientedGradients(Extractor):
    """Histograms of oriented gradients with mean colours on a grid of 8×8 cells: no network.

    After Dalal & Triggs 2005 (CVPR), without their block normalisation: eight unsigned
    orientations a cell, each weighted by the gradient's length, square-rooted; then the cell's
    mean red, green and blue. It suits aligned portraits, where a cell means the same place of
    the face in each image, and it sees outline, layout, hue and diversity rather than meaning.
    Its slope is undefined where an image is flat, so a critic cannot learn through it.
    """

    name = "hog"
    BINS = 8
    CELLS = 8  # a side
    COLOUR_WEIGHT = 0.3  # brings colours to about the spread of the histograms
    dim = CELLS * CELLS * (BINS + 3)
    luma: Tensor

    def __init__(self, input_size: int | None = 128) -> None:
        super().__init__(input_size)
        self.register_buffer("luma", torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] → features `[N, 704]`."""
        images = self.prepare(images)
        grey = F.pad((images * self.luma).sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        dx = grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]
        dy = grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]
        angle = torch.atan2(dy, dx) / torch.pi % 1 * self.BINS  # [N, 1, H, W] in [0, BINS]
        centres = torch.arange(self.BINS, device=images.device).view(1, -1, 1, 1)
        apart = (angle - centres).abs()
        share = (1 - torch.minimum(apart, self.BINS - apart)).clamp(min=0)  # of the two nearest
        histogram = F.adaptive_avg_pool2d(torch.hypot(dx, dy) * share, self.CELLS)
        colour = F.adaptive_avg_pool2d(images, self.CELLS) * self.COLOUR_WEIGHT
        return torch.cat([(histogram + 1e-4).sqrt().flatten(1), colour.flatten(1)], 1)


class Inception(Extractor):
    """The Inception-v3 of the published FID figures, 2,048 features; its weights are downloaded.

    The network is torch-fidelity's (`pip install torch-fidelity`), its weights the TensorFlow
    ones of 2015-12-05, 95 MB, kept in PyTorch's hub folder. It resizes to 299 px by itself.

    Raises:
        MetricsError: the package is missing or the weights cannot be downloaded or read.
    """

    name = "inception"
    dim = 2048
    URL = (
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth"
    )
    HASH = "6726825d"  # how the file's SHA-256 begins

    def __init__(self, input_size: int | None = None) -> None:
        if input_size is not None:
            raise MetricsError("Inception resizes to 299 px by itself; leave its input size out.")
        super().__init__(None)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise MetricsError(
                "The inception features need a package: pip install torch-fidelity."
            ) from error
        path = _download(self.URL, self.HASH)
        self.network = FeatureExtractorInceptionV3(
            self.name, [str(self.dim)], feature_extractor_weights_path=str(path)
        )
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] → features `[N, 2048]`."""
        return self.network(quantise(self.prepare(images)))[0]


def _download(url: str, digest: str) -> Path:
    """Fetch a weights file once, and make sure that it holds tensors and nothing else."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest, progress=False)
        # torch-fidelity unpickles the file unguarded, so refuse it here if it holds code.
        torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise MetricsError(
            f"The weights for these features could not be had ({reason}). Put the file {url} "
            f"at {path}, or choose other features."
        ) from error
    return path


FEATURES: dict[str, Callable[..., Extractor]] = {
    EfficientNetLite0.name: EfficientNetLite0,
    OrientedGradients.name: OrientedGradients,
    Inception.name: Inception,
}


def build_extractor(name: str, *, device: str | torch.device = "cpu", **options: Any) -> Extractor:
    """Construct the named features on a device; options (`input_size`) go to the constructor.

    Raises:
        MetricsError: a name not in `FEATURES`, or features that cannot be had here.
    """
    if name not in FEATURES:
        raise MetricsError(f"Unknown features {name!r}; choose from {', '.join(FEATURES)}.")
    return FEATURES[name](**options).to(device).eval()
