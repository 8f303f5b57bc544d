"""Metrics: images → features → how near generated faces come to real ones.

extractor = build_extractor("efficientnet-lite0", device="cuda")
real = real_features(faces.images, extractor, cache_dir=faces.path, data_key=faces.key)
fake = compute_features(fake_images(draw, 10_000), extractor)
print(evaluate(real, fake, features=extractor.name).line())
"""

from training.metrics.distances import (
    Scores,
    evaluate,
    frechet_distance,
    kernel_distance,
    nearest_neighbours,
    precision_recall,
)
from training.metrics.efficientnet import EfficientNetLite0, EfficientNetLite1
from training.metrics.errors import MetricsError
from training.metrics.extractor import Extractor
from training.metrics.extractors import FEATURES, Inception, OrientedGradients, build_extractor
from training.metrics.features import (
    cache_path,
    compute_features,
    fake_images,
    real_features,
    real_images,
)

__all__ = [
    "FEATURES",
    "EfficientNetLite0",
    "EfficientNetLite1",
    "Extractor",
    "Inception",
    "MetricsError",
    "OrientedGradients",
    "Scores",
    "build_extractor",
    "cache_path",
    "compute_features",
    "evaluate",
    "fake_images",
    "frechet_distance",
    "kernel_distance",
    "nearest_neighbours",
    "precision_recall",
    "real_features",
    "real_images",
]
