"""The bytes of one picture, which anyone may have made → pixels of a fixed size.

pixels = decode(data, resolution=64, channels=3)    # uint8 [64, 64, 3], or SkipError
"""

from __future__ import annotations

import io
import re
import zipfile
from contextlib import suppress
from functools import lru_cache

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from training.data.errors import DataError
from training.data.sources import (
    FORMATS,
    Entry,
    ZipReader,
    conversion_advice,
    first_line,
    why_unread,
)

MAX_BYTES = 64 * 2**20  # of one encoded picture
MAX_PIXELS = 64_000_000  # of one decoded picture, read from its header before decoding
MAX_SCANS = 100  # of one JPEG; a progressive one has about ten, and each costs a whole pass
MAX_REMARKS = 2000  # comment blocks of one GIF; Pillow joins them in quadratic time …
MAX_GIF_BYTES = 4 * 2**20  # … so it sees no more than this, enough for the first frame
BAND_PIXELS = 2**22  # flattened at a time, so that copies of a large picture are never whole
# Formats of sources.UNREAD by their first bytes, for files named like a picture that is read.
FOREIGN = (
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "JPEG XL"),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), "JPEG 2000"),
    (re.compile(rb"8BPS"), "PSD"),
)
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # of those with a length, and the end


class SkipError(Exception):
    """This picture cannot be used; the text is the reason to count it under."""


@lru_cache(maxsize=4)
def open_zip(path: str) -> zipfile.ZipFile:
    """Open a zip once per process rather than once per picture."""
    try:
        return zipfile.ZipFile(ZipReader(path))
    except Exception as error:  # it could be opened a moment ago
        raise DataError(
            f"{path} changed while it was packed ({first_line(error)}): start again"
        ) from error


def read_entry(entry: Entry) -> bytes:
    """Read an entry's bytes, no more than its size when it was found."""
    if entry.member is None:
        with open(entry.path, "rb") as file:  # noqa: PTH123, two thirds of Path's time
            return file.read(entry.size)
    with open_zip(entry.path).open(entry.member) as file:
        return file.read(entry.size)


def flatten(image: Image.Image) -> Image.Image:
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


def decode(data: bytes, resolution: int, channels: int) -> np.ndarray:
    """Decode a picture into uint8 [resolution, resolution, channels]: centre crop, Lanczos."""
    try:
        data = data[:MAX_GIF_BYTES] if data[:3] == b"GIF" else data
        if _is_laborious(data):
            raise SkipError("too laborious")
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise SkipError("over 64 megapixels")
        # Lets libjpeg decode a far too large JPEG at a half, quarter or eighth of its size.
        image.draft(None, (2 * resolution, 2 * resolution))
        image.load()
        with suppress(Exception):  # a picture with damaged EXIF is still a picture
            ImageOps.exif_transpose(image, in_place=True)
        image = flatten(image)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        size = (resolution, resolution)
        image = image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
        pixels = np.asarray(image if channels == 3 else image.convert("L"))
    except SkipError:
        raise
    except UnidentifiedImageError as error:
        kinds = (kind for start, kind in FOREIGN if start.match(data))
        raise SkipError(next(map(conversion_advice, kinds), "not an image")) from error
    except Image.DecompressionBombError as error:
        raise SkipError("over 64 megapixels") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise SkipError("broken") from error
    return pixels.reshape(resolution, resolution, channels)


def read_picture(entry: Entry, resolution: int, channels: int) -> np.ndarray:
    """Read and decode an entry; raise SkipError where it cannot be used."""
    if why := why_unread(entry.name):
        raise SkipError(why)
    if entry.name.lower().endswith(".zip"):
        raise SkipError("a zip inside a zip is not opened; unpack it")
    if not entry.size:
        raise SkipError("empty")
    if entry.size > MAX_BYTES:
        raise SkipError("over 64 MiB")
    try:
        data = read_entry(entry)
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and the file system raise each their own kinds
        raise SkipError("unreadable") from error
    return decode(data, resolution, channels)
