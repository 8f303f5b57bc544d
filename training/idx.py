"""Turn an IDX file of grey pictures, as handwritten digits come in, into a zip for --data.

    python -m training.idx train-images-idx3-ubyte.gz digits.zip
    accelerate launch train.py --preset dense --data digits.zip

An IDX file is four big-endian numbers (0x00000803 for bytes in three dimensions, how many, height,
width in px) and then the pixels, one byte each; with .gz it is packed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from training.data import DataError

MAGIC = 0x00000803
MAX_PICTURES = 1_000_000
MAX_SIDE = 1024  # px


def read_idx(path: str | Path) -> Iterator[Image.Image]:
    """Yield the pictures of an IDX file, mode L, one in memory at a time.

    Raises:
        DataError: another kind of file, more or larger pictures than are allowed, one cut short.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            count, height, width = read_header(file, path)
            for index in range(count):
                pixels = file.read(height * width)
                if len(pixels) < height * width:
                    raise DataError(f"{path} ends after {index:,} of {count:,} pictures")
                yield Image.frombytes("L", (width, height), pixels)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error!s:.100}): fetch it again") from error


def read_header(file: BinaryIO | gzip.GzipFile, path: Path) -> tuple[int, int, int]:
    """Return count, height and width, or raise DataError."""
    header = file.read(16)
    if len(header) < 16 or header[:4] != struct.pack(">I", MAGIC):
        raise DataError(f"{path} is no IDX file of pictures (it begins with 00 00 08 03)")
    count, height, width = struct.unpack(">III", header[4:])
    if not (1 <= count <= MAX_PICTURES and 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise DataError(
            f"{path} claims {count:,} pictures of {width}×{height} px; at most {MAX_PICTURES:,} of "
            f"{MAX_SIDE} px are read"
        )
    return count, height, width


def write_zip(pictures: Iterator[Image.Image], target: Path) -> int:
    """Write pictures as 000000.png, 000001.png … into a zip, whole or not at all; count them."""
    count = 0
    part = target.with_name(f"{target.name}.part")
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for picture in pictures:
                data = io.BytesIO()
                picture.save(data, "PNG")
                archive.writestr(f"{count:06d}.png", data.getvalue())
                count += 1
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return count


def main() -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    parser = argparse.ArgumentParser(prog="python -m training.idx", description=__doc__)
    parser.add_argument("source", type=Path, help="IDX file, plain or .gz")
    parser.add_argument("target", type=Path, help="zip to write")
    options = parser.parse_args()
    try:
        count = write_zip(read_idx(options.source), options.target)
    except (DataError, OSError) as error:
        print(f"idx: {error}", file=sys.stderr)
        return 2
    print(f"{count:,} pictures in {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
