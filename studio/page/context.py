"""What all tabs share: the faces on disk, the met face, the favourites, and how faults are said."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import gradio as gr

from studio.faces import Studio
from studio.page.i18n import label, language, say
from studio.pictures import Album
from studio.recipe import DEFAULT_PSI, NUMBERS, RULES, Recipe, RecipeError, recipe_from_query
from studio.revisions import is_bundled

ROLL_SEEDS = 1_000_000  # the dice stay among these: six digits are easy to say and to send
MAX_ADDRESS = 8192  # characters of a face's address
MAX_PLACE = 8 * MAX_ADDRESS  # of a place on a tab: a film names eight faces
REV_SECONDS = 6.0  # that a visitor waits for other weights
MAX_KEPT = 200  # favourites
MAX_NAME = 60  # characters
# What of an address belongs to a tab, beside the face.
PLACES = {
    "wall": ("first", "wpsi", "wfine", "like", "radius", "best"),
    "mix": ("a", "b"),
    "morph": ("faces",),
}
SPACE = os.environ.get("SPACE_ID")  # set on a Space, whose page is shown inside another address
HOME = f"https://huggingface.co/spaces/{SPACE}" if SPACE else ""
# How events answer: nothing of them is an API, small ones show no progress.
QUIET: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "preprocess": False,
}
# A dragged slider: the last position wins.
LIVE: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}


class PageContext:
    """What all tabs share.

    Attributes:
        studio, album: draw faces, keep their files.
        address: hidden; the met face as a query. The page's only state of it.
        keep: favourites in the browser, `[{"name": str, "face": query}]`.
        places: hidden; where a visitor stands on wall, mix and morph, as the address says it.
        tabs, names: the row of tabs, and what they are called in addresses.
        meet: set by the tab Meet: `(recipe, line) -> values` for `meet_outputs`.
    """

    def __init__(self, studio: Studio) -> None:
        self.address = hidden_text("address")
        self.cache = Path(self.address.GRADIO_CACHE).resolve()
        # A folder of its own inside Gradio's: files need no copy there, and delete_cache finds
        # them. It goes when this object goes.
        self.cache.mkdir(parents=True, exist_ok=True)
        self.folder = tempfile.TemporaryDirectory(
            prefix="kaogan-", dir=self.cache, ignore_cleanup_errors=True
        )
        self.studio = studio
        self.stops: dict[str, threading.Event] = {}  # long works, by the visitor's session
        self.album = Album(studio, self.folder.name)
        self.wall_place, self.mix_place, self.morph_place = self.places = [
            hidden_text(f"{tab}-place") for tab in PLACES
        ]
        self.wall_faces = gr.JSON([], visible=False)  # queries of what hangs there
        self.match_found = hidden_text("match-found")
        self.chosen = gr.Number(-1, visible=False)  # which favourite
        self.keep = gr.BrowserState(
            [], storage_key="kaogan-favourites", secret="kaogan-keeps-recipes"
        )
        self.tabs: gr.Tabs  # laid out after this
        self.names: tuple[str, ...] = ()
        self.meet_outputs: list[Any] = []
        self.meet: Callable[..., tuple] = lambda *_: ()

    def open(self, request: gr.Request) -> tuple[Any, ...]:
        """Show what the address names: the face, the tab, and the place on it."""
        query = dict(request.query_params or {})
        tab = query.get("tab", "meet")
        rest = urlencode({k: v[:MAX_PLACE] for k, v in query.items() if k in PLACES.get(tab, ())})
        places = (rest if name == tab else "" for name in PLACES)
        met = self.meet(*self.find(query, request))
        return self.go(tab if tab in self.names else "meet"), *places, *met

    def preview(self, query: dict[str, str]) -> str:
        """Return the path of a picture of what an address names."""
        recipe, _, album = self.find(query, None)
        return album.face(recipe)

    @contextlib.contextmanager
    def stoppable(self, request: gr.Request) -> Iterator[threading.Event]:
        """Make a long work of a visitor one that `stop` ends."""
        session, event = request.session_hash or "", threading.Event()
        self.stops[session] = event
        try:
            yield event
        finally:
            event.set()  # also where the visitor went away: the work ends soon
            self.stops.pop(session, None)

    def stop(self, request: gr.Request) -> None:
        """Stop the long work of a visitor."""
        if event := self.stops.get(request.session_hash or ""):
            event.set()

    def query(self, recipe: Recipe) -> str:
        """Return a recipe as the query of an address of this page."""
        return recipe.query(self.studio.revision)

    def read(self, address: Any) -> Recipe:
        """Return the recipe of an address that this page made; anything else is a plain face."""
        return self.read_query(query_of(address), None)[0]

    def find(
        self, address: str | dict[str, str], request: gr.Request | None
    ) -> tuple[Recipe, str, Album]:
        """Return the recipe of an address or query, a line, and the album that draws it.

        An address of other weights, which the bundle or the page's repository has, is shown with
        those.
        """
        query = address if isinstance(address, dict) else query_of(address)
        rev = query.get("rev", "")
        album = self.album_of(rev)
        if album is self.album:
            return *self.read_query(query, request), album
        recipe, _ = album.studio.usable(recipe_from_query(query, dice(), rev)[0])
        kind = "note.earlier" if is_bundled(rev) else "note.rev"
        present = HOME + Recipe(recipe.seed).query()
        return recipe, say(request, kind, rev=rev, address=present), album

    def find_small(self, addresses: list[str]) -> list[str]:
        """Return the paths of small faces of addresses, each by its own weights, in their order."""
        found = [self.find(address, None) for address in addresses]
        albums = {album.studio.revision: album for _, _, album in found}
        paths: dict[int, str] = {}
        for rev, album in albums.items():
            rows = [i for i, f in enumerate(found) if f[2].studio.revision == rev]
            paths |= dict(zip(rows, album.faces([found[i][0] for i in rows]), strict=True))
        return [paths[index] for index in range(len(found))]

    def album_of(self, rev: str) -> Album:
        """Return the faces of the weights that an address names, else of the page's own."""
        other = self.studio.open_revision(rev, REV_SECONDS) if rev else None
        if other is None or other is self.studio:
            return self.album
        return Album(other, Path(self.folder.name) / rev)

    def read_query(
        self, query: dict[str, str], request: gr.Request | None = None
    ) -> tuple[Recipe, str]:
        """Return what can be drawn of a query, and a line about the rest of it."""
        revision = self.studio.revision
        read, line = recipe_from_query(query, dice(), revision)
        recipe, more = self.studio.usable(read)
        lines = [line, more]
        if language(request) != "en":  # faults are told in English; other languages get the gist
            names = faulty_parts(query, read, recipe)
            lines = [say(request, "fault.parts", parts=", ".join(names))] if names else []
            lines += [say(request, "fault.rev")] if query.get("rev", revision) != revision else []
        return recipe, " ".join(filter(None, lines))

    def read_short(self, text: str) -> Recipe:
        """Return the recipe of a bare seed or of a query."""
        return self.read(f"?seed={text}" if text.isdecimal() else text)

    def write_short(self, recipe: Recipe) -> str:
        """Write a recipe as `read_short` reads it."""
        return str(recipe.seed) if recipe == Recipe(recipe.seed) else recipe.query()

    def offer(self, keep: Any) -> Any:
        """Offer the favourites to a choice, which is hidden where there are none."""
        choices = [(face["name"], face["face"]) for face in self.favourites(keep)]
        return gr.update(choices=choices, value=None, visible=bool(choices))

    def favourites(self, keep: Any) -> list[dict[str, str]]:
        """Return what of the browser's favourites is well formed; anyone may have changed them."""
        entries = keep if isinstance(keep, list) else []
        return [
            {"name": entry["name"][:MAX_NAME], "face": entry["face"]}
            for entry in entries[:MAX_KEPT]
            if isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("face"), str)
            and entry["face"].startswith(("?", "http"))
            and len(entry["face"]) <= MAX_ADDRESS
        ]

    def take_upload(self, upload: Any) -> Path:
        """Return the path of an uploaded file; RecipeError for anything that is none."""
        named = upload.get("path") if isinstance(upload, dict) else upload
        path = Path(str(named or ".")).resolve()
        own = Path(self.folder.name).resolve()
        if not path.is_relative_to(self.cache) or path.is_relative_to(own) or not path.is_file():
            raise RecipeError("this is no uploaded file")
        return path

    @staticmethod
    def forget_upload(path: Path) -> None:
        """Delete an uploaded file."""
        path.unlink(missing_ok=True)

    def go(self, tab: str) -> Any:
        """Turn to a tab."""
        return gr.Tabs(selected=tab)


def faulty_parts(query: dict[str, str], read: Recipe, drawn: Recipe) -> list[str]:
    """Name the parts of a query that were not read, or were read and cannot be drawn."""
    before, after = read.texts(), drawn.texts()
    return [
        name
        for name in (*NUMBERS, *RULES)
        # A generator without w has no fine layers, which is no fault of an address.
        if (before.get(name) != after.get(name) and name != "fine")
        or (name in query and recipe_from_query({name: query[name]}, 0)[1])
    ]


def faces_gallery(name: str, elem_id: str, columns: int) -> gr.Gallery:
    """Return a gallery of small faces to choose from; `name` is the key of its label."""
    return gr.Gallery(
        label=label(name),
        columns=columns,
        format="png",
        show_label=False,
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id=elem_id,
        elem_classes="faces",
    )


def busy_on(component: Any) -> dict[str, Any]:
    """Return options of an event that shows on one component that it takes a while."""
    return {**QUIET, "show_progress": "minimal", "show_progress_on": component}


def dice() -> int:
    """Return a random seed."""
    return random.randrange(ROLL_SEEDS)


def slide(psi: Any, usual: float = DEFAULT_PSI) -> float:
    """Return what the slider says, moved into its range where its number field was overtyped."""
    return min(max(float(psi), 0.0), 1.0) if isinstance(psi, int | float) else usual


def fault(request: gr.Request | None, error: Exception, key: str) -> str:
    """Return a fault for a visitor: its own sentence in English, in other languages `key`'s.

    What the system said of a file is for the operator: it would show a visitor where files lie.
    """
    if isinstance(error, OSError):
        logging.getLogger(__name__).warning("%s: %s", key, error)
    if language(request) != "en" or isinstance(error, OSError):
        return say(request, key)
    line = str(error)
    return f"{line[:1].upper()}{line[1:]}{'' if line.endswith('.') else '.'}"


@contextlib.contextmanager
def api_errors() -> Iterator[None]:
    """Hand a caller of the API the sentence of a fault."""
    try:
        yield
    except ValueError as error:  # RecipeError, MatchError
        raise gr.Error(f"{error}", print_exception=False) from None


def query_of(address: Any) -> dict[str, str]:
    """Return the names and values of an address's query; of anything else none."""
    text = address[:MAX_ADDRESS] if isinstance(address, str) else ""
    return dict(parse_qsl(text.partition("?")[2].partition("#")[0]))


def read_place(text: Any) -> dict[str, str]:
    """Return the names and values of a place on a tab, as an address writes it."""
    return dict(parse_qsl(text[:MAX_PLACE])) if isinstance(text, str) else {}


def hidden_text(name: str) -> gr.Textbox:
    """Return a text that the page's script sees and a visitor does not."""
    return gr.Textbox(visible="hidden", elem_id=name, container=False, show_label=False)
