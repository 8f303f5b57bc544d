"""How well and how fast pictures are matched.

python -m benchmarks.match --seeds 100                                 # generated faces
python -m benchmarks.match --data FOLDER_OR_ZIP                        # and 100 real ones
python -m benchmarks.match --data FOLDER_OR_ZIP --docs docs/match.md   # into it
python -m benchmarks.match --seeds 0 --data ZIP --count 24 --sheet look.png        # to look at

Each worker is a process of --threads threads that matches one picture after the other. Real
pictures are the last of the data, which `fitting.encode` keeps apart; they come to
`studio.match.open_upload`, and nothing of them is written but a sheet that was asked for.

Columns: the root mean squared error of pixels, 0 … 255, between a picture and the face drawn from
its recipe (median, 95th percentile, share under 4); that of the first answer; that of a single
colour; the mean CIE Lab difference of squares of a sixteenth; the mean distance of
EfficientNet-Lite0's features as a share of that of two of the pictures; seconds of the first answer
and of the last.
"""

from __future__ import annotations

import argparse
import functools
import io
import multiprocessing
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import machine, renew_section, table
from fitting.colours import to_lab
from model import dequantise, keep_freed_memory, quantise
from studio.faces import Studio
from studio.latents import decode_ws, encode_ws
from studio.match import MatchError, open_upload, prepare, search
from training.metrics import EfficientNetLite0, build_extractor

NEAR = 4.0  # of 255: below it, two pictures look the same side by side
FIRST_SEED = 1_000_000  # not among the seeds that the encoder and the matcher draw
SUFFIXES = (".webp", ".png", ".jpg")
COARSE = 16  # squares a side, whose mean colours are compared
SHEET_COLUMNS = 6
HEAD = (
    "pictures", "count", "median RMSE", "95 %", "under 4", "first RMSE", "flat colour",
    "colour ΔE", "features", "first s", "median s", "worst s",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One picture and the face drawn from its recipe, both uint8 `[H, W, C]`."""

    picture: np.ndarray
    face: np.ndarray
    first: float  # RMSE of the first answer
    first_seconds: float
    seconds: float

    @property
    def error(self) -> float:
        """RMSE of the face."""
        return rmse(self.picture, self.face)

    @property
    def flat(self) -> float:
        """RMSE of a single colour, the picture's mean."""
        return rmse(self.picture, np.broadcast_to(self.picture.mean((0, 1)), self.picture.shape))


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Return the root mean squared difference of two pictures, 0 … 255."""
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))


# ------------------------------------------------------------------------------------------
# Pictures


def generated(psi: float, studio: Studio, index: int) -> Image.Image:
    """Draw the face of one seed."""
    return Image.fromarray(studio.draw([FIRST_SEED + index], psi)[0].squeeze())


def real(source: Path, studio: Studio, index: int) -> Image.Image:
    """Open a picture of a folder or zip, by its place in the order of names from the end."""
    if source.is_dir():
        return open_upload(source / list_pictures(source)[-1 - index])
    with zipfile.ZipFile(source) as archive, tempfile.NamedTemporaryFile() as file:
        picture = Image.open(io.BytesIO(archive.read(list_pictures(source)[-1 - index])))
        picture.save(file.name, "PNG")
        return open_upload(file.name)


@functools.cache
def list_pictures(source: Path) -> list[str]:
    """Return the names of the pictures in a folder or zip, sorted."""
    if source.is_dir():
        names = [path.name for path in source.iterdir()]
    else:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    return sorted(name for name in names if name.endswith(SUFFIXES))


# ------------------------------------------------------------------------------------------
# Workers

_studio: Studio | None = None  # of a worker


def begin(model: str | None, threads: int) -> None:
    """Make this process a worker: so many threads, and what a match must know measured."""
    global _studio
    keep_freed_memory()
    torch.set_num_threads(threads)
    _studio = Studio.open(model, fallback=False)
    prepare(_studio)


def match_one(open_picture: functools.partial, seconds: float, index: int) -> Result:
    """Match one picture in a worker."""
    image = open_picture(_studio, index).convert("RGB")
    start, first = time.perf_counter(), []
    ws = search(
        _studio, image, seconds=seconds,
        found=lambda ws: first.append((ws, time.perf_counter() - start)),
    )  # fmt: skip
    taken = time.perf_counter() - start
    G = _studio.G
    size = (G.resolution, G.resolution)
    shown = image.resize(size, Image.Resampling.LANCZOS)
    picture = np.asarray(shown if G.img_channels == 3 else shown.convert("L"))
    picture = picture.reshape(*size, G.img_channels)
    begun, stored = draw(G, torch.stack([first[0][0], decode_ws(G, encode_ws(G, ws))]))
    return Result(picture, stored, rmse(picture, begun), first[0][1], taken)


@torch.inference_mode()
def draw(G: torch.nn.Module, ws: Tensor) -> np.ndarray:
    """Draw ws `[N, num_ws, w_dim]` as uint8 `[N, H, W, C]`."""
    return quantise(G.synthesis(ws)).permute(0, 2, 3, 1).numpy()


# ------------------------------------------------------------------------------------------
# The report


@torch.inference_mode()
def see(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, Tensor]:
    """Return features `[N, 1280]` and the coarse CIE Lab colours `[N, 3, COARSE, COARSE]`."""
    extractor = build_extractor(EfficientNetLite0.name, input_size=None)
    features, colours = [], []
    for picture in pictures:
        image = dequantise(torch.tensor(picture).permute(2, 0, 1)[None])
        features.append(extractor(image)[0].numpy())
        small = torch.nn.functional.adaptive_avg_pool2d(image.expand(-1, 3, -1, -1), COARSE)
        colours.append(to_lab(small)[0])
    return np.stack(features), torch.stack(colours)


def row(name: str, results: list[Result]) -> tuple[str, ...]:
    """Return a row of the table."""
    e = np.array([r.error for r in results])
    seconds = np.array([r.seconds for r in results])
    (before, wanted), (after, got) = (
        see([getattr(r, of) for r in results]) for of in ("picture", "face")
    )
    lost = np.linalg.norm(before - after, axis=1)
    apart = np.linalg.norm(before - np.roll(before, 1, 0), axis=1)
    colour = 100 * (wanted - got).norm(dim=1).mean()
    return (
        name,
        f"{len(e)}",
        f"{np.median(e):.2f}",
        f"{np.percentile(e, 95):.2f}",
        f"{(e < NEAR).mean():.0%}",
        f"{np.median([r.first for r in results]):.2f}",
        f"{np.mean([r.flat for r in results]):.1f}",
        f"{colour:.1f}",
        f"{lost.mean() / apart.mean():.2f}" if apart.any() else "",
        f"{np.median([r.first_seconds for r in results]):.2f}",
        f"{np.median(seconds):.1f}",
        f"{seconds.max():.1f}",
    )


def save_sheet(results: list[Result], path: Path) -> None:
    """Write pictures with the faces below them, SHEET_COLUMNS in a line, at twice their size."""
    lines = []
    for start in range(0, len(results), SHEET_COLUMNS):
        part = results[start : start + SHEET_COLUMNS]
        for of in ("picture", "face"):
            cells = [getattr(r, of) for r in part]
            cells += [np.full_like(cells[0], 255)] * (SHEET_COLUMNS - len(part))
            lines.append(np.concatenate(cells, 1))
    sheet = Image.fromarray(np.concatenate(lines, 0).squeeze())
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.LANCZOS).save(path)


def kinds(options: argparse.Namespace) -> Iterator[tuple[str, functools.partial, int]]:
    """Yield what is measured: a name, what opens a picture by its index, and how many."""
    for psi in options.psi if options.seeds else ():
        yield f"seeds, psi {psi:g}", functools.partial(generated, psi), options.seeds
    if options.data:
        found = min(options.count, len(list_pictures(options.data)))
        if not found:
            raise MatchError(f"{options.data} holds no pictures ({', '.join(SUFFIXES)}).")
        yield "real faces", functools.partial(real, options.data), found


def run(options: argparse.Namespace) -> str:
    """Measure what the command line asks for and return Markdown."""
    studio = Studio.open(options.model, fallback=False)
    wanted = list(kinds(options))  # a fault in what was asked for costs nobody's minutes
    rows, everything = [], []
    with ProcessPoolExecutor(
        options.workers,
        multiprocessing.get_context("spawn"),
        begin,
        (options.model, options.threads),
    ) as pool:
        for name, open_picture, count in wanted:
            work = functools.partial(match_one, open_picture, options.seconds)
            found = list(tqdm(pool.map(work, range(count)), name, count, disable=None))
            everything += found
            rows.append(row(name, found))
            print(table(HEAD, rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    if options.sheet:
        save_sheet(everything, options.sheet)
    return (
        f"{table(HEAD, rows)}\n\n"
        f"Weights `{studio.revision}`, {options.seconds:g} s of {options.threads} threads for each "
        f"picture, {options.workers} at a time; {machine()}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.match",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", help="folder or Hub repository (default: bundled)")
    add("--seeds", type=int, default=100, help="generated faces for each psi")
    add("--psi", type=float, nargs="*", default=[0.7, 1.0])
    add("--data", type=Path, help="folder or zip of real faces")
    add("--count", type=int, default=100, help="real faces")
    add("--seconds", type=float, default=10, help="of one match")
    add("--workers", type=int, default=1, help="processes")
    add("--threads", type=int, default=2, help="of each process")
    add("--sheet", type=Path, help="PNG of the pictures with their matches below")
    add("--docs", type=Path, help="document whose section gets the table")
    options = parser.parse_args(arguments)
    try:
        text = run(options)
        print(text)
        if options.docs:
            renew_section(options.docs, "match", text)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        print(f"benchmarks.match: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
