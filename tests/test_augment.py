"""Augmentation: the changes are the stated ones, reproducible, and differentiable twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from training.augment import POLICIES, AdaptiveStrength, augment, parse_policy

EVERYTHING = tuple(POLICIES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=generator(seed), dtype=dtype) * 2 - 1


def test_parse_policy_trims_sorts_and_refuses_unknown_names():
    assert parse_policy("") == ()
    assert parse_policy(" cutout, translation ,cutout") == ("translation", "cutout")
    assert parse_policy("translation,cutout,colour") == ("colour", "translation", "cutout")
    with pytest.raises(ValueError, match=r"'blur', 'color'; choose from colour, translation"):
        parse_policy("color,blur,cutout")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": ("flip",)}, "no augmentation is called 'flip'"),
        ({"strength": 1.5}, r"strength is 1.5; it must lie in \[0, 1\]"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"rank": 2, "world_size": 2}, "Rank 2 is not one of 2"),
        ({"images": torch.zeros(3, 8, 8)}, r"takes images \[N, C, H, W\], not \[3, 8, 8\]"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str):
    arguments = {"images": torch.zeros(2, 3, 8, 8), "policy": "cutout"} | change
    with pytest.raises(ValueError, match=message):
        augment(arguments.pop("images"), arguments.pop("policy"), **arguments)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", [*EVERYTHING, EVERYTHING])
def test_gradients_are_right_to_second_order(policy: str | tuple[str, ...], channels: int):
    pixels = images(2, channels, 8, 8, dtype=torch.float64).requires_grad_()

    def change(x: Tensor) -> Tensor:
        # Squared, so that the second derivative is not zero everywhere.
        return augment(x, policy, rng=generator(3)).square()

    assert gradcheck(change, (pixels,))
    assert gradgradcheck(change, (pixels,))
    (slope,) = torch.autograd.grad(change(pixels).sum(), pixels)
    assert slope.abs().sum() > 0


@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_any_size_keeps_shape_and_strength_zero_keeps_bits(
    height: int, width: int, channels: int, seed: int
):
    pixels = images(3, channels, height, width, seed=seed)
    assert torch.equal(augment(pixels, EVERYTHING, strength=0.0, rng=generator(seed)), pixels)
    changed = augment(pixels, EVERYTHING, rng=generator(seed))
    assert changed.shape == pixels.shape
    assert torch.isfinite(changed).all()


def test_strength_is_the_share_of_images_changed():
    pixels = images(4000, 1, 4, 4)
    for policy in EVERYTHING:
        changed = augment(pixels, policy, strength=0.3, rng=generator())
        share = (changed != pixels).flatten(1).any(1).float().mean().item()
        everywhere = augment(pixels, policy, strength=1.0, rng=generator())
        possible = (everywhere != pixels).flatten(1).any(1).float().mean().item()
        assert share == pytest.approx(0.3 * possible, abs=0.03)
        assert possible > 0.6  # some shifts are by nothing, some squares blank nothing


def test_policies_strike_independently():
    pixels = images(4000, 1, 8, 8)
    struck = []
    for policy in EVERYTHING:
        changed = augment(pixels, policy, strength=0.5, rng=generator())
        struck.append((changed != pixels).flatten(1).any(1).float())
    correlation = torch.corrcoef(torch.stack(struck)) - torch.eye(3)
    assert correlation.abs().max() < 0.06  # four standard errors


def test_reproducible_and_different_from_draw_to_draw():
    pixels = images(8, 3, 16, 16)
    rng = generator(1)
    first, second = (augment(pixels, EVERYTHING, rng=rng) for _ in range(2))
    assert torch.equal(first, augment(pixels, EVERYTHING, rng=generator(1)))
    assert not torch.equal(first, second)


def test_the_generator_advances_alike_for_every_policy_and_strength():
    states = set()
    for policy in (*EVERYTHING, EVERYTHING):
        for strength in (0.0, 0.5, 1.0):
            rng = generator(5)
            augment(images(4, 3, 8, 8), policy, strength=strength, rng=rng)
            states.add(torch.rand(1, generator=rng).item())
    assert len(states) == 1


def test_the_global_generator_serves_when_none_is_given():
    pixels = images(4, 3, 8, 8)
    torch.manual_seed(11)
    first = augment(pixels, EVERYTHING)
    torch.manual_seed(11)
    assert torch.equal(augment(pixels, EVERYTHING), first)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_equal_one_process(world_size: int):
    pixels = images(32, 3, 16, 16)
    whole = augment(pixels, EVERYTHING, strength=0.8, rng=generator(2))
    parts = [
        augment(part, EVERYTHING, strength=0.8, rng=generator(2), rank=rank, world_size=world_size)
        for rank, part in enumerate(pixels.chunk(world_size))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_translation_moves_whole_pixels_by_at_most_an_eighth():
    size, reach, count = 32, 4, 3000
    pixels = torch.zeros(count, 1, size, size)
    pixels[:, :, 16, 16] = 1.0
    moved = augment(pixels, "translation", rng=generator())
    assert torch.equal(moved.flatten(1).sum(1), torch.ones(count))  # one dot, not interpolated
    where = moved.flatten(1).argmax(1)
    shifts = torch.stack([where // size - 16, where % size - 16])
    for axis in shifts:
        values, tally = axis.unique(return_counts=True)
        assert values.tolist() == list(range(-reach, reach + 1))
        expected = count / (2 * reach + 1)
        assert (tally - expected).abs().max() < 5 * expected**0.5
    assert abs(torch.corrcoef(shifts.float())[0, 1].item()) < 0.1  # the axes are independent


def test_translation_fills_with_zero_and_keeps_the_rest():
    white = torch.ones(200, 3, 16, 16)
    moved = augment(white, "translation", rng=generator())
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    kept = moved[:, 0].mean((1, 2))
    assert kept.min() == pytest.approx((14 / 16) ** 2)  # the furthest shift both ways: 2 of 16
    assert kept.max() == 1.0


def test_cutout_covers_the_right_share():
    size, width, count = 16, 8, 5000
    blank = augment(torch.ones(count, 1, size, size), "cutout", rng=generator()) == 0
    # The centre is uniform over size + 1 places a side, and the square is clipped at the borders.
    lengths = [
        min(centre + width // 2, size) - max(centre - width // 2, 0) for centre in range(size + 1)
    ]
    expected = (sum(lengths) / len(lengths) / size) ** 2
    share = blank.float().mean().item()
    assert share == pytest.approx(expected, rel=0.03)
    assert blank[:, 0].sum((1, 2)).max() == width * width
    # Each is one full rectangle: its rows times its columns are its pixels.
    rows, columns = blank[:, 0].any(2).sum(1), blank[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, blank[:, 0].sum((1, 2)))


def test_colour_changes_are_within_the_stated_bounds():
    pixels = images(2000, 3, 4, 4)
    changed = augment(pixels, "colour", rng=generator())
    # Saturation and contrast keep an image's mean, brightness moves it by half at most.
    moved = (changed - pixels).mean((1, 2, 3))
    assert moved.abs().max() <= 0.5 + 1e-6
    assert moved.min() < -0.45 < 0.45 < moved.max()
    # The grey image's spread is scaled by the contrast alone.
    spread = changed.mean(1).std((1, 2)) / pixels.mean(1).std((1, 2))
    assert 0.5 - 1e-4 <= spread.min() < 0.55
    assert 1.45 < spread.max() <= 1.5 + 1e-4
    # The distance between channels is scaled by contrast and saturation.
    chroma = (changed - changed.mean(1, keepdim=True)).flatten(1).norm(dim=1)
    ratio = chroma / (pixels - pixels.mean(1, keepdim=True)).flatten(1).norm(dim=1) / spread
    assert -1e-4 <= ratio.min() < 0.05
    assert 1.95 < ratio.max() <= 2 + 1e-3


def test_grey_images_have_brightness_and_contrast_but_no_saturation():
    grey = images(64, 1, 8, 8)
    changed = augment(grey, "colour", rng=generator(4))
    # The same numbers on three equal channels: saturation finds nothing to scale there either.
    triple = augment(grey.expand(-1, 3, -1, -1), "colour", rng=generator(4))
    torch.testing.assert_close(changed.expand(-1, 3, -1, -1), triple)
    assert not torch.allclose(changed, grey)


def test_half_precision_keeps_its_type_and_the_same_changes():
    pixels = images(8, 3, 16, 16)
    single = augment(pixels, ("translation", "cutout"), rng=generator())
    half = augment(pixels.bfloat16(), ("translation", "cutout"), rng=generator())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, single.bfloat16())


def test_no_value_is_read_back_from_the_device():
    # Meta tensors hold no values: reading one (.item(), a mask's count) raises.
    pixels = torch.empty(4, 3, 16, 16, device="meta")
    changed = augment(pixels, EVERYTHING, strength=0.5)
    assert changed.shape == pixels.shape
    with pytest.raises(RuntimeError):
        changed.sum().item()


def test_a_strength_in_a_tensor_is_the_same_strength():
    shown = [
        augment(images(64, 3, 8, 8), EVERYTHING, strength=strength, rng=generator(1))
        for strength in (0.375, torch.tensor(0.375))
    ]
    assert torch.equal(*shown)


def test_the_adaptive_strength_follows_the_sign_of_real_logits():
    """Up by images / kimg while D is surer than the target, down while it is less, never out."""
    rule = AdaptiveStrength(target=0.6, kimg=1.0, most=0.5)
    seen = []
    for signs in [(1.0, 0.5)] * 6 + [(0.5, 0.5)] * 3 + [(0.6, 0.6)] + [(-1.0, 1.0)] * 4:
        for sign in signs:
            rule.accumulate(torch.tensor(sign))
        rule.adjust(125, lambda mean: mean)
        seen.append(rule.strength.item())
    assert seen[:6] == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]  # 0.75 is above 0.6; 0.5 is the most
    assert seen[6:10] == [0.375, 0.25, 0.125, 0.125]
    assert seen[10:] == [0, 0, 0, 0]
    assert rule.parts == 0
