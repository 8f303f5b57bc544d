"""The peers, as contestants of `python -m benchmarks.training`; run by their own environment.

Both packages refuse to work without CUDA. Here their own trainers' `train()` runs on the CPU, with
every `.cuda()` and "cuda:0" answered by the CPU; faces come from memory instead of files, and their
own sample sheets and checkpoints are left out. Settings are those of their command lines, but for
the batch.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import types
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.worker import Contestant, real_batches, serve, to_pixels

NAMES = ("lightweight-gan", "stylegan2-pytorch")


class Peer:
    """A peer's own trainer, driven step by step."""

    cycle = 4  # both penalise every fourth step

    def __init__(self, module: Any, args: argparse.Namespace, **settings: Any) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.trainer = module.Trainer(
            base_dir=self.folder.name, image_size=args.size, batch_size=args.batch, **settings
        )
        self.trainer.save = self.trainer.evaluate = lambda *_, **__: None
        self.trainer.loader = real_batches(args.images, args.size, args.batch, low=0.0)
        self.trainer.init_GAN()
        self.G, self.D = self.trainer.GAN.G, self.trainer.GAN.D

    def step(self) -> None:
        """Run one `train()`."""
        self.trainer.train()


class LightweightGAN(Peer):
    """lightweight-gan 1.2.1."""

    def __init__(self, args: argparse.Namespace) -> None:
        module = load("lightweight_gan.lightweight_gan")
        options = {"attn_res_layers": [32], "disc_output_size": 1, "use_aim": False}
        super().__init__(module, args, **options)

    def draw(self, count: int) -> np.ndarray:
        """Draw with G itself: its average is a copy of every thousandth G, for 20,000 steps."""
        self.G.eval()
        faces = self.G(torch.randn(count, self.trainer.latent_dim))
        self.G.train()
        return to_pixels(faces, low=0.0)


class StyleGAN2(Peer):
    """stylegan2_pytorch 1.9.0."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.module = load("stylegan2_pytorch.stylegan2_pytorch")
        super().__init__(self.module, args)

    def draw(self, count: int) -> np.ndarray:
        """Draw with G itself, for the same reason, untruncated."""
        gan, size = self.trainer.GAN, self.trainer.image_size
        z = self.module.noise_list(count, self.G.num_layers, self.G.latent_dim, 0)
        styles = self.module.styles_def_to_tensor(self.module.latent_to_w(gan.S, z))
        return to_pixels(self.G(styles, self.module.image_noise(count, size, 0)), low=0.0)


def build(args: argparse.Namespace) -> Contestant:
    """Make the contestant."""
    torch.Tensor.cuda = nn.Module.cuda = lambda self, *_, **__: self
    return {"lightweight-gan": LightweightGAN, "stylegan2-pytorch": StyleGAN2}[args.name](args)


def load(name: str) -> types.ModuleType:
    """Import a peer, which asserts that there is CUDA, and answer its wishes for it by the CPU."""
    asked, torch.cuda.is_available = torch.cuda.is_available, lambda: True
    try:
        module = importlib.import_module(name)
    finally:
        torch.cuda.is_available = asked
    stand_in = types.ModuleType("torch")
    stand_in.__dict__.update(torch.__dict__)
    stand_in.device = lambda *_: torch.device("cpu")
    module.torch = stand_in
    return module


if __name__ == "__main__":
    serve(build, NAMES)
