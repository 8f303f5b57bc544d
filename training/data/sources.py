"""Folders, zips, globs and Hub data sets → a list of their pictures and label tables.

pictures, tables = find_entries(["faces.zip", "hf://owner/name"])   # nothing is decoded yet
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from model import hub_fault
from training.data.errors import DataError

MAX_DIRECTORY_BYTES = 64 * 2**20  # of a zip's list of files, some 700,000 of them
MAX_RATIO = 200  # of a zip's unpacked to its packed size, where it unpacks to more than …
FREE_BYTES = 256 * 2**20  # … this
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # nothing else is tried: fewer decoders to trust
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".gif", ".bmp"}
)
# Pictures that are listed as skipped: their decoders are slow, rare or had too many faults.
UNREAD = {
    ".avif": "AVIF", ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".tif": "TIFF",
    ".tiff": "TIFF", ".jxl": "JPEG XL", ".jxr": "JPEG XR", ".jp2": "JPEG 2000",
    ".j2k": "JPEG 2000", ".jpx": "JPEG 2000", ".svg": "SVG", ".psd": "PSD", ".xcf": "XCF",
    ".tga": "TGA", ".ico": "ICO", ".dds": "DDS", ".exr": "EXR", ".qoi": "QOI", ".pcx": "PCX",
    ".ppm": "PPM", ".pgm": "PGM", ".pnm": "PNM", ".dng": "DNG", ".cr2": "CR2", ".cr3": "CR3",
    ".nef": "NEF", ".arw": "ARW", ".raf": "RAF", ".orf": "ORF", ".rw2": "RW2",
}  # fmt: skip
# Files that hold pictures, but are not opened.
CLOSED = {
    ".tar": "TAR", ".tgz": "TAR", ".tar.gz": "TAR", ".7z": "7z", ".rar": "RAR",
    ".parquet": "Parquet", ".arrow": "Arrow",
}  # fmt: skip
LABELS = "labels.csv"


class Entry(NamedTuple):
    """A file of the data, not yet read."""

    path: str  # the file, or the zip that holds it
    member: str | None  # its name inside the zip; None for a loose file
    name: str  # how labels.csv and skipped.csv call it, "/" between folders
    size: int  # bytes, unpacked
    stamp: int  # mtime in nanoseconds of a loose file, CRC-32 of a zip member
    group: str  # the set it belongs to: a labels.csv speaks for the pictures of its group


def find_entries(sources: str | Sequence[str]) -> tuple[list[Entry], list[Entry]]:
    """List the pictures and the labels.csv files, by source and then by name."""
    pictures: list[Entry] = []
    tables: list[Entry] = []
    seen: set[str] = set()
    for source in [sources] if isinstance(sources, str | Path) else sources:
        root, names = _expand(str(source))
        base = str(root.resolve())
        for name in names:
            place = f"{base}/{name}"
            if place in seen:  # named by two sources
                continue
            seen.add(place)
            for entry in _entries(root, name, base):
                is_table = entry.name.rpartition("/")[2] == LABELS
                (tables if is_table else pictures).append(entry)
    if not pictures:
        raise DataError(
            f"no picture in {sources}: give a folder, zip or data-set repository that holds "
            f"{', '.join(FORMATS)} files"
        )
    return pictures, tables


def _expand(source: str) -> tuple[Path, list[str]]:
    """Turn a source into its root folder and its files' names there, loose files first."""
    is_remote = source.startswith("hf://")
    unread: list[str] = []
    path = Path(source).expanduser()
    if is_remote:
        path, unread = _download(source)
    if is_remote or path.is_dir():
        root, found = path, _walk(str(path))
    elif path.is_file():
        root, found = path.parent, iter([path.name])
    elif re.search(r"[*?[]", source):
        fixed = list(takewhile(lambda part: not re.search(r"[*?[]", part), path.parts))
        root = Path(*fixed)
        matches = _glob(root, str(Path(*path.parts[len(fixed) :])))
        found = (path.relative_to(root).as_posix() for path in matches)
    else:
        raise DataError(f"{source} does not exist: check the path given as data")
    files = {
        (name.lower().endswith(".zip"), name)
        for name in found
        if _is_wanted(name, nested_table=False) and os.path.isfile(f"{root}/{name}")  # noqa: PTH113, quick
    }
    files |= {(False, name) for name in unread}
    return root, [name for _, name in sorted(files)]


def _walk(root: str) -> Iterator[str]:
    """Yield the names of all files below a folder but hidden ones, "/" between folders.

    Unlike pathlib it makes no object a file: of ten thousands of pictures that took as long as a
    tenth of decoding them.
    """
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        inside = folder[len(root) :].replace(os.sep, "/").lstrip("/")
        yield from (f"{inside}/{name}" for name in files) if inside else files


def _glob(root: Path, pattern: str) -> Iterator[Path]:
    """Yield what matches a pattern, and what lies in the folders among it."""
    try:
        for path in root.glob(pattern):
            yield path
            if path.is_dir():
                yield from path.rglob("*")
    except ValueError as error:  # such as "**.png"
        raise DataError(f"{root / pattern} is no pattern ({first_line(error)}): mend it") from error


def _is_wanted(name: str, nested_table: bool) -> bool:
    """Say whether a name is a picture's, a zip's or a label table's, and not a hidden file's."""
    parts = name.split("/")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return False
    if parts[-1] == LABELS:
        return nested_table or len(parts) == 1
    suffix = os.path.splitext(parts[-1])[1].lower()  # noqa: PTH122, pathlib's takes ten times as long
    return suffix in SUFFIXES or suffix == ".zip" or bool(why_unread(name))


def why_unread(name: str) -> str:
    """Return why a file that is or holds pictures is not read, by its name; "" for others."""
    base = name.rpartition("/")[2].lower()
    suffix = os.path.splitext(base)[1]  # noqa: PTH122, likewise
    if suffix in UNREAD:
        return conversion_advice(UNREAD[suffix])
    kind = CLOSED.get(".tar.gz" if base.endswith(".tar.gz") else suffix)
    # metadata.parquet describes pictures that lie beside it.
    if kind is None or base.startswith("metadata."):
        return ""
    return f"{kind} is not opened; give its pictures in a folder or a zip"


def conversion_advice(kind: str) -> str:
    """Word the reason for a picture of a format that is not read."""
    return f"{kind} is not read; convert it to PNG or WebP"


def _entries(root: Path, name: str, group: str) -> Iterator[Entry]:
    """Yield the one entry of a loose file, or the entries of a zip by name."""
    if not name.lower().endswith(".zip"):
        file = os.path.join(root, name)  # noqa: PTH118, likewise
        if why_unread(name):  # of a Hub data set it was not even downloaded
            yield Entry(file, None, name, 0, 0, group)
            return
        stat = os.stat(file)  # noqa: PTH116
        yield Entry(file, None, name, stat.st_size, stat.st_mtime_ns, group)
        return
    path = root / name
    infos = _list_zip(path)
    _refuse_bomb(path, infos.values())
    for name, info in sorted(infos.items()):
        if not _is_wanted(name, nested_table=True):
            continue
        if why_unread(name) or name.lower().endswith(".zip"):
            yield Entry(str(path), name, name, 0, 0, group)
            continue
        if info.flag_bits & 1:
            raise DataError(f"{path} is encrypted: unpack it and give the folder instead")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile unpacks the others without a bound on memory.
            raise DataError(f"{path} is not packed by 'store' or 'deflate': build it again so")
        yield Entry(str(path), name, name, info.file_size, info.CRC, group)


def _list_zip(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the files in a zip by name."""
    try:
        with ZipReader(path) as file, zipfile.ZipFile(file) as archive:
            return {info.filename: info for info in archive.infolist() if not info.is_dir()}
    except DataError:
        raise
    except Exception as error:  # a damaged directory raises much besides BadZipFile
        raise DataError(
            f"{path} is not a readable zip file ({first_line(error)}): download it or build it "
            f"again"
        ) from error


class ZipReader(io.FileIO):
    """A zip's file; zipfile reads the list of files at once, and a hostile one is endless."""

    def read(self, size: int | None = -1) -> bytes:
        """Read, but never more than a list of files may take."""
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise DataError(
                f"{self.name} lists too many files (over {MAX_DIRECTORY_BYTES >> 20} MiB of "
                "names): split it into several zips"
            )
        return super().read(size)


def _refuse_bomb(path: Path, infos: Iterable[zipfile.ZipInfo]) -> None:
    """Raise DataError for a zip that unpacks to far more than any pictures do."""
    total, packed = sum(info.file_size for info in infos), path.stat().st_size
    if total > max(FREE_BYTES, MAX_RATIO * packed):
        raise DataError(
            f"{path} claims to hold {total / 2**30:.1f} GiB in {packed / 2**20:.1f} MiB, which no "
            "pictures do: unpack what you trust of it and give the folder instead"
        )


def _download(source: str) -> tuple[Path, list[str]]:
    """Fetch the pictures, zips and labels of a Hub data-set repository, hf://owner/name.

    Return their folder, and the names of what is not read and so was not fetched.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source)
    if not match:
        raise DataError(f"{source} is no data set's address: write hf://owner/name[@revision]")
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    endings = [LABELS, *(s for suffix in (*SUFFIXES, ".zip") for s in (suffix, suffix.upper()))]
    patterns = [f"*{ending}" for ending in endings]
    try:
        folder = snapshot_download(
            match[1], repo_type="dataset", revision=match[2], allow_patterns=patterns
        )
    except Exception as error:  # the Hub client raises its own, requests' and httpx's errors
        raise DataError(
            f"{source} could not be downloaded ({hub_fault(error)}): check the name, the network "
            "and, for a private data set, HF_TOKEN"
        ) from error
    tree = []
    with suppress(CachedRepoTreeNotFoundError):  # fetched by an older client, and offline now
        tree = get_cached_repo_tree(match[1], repo_type="dataset", revision=Path(folder).name)
    names = [file.path for file in tree]
    return Path(folder), [n for n in names if _is_wanted(n, nested_table=False) and why_unread(n)]


def first_line(error: Exception) -> str:
    """Return what an error says, cut short: some repeat a file's bytes."""
    return f"{error}".split("\n")[0][:200]
