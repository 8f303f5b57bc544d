"""A file that anyone may have made → a picture to match.

image = open_upload("her.png")                      # RGB, at most 1024 px wide and high
"""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from studio.match.errors import MatchError

MAX_BYTES = 10_000_000  # of an upload
MAX_PIXELS = 40_000_000
MAX_SCANS = 100  # of a JPEG; a progressive one has about ten, and each costs a whole pass
MAX_COMMENTS = 2000  # of a GIF; Pillow joins them in quadratic time
KEPT_SIZE = 1024  # px, the longer side of what is kept of an upload
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
KINDS = "JPEG, PNG, WebP or GIF"


def open_upload(path: str | Path) -> Image.Image:
    """Open a picture that anyone may have made.

    Args:
        path: JPEG, PNG, WebP or GIF (its first frame) of at most 10 MB and 40 megapixels.
    Returns:
        mode RGB, turned as its EXIF says, transparency over white, at most 1024 px wide and high.
    Raises:
        MatchError: anything else.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError:
        raise MatchError("This file cannot be read; choose it once more.") from None
    if len(data) > MAX_BYTES:
        raise MatchError(
            f"This picture is too large: at most {MAX_BYTES // 10**6} MB; save it smaller."
        )
    if data.count(b"\xff\xda") > MAX_SCANS and data[:2] == b"\xff\xd8":
        raise MatchError("This JPEG is made of too many scans; save it once more.")
    if data[:3] == b"GIF" and data.count(b"!\xfe") > MAX_COMMENTS:
        raise MatchError("This GIF holds too many comments; save it once more.")
    try:
        return _decode(data)
    except MatchError:
        raise
    except UnidentifiedImageError:
        raise MatchError(f"This is no picture that can be read; send a {KINDS}.") from None
    except Exception:  # Pillow's decoders raise nearly anything on damaged data
        raise MatchError("This picture is damaged; save or download it once more.") from None


def _decode(data: bytes) -> Image.Image:
    """Decode a picture into RGB of at most KEPT_SIZE px."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise MatchError(
                f"This picture has too many pixels: at most {MAX_PIXELS // 10**6} megapixels; "
                f"save it smaller."
            )
        image.draft(None, (2 * KEPT_SIZE, 2 * KEPT_SIZE))  # a large JPEG is decoded smaller
        image.load()
        orientation = image.getexif().get(0x0112) if image.format == "JPEG" else None
        small = _shrink(image)
    if orientation:
        small.getexif()[0x0112] = orientation
    with suppress(Exception):  # a picture with damaged EXIF is still a picture
        small = ImageOps.exif_transpose(small)
    if small.mode == "RGBA":
        white = Image.new("RGBA", small.size, (255, 255, 255, 255))
        small = Image.alpha_composite(white, small)
    return small.convert("RGB")


def _shrink(image: Image.Image) -> Image.Image:
    """Return a copy in RGB or RGBA, at most KEPT_SIZE px wide and high."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow would clip it at 255
        grey = np.clip(np.asarray(image), 0, 65535) / 257
        image = Image.fromarray(grey.round().astype(np.uint8))
    see_through = "A" in image.getbands() or "transparency" in image.info
    image = image.convert("RGBA" if see_through else "RGB")
    image.thumbnail((KEPT_SIZE, KEPT_SIZE), Image.Resampling.LANCZOS)
    return image
