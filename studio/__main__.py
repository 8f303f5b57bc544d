"""Draw faces into PNG files.

python -m studio --seeds 0-63,100 --out faces
python -m studio --seeds 0-255 --psi 0.5 --out faces --grid sheet.png
python -m studio --seeds 42 --out faces --model owner/name --revision <commit>
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from studio.faces import Studio


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command in one sentence, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog="python -m studio",
        description="Draw one face for each seed, as PNG files named by their seeds.",
    )
    parser.add_argument("--seeds", required=True, metavar="LIST", help="such as 0-63,100")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for PNGs")
    parser.add_argument(
        "--psi",
        type=float,
        default=0.7,
        help="variety, -2 to 2: 0 draws the average face, 1 the boldest (default: %(default)s)",
    )
    parser.add_argument("--grid", type=Path, metavar="PNG", help="also one sheet of all faces")
    parser.add_argument(
        "--model", metavar="PATH_OR_REPO", help="folder or Hub repository (default: bundled)"
    )
    parser.add_argument("--revision", metavar="SHA", help="commit, tag or branch of a repository")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="faces drawn at once (default: %(default)s)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for what cannot be drawn or written."""
    args = parse_arguments(argv)
    # After the arguments: --help should not wait two seconds for torch.
    from studio.faces import Studio, prepare_cpu
    from studio.recipe import parse_seeds

    prepare_cpu()
    try:
        seeds = parse_seeds(args.seeds)
        studio = Studio.open(args.model, args.revision, fallback=False)
        draw_files(studio, seeds, args)
    except ValueError as error:
        print(f"python -m studio: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"python -m studio: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("python -m studio: stopped", file=sys.stderr)
        return 130
    return 0


def draw_files(studio: Studio, seeds: list[int], args: argparse.Namespace) -> None:
    """Draw all seeds into `args.out` and, if asked, onto one sheet; print the speed."""
    from tqdm import tqdm

    from studio.pictures import Sheet, save_png, to_image
    from studio.recipe import psi_text

    batches = studio.draw_batches(seeds, args.psi, batch_size=args.batch_size)
    sheet = Sheet(len(seeds), studio.size, studio.G.img_channels) if args.grid else None
    for folder in (args.out, args.grid.parent) if args.grid else (args.out,):
        folder.mkdir(parents=True, exist_ok=True)
    progress = tqdm(total=len(seeds), unit="face", disable=None)  # None: only on a terminal
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as writer, progress as bar:
        waiting: deque[Future[None]] = deque()
        rest = iter(seeds)
        for faces in batches:
            named = zip(islice(rest, len(faces)), faces, strict=True)
            waiting.append(writer.submit(write_batch, studio, list(named), args))
            if sheet is not None:
                sheet.add(faces)
            if len(waiting) > 4:  # the writer is behind; hold no more than this in memory
                waiting.popleft().result()
            bar.update(len(faces))
        for written in waiting:
            written.result()
    seconds = time.perf_counter() - start
    if sheet is not None:
        text = {"seeds": args.seeds, "psi": psi_text(args.psi), "revision": studio.revision}
        save_png(to_image(sheet.pixels), args.grid, text)
    print(f"{len(seeds)} faces in {seconds:.1f} s: {len(seeds) / seconds:.0f} faces/s")


def write_batch(studio: Studio, faces: list, args: argparse.Namespace) -> None:
    """Write (seed, face) pairs as PNGs that carry their recipes."""
    from studio.pictures import save_png, to_image
    from studio.recipe import Recipe

    for seed, face in faces:
        text = Recipe(seed, args.psi).png_text(studio.revision)
        save_png(to_image(face), args.out / f"seed{seed:010d}.png", text)


if __name__ == "__main__":
    sys.exit(main())
