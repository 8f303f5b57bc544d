"""What a step computes in, with the precisions of a GPU on a CPU."""

import pytest
import torch

import train
from model import Generator, latents_from_seeds
from training import run as building
from training.config import make_config
from training.precision import Precision

TINY = {
    "resolution": 16, "channel_base": 256, "channel_max": 16, "z_dim": 16, "w_dim": 16,
    "batch_size": 8, "penalty_interval": 2, "metric_samples": 0, "workers": 1,
}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture
def build(faces_dir, tmp_path, monkeypatch):
    """Build runs on the drawn faces, in the precision of some GPU."""
    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    made = []

    def make(precision, **settings):
        monkeypatch.setattr(building, "choose_precision", lambda *_: Precision(precision, CPU))
        folder = {"data": (str(faces_dir),), "out": str(tmp_path / f"run{len(made)}")}
        made.append(building.build(make_config(TINY, folder, settings)))
        return made[-1]

    yield make
    for run in made:
        run.lock.close()


def test_a_penalised_step_is_float32_and_the_others_are_not(build):
    run = build("bf16")
    seen = []
    run.D_raw.conv.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    train.d_step(run)
    assert set(seen) == {torch.float32}
    run.nimg += run.config.batch_size
    seen.clear()
    train.d_step(run)
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("patch", [1, 2])
def test_a_picture_is_summed_in_float32(patch):
    """Six levels that add up to white; in bf16 its steps there are half a level of 8 bits."""
    G = Generator(128 * patch, (8,) * 6, z_dim=8, w_dim=8, patch=patch).requires_grad_(False)
    for block in G.blocks.values():
        block.to_rgb.bias.fill_(0.97 / 6)
    z = latents_from_seeds([0, 1], 8)
    wide = G(z)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = G(z)
    assert narrow.dtype == torch.float32
    assert (narrow - wide).abs().mean() < 1 / 1024
    assert narrow.unique().numel() > 10 * narrow.bfloat16().unique().numel()
