"""What a run shows and leaves behind: sample grids, networks, checkpoints, a card."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from model import Generator, KaoganModel, latents_from_seeds, quantise
from training.averages import lengths_text
from training.checkpoint import save_checkpoint
from training.hub.card import make_card
from training.hub.contents import take_snapshot
from training.run import Run, TrainingError, minutes

GRID_SIDE = 8  # faces along each side of a sample grid


@torch.no_grad()
def sample(run: Run, psi: float) -> Tensor:
    """Draw the grid's fixed seeds with G_ema, `[64, C, H, W]` on the CPU."""
    if isinstance(run.G_ema, Generator):
        run.G_ema.update_w_avg()
    z = latents_from_seeds(range(GRID_SIDE**2), run.config.z_dim).to(run.accelerator.device)
    return torch.cat([run.G_ema(part, psi).float().cpu() for part in z.split(16)])


def save_grid(images: Tensor, path: Path) -> None:
    """Write pictures `[n², C, H, W]` in [-1, 1] as one sheet."""
    count, channels, height, width = images.shape
    side = math.isqrt(count)
    sheet = quantise(images).reshape(side, side, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = sheet.reshape(side * height, side * width, channels).squeeze(2).numpy()
    Image.fromarray(pixels).save(path)


def require_finite(run: Run, bad: list[str]) -> None:
    """Stop the run where something of it is no number any more."""
    if bad:
        raise TrainingError(
            f"{', '.join(bad)} stopped being a finite number before {run.nimg / 1000:g} kimg; the "
            f"last checkpoint is intact: resume from it with a lower --g-lr and --d-lr or a higher "
            f"--r1-gamma"
        )


def save(run: Run) -> None:
    """Write the checkpoint to resume from and the networks to use."""
    run.accelerator.wait_for_everyone()
    sound = {k: all(t.isfinite().all() for t in n.parameters()) for k, n in run.networks.items()}
    require_finite(run, [f"a weight of {name}" for name, good in sound.items() if not good])
    if run.accelerator.is_main_process:
        seconds = run.seconds + minutes(run) * 60
        held = len(run.held_out.held.rows) if run.held_out else 0
        state: dict[str, Any]
        state = {"nimg": run.nimg, "seconds": seconds, "data": run.faces.key, "held_out": held}
        state |= {"ema_kimg": lengths_text(run.config.ema_kimg), "published": run.published}
        state |= run.schedule.state | run.precision.state
        folder = run.folder / "checkpoints"
        save_checkpoint(folder, run.networks, run.optimizers, state, keep=run.config.keep)
        save_averages(run)
        save_network(run.D_raw, run.folder / "discriminator")
        if run.P:
            save_network(run.P_raw, run.folder / "projected")


def save_averages(run: Run) -> None:
    """Write the published average as the run's generator and, of several, each under its length."""
    for length, average in run.averages.items():
        if isinstance(average, Generator):
            average.update_w_avg()
        if len(run.averages) > 1:
            (run.folder / "averages").mkdir(exist_ok=True)
            save_network(average, run.folder / "averages" / f"{length:g}-kimg")
    save_network(run.averages[run.published], run.folder / "generator")


def save_network(network: KaoganModel, folder: Path) -> None:
    """Write a network beside its place and move its files in, so that none is ever half there."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    network.save_pretrained(part)
    folder.mkdir(exist_ok=True)
    for file in sorted(part.iterdir()):
        if file.name != "README.md" or not (folder / file.name).exists():
            file.replace(folder / file.name)
    shutil.rmtree(part)


def push(run: Run, tag: str = "") -> None:
    """Have what `save` wrote pushed in the background."""
    if run.publisher:
        repo, kimg = run.publisher.repo, run.nimg / 1000
        run.publisher.submit(take_snapshot(run.folder, run.config, kimg=kimg, repo=repo, tag=tag))


def write_card(run: Run) -> None:
    """Write the model card beside the generator."""
    if run.accelerator.is_main_process:
        kimg = run.nimg / 1000
        card = make_card(run.folder, run.config, kimg=kimg, picture="../grid-psi0.7.png")
        (run.folder / "generator" / "README.md").write_text(card, encoding="utf-8")
