"""A small generator with a directions file made by hand, for tests of recipes and edits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model import Generator

SLIDERS = ("smile", "long-hair", "principal-1")


def save_generator(folder: Path, *, seed: int = 0, **options: Any) -> Generator:
    """Save a random generator of 64 px whose average face is known; return it."""
    torch.manual_seed(seed)
    sizes = {"resolution": 64, "channels": (16, 16, 8, 8, 8), "z_dim": 16, "w_dim": 12}
    G = Generator(**{**sizes, **options})
    G.update_w_avg(256)
    G.save_pretrained(folder)
    return G.eval()


def list_entries() -> list[dict[str, Any]]:
    kinds = ("attribute", "attribute", "principal")
    return [
        {"name": n, "kind": k, "low": -2, "high": 2.5, "step": 0.1, "groups": ["middle", "fine"]}
        for n, k in zip(SLIDERS, kinds, strict=True)
    ]


def list_tensors(G: Generator) -> dict[str, torch.Tensor]:
    """Return directions of which the colour steps move the predicted colour exactly."""
    noise = torch.Generator().manual_seed(1)
    shape = (G.num_ws, G.w_dim)
    tensors = {
        "directions": torch.randn(len(SLIDERS), *shape, generator=noise) / 4,
        "place_map": torch.zeros(len(SLIDERS), G.num_ws * G.w_dim),
        "place_bias": torch.zeros(len(SLIDERS)),
    }
    for part in ("hair", "eyes"):
        weight = torch.randn(3, G.num_ws * G.w_dim, generator=noise) / 50
        tensors[f"colour_map.{part}"] = weight
        tensors[f"colour_bias.{part}"] = torch.tensor([0.5, 0.0, 0.0])
        tensors[f"colour_step.{part}"] = torch.linalg.pinv(weight).T.reshape(3, *shape).contiguous()
        tensors[f"colour_mean.{part}"] = torch.tensor([0.5, 0.0, 0.0])
        tensors[f"colour_bounds.{part}"] = 5 * torch.eye(3)
    return tensors


def digest_of(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def save_directions(folder: Path, G: Generator, **changes: Any) -> Path:
    """Write a directions file beside a saved generator; metadata and tensors may be replaced."""
    metadata = {
        "format": "kaogan-directions-2",
        "generator": digest_of(folder),
        "entries": json.dumps(list_entries()),
    }
    tensors = {**list_tensors(G), **changes.pop("tensors", {})}
    path = folder / "directions.safetensors"
    save_file({k: v for k, v in tensors.items() if v is not None}, path, {**metadata, **changes})
    return path
