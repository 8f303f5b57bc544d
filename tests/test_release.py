"""What is bundled: weights that load, faces that come back on this machine, data to train on."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file

from model import Discriminator, Encoder, Generator, default_channels
from training.config import BUNDLED_FACES
from training.release import (
    BUNDLED_COUNT,
    CHECKED_SEEDS,
    GOLDEN_PSI,
    GOLDEN_SEEDS,
    WORTH_NARROWING,
    draw,
    drop_encoder,
    golden_name,
    store,
)

ASSETS = ROOT / "assets"
MAX_WEIGHTS = 25 * 1024**2


def test_golden_faces_come_back():
    """The page's promise: a seed of this revision is this face, on whatever machine."""
    G = Generator.from_pretrained(ASSETS / "generator")
    for seed, pixels in zip(GOLDEN_SEEDS, draw(G, GOLDEN_SEEDS, GOLDEN_PSI), strict=True):
        golden = np.array(Image.open(ASSETS / "samples" / golden_name(seed)))
        assert golden.shape == pixels.squeeze().shape
        assert np.abs(golden.astype(int) - pixels.squeeze()).max() <= 1, seed
        assert golden.std() > 20  # a picture, not a blank


def test_bundled_critic_tells_faces_apart():
    G = Generator.from_pretrained(ASSETS / "generator")
    D = Discriminator.from_pretrained(ASSETS / "discriminator")
    faces = torch.from_numpy(np.stack(list(draw(G, range(16), 1.0)))).permute(0, 3, 1, 2)
    with torch.no_grad():
        scores = D(faces / 127.5 - 1)
    assert torch.isfinite(scores).all()
    assert scores.std() > 0.1


def test_sizes_and_card():
    for name in ("generator", "discriminator"):
        assert (ASSETS / name / "model.safetensors").stat().st_size < MAX_WEIGHTS
    card = (ASSETS / "generator" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "no licence" in card
    with zipfile.ZipFile(BUNDLED_FACES) as file:
        assert len(file.namelist()) == BUNDLED_COUNT


def test_a_fresh_clone_trains_with_no_data_given(tmp_path):
    env = os.environ | {"KAOGAN_CACHE": str(tmp_path), "ACCELERATE_USE_CPU": "true"}
    flags = ["--out", str(tmp_path / "run"), "--metric-samples", "0"]
    flags += ["--batch-size", "8", "--total-kimg", "0.016"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
    done = subprocess.run(
        [*launch, "train.py", *flags],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "point --data at a folder of your own" in done.stdout
    assert f"{BUNDLED_COUNT:,} pictures" in done.stdout
    assert (tmp_path / "run" / "generator" / "model.safetensors").exists()


def dtypes(folder):
    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


def test_storage_narrows_only_where_pixels_stay(tmp_path):
    torch.manual_seed(0)
    G = Generator(16, default_channels(16, 128, 16), z_dim=8, w_dim=8).eval()
    store(G, tmp_path / "narrow")
    assert json.loads((tmp_path / "narrow" / "config.json").read_text())["resolution"] == 16
    stored = load_file(tmp_path / "narrow" / "model.safetensors").values()
    assert all((v.dtype == torch.float16) == (v.numel() >= WORTH_NARROWING) for v in stored)
    with torch.no_grad():
        G.blocks["16"].to_rgb.weight.mul_(100)  # so that 16 bits are too coarse for all
    faces = np.stack(list(draw(G, range(CHECKED_SEEDS), 1.0))).astype(int)
    store(G, tmp_path / "mixed")
    assert dtypes(tmp_path / "mixed") == {torch.float16, torch.float32}
    stored = Generator.from_pretrained(tmp_path / "mixed")
    assert np.abs(np.stack(list(draw(stored, range(CHECKED_SEEDS), 1.0))) - faces).max() <= 1
    with torch.no_grad():
        G.blocks["16"].to_rgb.weight.mul_(4)  # and now for any
    store(G, tmp_path / "wide")
    folders = [tmp_path / name for name in ("narrow", "mixed", "wide")]
    sizes = [(folder / "model.safetensors").stat().st_size for folder in folders]
    assert sizes[0] < sizes[1] < sizes[2]
    assert sizes[2] > 1.6 * sizes[0]


def test_drawing_leaves_gradients_on_between_faces():
    G = Generator(8, (16, 16), z_dim=4, w_dim=4)
    faces = draw(G, range(3), 1.0)
    next(faces)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_an_encoder_of_other_weights_is_removed(tmp_path, capsys):
    store(Generator(8, (16, 16), z_dim=4, w_dim=4), tmp_path / "generator")
    weights = (tmp_path / "generator" / "model.safetensors").read_bytes()
    Encoder(3, 4, (4, 4, 4, 4), 4, 4, hashlib.sha256(weights).hexdigest()).save_pretrained(
        tmp_path / "encoder"
    )
    drop_encoder(tmp_path)
    assert (tmp_path / "encoder").is_dir()
    store(Generator(8, (16, 16), z_dim=4, w_dim=4), tmp_path / "generator")
    drop_encoder(tmp_path)
    assert not (tmp_path / "encoder").exists()
    assert "was of other weights" in capsys.readouterr().out


def test_the_bundled_encoder_is_of_the_bundled_generator():
    weights = (ASSETS / "generator" / "model.safetensors").read_bytes()
    encoder = Encoder.from_pretrained(ASSETS / "encoder")
    assert encoder.generator == hashlib.sha256(weights).hexdigest()
    assert (ASSETS / "encoder" / "model.safetensors").stat().st_size < 10_000_000
