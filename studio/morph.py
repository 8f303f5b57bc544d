"""Faces that turn into each other: recipes → frames → MP4 or animated WebP.

from studio.morph import frames, write_film

write_film("walk.mp4", studio, [Recipe(42), Recipe(77), Recipe(9)], seconds=2, fps=30)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from torch import Tensor

from studio.faces import Studio, count_cpus
from studio.recipe import Between, Recipe, RecipeError, check_number

MOST_FACES = 8
MOST_SECONDS = 10.0  # of one leg
MOST_FPS = 60
MOST_SIZE = 1024  # px
BATCH = 16  # frames drawn at once; also what is still drawn after a stop

Progress = Callable[[float], None]


class Stopped(Exception):
    """Somebody stopped a long work; nothing of it is left."""


# ------------------------------------------------------------------------------------------
# The way


@dataclass(frozen=True)
class Walk:
    """A way over two to eight faces.

    Args:
        recipes: the faces in their order.
        seconds: of each leg, 0.1 … 10.
        fps: frames a second, 1 … 60.
        loop: also walk from the last face back to the first; the frame that would show the first
            one again is left out, so that a player's repeat does not stumble.
        spherical: walk a leg between plain seeds (nothing but seed and truncation) on the great
            circle in z instead of the straight line in w: every face on the way is one that a
            seed could have, but they change less evenly.
    Raises:
        RecipeError: anything out of these bounds.
    """

    recipes: tuple[Recipe, ...]
    seconds: float = 2.0
    fps: int = 30
    loop: bool = True
    spherical: bool = False

    def __post_init__(self) -> None:
        if not 2 <= len(self.recipes) <= MOST_FACES:
            raise RecipeError(
                f"a morph goes through 2 to {MOST_FACES} faces, not {len(self.recipes)}"
            )
        check_number(self.seconds, 0.1, MOST_SECONDS, "a leg of a morph takes seconds")
        if check_number(self.fps, 1, MOST_FPS, "frames a second are") % 1:
            raise RecipeError(f"frames a second are a whole number, not {self.fps:g}")

    @property
    def steps(self) -> int:
        """Frames of one leg, its first face counted and its last one not."""
        return max(1, round(self.seconds * self.fps))

    @property
    def legs(self) -> list[tuple[Recipe, Recipe]]:
        """The faces at both ends of each leg."""
        return [*pairwise(self.recipes), *([(self.recipes[-1], self.recipes[0])] * self.loop)]

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.legs) * self.steps + (not self.loop)

    def shares(self) -> list[float]:
        """Return how far along a leg each of its frames is, 0 … 1.

        Eased by t²(3 - 2t), so that a walk pauses at each face instead of turning sharply there.
        """
        times = [step / self.steps for step in range(self.steps)]
        return [t * t * (3 - 2 * t) for t in times]


def is_plain(recipe: Recipe) -> bool:
    """Tell whether a recipe is nothing but a seed and its truncation."""
    return recipe == recipe.plain()


def walk_in_z(a: Recipe, b: Recipe, shares: Sequence[float]) -> list[Recipe]:
    """Return plain recipes on the great circle in z from one plain recipe to another."""
    (psi, to_psi), (fine, to_fine) = zip(a.truncation, b.truncation, strict=True)
    return [
        Recipe(
            a.seed,
            psi + s * (to_psi - psi),
            fine + s * (to_fine - fine),
            between=Between(b.seed, s),
        )
        for s in shares
    ]


def walk_recipes(walk: Walk) -> Iterator[Recipe]:
    """Yield a recipe for each frame, where all faces are plain."""
    if not all(map(is_plain, walk.recipes)):
        raise RecipeError("this generator has no w, so it can only walk between plain seeds")
    for a, b in walk.legs:
        yield from walk_in_z(a, b, walk.shares())
    if not walk.loop:
        yield walk.recipes[-1]


def walk_ws(studio: Studio, walk: Walk) -> Iterator[Tensor]:
    """Yield the ws `[num_ws, w_dim]` of each frame."""
    ends = dict(zip(walk.recipes, studio.ws(walk.recipes), strict=True))
    for a, b in walk.legs:
        if walk.spherical and is_plain(a) and is_plain(b):
            way = walk_in_z(a, b, walk.shares())
            for start in range(0, len(way), BATCH):
                yield from studio.ws(way[start : start + BATCH])
        else:
            yield from (torch.lerp(ends[a], ends[b], share) for share in walk.shares())
    if not walk.loop:
        yield ends[walk.recipes[-1]]


def draw_walk(studio: Studio, walk: Walk, size: int = 0) -> Iterator[np.ndarray]:
    """Yield the frames of a walk, uint8 `[H, W, C]`, enlarged to `size` px where they are less."""
    if studio.G.num_ws:
        batches = studio.ws_batches(walk_ws(studio, walk), batch_size=BATCH)
    else:
        batches = studio.recipe_batches(walk_recipes(walk), batch_size=BATCH)
    for batch in batches:
        for face in batch:  # one by one, so that a film can be stopped at each
            yield studio.enlarge(face[None], size)[0]


def frames(
    studio: Studio,
    recipes: Sequence[Recipe],
    *,
    seconds: float = 2.0,
    fps: int = 30,
    loop: bool = True,
    spherical: bool = False,
) -> Iterator[np.ndarray]:
    """Draw a walk over two to eight faces; arguments as `Walk` takes them.

    Returns:
        uint8 `[H, W, C]` frames, drawn a batch ahead of their use.
    Raises:
        RecipeError: out of bounds, or a recipe that this generator cannot draw; at the call.
    """
    walk = Walk(tuple(recipes), seconds, fps, loop, spherical)
    for recipe in walk.recipes:
        studio.check(recipe)
    return draw_walk(studio, walk)


# ------------------------------------------------------------------------------------------
# Files


@dataclass(frozen=True)
class Format:
    """How one kind of file is written, and what is usual for it."""

    container: str
    codec: str
    options: dict[str, str]  # of the codec
    fps: int
    size: int  # px

    def container_options(self, loop: bool) -> dict[str, str]:
        """Return options of the container: how often it plays, or that its index comes first."""
        return {"loop": "0" if loop else "1"} if self.container == "webp" else MP4_OPTIONS


FORMATS = {
    # High profile in yuv420p is what every browser plays. crf 20 is visually clean on flat colours.
    ".mp4": Format("mp4", "libx264", {"crf": "20", "preset": "veryfast"}, fps=30, size=512),
    # A WebP holds each frame for itself, and browsers show at most 50 of them a second: smaller and
    # slower. Method 2 of 6 rather than the usual 4: a visitor waits for it.
    ".webp": Format(
        "webp", "libwebp_anim", {"quality": "80", "compression_level": "2"}, fps=25, size=256
    ),
}
MP4_OPTIONS = {"movflags": "+faststart"}  # playing starts before the file is there


def write_film(
    path: str | Path,
    studio: Studio,
    recipes: Sequence[Recipe],
    *,
    seconds: float = 2.0,
    fps: int | None = None,
    loop: bool = True,
    spherical: bool = False,
    size: int | None = None,
    quick: bool = False,
    progress: Progress | None = None,
    stop: Event | None = None,
) -> None:
    """Write a walk as a film whose comment holds the recipes as JSON.

    Args:
        path: the file, an H.264 .mp4 that browsers play, or an animated .webp, which repeats for
            ever if it loops; it appears whole or not at all.
        seconds, fps, loop, spherical: as `Walk` takes them; 30 frames a second for an MP4, 25 for
            a WebP.
        size: width and height in px, even, 16 … 1024; usually 512 for an MP4, 256 for a WebP.
        quick: enlarge the frames by Lanczos' filter instead of the enlarger.
        progress: called with the share that is done, 0 … 1.
        stop: ends the work within a fraction of a second once it is set.
    Raises:
        RecipeError: out of bounds, or a recipe that this generator cannot draw.
        Stopped: `stop` was set.
        OSError: the file cannot be written.
    """
    path = Path(path)
    form = FORMATS.get(path.suffix)
    if form is None:
        raise RecipeError(f"a film is written as {' or '.join(FORMATS)}, not {path.suffix!r:.20}")
    size = form.size if size is None else size
    if check_number(size, 16, MOST_SIZE, "the width of a morph is a number of px") % 2:
        raise RecipeError(f"the width of a morph is an even number of px, not {size!r:.20}")
    fps = form.fps if fps is None else fps
    walk = Walk(tuple(recipes), seconds, fps, loop, spherical)
    for recipe in walk.recipes:
        studio.check(recipe)
    part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    options = form.container_options(loop)
    try:
        with av.open(str(part), "w", format=form.container, options=options) as file:
            file.metadata.update(describe(studio, walk))
            pictures = draw_walk(studio, walk, 0 if quick else int(size))
            _encode(file, pictures, len(walk), walk.fps, form, size, progress, stop)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def describe(studio: Studio, walk: Walk) -> dict[str, str]:
    """Return the metadata of a walk's file."""
    recipes = [recipe.to_json() for recipe in walk.recipes]
    comment = {
        "recipes": recipes,
        "revision": studio.revision,
        "seconds": walk.seconds,
        "loop": walk.loop,
        "spherical": walk.spherical,
    }
    seeds = ", ".join(str(recipe.seed) for recipe in walk.recipes)
    return {"title": f"Kaogan {seeds}", "comment": json.dumps(comment)}


def _encode(
    file: av.container.OutputContainer,
    pictures: Iterator[np.ndarray],
    total: int,
    fps: int,
    form: Format,
    size: int,
    progress: Progress | None,
    stop: Event | None,
) -> None:
    """Enlarge and encode pictures into an open file; raise Stopped when asked to stop."""
    stream = file.add_stream(form.codec, rate=int(fps), options=form.options)
    assert isinstance(stream, av.VideoStream)
    stream.width = stream.height = int(size)
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.gop_size = int(fps)  # a key frame each second, for seeking
    context.thread_count = count_cpus()
    for done, picture in enumerate(pictures, 1):
        if stop is not None and stop.is_set():
            raise Stopped
        file.mux(stream.encode(to_frame(picture, int(size))))
        if progress is not None:
            progress(done / total)
    file.mux(stream.encode(None))


def to_frame(picture: np.ndarray, size: int) -> av.VideoFrame:
    """Turn uint8 `[H, W, C]` into a yuv420p frame of `size` px, resized by Lanczos' filter."""
    if picture.shape[2] == 1:
        picture = picture.repeat(3, axis=2)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
        size,
        size,
        "yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.LANCZOS,
    )
