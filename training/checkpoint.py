"""What a run needs to resume exactly: networks, optimizers, counters, in one safetensors file.

Randomness needs no saving: data order, latents and augmentation are functions of the run's seed
and the number of images seen. No pickle is written or read.

A checkpoint carries the SHA-256 of all its bytes in its own header (with zeros in the digest's
place while it is computed), so that one flipped bit anywhere is found before anything is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

try:
    import fcntl
except ImportError:  # not POSIX: folders are not locked there
    fcntl = None  # type: ignore[assignment]

FORMAT = "kaogan-checkpoint-2"
UNSEALED = "kaogan-checkpoint-1"  # before digests; still read
PATTERN = "kimg-*.safetensors"
LOCK = "lock"
DIGEST_KEY = b'"sha256":"'  # unescaped quotes: it cannot stand inside another value
NO_DIGEST = "0" * 64
MAX_HEADER = 16 * 2**20  # bytes; ours take some tens of kB
RENAMED = {"projected/": "A/", "projected_opt/": "A_opt/"}  # as they were called once
SLOTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps for each parameter


class CheckpointError(ValueError):
    """A checkpoint, or a run's folder, that cannot be used."""


# ------------------------------------------------------------------------------------------
# The run's folder


def lock_folder(folder: Path) -> IO[str] | None:
    """Claim a run's folder until the returned file is closed or this process ends, however.

    The file stays: removing it would let two processes lock two files of one name.

    Returns:
        The open lock file; None where the system or the file system knows no locks.
    Raises:
        CheckpointError: another process holds the folder.
        OSError: the folder cannot be written.
    """
    if fcntl is None:
        return None
    file = (folder / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        raise CheckpointError(
            f"{folder} belongs to a run that is still going ({holder}); stop that one, or give "
            f"another --out"
        ) from None
    except OSError:  # some network file systems
        file.close()
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def checkpoint_path(folder: Path, nimg: int) -> Path:
    """Name a checkpoint by thousand images, so that names sort by age."""
    return folder / f"kimg-{nimg / 1000:010.3f}.safetensors"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, oldest first by images seen, whatever the clock said."""
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


# ------------------------------------------------------------------------------------------
# Saving


def save_checkpoint(
    folder: Path,
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    state: Mapping[str, Any],
    *,
    keep: int,
) -> Path:
    """Write a checkpoint under a temporary name, rename it, and drop all but the newest `keep`.

    Checkpoints of more images than this one are left from a run that went back to before them
    (the newest was damaged, or an older one was asked for). They get the ending .aside, so that
    `latest` means this run's; nothing deletes those.

    Args:
        folder: made if missing.
        networks, optimizers: by name; the same names load them. Optimizers are Adam's.
        state: counters and texts by name; `nimg` names the file.
    Returns:
        The checkpoint's path.
    Raises:
        OSError: the disk refuses; older checkpoints are then untouched.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in _pack(networks, optimizers).items()}
    metadata = {"format": FORMAT, "state": json.dumps(dict(state)), "sha256": NO_DIGEST}
    path = checkpoint_path(folder, state["nimg"])
    part = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("kimg-*.part"):  # by a process that was killed
            left.unlink()
        save_file(tensors, part, metadata=metadata)
        _seal(part)
        part.replace(path)
        _flush_names(folder)
    except (SafetensorError, OSError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        # Without advice: that is for whoever knows how the run was started.
        raise OSError(f"could not save {path} ({error}); older checkpoints are intact") from error
    _tidy(path, keep)
    return path


def _pack(
    networks: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> dict[str, Tensor]:
    """Return every tensor by name: `G/const`, `G_opt/0/exp_avg`."""
    tensors: dict[str, Tensor] = {}
    for name, network in networks.items():
        tensors |= {f"{name}/{k}": v for k, v in network.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{k}": torch.as_tensor(v) for k, v in slots.items()}
    return tensors


def _tidy(path: Path, keep: int) -> None:
    """Drop what is older than the newest `keep`, set aside what is ahead of the newest."""
    found = list_checkpoints(path.parent)
    now = found.index(path) + 1
    for ahead in found[now:]:
        ahead.replace(ahead.with_name(f"{ahead.name}.aside"))
    for old in found[:now][:-keep]:
        old.unlink(missing_ok=True)


def _seal(path: Path) -> None:
    """Write a file's digest into its header and wait until all of it is on the disk."""
    with path.open("r+b") as file:
        place = _digest_place(file)
        digest = _digest(file, place)
        file.seek(place)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())  # so that a rename never shows half of it


def _flush_names(folder: Path) -> None:
    """Bring a rename to the disk, where a folder can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _digest_place(file: BinaryIO) -> int:
    """Return where in a safetensors file its digest begins; -1 where it has none."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    header = file.read(length) if length <= MAX_HEADER else b""
    found = header.find(DIGEST_KEY)
    return 8 + found + len(DIGEST_KEY) if found >= 0 else -1


def _digest(file: BinaryIO, place: int) -> str:
    """Return the SHA-256 of a file, in hex, as if zeros stood in the digest's place."""
    file.seek(0)
    digest = hashlib.sha256(file.read(place))
    digest.update(NO_DIGEST.encode())
    file.seek(place + len(NO_DIGEST))
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------
# Loading


def load_checkpoint(
    path: Path, networks: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> dict[str, Any]:
    """Restore networks and optimizers in place and return the counters.

    Only tensors that these networks and optimizers have are read, so memory stays within twice
    their size whatever the file holds. Step sizes and the like stay those of the optimizers.

    Raises:
        CheckpointError: not one of our checkpoints, damaged, or of other networks. For a damaged
            one the sentence offers the newest older one that is whole.
    """
    metadata = _read_metadata(path)
    sealed = "sha256" in metadata or metadata.get("format") == FORMAT
    if sealed and not is_whole(path):
        raise CheckpointError(f"{path} is damaged: its checksum does not fit; {_offer(path)}")
    if metadata.get("format") not in (FORMAT, UNSEALED):
        raise CheckpointError(f"{path} is no checkpoint of a training run of ours; {_offer(path)}")
    try:
        state = _read_state(metadata)
        tensors = _read_tensors(path, networks, optimizers)
        for name, network in networks.items():
            network.load_state_dict(_strip(tensors, f"{name}/"), strict=True)
        for name, optimizer in optimizers.items():
            _load_optimizer(optimizer, _strip(tensors, f"{name}/"))
    except (RuntimeError, KeyError, ValueError, SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} belongs to other networks or settings: {str(error).splitlines()[0]:.300}"
        ) from error
    return state


def glance(path: Path) -> tuple[dict[str, Any], set[str]]:
    """Return a checkpoint's counters and the names of what it holds, before it is loaded.

    Both are empty where they cannot be read: `load_checkpoint` then says why. Nothing is checked.
    """
    with contextlib.suppress(CheckpointError, ValueError, KeyError, SafetensorError, OSError):
        state = _read_state(_read_metadata(path))
        with safe_open(path, framework="pt") as file:
            return state, {name.partition("/")[0] for name in file.keys()}  # noqa: SIM118
    return {}, set()


def _read_metadata(path: Path) -> dict[str, str]:
    """Return a safetensors file's own texts; raise CheckpointError where it is none."""
    try:
        with path.open("rb") as file:
            if int.from_bytes(file.read(8), "little") > MAX_HEADER:
                raise SafetensorError("its header is too large")
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!s:.200}; {_offer(path)}") from error


def is_whole(path: Path) -> bool:
    """Tell whether a file's digest fits its bytes."""
    with path.open("rb") as file:
        place = _digest_place(file)
        if place < 0:
            return False
        file.seek(place)
        return file.read(len(NO_DIGEST)) == _digest(file, place).encode()


def _offer(path: Path) -> str:
    """Name the newest older checkpoint that is whole."""
    for older in reversed(list_checkpoints(path.parent)):
        with contextlib.suppress(OSError):
            if older.name < path.name and is_whole(older):
                return f"resume from the one before with --resume {older}"
    return "no whole one is left before it, so start anew with another --out"


def _read_state(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the counters; raise ValueError unless they are numbers to count on from."""
    try:
        state = json.loads(metadata["state"])
    except RecursionError:
        state = None
    if not isinstance(state, dict) or type(state.get("nimg")) is not int:
        raise ValueError("it does not say how many images it saw")
    for name, value in state.items():
        number = type(value) in (int, float) and 0 <= value < 2**53  # no NaN, no infinity
        if not number and not isinstance(value, str):
            raise ValueError(f"its counter {name:.40} is {value!r:.40}")
    return state


def _read_tensors(
    path: Path, networks: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> dict[str, Tensor]:
    """Read the tensors that are expected; raise ValueError for a missing or misshapen one."""
    tensors = {}
    with safe_open(path, framework="pt") as file:
        found = set(file.keys())
        wanted = _pack(networks, {})
        for name, optimizer in optimizers.items():
            if any(_is_of(k, f"{name}/") for k in found):  # none where no step was made
                wanted |= _slots(name, optimizer)
        for name, like in wanted.items():
            stored = _stored_name(name, found)
            if stored not in found:
                raise ValueError(f"it has no {name}")
            shape = file.get_slice(stored).get_shape()
            if shape != list(like.shape):
                raise ValueError(f"its {name} is {shape} instead of {list(like.shape)}")
            tensors[name] = file.get_tensor(stored)
            if tensors[name].dtype != like.dtype:
                raise ValueError(f"its {name} is {tensors[name].dtype} instead of {like.dtype}")
    return tensors


def _is_of(key: str, prefix: str) -> bool:
    """Tell whether a stored tensor belongs to what `prefix` names, also by its old name."""
    return key.startswith((prefix, RENAMED.get(prefix, prefix)))


def _stored_name(name: str, found: set[str]) -> str:
    """Return the name under which a checkpoint holds a tensor: today's, or that of once."""
    for new, old in RENAMED.items():
        if name.startswith(new) and name not in found:
            return old + name.removeprefix(new)
    return name


def _slots(name: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return tensors of the shapes that Adam keeps for its parameters, by their names."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{name}/{index}/{slot}": torch.empty(() if slot == "step" else p.shape, device="meta")
        for index, p in enumerate(parameters)
        for slot in SLOTS
    }


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer back its slots."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        place, slot = key.split("/")
        state.setdefault(int(place), {})[slot] = tensor
    groups = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, slots in state.items():
        # In the memory order of the parameter, by which a fused step walks through all of them.
        state[index] = {
            k: v if k == "step" else torch.empty_like(parameters[index]).copy_(v)
            for k, v in slots.items()
        }
    optimizer.load_state_dict({"state": state, "param_groups": groups})
