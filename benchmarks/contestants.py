"""Kaogan, the tutorial's networks and a plain DCGAN, as contestants of `benchmarks.training`."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import tempfile
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.worker import Contestant, real_batches, serve, to_pixels
from training.config import PRESETS, TrainConfig, make_config

# Presets of train.py.
OURS = {"kaogan": "kaogan-64", "article": "article-bce", "article-deconv": "article-deconv"}
FASTER = {  # what train.py offers for little time
    "kaogan-quick": PRESETS["quick-64"],
    "kaogan-patch": {"patch": 2},
    "kaogan-projected": {"patch": 2, "projected_weight": 1.0},
}
NAMES = (*OURS, *FASTER, "kaogan-bare", "dcgan")


class Ours:
    """A run of train.py, step by step."""

    def __init__(self, config: TrainConfig) -> None:
        from training.run import build as build_run

        self.folder = tempfile.TemporaryDirectory()
        self.cycle = config.penalty_interval if config.r1_gamma or config.r2_gamma else 1
        self.run = build_run(dataclasses.replace(config, out=self.folder.name))
        self.G, self.D = self.run.G_raw, self.run.D_raw

    def step(self) -> None:
        """Do what the loop of train.py does between two ticks."""
        import train

        train.step(self.run)

    def draw(self, count: int) -> np.ndarray:
        """Draw with the average of G."""
        if self.run.config.networks == "kaogan":
            self.run.G_ema.update_w_avg()
        return to_pixels(self.run.G_ema(torch.randn(count, self.run.config.z_dim)))


def settings(args: argparse.Namespace) -> TrainConfig:
    """Return the configuration of a run at a worker's size and batch."""
    extra = {"resolution": args.size, "batch_size": args.batch, "metric_samples": 0}
    extra |= FASTER.get(args.name, {})
    if args.data:
        extra["data"] = tuple(args.data.split("\n"))
    return make_config(PRESETS[OURS.get(args.name, OURS["kaogan"])], extra)


class Bare:
    """Kaogan's step as one would write it in plain PyTorch, with nothing around it."""

    def __init__(self, args: argparse.Namespace) -> None:
        from model import keep_freed_memory
        from training.run import kaogan_networks

        keep_freed_memory()
        self.config = settings(args)
        self.cycle, self.steps, self.batch = self.config.penalty_interval, 0, args.batch
        nets = kaogan_networks(self.config)
        self.G, self.D = (net.to(memory_format=torch.channels_last) for net in nets)
        self.G_ema = copy.deepcopy(self.G).requires_grad_(False)
        lrs, betas = (self.config.g_lr, self.config.d_lr), (0.0, 0.99)
        self.G_opt, self.D_opt = (
            torch.optim.Adam(net.parameters(), lr, betas, fused=True)
            for net, lr in zip((self.G, self.D), lrs, strict=True)
        )
        self.real = next(real_batches(args.images, args.size, args.batch))
        self.real = self.real.contiguous(memory_format=torch.channels_last)

    def step(self) -> None:
        """Teach D and G on one and the same real batch."""
        with torch.no_grad():
            fake = self.G(torch.randn(self.batch, self.G.z_dim))
        penalised = self.steps % self.cycle == 0
        real = self.real.detach().requires_grad_(penalised)
        if penalised:
            real_logits, fake_logits = self.D(real), self.D(fake)
        else:
            real_logits, fake_logits = self.D(torch.cat([real, fake])).chunk(2)
        loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
        if penalised:
            (slope,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
            squares = slope.flatten(1).square().sum(1)
            loss = loss + self.config.r1_gamma * self.cycle / 2 * squares.mean()
        loss.backward()
        self.D_opt.step()
        self.D_opt.zero_grad()
        self.D.requires_grad_(False)
        F.softplus(-self.D(self.G(torch.randn(self.batch, self.G.z_dim)))).mean().backward()
        self.D.requires_grad_(True)
        self.G_opt.step()
        self.G_opt.zero_grad()
        torch._foreach_lerp_(list(self.G_ema.parameters()), list(self.G.parameters()), 0.01)
        self.steps += 1

    def draw(self, count: int) -> np.ndarray:
        """Draw with the average of G."""
        return to_pixels(self.G_ema(torch.randn(count, self.G.z_dim)))


class DCGAN:
    """The plain DCGAN at 64 px (Radford et al. 2016, arXiv 1511.06434), as textbooks write it."""

    cycle = 1
    Z_DIM, WIDTHS = 100, (512, 256, 128, 64)  # at 4, 8, 16 and 32 px

    def __init__(self, args: argparse.Namespace) -> None:
        if args.size != 64:
            raise SystemExit("the plain DCGAN draws 64 px")
        self.batch = args.batch
        self.G, self.D = self.generator().apply(first_weights), self.critic().apply(first_weights)
        self.G_opt, self.D_opt = (
            torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (self.G, self.D)
        )
        self.real = real_batches(args.images, args.size, args.batch)

    def generator(self) -> nn.Module:
        """Return z `[N, 100, 1, 1]` → pictures `[N, 3, 64, 64]`."""
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((self.Z_DIM, *self.WIDTHS)):
            stride, padding = (2, 1) if layers else (1, 0)
            layers.append(nn.ConvTranspose2d(narrow, wide, 4, stride, padding, bias=False))
            layers += [nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
        last = nn.ConvTranspose2d(self.WIDTHS[-1], 3, 4, 2, 1, bias=False)
        return nn.Sequential(*layers, last, nn.Tanh())

    def critic(self) -> nn.Module:
        """Return pictures `[N, 3, 64, 64]` → logits `[N, 1, 1, 1]`."""
        widths = self.WIDTHS[::-1]
        layers = [nn.Conv2d(3, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 4, 2, 1, bias=False), nn.BatchNorm2d(wide)]
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 0, bias=False))

    def step(self) -> None:
        """Teach D real and fake pictures, then G."""
        fake = self.G(torch.randn(self.batch, self.Z_DIM, 1, 1))
        self.D_opt.zero_grad()
        bce(self.D(next(self.real)), 1.0).backward()
        bce(self.D(fake.detach()), 0.0).backward()
        self.D_opt.step()
        self.G_opt.zero_grad()
        bce(self.D(fake), 1.0).backward()
        self.G_opt.step()

    def draw(self, count: int) -> np.ndarray:
        """Draw with G in evaluation mode."""
        self.G.eval()
        faces = self.G(torch.randn(count, self.Z_DIM, 1, 1))
        self.G.train()
        return to_pixels(faces)


def bce(logits: Tensor, label: float) -> Tensor:
    """Return the cross-entropy of logits against one label."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def first_weights(layer: nn.Module) -> None:
    """Set a layer's first weights as the DCGAN paper does."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)


def build(args: argparse.Namespace) -> Contestant:
    """Make the contestant."""
    kinds = {"kaogan-bare": Bare, "dcgan": DCGAN}
    return kinds[args.name](args) if args.name in kinds else Ours(settings(args))


if __name__ == "__main__":
    serve(build, NAMES)
