"""Images → features, float32 `[N, D]`, computed once and kept in a file.

real = real_features(faces.images, extractor, cache_dir=faces.path, data_key=faces.key)
fake = compute_features(fake_images(draw, 10_000), extractor)
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model import dequantise, quantise
from training.metrics.errors import MetricsError
from training.metrics.extractor import Extractor

CACHE_VERSION = 1  # raise it when an extractor's numbers change
log = logging.getLogger(__name__)


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
                check_finite(batch, "an image")
                batch = quantise(batch)
            features = extractor(dequantise(batch))
            check_finite(features, f"{extractor.name} features")
            rows.append(features.float().cpu().numpy())
    count = sum(len(row) for row in rows)
    if count < 2:
        raise MetricsError(f"Features of at least 2 images are needed, not of {count}.")
    return np.concatenate(rows)


def check_finite(values: Tensor, what: str) -> None:
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
