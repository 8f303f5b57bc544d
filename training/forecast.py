"""What a run of large networks would take without a GPU, said before anybody waits for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model import count_parameters, latents_from_seeds
from training.losses import d_loss, g_loss
from training.schedule import MEASURED_SHARE

if TYPE_CHECKING:
    from training.run import Run

LARGE = 10_000_000  # parameters of G and D from which a CPU takes days
INSTEAD = (
    "--preset quick-64 --max-minutes 10 draws faces of 64 px within ten minutes of a CPU, "
    "--preset kaogan-64 better ones in hours; notebooks/train.ipynb runs large networks on a GPU "
    "of Colab or Kaggle"
)


def forecast(run: Run) -> str:
    """Return how long a run takes here and what to use instead; "" where that goes without saying.

    A step of a few images is timed, whose gradients are thrown away: the run stays as it is.
    """
    config, device = run.config, run.accelerator.device
    parameters = count_parameters(run.G_raw) + count_parameters(run.D_raw)
    if device.type != "cpu" or config.networks != "kaogan" or parameters < LARGE:
        return ""
    speed = images_per_s(run)
    if end := run.schedule.end:
        days = (end - run.nimg) / speed / 86_400
        takes = f"{end / 1000:,.0f} kimg take about " + (
            f"{days:.1f} days" if days >= 2 else f"{24 * days:.1f} hours"
        )
    else:
        share = 1 - MEASURED_SHARE if config.metric_samples else 1
        seen = 0.06 * share * config.max_minutes * speed
        takes = f"--max-minutes {config.max_minutes:g} has time for about {seen:.2g} kimg"
    shown = f"{speed:.2g}" if speed < 10 else f"{speed:.0f}"
    return (
        f"There is no GPU here, and G and D have {parameters / 1e6:.1f} million parameters: some "
        f"{shown} images/s, so {takes}, where faces need some hundred kimg. {INSTEAD}."
    )


def images_per_s(run: Run) -> float:
    """Time one step of as many images as D sees together, without changing anything."""
    size = run.config.group_size
    z = latents_from_seeds(range(size), run.config.z_dim)
    judges = [run.D_raw, run.P_raw] if run.P else [run.D_raw]
    training = [judge.training for judge in judges]
    with run.compiler.off():
        start = time.monotonic()
        for judge in judges:
            judge.eval()  # in training mode, spectral norms move when looked at
        with torch.no_grad():
            real = run.G_raw(z)
        for judge in judges:
            loss, _ = d_loss(judge, real, real, run.config.objective)
            throw_away(loss, judge)
        fake = run.G_raw(z)
        losses = [g_loss(j, fake, run.config.objective, real=real)[0] for j in judges]
        throw_away(torch.stack(losses).sum(), run.G_raw)
        seconds = time.monotonic() - start
    for judge, mode in zip(judges, training, strict=True):
        judge.train(mode)
    return size / seconds


def throw_away(loss: Tensor, network: nn.Module) -> None:
    """Compute a network's gradients and drop them."""
    torch.autograd.grad(loss, list(network.parameters()))
