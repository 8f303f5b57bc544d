"""Pictures → one memory-mapped uint8 file, decoded once and found again by a key.

    faces = pack("faces.zip", resolution=64)            # faces.images: uint8 [N, 64, 64, 3]

The key is made of the pictures' names, sizes and stamps, so a second start decodes nothing.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.errors import DataError
from training.data.labels import read_labels
from training.data.sources import FORMATS, Entry, find_entries
from training.data.workers import compact, fill

VERSION = 1  # of the pack's layout and pixels: raise it and every pack is made anew
STALE_SECONDS = 24 * 3600  # an untouched unfinished pack of another machine is dead after this


@dataclass(frozen=True, eq=False)
class Faces:
    """A packed set of pictures.

    `images` is a read-only memory map, uint8 [N, H, W, C]; `labels` is uint8 [N, L] of 0 and 1 with
    one column per name in `label_names`, or None where the data has no labels.csv; `path` is the
    pack's folder, which also holds skipped.csv; `skipped` counts the skipped pictures by reason.
    """

    images: np.ndarray
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    path: Path
    key: str
    skipped: dict[str, int]

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.images)


def _key(pictures: list[Entry], tables: list[Entry], resolution: int, channels: int) -> str:
    """Name the pack that these entries give.

    Zip members count by name, size and CRC-32, so the key follows their content wherever the zip
    lies. Loose files count by name, size and time of change: reading them all at every start would
    cost as much as the pack saves, and a changed file changes its time.
    """
    groups: dict[str, int] = {}
    digest = hashlib.sha256(repr((VERSION, resolution, channels)).encode())
    for kind, entries in enumerate((pictures, tables)):
        for entry in entries:
            group = groups.setdefault(entry.group, len(groups))
            digest.update(repr((kind, group, entry.name, entry.size, entry.stamp)).encode())
    return digest.hexdigest()[:20]


def default_cache_dir() -> Path:
    """Return $KAOGAN_CACHE, or ~/.cache/kaogan where it is not set."""
    return Path(os.environ.get("KAOGAN_CACHE") or "~/.cache/kaogan").expanduser()


def pack(
    sources: str | Sequence[str],
    resolution: int,
    *,
    channels: int = 3,
    cache_dir: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Faces:
    """Pack pictures into one memory-mapped uint8 array, or find the pack made earlier.

    `sources` are folders (searched through), .zip files, globs and Hub data sets
    (hf://owner/name[@revision]). Each picture is turned upright, laid over white where it is
    transparent, cropped to its central square and resized to `resolution` px; `channels` is 3 for
    RGB or 1 for grey. Pictures keep the order of the sources and, within one, of their names.
    Unusable ones, and pictures in formats that are not read, are skipped, counted by reason in
    `Faces.skipped` and listed in skipped.csv; files that are no pictures are passed over.

    Raises DataError where the sources hold no usable picture, a path does not exist, a zip or a
    labels.csv is malformed, or the cache folder cannot take the pack.
    """
    if resolution < 1 or channels not in (1, 3):
        raise DataError(f"resolution {resolution}, channels {channels}: give ≥ 1, and 1 or 3")
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    pictures, tables = find_entries(sources)
    key = _key(pictures, tables, resolution, channels)
    folder = cache / f"{resolution}px-{key}"
    faces = _load(folder)
    if faces is None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _remove_dead(cache)
            _write(folder, pictures, tables, (resolution, resolution, channels), workers, progress)
        except OSError as error:
            raise DataError(
                f"the pack cannot be written to {cache} ({error}): free space there or set "
                "KAOGAN_CACHE to another folder"
            ) from error
        faces = _load(folder)
    if faces is None:
        raise DataError(f"{folder} is damaged: remove it and start again")
    return faces


def _load(folder: Path) -> Faces | None:
    """Open a whole pack; return None where there is none."""
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        shape = tuple(meta["shape"])
        if (folder / "images.bin").stat().st_size != int(np.prod(shape, dtype=np.int64)):
            return None
        names = tuple(meta["label_names"])
        labels = np.load(folder / "labels.npy", allow_pickle=False) if names else None
        if labels is not None and labels.shape != (shape[0], len(names)):
            return None
        images = np.memmap(folder / "images.bin", np.uint8, "r", shape=shape)
        return Faces(images, labels, names, folder, meta["key"], meta["skipped"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _remove_dead(cache: Path) -> None:
    """Remove the unfinished packs whose process is gone."""
    for folder in cache.glob("*~*~*~*.part"):
        with suppress(OSError):  # another process finished or removed it meanwhile
            if _is_dead(folder):
                shutil.rmtree(folder)


def _is_dead(unfinished: Path) -> bool:
    """Say whether no process works on an unfinished pack any more."""
    _, host, pid, _ = unfinished.name.split("~")
    if host == socket.gethostname() and os.name == "posix":
        return not _is_alive(int(pid))
    newest = max(path.stat().st_mtime for path in [unfinished, *unfinished.iterdir()])
    return time.time() - newest > STALE_SECONDS


def _is_alive(pid: int) -> bool:
    """Say whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's, but it runs
        pass
    return True


def _write(
    folder: Path,
    pictures: list[Entry],
    tables: list[Entry],
    shape: tuple[int, int, int],
    workers: int | None,
    progress: bool,
) -> None:
    """Make the pack in a folder of its own and rename it when it is whole."""
    labels = read_labels(pictures, tables)  # first: its faults should show before the long work
    mark = f"{socket.gethostname()}~{os.getpid()}~{uuid.uuid4().hex[:8]}"
    temporary = folder.with_name(f"{folder.name}~{mark}.part")
    temporary.mkdir()
    try:
        failures = fill(temporary / "images.bin", pictures, shape, workers, progress)
        if len(failures) == len(pictures):
            slot, reason = min(failures.items())
            raise DataError(
                f"none of the {len(pictures)} pictures can be used (the first, "
                f"{pictures[slot].name}: {reason}): give whole {', '.join(FORMATS)} files"
            )
        compact(temporary / "images.bin", int(np.prod(shape)), len(pictures), failures)
        good = np.setdiff1d(np.arange(len(pictures)), list(failures))
        if labels.values is not None:
            np.save(temporary / "labels.npy", labels.values[good])
        _report(temporary / "skipped.csv", pictures, failures)
        meta = {
            "key": folder.name.rpartition("-")[2],
            "shape": [len(good), *shape],
            "label_names": labels.names,
            "unlabelled": int((~labels.known[good]).sum()) if labels.names else 0,
            "skipped": dict(sorted(Counter(failures.values()).items())),
        }
        _sync(temporary)
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1), "utf-8")
        _sync(temporary)
        _publish(temporary, folder)
        _sync(folder.parent, files=False)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(folder: Path, files: bool = True) -> None:
    """Bring the names in a folder, and its files, to the disk."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    for path in [*(folder.iterdir() if files else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _publish(temporary: Path, folder: Path) -> None:
    """Rename a whole pack to its place, unless another process was first."""
    if folder.exists() and _load(folder) is None:  # damaged after it was made
        shutil.rmtree(folder)
    try:
        temporary.rename(folder)
    except OSError:
        if _load(folder) is None:
            raise


def _report(path: Path, pictures: list[Entry], failures: dict[int, str]) -> None:
    """List the skipped pictures with their reasons."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "reason"])
        for slot, reason in sorted(failures.items()):
            entry = pictures[slot]
            zipped = "" if entry.member is None else f"{Path(entry.path).name}/"
            writer.writerow([zipped + entry.name, reason])
