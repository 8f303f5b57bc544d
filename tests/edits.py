"""A small generator with a directions file made by hand, for tests of recipes and edits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model import Generator

SLIDERS = ("principal-1", "smile", "long-hair")  # a plain step, then two that have families
FAMILIES = {"smile": 1, "long-hair": 2}  # numbers of each
FIRST_FORMAT = "kaogan-directions-2"


def save_generator(folder: Path, *, seed: int = 0, **options: Any) -> Generator:
    """Save a random generator of 64 px whose average face is known; return it."""
    torch.manual_seed(seed)
    sizes = {"resolution": 64, "channels": (16, 16, 8, 8, 8), "z_dim": 16, "w_dim": 12}
    G = Generator(**{**sizes, **options})
    G.update_w_avg(256)
    G.save_pretrained(folder)
    return G.eval()


def list_entries(first: bool = False) -> list[dict[str, Any]]:
    """Return the entries of a file; `first`: of format 2, which has no families."""
    kinds = ("principal", "attribute", "attribute")
    ends = {"low": -2, "high": 2.5, "step": 0.1, "groups": ["middle", "fine"]}
    return [
        {"name": n, "kind": k, **ends} | ({} if first else {"family": n if n in FAMILIES else ""})
        for n, k in zip(SLIDERS, kinds, strict=True)
    ]


def list_tensors(G: Generator, first: bool = False) -> dict[str, torch.Tensor]:
    """Return directions of which the steps move the predicted place or colour exactly."""
    noise = torch.Generator().manual_seed(1)
    shape = (G.num_ws, G.w_dim)
    count = len(SLIDERS) if first else len(SLIDERS) - len(FAMILIES)
    tensors = {"directions": torch.randn(count, *shape, generator=noise) / 4}
    if first:
        tensors["place_map"] = torch.zeros(count, G.num_ws * G.w_dim)
        tensors["place_bias"] = torch.zeros(count)
    for name, size in ({} if first else FAMILIES).items():
        weight = torch.randn(size, G.num_ws * G.w_dim, generator=noise) / 50
        tensors[f"family_map.{name}"] = weight
        tensors[f"family_bias.{name}"] = torch.zeros(size)
        tensors[f"family_step.{name}"] = torch.linalg.pinv(weight).T.reshape(size, *shape)
        tensors[f"target.{name}"] = torch.tensor([[-0.4] * size, [0.4] * size])
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
        "format": "kaogan-directions-3",
        "generator": digest_of(folder),
        "entries": json.dumps(list_entries(changes.get("format") == FIRST_FORMAT)),
    }
    first = changes.get("format") == FIRST_FORMAT
    tensors = {**list_tensors(G, first), **changes.pop("tensors", {})}
    path = folder / "directions.safetensors"
    kept = {k: v.contiguous() for k, v in tensors.items() if v is not None}
    save_file(kept, path, {**metadata, **changes})
    return path
