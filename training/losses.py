"""Objectives and gradient penalties: pure functions of networks and pictures.

    loss, stats = d_loss(D, real, fake, "bce", r1_gamma=1.0)
    loss, stats = g_loss(D, fake, "bce")

Only logits are used (numbers before a sigmoid), through `logsigmoid` and `softplus`, which are
finite where the logarithm of a rounded probability is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stats = dict[str, Tensor]


class Objective(NamedTuple):
    """The two losses of one game, on logits `[N]`; both return a scalar."""

    d: Callable[[Tensor, Tensor, float], Tensor]  # real_logits, fake_logits, real_label
    g: Callable[[Tensor, Tensor | None], Tensor]  # fake_logits, real_logits where paired
    paired: bool = False  # G's loss looks at real pictures too


def minimax_d(real_logits: Tensor, fake_logits: Tensor, real_label: float = 1.0) -> Tensor:
    """Return -mean(log D(x) + log(1 - D(G(z)))) (Goodfellow et al. 2014, arXiv 1406.2661)."""
    return -(F.logsigmoid(real_logits) + F.logsigmoid(-fake_logits)).mean()


def minimax_g(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """Return mean(log(1 - D(G(z)))), which goes flat where D is sure."""
    return F.logsigmoid(-fake_logits).mean()


def logsum_d(real_logits: Tensor, fake_logits: Tensor, real_label: float = 1.0) -> Tensor:
    """Return -(log sum D(x) + log sum (1 - D(G(z)))): the tutorial's spelling of minimax."""
    return -(F.logsigmoid(real_logits).logsumexp(0) + F.logsigmoid(-fake_logits).logsumexp(0))


def logsum_g(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """Return log sum (1 - D(G(z)))."""
    return F.logsigmoid(-fake_logits).logsumexp(0)


def bce_d(real_logits: Tensor, fake_logits: Tensor, real_label: float = 1.0) -> Tensor:
    """Return the cross-entropies of real against `real_label` and fake against 0, summed.

    A `real_label` under 1 is one-sided label smoothing (Salimans et al. 2016, arXiv 1606.03498).
    """
    target = torch.full_like(real_logits, real_label)
    return F.binary_cross_entropy_with_logits(real_logits, target) + F.softplus(fake_logits).mean()


def bce_g(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of fake against 1: the non-saturating loss."""
    return F.softplus(-fake_logits).mean()


def hinge_d(real_logits: Tensor, fake_logits: Tensor, real_label: float = 1.0) -> Tensor:
    """Return the hinge loss (Lim and Ye 2017, arXiv 1705.02894)."""
    return (F.relu(1 - real_logits) + F.relu(1 + fake_logits)).mean()


def hinge_g(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """Return -mean(D(G(z)))."""
    return -fake_logits.mean()


def relativistic_d(real_logits: Tensor, fake_logits: Tensor, real_label: float = 1.0) -> Tensor:
    """Return softplus(-(real - fake)) over pairs (Jolicoeur-Martineau 2018, arXiv 1807.00734)."""
    return F.softplus(fake_logits - real_logits).mean()


def relativistic_g(fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """Return softplus(-(fake - real)) over pairs."""
    assert real_logits is not None
    return F.softplus(real_logits - fake_logits).mean()


OBJECTIVES: dict[str, Objective] = {
    "minimax": Objective(minimax_d, minimax_g),
    "minimax-logsum": Objective(logsum_d, logsum_g),
    "bce": Objective(bce_d, bce_g),
    "hinge": Objective(hinge_d, hinge_g),
    "relativistic": Objective(relativistic_d, relativistic_g, paired=True),
}


def d_loss(
    D: nn.Module,
    real: Tensor,
    fake: Tensor,
    objective: str,
    *,
    real_label: float = 1.0,
    r1_gamma: float = 0.0,
    r2_gamma: float = 0.0,
) -> tuple[Tensor, Stats]:
    """Return D's loss with its penalties.

    R1 and R2 are gamma/2 · mean ‖∇D‖² at real and at fake pictures (Mescheder et al. 2018,
    arXiv 1801.04406). Where one of them is asked for, the whole pass runs in float32, because a
    squared gradient loses too much in 16 bits. A D with `embed`, a frozen map of pictures to rows
    `[N, D]` that it judges as well as pictures, is penalised at those rows.

    Args:
        D: pictures `[N, C, H, W]` → logits `[N]` or `[N, K]`; sees real and fake in one batch, or,
            where R1 alone is asked for, one after the other, so that it is not differentiated
            twice at the fakes for nothing.
        real, fake: `[N, C, H, W]` in [-1, 1]; no gradient reaches whatever made them.
        objective: a name in OBJECTIVES.
        real_label: target of real pictures, for `bce`.
        r1_gamma, r2_gamma: weights of the penalties; 0 skips one.
    Returns:
        The scalar loss, and detached scalars by name for the log.
    """
    judged = torch.cat([real.detach(), fake.detach()])
    penalised = r1_gamma > 0 or r2_gamma > 0
    if embed := getattr(getattr(D, "module", D), "embed", None):
        with torch.no_grad():
            judged = embed(judged)
    batches = judged.chunk(2) if r1_gamma > 0 and r2_gamma == 0 else (judged,)
    batches[0].requires_grad_(penalised)
    with _in_float32(judged.device) if penalised else contextlib.nullcontext():
        logits = [D(batch).float() for batch in batches]
    real_logits, fake_logits = torch.cat(logits).chunk(2)
    loss = OBJECTIVES[objective].d(real_logits, fake_logits, real_label)
    stats = {
        "d_loss": loss.detach(),
        "d_real": torch.sigmoid(real_logits.detach()).mean(),
        "d_fake": torch.sigmoid(fake_logits.detach()).mean(),
        "d_real_sign": real_logits.detach().sign().mean(),
        "d_sign": (real_logits.detach().sign() - fake_logits.detach().sign()).mean() / 2,
    }
    if penalised:
        squares = torch.split(squared_gradient(logits[0], batches[0]), len(real))
        for name, gamma, at in zip(("r1", "r2"), (r1_gamma, r2_gamma), squares, strict=False):
            loss = loss + gamma / 2 * at.mean()
            stats[name] = at.detach().mean()
    return loss, stats


def squared_gradient(logits: Tensor, pictures: Tensor) -> Tensor:
    """Return ‖∂ sum(logits) / ∂ pictures‖² of each picture, `[N]`, differentiable once more."""
    (gradient,) = torch.autograd.grad(logits.sum(), pictures, create_graph=True)
    return gradient.flatten(1).square().sum(1)


def g_loss(
    D: nn.Module, fake: Tensor, objective: str, *, real: Tensor | None = None
) -> tuple[Tensor, Stats]:
    """Return G's loss on `fake` `[N, C, H, W]`, and detached scalars for the log.

    Args:
        real: as many real pictures, needed where the objective is paired.
    Raises:
        ValueError: a paired objective without `real`.
    """
    game = OBJECTIVES[objective]
    real_logits = None
    if game.paired:
        if real is None:
            raise ValueError(
                f"the objective {objective!r} pairs fake with real pictures; give both"
            )
        with torch.no_grad():
            real_logits = D(real).float()
    fake_logits = D(fake).float()
    loss = game.g(fake_logits, real_logits)
    return loss, {"g_loss": loss.detach()}


def _in_float32(device: torch.device) -> torch.autocast:
    """Return a context that switches an outer autocast off."""
    return torch.autocast(device.type, enabled=False)
