"""Objectives against hand-computed values, penalties against the gradient of a linear critic."""

import math

import pytest
import torch
from torch import nn

from training.losses import OBJECTIVES, d_loss, g_loss, squared_gradient

REAL = torch.tensor([2.0, -1.0])
FAKE = torch.tensor([0.5, -3.0])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def log_d(xs):
    return [math.log(sigmoid(x)) for x in xs]


def log_not_d(xs):
    return [math.log(1 - sigmoid(x)) for x in xs]


R, Fk = REAL.tolist(), FAKE.tolist()
BY_HAND = {
    "minimax": (
        -(sum(log_d(R)) / 2 + sum(log_not_d(Fk)) / 2),
        sum(log_not_d(Fk)) / 2,
    ),
    "minimax-logsum": (
        -(math.log(sum(map(sigmoid, R))) + math.log(sum(1 - sigmoid(x) for x in Fk))),
        math.log(sum(1 - sigmoid(x) for x in Fk)),
    ),
    "bce": (-(sum(log_d(R)) / 2 + sum(log_not_d(Fk)) / 2), -sum(log_d(Fk)) / 2),
    "hinge": ((0 + 2) / 2 + (1.5 + 0) / 2, -(0.5 - 3.0) / 2),
    "relativistic": (
        -(math.log(sigmoid(2 - 0.5)) + math.log(sigmoid(-1 + 3))) / 2,
        -(math.log(sigmoid(0.5 - 2)) + math.log(sigmoid(-3 + 1))) / 2,
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_by_hand(name):
    d, g = BY_HAND[name]
    assert OBJECTIVES[name].d(REAL, FAKE, 1.0).item() == pytest.approx(d, rel=1e-5)
    assert OBJECTIVES[name].g(FAKE, REAL).item() == pytest.approx(g, rel=1e-5)


def test_label_smoothing_by_hand():
    by_hand = -sum(0.9 * a + 0.1 * b for a, b in zip(log_d(R), log_not_d(R), strict=True)) / 2
    by_hand -= sum(log_not_d(Fk)) / 2
    assert OBJECTIVES["bce"].d(REAL, FAKE, 0.9).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_finite_where_d_is_sure(name, size):
    """Neither the losses nor their gradients overflow where a rounded probability is 0 or 1."""
    real = torch.full((4,), size, requires_grad=True)
    fake = torch.full((4,), -size, requires_grad=True)
    for loss in (OBJECTIVES[name].d(real, fake, 1.0), OBJECTIVES[name].g(fake, real)):
        assert torch.isfinite(loss)
        grads = torch.autograd.grad(loss, (real, fake), allow_unused=True)
        assert all(torch.isfinite(g).all() for g in grads if g is not None)


def test_minimax_goes_flat_where_cross_entropy_does_not():
    logit = torch.tensor([-8.0], requires_grad=True)
    flat = torch.autograd.grad(OBJECTIVES["minimax"].g(logit, None), logit)[0].abs()
    steep = torch.autograd.grad(OBJECTIVES["bce"].g(logit, None), logit)[0].abs()
    assert flat < 1e-3 < 0.99 < steep


class Linear(nn.Module):
    """A critic whose gradient is its weight, everywhere."""

    def __init__(self, shape=(3, 4, 4)):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return (x * self.weight).sum((1, 2, 3))


class Quadratic(Linear):
    """A critic w·x²/2 whose gradient is w·x."""

    def forward(self, x):
        return (x.square() * self.weight).sum((1, 2, 3)) / 2


def test_penalty_of_a_linear_critic_is_its_weight_squared():
    torch.manual_seed(0)
    D = Linear()
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    assert torch.allclose(squared_gradient(D(x), x), D.weight.square().sum().expand(5))


@pytest.mark.parametrize(("r1", "r2"), [(3.0, 0.0), (0.0, 5.0), (3.0, 5.0)])
def test_penalties_and_their_gradient_against_the_analytic_ones(r1, r2):
    torch.manual_seed(0)
    D = Quadratic()
    real, fake = torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)
    plain, _ = d_loss(D, real, fake, "bce")
    loss, stats = d_loss(D, real, fake, "bce", r1_gamma=r1, r2_gamma=r2)
    at_real = (D.weight * real).square().sum((1, 2, 3)).mean()
    at_fake = (D.weight * fake).square().sum((1, 2, 3)).mean()
    assert torch.allclose(stats["r1"], at_real)
    assert ("r2" in stats) == (r2 > 0)
    assert torch.allclose(stats.get("r2", at_fake), at_fake)
    assert torch.allclose(loss - plain, r1 / 2 * at_real + r2 / 2 * at_fake, rtol=1e-4)
    (gradient,) = torch.autograd.grad(loss - plain, D.weight)
    squares = r1 * real.square().mean(0) + r2 * fake.square().mean(0)
    assert torch.allclose(gradient, squares * D.weight, rtol=1e-3, atol=1e-4)


def test_no_gradient_reaches_the_pictures_of_d():
    real = torch.randn(2, 3, 4, 4, requires_grad=True)
    fake = torch.randn(2, 3, 4, 4, requires_grad=True)
    d_loss(Linear(), real, fake, "hinge", r1_gamma=1.0)[0].backward()
    assert real.grad is None
    assert fake.grad is None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_g_loss_pulls_fakes_the_right_way(name):
    D, fake = Linear(), torch.randn(4, 3, 4, 4, requires_grad=True)
    loss, stats = g_loss(D, fake, name, real=torch.randn(4, 3, 4, 4))
    loss.backward()
    assert (D(fake - 0.1 * fake.grad) > D(fake)).all()
    assert stats["g_loss"].requires_grad is False


def test_pairs_need_reals():
    with pytest.raises(ValueError, match="pairs fake with real"):
        g_loss(Linear(), torch.randn(2, 3, 4, 4), "relativistic")


def test_penalised_pass_runs_in_float32_under_autocast():
    seen = []

    class Watched(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            seen.append(y.dtype)
            return y.mean((1, 2, 3))

    D, x = Watched(3, 4, 3), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        d_loss(D, x, x, "bce")
        d_loss(D, x, x, "bce", r1_gamma=1.0)
        d_loss(D, x, x, "bce", r2_gamma=1.0)
    assert seen == [torch.bfloat16, *[torch.float32] * 3]


def test_r1_alone_is_not_differentiated_at_the_fakes():
    at = []

    class Watched(Quadratic):
        def forward(self, x):
            at.append((x, x.requires_grad))
            return super().forward(x)

    real, fake = torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)
    d_loss(Watched(), real, fake, "bce", r1_gamma=1.0)
    (first, differentiated), (second, left) = at
    assert torch.equal(first, real) and torch.equal(second, fake)
    assert differentiated and not left
