"""Draw faces into PNG files.

python -m studio --seeds 0-63,100 --out faces
python -m studio --seeds 0-255 --psi 0.5 --out faces --grid sheet.png
python -m studio --seeds 0-9 --edit smile=1.5 --edit hair=#3fa34d --mix 77@middle --out faces
python -m studio --seeds 0-399 --best-of 4 --out faces      # 100 files, of each 4 seeds the best
python -m studio --seeds 42 --vary 5:0.3 --between 77:0.5 --out faces
python -m studio --seeds 0-63 --size 512 --out faces                            # enlarged
python -m studio --recipe '?seed=42&psi=0.7&edit=smile:1.5' --out faces      # or a face's PNG
python -m studio --seeds 42 --out faces --model owner/name --revision <commit>
accelerate launch -m studio --seeds 0-9999999 --shards faces     # tar shards, by many processes
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    import numpy as np

    from studio.faces import Studio
    from studio.recipe import Recipe

SHAPES = ("psi", "fine", "edit", "mix", "vary", "between")  # options that a recipe has instead
MOST_SIZE = 1024  # px of a PNG
JUDGED_AT_ONCE = 64  # faces whose pictures are held while the best are chosen


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
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", metavar="LIST", help="such as 0-63,100")
    what.add_argument("--recipe", metavar="ADDRESS_OR_PNG", help="one face: ?seed=… or its PNG")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="folder for PNGs")
    where.add_argument(
        "--shards", type=Path, metavar="DIR", help="folder for WebDataset tar files instead"
    )
    parser.add_argument(
        "--shard-size", type=int, default=1000, help="faces of a shard (default: %(default)s)"
    )
    parser.add_argument(
        "--psi",
        type=float,
        help="variety, -2 to 2: 0 draws the average face, 1 the boldest (default: 0.55, and 0.9 "
        "for the fine layers)",
    )
    parser.add_argument(
        "--fine", type=float, help="variety of the fine layers, the colours (default: as --psi)"
    )
    parser.add_argument(
        "--edit",
        action="append",
        metavar="NAME=VALUE",
        help="a slider, smile=1.5, or a colour, hair=#3fa34d; may be repeated",
    )
    parser.add_argument(
        "--mix",
        action="append",
        metavar="SEED@GROUP",
        help="take the coarse, middle or fine layers from another seed; may be repeated",
    )
    parser.add_argument(
        "--vary",
        metavar="SEED:RADIUS[@LAYERS]",
        help="a step in w, radius 0 to 2; in coarse, middle or fine layers, or a block by its px",
    )
    parser.add_argument("--between", metavar="SEED:SHARE", help="a share, 0 to 1, of a way")
    parser.add_argument(
        "--best-of",
        type=int,
        default=1,
        metavar="N",
        help="of each N seeds in a row, keep the face that the discriminator finds most real",
    )
    parser.add_argument("--grid", type=Path, metavar="PNG", help="also one sheet of all faces")
    parser.add_argument(
        "--model", metavar="PATH_OR_REPO", help="folder or Hub repository (default: bundled)"
    )
    parser.add_argument("--revision", metavar="SHA", help="commit, tag or branch of a repository")
    parser.add_argument(
        "--size", type=int, metavar="PX", help="of the PNGs, larger than the generator's own"
    )
    parser.add_argument(
        "--enlarger",
        metavar="none|DIR",
        help="what makes faces larger; none: Lanczos' filter (default: that of the weights)",
    )
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
        base, revision = read_recipe(args.recipe) if args.recipe else (read_options(args), "")
        if args.recipe and any(getattr(args, name) is not None for name in SHAPES):
            raise ValueError("a recipe says all of a face; leave out the options that shape it")
        check_shards(args)
        studio = Studio.open(args.model, args.revision, fallback=False, enlarger=args.enlarger)
        args.size = check_size(studio, args.size)
        if revision and revision != studio.revision:
            other = studio.open_revision(revision)
            if other is None:
                print(
                    "python -m studio: made with other weights, so it may differ", file=sys.stderr
                )
            studio = other or studio
        if args.shards:
            draw_shards(studio, base, args)
            return 0
        seeds = parse_seeds(args.seeds) if args.seeds is not None else [base.seed]
        seeds = choose(studio, studio.check(base), seeds, args.best_of)
        draw_files(studio, base, seeds, args)
    except ValueError as error:
        print(f"python -m studio: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where, why = error.filename or args.out or args.shards, error.strerror or error
        print(f"python -m studio: cannot write {where}: {why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("python -m studio: stopped", file=sys.stderr)
        return 130
    return 0


def read_options(args: argparse.Namespace) -> Recipe:
    """Return what the options make of every seed, with seed 0 for them all."""
    from studio.recipe import Between, Edit, Mix, Recipe, RecipeError, Vary

    def read(option: str, text: str, parse: Callable[[str], Any]) -> Any:
        try:
            return parse(text)
        except RecipeError as error:
            raise RecipeError(f"{option} {text!r:.60}: {error}") from None

    return Recipe(
        0,
        args.psi,
        args.fine,
        mix=tuple(read("--mix", text, Mix.parse) for text in args.mix or ()),
        edits=tuple(read("--edit", text, Edit.parse) for text in args.edit or ()),
        vary=read("--vary", args.vary, Vary.parse) if args.vary else None,
        between=read("--between", args.between, Between.parse) if args.between else None,
    )


def read_recipe(text: str) -> tuple[Recipe, str]:
    """Read an address, its query or a PNG strictly: the recipe, and the weights it is for, or "".

    Raises:
        RecipeError: any part of it cannot be used.
    """
    from studio.recipe import PSI_LIMIT, RecipeError, read_png_text, recipe_from_query

    if "?" in text or "=" in text:
        source, query = "address", dict(parse_qsl(text[text.find("?") + 1 :][:8192]))
    else:
        source, query = "picture", read_png_text(text)
    if "seed" not in query:
        raise RecipeError(f"this {source} holds no recipe; one starts with ?seed=42&psi=0.7")
    revision = query.pop("rev", "") or query.pop("revision", "")
    limits = (-PSI_LIMIT, PSI_LIMIT)
    recipe, fault = recipe_from_query(query, 0, psi_range=limits, source=source)
    if fault:
        raise RecipeError(fault)
    return recipe, revision


def check_size(studio: Studio, size: int | None) -> int:
    """Return the px of the PNGs: the generator's own when None; RecipeError if it cannot be."""
    from studio.recipe import RecipeError

    if size is None:
        return studio.size
    if not studio.size <= size <= MOST_SIZE:
        raise RecipeError(f"--size is a number of px from {studio.size} to {MOST_SIZE}, not {size}")
    return size


def check_shards(args: argparse.Namespace) -> None:
    """Raise RecipeError for options that shards do not go with."""
    from studio.recipe import RecipeError

    if args.shards and (args.recipe or args.grid or args.best_of != 1):
        raise RecipeError("--shards goes with --seeds, without --recipe, --grid and --best-of")


def draw_shards(studio: Studio, base: Recipe, args: argparse.Namespace) -> None:
    """Draw this process's shards and print the speed."""
    from studio.recipe import parse_seed_ranges
    from studio.shards import place, write_shards

    start, count = time.perf_counter(), 0
    for faces in write_shards(
        studio,
        base,
        parse_seed_ranges(args.seeds),
        args.shards,
        shard_size=args.shard_size,
        batch_size=args.batch_size,
        size=args.size,
    ):
        count += faces
    seconds, (rank, world) = time.perf_counter() - start, place()
    print(
        f"process {rank + 1} of {world}: {count} faces in {seconds:.1f} s: "
        f"{count / seconds:.0f} faces/s"
    )


def choose(studio: Studio, base: Recipe, seeds: list[int], n: int) -> list[int]:
    """Keep of each n seeds in a row the one whose face the discriminator finds most real.

    Raises:
        RecipeError: an n out of range, or weights without a discriminator.
    """
    from studio.best import best_of
    from studio.recipe import RecipeError

    if not 1 <= n <= JUDGED_AT_ONCE:
        raise RecipeError(f"--best-of takes 1 to {JUDGED_AT_ONCE} seeds for a face, not {n}")
    if n == 1:
        return seeds
    if studio.D is None:
        raise RecipeError("these weights came without a discriminator; leave out --best-of")
    step, kept = JUDGED_AT_ONCE // n * n, []
    for start in range(0, len(seeds), step):
        part = [replace(base, seed=seed) for seed in seeds[start : start + step]]
        kept += [recipe.seed for recipe in best_of(studio, part, n)]
    return kept


def draw_files(studio: Studio, base: Recipe, seeds: list[int], args: argparse.Namespace) -> None:
    """Draw all seeds into `args.out` and, if asked, onto one sheet; print the speed."""
    from tqdm import tqdm

    from studio.pictures import Sheet, save_png, to_image

    drawn, written = ((replace(base, seed=seed) for seed in seeds) for _ in range(2))
    batches = studio.recipe_batches(drawn, batch_size=args.batch_size)
    sheet = Sheet(len(seeds), studio.size, studio.G.img_channels) if args.grid else None
    for folder in (args.out, args.grid.parent) if args.grid else (args.out,):
        folder.mkdir(parents=True, exist_ok=True)
    progress = tqdm(total=len(seeds), unit="face", disable=None)  # None: only on a terminal
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as writer, progress as bar:
        waiting: deque[Future[None]] = deque()
        for faces in batches:
            named = zip(islice(written, len(faces)), faces, strict=True)
            waiting.append(writer.submit(write_batch, studio, list(named), args))
            if sheet is not None:
                sheet.add(faces)
            if len(waiting) > 4:  # the writer is behind; hold no more than this in memory
                waiting.popleft().result()
            bar.update(len(faces))
        for rest in waiting:
            rest.result()
    seconds = time.perf_counter() - start
    if sheet is not None:
        text = base.png_text(studio.revision)
        if args.seeds:
            text = {"seeds": args.seeds, **text}
            del text["seed"]
            if args.best_of > 1:
                text["best-of"] = str(args.best_of)
        save_png(to_image(sheet.pixels), args.grid, text)
    print(f"{len(seeds)} faces in {seconds:.1f} s: {len(seeds) / seconds:.0f} faces/s")


def write_batch(
    studio: Studio, faces: Iterable[tuple[Recipe, np.ndarray]], args: argparse.Namespace
) -> None:
    """Write faces as PNGs that carry their recipes."""
    from studio.pictures import png_text, save_png, to_image

    for recipe, face in faces:
        large = studio.enlarge(face[None], args.size)[0]
        path = args.out / f"seed{recipe.seed:010d}.png"
        save_png(to_image(large), path, png_text(studio, recipe, args.size))


if __name__ == "__main__":
    sys.exit(main())
