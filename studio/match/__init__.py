"""A picture → the face of the generator that is most like it, as a recipe.

from studio.match import match, open_upload

recipe = match(studio, open_upload("her.png"))      # at most 10 s
face = studio.draw_recipes([recipe])[0]
"""

from __future__ import annotations

import os
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from PIL import Image
from torch import Tensor

from model import Generator
from studio.faces import Studio
from studio.latents import encode_ws
from studio.match.errors import MatchError
from studio.match.matcher import Clock, prepare
from studio.match.upload import open_upload
from studio.recipe import Recipe, check_number

__all__ = ["SECONDS", "MatchError", "match", "open_upload", "prepare", "search"]

SECONDS = 10.0
_turn = threading.Lock()  # one picture at a time: two would take the page's cores


def match(
    studio: Studio,
    image: Image.Image,
    *,
    seconds: float = SECONDS,
    progress: Callable[[float], None] | None = None,
    found: Callable[[Recipe], None] | None = None,
    stop: threading.Event | None = None,
) -> Recipe:
    """Find the face that is most like a picture.

    Args:
        found: called with the recipe of the first answer, after about half a second.
        others: as `search` has them.
    Returns:
        a recipe with the latents as its `w`, psi 1, and a seed that only names it.
    """

    def tell(ws: Tensor) -> None:
        if found is not None:
            found(to_recipe(studio, ws))

    ws = search(studio, image, seconds=seconds, progress=progress, found=tell, stop=stop)
    return to_recipe(studio, ws)


def to_recipe(studio: Studio, ws: Tensor) -> Recipe:
    """Return the recipe of latents `[num_ws, w_dim]`."""
    assert isinstance(studio.G, Generator)
    w = encode_ws(studio.G, ws)
    return Recipe(zlib.crc32(w.encode()), 1.0, w=w)


def search(
    studio: Studio,
    image: Image.Image,
    *,
    seconds: float = SECONDS,
    progress: Callable[[float], None] | None = None,
    found: Callable[[Tensor], None] | None = None,
    stop: threading.Event | None = None,
) -> Tensor:
    """Find the latents of the face that is most like a picture.

    Runs in a thread of its own, with less priority than drawing where the system can.

    Args:
        image: any size and mode; a face somewhere in it.
        seconds: 0.5 … 120, of the search; what `prepare` measures once comes on top in the first
            call.
        progress: called with the share of the time that is over, 0 … 1, in that thread.
        found: called with the first answer, ws `[num_ws, w_dim]`, in that thread.
        stop: ends the work with the best answer so far, within half a second, once it is set.
    Returns:
        ws `[num_ws, w_dim]`.
    Raises:
        MatchError: a generator without w, or another picture is being matched.
        Stopped: `stop` was set before there was an answer.
    """
    if not studio.G.num_ws:
        raise MatchError("This generator has no w, so no picture can be matched with it.")
    check_number(seconds, 0.5, 120, "a match takes seconds")
    if not _turn.acquire(blocking=False):
        raise MatchError("Another picture is being matched just now; try again in a few seconds.")
    try:
        with ThreadPoolExecutor(1, "match", initializer=_lower_priority) as own:
            matcher = own.submit(prepare, studio).result()
            clock = Clock(seconds, progress, stop)  # what is measured once does not count
            return own.submit(matcher.search, image.convert("RGB"), clock, found).result()
    finally:
        _turn.release()


def _lower_priority() -> None:
    """Let the threads that draw go first; on Linux a thread has its own priority."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)
