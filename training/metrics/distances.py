"""Two arrays of features → Fréchet distance, KID, precision and recall, nearest neighbours.

    scores = evaluate(real, fake, features="efficientnet-lite0")     # float [N, D], [M, D]
    print(scores.line())

The figures are written here rather than taken from torchmetrics, whose classes bind each of them
to a network fed with images: each is a few lines of linear algebra, bounded in memory.

Figures are comparable only between runs with the same features, input size and sample counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from training.metrics.errors import MetricsError

CHUNK_VALUES = 2**24  # values of a distance or kernel matrix held at once: 64 MiB of float32
NEIGHBOURS = 3  # k of precision and recall


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
    first, second = (torch.from_numpy(rows - centre).to(device, dtype) for rows in (a, b))
    return first, second


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
