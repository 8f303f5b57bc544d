"""What a run needs to go on exactly: networks, optimizers, counters, in one safetensors file.

Randomness needs no saving: data order, latents and augmentation are functions of the run's seed
and the number of images seen. No pickle is written or read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

FORMAT = "kaogan-checkpoint-1"
PATTERN = "kimg-*.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or applied."""


def checkpoint_path(folder: Path, nimg: int) -> Path:
    """Name a checkpoint by thousand images, so that names sort by age."""
    return folder / f"kimg-{nimg / 1000:010.3f}.safetensors"


def save_checkpoint(
    folder: Path,
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    state: Mapping[str, Any],
    *,
    keep: int,
) -> Path:
    """Write a checkpoint under a temporary name, rename it, and drop all but the newest `keep`.

    Args:
        folder: made if missing.
        networks, optimizers: by name; the same names load them.
        state: JSON-able counters; `nimg` names the file.
    Returns:
        The checkpoint's path.
    Raises:
        OSError: the disk refuses; older checkpoints are then untouched.
    """
    tensors: dict[str, Tensor] = {}
    groups: dict[str, Any] = {}
    for name, network in networks.items():
        tensors |= {f"{name}/{k}": v for k, v in network.state_dict().items()}
    for name, optimizer in optimizers.items():
        packed = optimizer.state_dict()
        groups[name] = packed["param_groups"]
        for index, slots in packed["state"].items():
            tensors |= {f"{name}/{index}/{k}": torch.as_tensor(v) for k, v in slots.items()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, state["nimg"])
    part = path.with_suffix(".part")
    metadata = {"format": FORMAT, "state": json.dumps(dict(state)), "groups": json.dumps(groups)}
    try:
        save_file(tensors, part, metadata=metadata)
        _flush(part)
        part.replace(path)
    except (SafetensorError, OSError) as error:
        part.unlink(missing_ok=True)
        raise OSError(f"could not save {path}: {error}; older checkpoints are intact") from error
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def _flush(path: Path) -> None:
    """Wait until a file's bytes are on the disk, so that a rename never shows half of it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def list_checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, oldest first."""
    return sorted(folder.glob(PATTERN))


def find_checkpoint(resume: str, folder: Path) -> Path:
    """Turn `--resume latest|PATH` into a checkpoint's path.

    Raises:
        CheckpointError: there is none.
    """
    if resume != "latest":
        if not Path(resume).is_file():
            raise CheckpointError(f"--resume {resume}: no such checkpoint; try --resume latest")
        return Path(resume)
    found = list_checkpoints(folder)
    if not found:
        raise CheckpointError(
            f"--resume latest: {folder} holds no checkpoint; leave --resume out to start anew"
        )
    return found[-1]


def load_checkpoint(
    path: Path, networks: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> dict[str, Any]:
    """Restore networks and optimizers in place and return the counters.

    Raises:
        CheckpointError: not one of our checkpoints, damaged, or of other networks.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; resume from the one before"
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of a training run of ours")
    try:
        for name, network in networks.items():
            network.load_state_dict(_strip(tensors, f"{name}/"), strict=True)
        groups = json.loads(metadata["groups"])
        for name, optimizer in optimizers.items():
            _load_optimizer(optimizer, _strip(tensors, f"{name}/"), groups[name])
        return json.loads(metadata["state"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} belongs to other networks or settings: {str(error).splitlines()[0]}"
        ) from error


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _load_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Give an optimizer back its slots and its groups."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, slot = key.split("/")
        state.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})
