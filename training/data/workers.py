"""Decode many pictures into one file, in this process or in several.

skipped = fill(Path("images.bin"), pictures, shape=(64, 64, 3), workers=2, progress=True)
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.data.decode import SkipError, open_zip, read_picture
from training.data.errors import DataError
from training.data.sources import Entry

CHUNK = 64  # pictures a worker takes at a time


def _decode_chunk(
    target: str, shape: tuple[int, int, int], start: int, entries: list[Entry]
) -> tuple[int, dict[int, str]]:
    """Decode pictures into their slots of the target file; return their count and the skipped."""
    failures: dict[int, str] = {}
    with Path(target).open("r+b") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
        for slot, entry in enumerate(entries, start):
            try:
                pixels = read_picture(entry, shape[0], shape[2])
            except SkipError as skip:
                failures[slot] = str(skip)
                continue
            file.seek(slot * pixels.nbytes)
            file.write(pixels.tobytes())
    return len(entries), failures


def fill(
    target: Path,
    pictures: list[Entry],
    shape: tuple[int, int, int],
    workers: int | None,
    progress: bool,
) -> dict[int, str]:
    """Decode every picture into its slot of the target file; return the skipped slots."""
    needed = len(pictures) * int(np.prod(shape))
    if shutil.disk_usage(target.parent).free < needed:
        raise OSError(f"{needed / 2**30:.1f} GiB are needed")
    with target.open("wb") as file:
        file.truncate(needed)
    starts = range(0, len(pictures), CHUNK)
    chunks = [pictures[start : start + CHUNK] for start in starts]
    work = partial(_decode_chunk, str(target), shape)
    run = _run(work, starts, chunks, min(workers or os.cpu_count() or 1, len(starts)))
    failures: dict[int, str] = {}
    bar = tqdm(total=len(pictures), desc="packing", unit="img", disable=not progress)
    with bar, closing(run) as results:
        for count, failed in results:
            failures.update(failed)
            bar.update(count)
    return failures


def _run(
    work: Callable, starts: Sequence[int], chunks: list[list[Entry]], workers: int
) -> Generator[tuple[int, dict[int, str]], None, None]:
    """Run the chunks in order, in this process or in a pool of them."""
    if workers == 1:
        try:
            yield from map(work, starts, chunks)
        finally:
            open_zip.cache_clear()
        return
    # fork starts at once, where spawn imports torch anew in each worker; the workers touch only
    # zipfile, Pillow and NumPy, no lock or device of the parent. macOS cannot fork safely.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield from pool.map(work, starts, chunks)
    except BrokenProcessPool as error:
        raise DataError(
            "a packing process died, most likely for want of memory: use fewer workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, open zips anew, and end when the parent is gone."""
    open_zip.cache_clear()  # a forked handle shares its place in the file with every sibling
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def compact(path: Path, row: int, total: int, failures: Iterable[int]) -> None:
    """Close the gaps of the skipped slots, one row in memory at a time."""
    holes = set(failures)
    if not holes:
        return
    end = min(holes)
    with path.open("r+b") as file:
        for slot in range(end, total):
            if slot in holes:
                continue
            file.seek(slot * row)
            pixels = file.read(row)
            file.seek(end * row)
            file.write(pixels)
            end += 1
        file.truncate(end * row)
