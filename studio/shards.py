"""Bulk drawing: millions of faces as WebDataset shards, by any number of processes.

    accelerate launch -m studio --seeds 0-999999 --shards DIR
    torchrun --nproc_per_node 2 -m studio --seeds 0-999999 --shards DIR

The list of seeds is cut into shards of equal length, `faces-000000.tar` and so on. Each process
takes every N-th shard of N, by its rank; nobody waits for another. A shard gets its name when it
is whole, so the same command after a crash, with as many processes as you like, draws only what is
missing, and the files are the same to the byte on the same machine. A sample is a PNG that carries
its recipe, and the recipe as JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from studio.faces import Studio
from studio.pictures import png_bytes, png_text, to_image
from studio.recipe import Recipe

MANIFEST = "faces.json"  # what the shards of a folder hold
MAX_SHARDS = 1_000_000


class ShardsError(ValueError):
    """Shards that cannot be written."""


def place(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return this process's rank and the number of processes, as the launcher sets them.

    Raises:
        ShardsError: RANK and WORLD_SIZE that make no sense.
    """
    try:
        rank, world = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise ShardsError("RANK must be a number below WORLD_SIZE; start this with a launcher")
    return rank, world


class SeedRanges:
    """A long list of seeds that is never written out: `[0-999, 5000-5999]`, no seed twice."""

    def __init__(self, ranges: Sequence[range]) -> None:
        ordered = sorted(ranges, key=lambda part: part.start)
        for a, b in zip(ordered, ordered[1:], strict=False):
            if b.start < a.stop:
                raise ShardsError(f"seed {b.start} is named twice; a shard's names must be unique")
        self.ranges = list(ranges)

    def __len__(self) -> int:
        return sum(map(len, self.ranges))

    def cut(self, start: int, stop: int) -> list[int]:
        """Return the seeds at the places start … stop - 1 of the list."""
        seeds: list[int] = []
        for part in self.ranges:
            seeds += part[max(0, start) : max(0, stop)]
            start, stop = start - len(part), stop - len(part)
        return seeds


def write_shards(
    studio: Studio,
    base: Recipe,
    ranges: Sequence[range],
    folder: Path,
    *,
    shard_size: int = 1000,
    batch_size: int = 16,
    size: int | None = None,
) -> Iterator[int]:
    """Draw what is missing of this process's shards; yield the faces of each when it is done.

    Args:
        base: what every face has besides its seed.
        ranges: seeds, in order, none twice.
        folder: gets the shards and a manifest of what they hold.
        shard_size: faces of a shard.
        batch_size: faces drawn at once.
        size: px of a face; the generator's own when None.
    Raises:
        ShardsError: unusable numbers, a folder that holds other shards, or no webdataset package.
        RecipeError: a recipe that cannot be drawn.
    """
    seeds, (rank, world) = SeedRanges(ranges), place()
    count = -(-len(seeds) // shard_size) if shard_size > 0 else 0
    if not 1 <= count <= MAX_SHARDS:
        raise ShardsError(f"--shard-size must give 1 to {MAX_SHARDS:,} shards, not {shard_size}")
    open_writer = find_writer()
    studio.check(base)
    size = studio.size if size is None else size
    claim(folder, describe(studio, base, ranges, shard_size, size))
    for index in range(rank, count, world):
        path = folder / f"faces-{index:06}.tar"
        if path.exists():
            continue
        names = seeds.cut(index * shard_size, (index + 1) * shard_size)
        with claimed(path.with_name(f"{path.name}.part")) as stream:
            with open_writer(stream) as writer:
                for sample in samples(studio, base, names, batch_size, size):
                    writer.write(sample)
            stream.flush()
            Path(stream.name).replace(path)
        yield len(names)


@contextmanager
def claimed(part: Path) -> Iterator[BinaryIO]:
    """Open an empty file for this process alone; what a killed one left in it is gone.

    Raises:
        ShardsError: another process is writing it.
    """
    with part.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShardsError(
                f"another command is writing {part}; wait for it, or take another folder"
            ) from error
        stream.truncate(0)
        yield stream


def samples(
    studio: Studio, base: Recipe, seeds: list[int], batch_size: int, size: int
) -> Iterator[dict[str, Any]]:
    """Yield a WebDataset sample for each seed."""
    recipes = [replace(base, seed=seed) for seed in seeds]
    faces = (f for b in studio.recipe_batches(recipes, batch_size=batch_size) for f in b)
    for recipe, face in zip(recipes, faces, strict=True):
        told = recipe.to_json() | {"revision": studio.revision}
        yield {
            "__key__": f"seed{recipe.seed:010d}",
            "png": png_bytes(
                to_image(studio.enlarge(face[None], size)[0]), png_text(studio, recipe, size)
            ),
            "json": json.dumps(told, sort_keys=True).encode(),
        }


def find_writer() -> Any:
    """Return what opens a shard for writing, of stable bytes."""
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise ShardsError(
            "shards need the package webdataset: pip install -r requirements-export.txt"
        ) from error

    def open_writer(stream: Any) -> Any:
        return TarWriter(stream, encoder=False, mtime=0, user="kaogan", group="kaogan")

    return open_writer


def describe(
    studio: Studio, base: Recipe, ranges: Sequence[range], shard_size: int, size: int
) -> dict[str, Any]:
    """Say what a folder of shards holds."""
    shape = {k: v for k, v in base.to_json().items() if k != "seed"}
    seeds = ",".join(f"{r.start}-{r.stop - 1}" for r in ranges)
    larger = {"size": size, "enlarger": studio.enlarging.name} if size > studio.size else {}
    told = {"revision": studio.revision, "seeds": seeds, "shard_size": shard_size}
    return told | larger | shape


def claim(folder: Path, wanted: dict[str, Any]) -> None:
    """Write the manifest of a folder, or see that the one that is there says the same.

    Raises:
        ShardsError: the folder holds other shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / MANIFEST, folder / f"{MANIFEST}.{os.getpid()}.part"
    part.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    try:
        os.link(part, path)  # fails where another process was first
    except FileExistsError:
        check_manifest(path, wanted)
    finally:
        part.unlink()


def check_manifest(path: Path, wanted: dict[str, Any]) -> None:
    """Raise ShardsError where a manifest says something else than is wanted."""
    try:
        found = json.loads(path.read_bytes()[:65536])
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ShardsError(f"{path} is damaged; remove it, or take another folder")
    if other := sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k)):
        raise ShardsError(
            f"{path.parent} holds shards of other faces ({', '.join(other)[:200]} differ); "
            f"take another folder"
        )
