"""How well and how fast pictures are matched.

python -m benchmarks.match --seeds 100                                  # generated faces
python -m benchmarks.match --seeds 0 --data FOLDER_OR_ZIP --count 100   # real ones; only numbers

Prints a row of Markdown for each kind of picture: the root mean squared error of pixels (0 … 255)
between the picture and the face drawn from its recipe, and seconds. Real pictures are decoded by
`studio.match.open_upload` in memory, and nothing of them is written.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from studio.faces import Studio, prepare_cpu
from studio.match import match, open_upload, prepare

NEAR = 4.0  # of 255: below it, two pictures are told apart only by flicking between them
FIRST_SEED = 1_000_000  # not among the faces that the start is fitted to


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Return the root mean squared difference of two pictures, 0 … 255."""
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))


def generated(studio: Studio, count: int, psi: float) -> Iterator[Image.Image]:
    """Yield faces that the generator draws."""
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        yield Image.fromarray(studio.draw([seed], psi)[0].squeeze())


def real(source: Path, count: int) -> Iterator[Image.Image]:
    """Yield the first pictures of a folder or zip, by name."""
    if source.is_dir():
        for path in sorted(p for p in source.iterdir() if p.suffix in (".webp", ".png", ".jpg"))[
            :count
        ]:
            yield open_upload(path)
        return
    with zipfile.ZipFile(source) as archive, tempfile.NamedTemporaryFile() as file:
        names = sorted(n for n in archive.namelist() if n.endswith((".webp", ".png", ".jpg")))
        for name in names[:count]:
            Image.open(io.BytesIO(archive.read(name))).save(file.name, "PNG")
            yield open_upload(file.name)


def measure(studio: Studio, name: str, pictures: Iterator[Image.Image], seconds: float) -> None:
    """Match pictures and print a row of the table."""
    errors, times, whole = [], [], []
    for picture in pictures:
        began = time.perf_counter()
        recipe = match(studio, picture, seconds=seconds)
        times.append(time.perf_counter() - began)
        drawn = studio.draw_recipes([recipe])[0]
        size = (studio.size, studio.size)
        target = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))
        errors.append(rmse(drawn, target))
        whole.append(rmse(np.broadcast_to(target.mean((0, 1)), target.shape), target))
    if not errors:
        return
    e, t = np.array(errors), np.array(times)
    print(
        f"| {name} | {len(e)} | {np.median(e):.2f} | {np.percentile(e, 95):.2f} | "
        f"{(e < NEAR).mean():.0%} | {np.mean(whole):.1f} | {np.median(t):.1f} | {t.max():.1f} |",
        flush=True,
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure matching.")
    parser.add_argument("--model", help="folder or Hub repository (default: bundled)")
    parser.add_argument("--seeds", type=int, default=100, help="generated faces for each psi")
    parser.add_argument("--psi", type=float, nargs="*", default=[0.7, 1.0])
    parser.add_argument("--data", type=Path, help="folder or zip of real faces")
    parser.add_argument("--count", type=int, default=100, help="real faces")
    parser.add_argument("--seconds", type=float, default=15, help="of one match")
    args = parser.parse_args()
    prepare_cpu()
    studio = Studio.open(args.model, fallback=False)
    began = time.perf_counter()
    prepare(studio)
    print(f"revision {studio.revision}, learned in {time.perf_counter() - began:.1f} s, once\n")
    print("| pictures | count | median RMSE | 95 % | under 4 | flat colour | median s | worst s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for psi in args.psi if args.seeds else ():
        measure(studio, f"seeds, psi {psi:g}", generated(studio, args.seeds, psi), args.seconds)
    if args.data:
        measure(studio, "real faces", real(args.data, args.count), args.seconds)


if __name__ == "__main__":
    main()
