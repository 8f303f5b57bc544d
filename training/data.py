"""Pictures from folders, zips or the Hub → one packed uint8 file → endless shuffled batches.

    faces = pack("faces.zip", resolution=64)
    batches = Batches(faces, batch_size_per_process=32, seed=0, device=torch.device("cuda"))
    real = batches.batch(position=0)  # [32, 3, 64, 64] in [-1, 1]

Packing decodes every picture once; the pack is found again by a key made of the pictures' names,
sizes and stamps, so a second start decodes nothing. The order of the batches is a pure function of
the seed and of how many images were shown, so a resumed run needs no sampler state.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from model import hub_fault

VERSION = 1  # of the pack's layout and pixels: raise it and every pack is made anew
MAX_BYTES = 64 * 2**20  # of one encoded picture
MAX_PIXELS = 64_000_000  # of one decoded picture, read from its header before decoding
MAX_SCANS = 100  # of one JPEG; a progressive one has about ten, and each costs a whole pass
MAX_REMARKS = 2000  # of one GIF; Pillow joins them in quadratic time …
MAX_GIF_BYTES = 4 * 2**20  # … so it sees no more than this, enough for the first frame
BAND_PIXELS = 2**22  # flattened at a time, so that copies of a large picture are never whole
MAX_LABEL_BYTES = 64 * 2**20  # of one labels.csv
MAX_LABELS = 1000  # columns of all labels.csv together
MAX_FOLDERS = 32  # around a picture that labels.csv may leave out
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
# The same by their first bytes, where such a file is named like a picture that is read.
FOREIGN = (
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "JPEG XL"),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), "JPEG 2000"),
    (re.compile(rb"8BPS"), "PSD"),
)
# Files that hold pictures, but are not opened.
CLOSED = {
    ".tar": "TAR", ".tgz": "TAR", ".tar.gz": "TAR", ".7z": "7z", ".rar": "RAR",
    ".parquet": "Parquet", ".arrow": "Arrow",
}  # fmt: skip
LABELS = "labels.csv"
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # of those with a length, and the end
CHUNK = 64  # pictures a worker takes at a time
UPLOAD_BYTES = 64 * 2**20  # copied to the device at a time
DEVICE_SHARE = 0.4  # of the free device memory the set may take
HELD_OUT_SEED = 2006_06676  # of the pictures that no run learns from
STALE_SECONDS = 24 * 3600  # an untouched unfinished pack of another machine is dead after this


class DataError(ValueError):
    """The data cannot be used; the sentence names the fault and the mend."""


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


class _Entry(NamedTuple):
    """A file of the data, not yet read."""

    path: str  # the file, or the zip that holds it
    member: str | None  # its name inside the zip; None for a loose file
    name: str  # how labels.csv and skipped.csv call it, "/" between folders
    size: int  # bytes, unpacked
    stamp: int  # mtime in nanoseconds of a loose file, CRC-32 of a zip member
    group: str  # the set it belongs to: a labels.csv speaks for the pictures of its group


class _Skip(Exception):
    """This picture cannot be used; the text is the reason to count it under."""


# ---------------------------------------------------------------- finding the pictures


def _find(sources: str | Sequence[str]) -> tuple[list[_Entry], list[_Entry]]:
    """List the pictures and the labels.csv files, by source and then by name."""
    pictures: list[_Entry] = []
    tables: list[_Entry] = []
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
    is_remote, unread = source.startswith("hf://"), []
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
        raise DataError(f"{root / pattern} is no pattern ({_say(error)}): mend it") from error


def _is_wanted(name: str, nested_table: bool) -> bool:
    """Say whether a name is a picture's, a zip's or a label table's, and not a hidden file's."""
    parts = name.split("/")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return False
    if parts[-1] == LABELS:
        return nested_table or len(parts) == 1
    suffix = os.path.splitext(parts[-1])[1].lower()  # noqa: PTH122, pathlib's takes ten times as long
    return suffix in SUFFIXES or suffix == ".zip" or bool(_why_unread(name))


def _why_unread(name: str) -> str:
    """Return why a file that is or holds pictures is not read, by its name; "" for others."""
    base = name.rpartition("/")[2].lower()
    suffix = os.path.splitext(base)[1]  # noqa: PTH122, likewise
    if suffix in UNREAD:
        return _convert(UNREAD[suffix])
    kind = CLOSED.get(".tar.gz" if base.endswith(".tar.gz") else suffix)
    # metadata.parquet describes pictures that lie beside it.
    if kind is None or base.startswith("metadata."):
        return ""
    return f"{kind} is not opened; give its pictures in a folder or a zip"


def _convert(kind: str) -> str:
    """Word the reason for a picture of a format that is not read."""
    return f"{kind} is not read; convert it to PNG or WebP"


def _entries(root: Path, name: str, group: str) -> Iterator[_Entry]:
    """Yield the one entry of a loose file, or the entries of a zip by name."""
    if not name.lower().endswith(".zip"):
        path = os.path.join(root, name)  # noqa: PTH118, likewise
        if _why_unread(name):  # of a Hub data set it was not even downloaded
            yield _Entry(path, None, name, 0, 0, group)
            return
        stat = os.stat(path)  # noqa: PTH116
        yield _Entry(path, None, name, stat.st_size, stat.st_mtime_ns, group)
        return
    path = root / name
    infos = _list_zip(path)
    _refuse_bomb(path, infos.values())
    for name, info in sorted(infos.items()):
        if not _is_wanted(name, nested_table=True):
            continue
        if _why_unread(name) or name.lower().endswith(".zip"):
            yield _Entry(str(path), name, name, 0, 0, group)
            continue
        if info.flag_bits & 1:
            raise DataError(f"{path} is encrypted: unpack it and give the folder instead")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile unpacks the others without a bound on memory.
            raise DataError(f"{path} is not packed by 'store' or 'deflate': build it again so")
        yield _Entry(str(path), name, name, info.file_size, info.CRC, group)


def _list_zip(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the files in a zip by name."""
    try:
        with _ZipReader(path) as file, zipfile.ZipFile(file) as archive:
            return {info.filename: info for info in archive.infolist() if not info.is_dir()}
    except DataError:
        raise
    except Exception as error:  # a damaged directory raises much besides BadZipFile
        raise DataError(
            f"{path} is not a readable zip file ({_say(error)}): download it or build it again"
        ) from error


class _ZipReader(io.FileIO):
    """A zip's file; zipfile reads the list of files at once, and a hostile one is endless."""

    def read(self, size: int = -1) -> bytes:
        """Read, but never more than a list of files may take."""
        if size > MAX_DIRECTORY_BYTES:
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
    return Path(folder), [n for n in names if _is_wanted(n, nested_table=False) and _why_unread(n)]


def _key(pictures: list[_Entry], tables: list[_Entry], resolution: int, channels: int) -> str:
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


# ---------------------------------------------------------------- labels


def _read_table(entry: _Entry, wanted: set[str]) -> tuple[list[str], dict[str, bytes]]:
    """Read a labels.csv: column names, and each wanted file's row, a byte of 0 or 1 per label.

    `wanted` holds names without folders; rows of other files are checked and forgotten.
    """
    where = entry.path if entry.member is None else f"{entry.path}/{entry.member}"
    if entry.size > MAX_LABEL_BYTES:
        raise DataError(f"{where} is over {MAX_LABEL_BYTES >> 20} MiB: split it or drop columns")
    try:
        return _parse_table(_read(entry), wanted, where)
    except DataError:
        raise
    except Exception as error:  # of the disk, of zipfile, or no UTF-8
        raise DataError(
            f"{where} cannot be read as UTF-8 text ({_say(error)}): save it anew"
        ) from error


def _parse_table(data: bytes, wanted: set[str], where: str) -> tuple[list[str], dict[str, bytes]]:
    """Parse the bytes of a labels.csv for `_read_table`."""
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    reader = csv.reader(text, strict=True)
    try:
        header = next(reader, [])
        if len(header) > MAX_LABELS + 1:
            raise csv.Error(f"over {MAX_LABELS:,} labels, drop columns")
        if header[:1] != ["file"] or len(header) < 2 or len(set(header)) != len(header):
            raise csv.Error("the header must be 'file' and then one name per label, none twice")
        rows: dict[str, bytes] = {}
        for row in filter(None, reader):
            _check_row(row, header, rows)
            if row[0].rpartition("/")[2] in wanted:
                rows[row[0]] = bytes(map(int, row[1:]))
    except csv.Error as error:
        line = max(reader.line_num, 1)
        raise DataError(f"{where}, line {line}: {error}; mend that line") from error
    return header[1:], rows


def _check_row(row: list[str], header: list[str], rows: dict[str, bytes]) -> None:
    """Raise csv.Error for a row that does not fit the header or the rows before it."""
    if len(row) != len(header):
        raise csv.Error(f"{len(row)} columns where the header has {len(header)}")
    if not set(row[1:]) <= {"0", "1"}:
        raise csv.Error("a label is neither 0 nor 1")
    if row[0] in rows:
        raise csv.Error(f"{row[0]} has a row already")


class _Labels(NamedTuple):
    """The labels of all pictures."""

    names: tuple[str, ...]
    values: np.ndarray | None  # uint8 [N, L]
    known: np.ndarray  # bool [N]: the picture has a row


def _read_labels(pictures: list[_Entry], tables: list[_Entry]) -> _Labels:
    """Match the rows of every labels.csv to the pictures of its group, by name."""
    wanted: dict[str, set[str]] = {table.group: set() for table in tables}
    for picture in pictures:
        if picture.group in wanted:
            wanted[picture.group].add(picture.name.rpartition("/")[2])
    names: dict[str, int] = {}
    rows: dict[str, dict[str, tuple[list[int], bytes]]] = {table.group: {} for table in tables}
    for table in tables:
        header, values = _read_table(table, wanted[table.group])
        columns = [names.setdefault(name, len(names)) for name in header]
        if len(names) > MAX_LABELS:
            raise DataError(f"{table.path} has over {MAX_LABELS:,} labels: drop columns")
        if twice := rows[table.group].keys() & values.keys():
            raise DataError(f"{min(twice)} is labelled twice in {table.group}: keep one {LABELS}")
        rows[table.group].update((file, (columns, row)) for file, row in values.items())
    known = np.zeros(len(pictures), bool)
    if not names:
        return _Labels((), None, known)
    matrix = np.zeros((len(pictures), len(names)), np.uint8)
    for slot, picture in enumerate(pictures):
        # A zip may wrap its files in a folder that labels.csv does not know: try every tail.
        parts = picture.name.split("/")[-MAX_FOLDERS:]
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        here = rows.get(picture.group, {})
        if found := next((here[tail] for tail in tails if tail in here), None):
            columns, row = found
            matrix[slot, columns] = np.frombuffer(row, np.uint8)
            known[slot] = True
    return _Labels(tuple(names), matrix, known)


# ---------------------------------------------------------------- decoding


def _say(error: Exception) -> str:
    """Return what an error says, cut short: some repeat a file's bytes."""
    return f"{error}".split("\n")[0][:200]


@lru_cache(maxsize=4)
def _open_zip(path: str) -> zipfile.ZipFile:
    """Open a zip once per process rather than once per picture."""
    try:
        return zipfile.ZipFile(_ZipReader(path))
    except Exception as error:  # it could be opened a moment ago
        raise DataError(
            f"{path} changed while it was packed ({_say(error)}): start again"
        ) from error


def _read(entry: _Entry) -> bytes:
    """Read an entry's bytes, no more than its size when it was found."""
    if entry.member is None:
        with open(entry.path, "rb") as file:  # noqa: PTH123, two thirds of Path's time
            return file.read(entry.size)
    with _open_zip(entry.path).open(entry.member) as file:
        return file.read(entry.size)


def _flatten(image: Image.Image) -> Image.Image:
    """Turn any mode into RGB, transparency laid over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    rows = max(1, BAND_PIXELS // image.width)
    if rows >= image.height:
        return _flatten_band(image)
    flat = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        flat.paste(_flatten_band(image.crop(box)), box)
    return flat


def _flatten_band(image: Image.Image) -> Image.Image:
    """Flatten a picture of few pixels."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow would clip it at 255
        grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _is_laborious(data: bytes) -> bool:
    """Say whether a file is made so that few of its bytes cost a decoder minutes."""
    if data[:3] == b"GIF":
        return data.count(b"!\xfe") > MAX_REMARKS
    if data[:2] != b"\xff\xd8":
        return False
    # A JPEG: from marker to marker, past their segments, to its end; what follows may be a video.
    place, scans = 2, 0
    while scans <= MAX_SCANS and (marker := _JPEG_MARKER.search(data, place)):
        kind = marker[0][1]
        if kind == 0xD9:
            break
        scans += kind == 0xDA
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans > MAX_SCANS


def _decode(data: bytes, resolution: int, channels: int) -> np.ndarray:
    """Decode a picture into uint8 [resolution, resolution, channels]: centre crop, Lanczos."""
    try:
        data = data[:MAX_GIF_BYTES] if data[:3] == b"GIF" else data
        if _is_laborious(data):
            raise _Skip("too laborious")
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise _Skip("over 64 megapixels")
        # Lets libjpeg decode a far too large JPEG at a half, quarter or eighth of its size.
        image.draft(None, (2 * resolution, 2 * resolution))
        image.load()
        with suppress(Exception):  # a picture with damaged EXIF is still a picture
            ImageOps.exif_transpose(image, in_place=True)
        image = _flatten(image)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        size = (resolution, resolution)
        image = image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
        pixels = np.asarray(image if channels == 3 else image.convert("L"))
    except _Skip:
        raise
    except UnidentifiedImageError as error:
        kinds = (kind for start, kind in FOREIGN if start.match(data))
        raise _Skip(next(map(_convert, kinds), "not an image")) from error
    except Image.DecompressionBombError as error:
        raise _Skip("over 64 megapixels") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise _Skip("broken") from error
    return pixels.reshape(resolution, resolution, channels)


def _read_picture(entry: _Entry, resolution: int, channels: int) -> np.ndarray:
    """Read and decode an entry; raise _Skip where it cannot be used."""
    if why := _why_unread(entry.name):
        raise _Skip(why)
    if entry.name.lower().endswith(".zip"):
        raise _Skip("a zip inside a zip is not opened; unpack it")
    if not entry.size:
        raise _Skip("empty")
    if entry.size > MAX_BYTES:
        raise _Skip("over 64 MiB")
    try:
        data = _read(entry)
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and the file system raise each their own kinds
        raise _Skip("unreadable") from error
    return _decode(data, resolution, channels)


def _decode_chunk(
    target: str, shape: tuple[int, int, int], start: int, entries: list[_Entry]
) -> tuple[int, dict[int, str]]:
    """Decode pictures into their slots of the target file; return their count and the skipped."""
    failures: dict[int, str] = {}
    with Path(target).open("r+b") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
        for slot, entry in enumerate(entries, start):
            try:
                pixels = _read_picture(entry, shape[0], shape[2])
            except _Skip as skip:
                failures[slot] = str(skip)
                continue
            file.seek(slot * pixels.nbytes)
            file.write(pixels.tobytes())
    return len(entries), failures


# ---------------------------------------------------------------- packing


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
    pictures, tables = _find(sources)
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
        if names and labels.shape != (shape[0], len(names)):
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
    pictures: list[_Entry],
    tables: list[_Entry],
    shape: tuple[int, int, int],
    workers: int | None,
    progress: bool,
) -> None:
    """Make the pack in a folder of its own and rename it when it is whole."""
    labels = _read_labels(pictures, tables)  # first: its faults should show before the long work
    mark = f"{socket.gethostname()}~{os.getpid()}~{uuid.uuid4().hex[:8]}"
    temporary = folder.with_name(f"{folder.name}~{mark}.part")
    temporary.mkdir()
    try:
        failures = _fill(temporary / "images.bin", pictures, shape, workers, progress)
        if len(failures) == len(pictures):
            slot, reason = min(failures.items())
            raise DataError(
                f"none of the {len(pictures)} pictures can be used (the first, "
                f"{pictures[slot].name}: {reason}): give whole {', '.join(FORMATS)} files"
            )
        _compact(temporary / "images.bin", int(np.prod(shape)), len(pictures), failures)
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


def _report(path: Path, pictures: list[_Entry], failures: dict[int, str]) -> None:
    """List the skipped pictures with their reasons."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "reason"])
        for slot, reason in sorted(failures.items()):
            entry = pictures[slot]
            zipped = "" if entry.member is None else f"{Path(entry.path).name}/"
            writer.writerow([zipped + entry.name, reason])


def _fill(
    target: Path,
    pictures: list[_Entry],
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
    work: Callable, starts: Sequence[int], chunks: list[list[_Entry]], workers: int
) -> Iterator[tuple[int, dict[int, str]]]:
    """Run the chunks in order, in this process or in a pool of them."""
    if workers == 1:
        try:
            yield from map(work, starts, chunks)
        finally:
            _open_zip.cache_clear()
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
    _open_zip.cache_clear()  # a forked handle shares its place in the file with every sibling
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _compact(path: Path, row: int, total: int, failures: Iterable[int]) -> None:
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


# ---------------------------------------------------------------- sampling


@lru_cache(maxsize=4)
def _epoch(size: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an epoch's order and its flips."""
    # The raw stream of a bit generator is promised to stay the same in every NumPy; the
    # permutation methods built upon it are not.
    stream = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    order = np.argsort(stream.random_raw(size), kind="stable")
    flips = stream.random_raw(size) >> np.uint64(63) == 1
    return order, flips


def indices(
    position: int, count: int, *, size: int, seed: int, xflip: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return which pictures stand at `count` positions of the endless order, from `position` on.

    A position counts the images shown since the start of the run, by all processes. Each run of
    `size` positions is one epoch, a fresh permutation of the set drawn from (seed, epoch).
    Returns the indices, int64 [count] in [0, size), and whether each is to be mirrored,
    bool [count]. Raises ValueError for a negative position, count or seed, or an empty set.
    """
    if position < 0 or count < 0 or seed < 0 or size < 1:
        raise ValueError(f"{position=}, {count=}, {seed=} must be ≥ 0 and {size=} ≥ 1")
    epochs, offsets = np.divmod(np.arange(position, position + count, dtype=np.int64), size)
    index = np.empty(count, np.int64)
    flip = np.zeros(count, bool)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        order, flips = _epoch(size, seed, int(epoch))
        index[here] = order[offsets[here]]
        if xflip:
            flip[here] = flips[offsets[here]]
    return index, flip


def split(size: int, held: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose `held` of `size` pictures at random, always the same ones.

    Returns the indices of the others and of the chosen, both ascending, int64. Raises ValueError
    where fewer than one would be left.
    """
    if not 0 <= held < size:
        raise ValueError(f"{held=} must be ≥ 0 and below {size=}")
    order, _ = _epoch(size, HELD_OUT_SEED, 0)
    return np.sort(order[held:]), np.sort(order[:held])


class Batches:
    """Shuffled batches of real images for one process of a run.

    The set is kept on the device where `on_device` is true, or, with `on_device` None, where the
    device is a CUDA one and the set takes less than 40 % of its free memory; else each batch is
    gathered from the memory map on the host.
    """

    def __init__(
        self,
        faces: Faces,
        *,
        batch_size_per_process: int,
        seed: int,
        xflip: bool = True,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device,
        on_device: bool | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        """Raise ValueError where rank or batch size is out of range.

        `rows`, int64 [M], are the pictures of the set that are shown; None for all of them.
        """
        if batch_size_per_process < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"{batch_size_per_process=} must be ≥ 1 and 0 ≤ {rank=} < {world_size=}"
            )
        self.faces = faces
        self.rows = rows
        self.batch_size = batch_size_per_process
        self.seed = seed
        self.xflip = xflip
        self.rank = rank
        self.device = torch.device(device)
        if on_device is None:
            on_device = self.device.type == "cuda" and (
                faces.images.nbytes < DEVICE_SHARE * torch.cuda.mem_get_info(self.device)[0]
            )
        self.resident = self._upload() if on_device else None  # uint8 [N, H, W, C]

    def batch(self, position: int) -> torch.Tensor:
        """Return this process's share of the step whose first image stands at `position`.

        `position` is the same in every process: process r takes the B images that start at
        position + r·B, so 2 processes of 16 see what 1 process of 32 sees. Returns float32
        [B, C, H, W] in [-1, 1] on the device, channels last in memory.
        """
        index, flip = indices(
            position + self.rank * self.batch_size,
            self.batch_size,
            size=len(self.faces) if self.rows is None else len(self.rows),
            seed=self.seed,
            xflip=self.xflip,
        )
        index = index if self.rows is None else self.rows[index]
        mirrored = self._send(torch.from_numpy(flip))
        if self.resident is not None:
            pixels = self.resident.index_select(0, self._send(torch.from_numpy(index)))
        else:
            pixels = self._send(torch.from_numpy(np.asarray(self.faces.images[index])))
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
        images = pixels.permute(0, 3, 1, 2).to(torch.float32)  # [B, H, W, C] → [B, C, H, W]
        return images.div_(127.5).sub_(1)

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Move a tensor to the device without waiting for it."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _upload(self) -> torch.Tensor:
        """Copy the set to the device in blocks, so that the host never holds it whole."""
        images = self.faces.images
        resident = torch.empty(images.shape, dtype=torch.uint8, device=self.device)
        rows = max(1, UPLOAD_BYTES // images[0].nbytes)
        for start in range(0, len(images), rows):
            block = torch.from_numpy(np.array(images[start : start + rows]))
            resident[start : start + rows].copy_(block)
        return resident
