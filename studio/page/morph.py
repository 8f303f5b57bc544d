"""Morph: two to eight faces in order → a film that walks from one to the next."""

from __future__ import annotations

import hashlib
import html
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from studio.morph import Stopped, write_film
from studio.page.context import LIVE, QUIET, PageContext, dice, faces_gallery, fault, read_place
from studio.page.i18n import label, say
from studio.pictures import refresh
from studio.recipe import Recipe, RecipeError, parse_seeds

MOST, FEWEST = 8, 2  # faces
SECONDS = (0.5, 5.0, 2.0)  # a leg: shortest, longest, usual
KINDS = ("mp4", "webp")
POLL_SECONDS = 0.2
SETTLE = "(rest) => window.kaogan.settle('morph', rest)"


class MorphTab:
    """The tab of films."""

    def __init__(self, context: PageContext) -> None:
        self.context = context
        self.folder = Path(context.folder.name) / "film"
        gr.HTML(label("morph.intro"), elem_classes="lead")
        with gr.Row(elem_id="morph-stage"):
            with gr.Column(elem_id="morph-tools", min_width=300):
                self._lay_out_strip()
                self._lay_out_settings()
            with gr.Column(elem_id="screen", min_width=300):
                self._lay_out_screen()
        self.strip_shown = [context.morph_place, self.strip, self.empty, self.note]

    def _lay_out_strip(self) -> None:
        """Place the chosen faces and what adds to them."""
        self.empty = gr.HTML(label("morph.empty"), elem_id="morph-empty", elem_classes="empty")
        self.strip = faces_gallery("morph.strip", "strip", 4)
        with gr.Row(elem_id="morph-add-seeds"):
            self.seeds = gr.Textbox(
                label=label("morph.seeds"),
                placeholder="7, 42, 100-103",
                max_lines=1,
                elem_id="morph-seeds",
                min_width=140,
            )
            self.add = gr.Button(label("morph.add"), elem_id="morph-add", min_width=70)
        with gr.Row(elem_id="morph-adders"):
            self.met = gr.Button(label("morph.met"), size="sm", elem_id="morph-met", min_width=80)
            self.any = gr.Button(label("morph.any"), size="sm", elem_id="morph-any", min_width=80)
            self.clear = gr.Button(
                label("morph.clear"), size="sm", elem_id="morph-clear", min_width=60
            )
        self.kept = gr.Dropdown(
            [], label=label("morph.kept"), visible=False, filterable=False, elem_id="morph-kept"
        )

    def _lay_out_settings(self) -> None:
        """Place what a film is made with."""
        low, high, usual = SECONDS
        with gr.Row(elem_id="film-settings"):
            self.seconds = gr.Slider(
                low, high, usual, step=0.5, label=label("morph.seconds"), buttons=[],
                elem_id="seconds", min_width=160,
            )  # fmt: skip
            self.kind = gr.Radio(
                [("MP4", "mp4"), ("WebP", "webp")],
                value="mp4",
                label=label("morph.kind"),
                elem_id="kind",
                min_width=130,
            )
        with gr.Row(elem_id="film-choices"):
            self.loop = gr.Checkbox(True, label=label("morph.loop"), elem_id="loop", min_width=140)
            self.quick = gr.Checkbox(
                False, label=label("morph.quick"), info=label("morph.quick.info"),
                elem_id="quick", min_width=140,
                visible=self.context.studio.enlarging.network is not None,
            )  # fmt: skip
        with gr.Row(elem_id="film-bar"):
            self.make = gr.Button(
                label("morph.make"), variant="primary", elem_id="film-make", min_width=140
            )
            self.stop = gr.Button(label("morph.stop"), elem_id="film-stop", min_width=80)
        self.bar = gr.HTML(elem_id="film-progress")
        self.note = gr.Markdown(elem_id="morph-note", elem_classes="line")

    def _lay_out_screen(self) -> None:
        """Place the film, in whatever form it comes; Gradio's own player brings a megabyte."""
        self.screen = gr.HTML(label("morph.waiting"), elem_id="film")

    def wire(self, to_morph: gr.Button, tab: gr.Tab) -> None:
        """Connect the components with what they do; `to_morph` is Meet's button."""
        context, place, shown = self.context, self.context.morph_place, self.strip_shown
        tab.select(self.enter, place, shown, **QUIET)
        tab.select(self.context.offer, context.keep, self.kept, **QUIET)
        gr.on(
            [self.add.click, self.seeds.submit],
            self.add_seeds,
            [place, self.seeds],
            [*shown, self.seeds],
            **QUIET,
        )
        self.met.click(self.add_one, [place, context.address], shown, **QUIET)
        self.kept.input(self.add_one, [place, self.kept], shown, **QUIET)
        self.any.click(self.add_any, place, shown, **QUIET)
        self.clear.click(self.clear_all, None, shown, **QUIET)
        self.strip.select(self.drop, place, shown, **QUIET)
        to_morph.click(self.start, [place, context.address], [context.tabs, *shown], **QUIET)
        film = [place, self.seconds, self.loop, self.kind, self.quick]
        self.make.click(
            self.film,
            film,
            [self.bar, self.screen, self.note],
            **QUIET,
            concurrency_limit=2,
        )
        self.stop.click(self.context.stop, None, None, **LIVE)
        place.change(None, place, None, js=SETTLE, **QUIET)

    # The strip

    def parse(self, text: Any) -> list[Recipe]:
        """Read the faces of an address."""
        values = read_place(text)
        faces = [face for face in values.get("faces", "").split(";") if face]
        return [self.context.read_short(face) for face in faces[:MOST]]

    def lay(self, recipes: list[Recipe], line: str = "") -> tuple[Any, ...]:
        """Return the values of `strip_shown` for chosen faces."""
        faces = ";".join(map(self.context.write_short, recipes))
        text = urlencode({"faces": faces}, safe="?;,@:") if faces else ""
        paths = self.context.album.faces(recipes)
        captions = [f"{n}" for n in range(1, len(recipes) + 1)]
        return (
            text,
            list(zip(paths, captions, strict=True)),
            gr.update(visible=not recipes),
            line,
        )

    def enter(self, text: Any) -> tuple[Any, ...]:
        """Show the strip of the address."""
        return self.lay(self.parse(text))

    def extend(self, request: gr.Request, text: Any, more: list[Recipe]) -> tuple[Any, ...]:
        """Add faces as far as there is room."""
        recipes = [*self.parse(text), *more]
        line = say(request, "morph.full", most=MOST) if len(recipes) > MOST else ""
        return self.lay(recipes[:MOST], line)

    def add_seeds(self, request: gr.Request, text: Any, seeds: Any) -> tuple[Any, ...]:
        """Add the faces of typed seeds, or say what is wrong with them."""
        try:
            typed = parse_seeds(str(seeds or "")[:200])
        except RecipeError as error:
            line = fault(request, error, "fault.seeds")
            return *(gr.skip(),) * (len(self.strip_shown) - 1), line, gr.skip()
        more = [Recipe(seed) for seed in typed[: MOST + 1]]
        return *self.extend(request, text, more), ""

    def add_one(self, request: gr.Request, text: Any, address: Any) -> tuple[Any, ...]:
        """Add the met face, or a favourite."""
        return self.extend(request, text, [self.context.read(address)])

    def add_any(self, request: gr.Request, text: Any) -> tuple[Any, ...]:
        """Add a random face."""
        return self.extend(request, text, [Recipe(dice())])

    def clear_all(self) -> tuple[Any, ...]:
        """Take all faces off the strip."""
        return self.lay([])

    def drop(self, text: Any, picked: gr.SelectData) -> tuple[Any, ...]:
        """Take the clicked face off the strip."""
        recipes = self.parse(text)
        return self.lay(recipes[: picked.index] + recipes[picked.index + 1 :])

    def start(self, request: gr.Request, text: Any, address: Any) -> tuple[Any, ...]:
        """Turn to this tab with the met face added."""
        return self.context.go("morph"), *self.add_one(request, text, address)

    # The film

    def film(
        self,
        request: gr.Request,
        text: Any,
        seconds: Any,
        loop: Any,
        kind: Any,
        quick: Any = False,
    ) -> Iterator[tuple[Any, ...]]:
        """Make a film, say how far it is, show it."""
        recipes = self.parse(text)
        if len(recipes) < FEWEST:
            yield "", gr.skip(), say(request, "morph.few")
            return
        kind = kind if kind in KINDS else "mp4"
        seconds = min(max(float(seconds or SECONDS[2]), SECONDS[0]), SECONDS[1])
        reached = [0.0]
        with self.context.stoppable(request) as stop, ThreadPoolExecutor(1) as one:
            making = one.submit(
                self.write, recipes, seconds, bool(loop), kind,
                quick=bool(quick), reached=reached, stop=stop,
            )  # fmt: skip
            while not making.done():
                yield self.show_progress(request, reached[0]), gr.skip(), ""
                time.sleep(POLL_SECONDS)
        try:
            yield "", show_film(making.result(), say(request, "morph.save")), ""
        except Stopped:
            yield "", gr.skip(), say(request, "morph.stopped")
        except (RecipeError, OSError) as error:
            yield "", gr.skip(), fault(request, error, "fault.film")

    def write(
        self,
        recipes: list[Recipe],
        seconds: float,
        loop: bool,
        kind: str,
        *,
        quick: bool = False,
        reached: list[float] | None = None,
        stop: threading.Event | None = None,
    ) -> str:
        """Write a film once and return its path; `reached[0]` says how far it is.

        Raises:
            Stopped, RecipeError: as `studio.morph` does; nothing is left then.
        """
        path = self.folder / name_film(recipes, seconds, loop, quick)
        path = path / f"kaogan-{recipes[0].seed}-{recipes[-1].seed}.{kind}"
        if not refresh(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            report = partial(reached.__setitem__, 0) if reached else None
            write_film(
                path, self.context.studio, recipes,
                seconds=seconds, loop=loop, quick=quick, progress=report, stop=stop,
            )  # fmt: skip
        return str(path)

    @staticmethod
    def show_progress(request: gr.Request, share: float) -> str:
        """Return a bar that says how far a film is."""
        return show_bar(say(request, "morph.busy", percent=percent(share)), share)


def name_film(recipes: list[Recipe], seconds: float, loop: bool, quick: bool) -> str:
    """Return the folder of a film."""
    text = repr((recipes, seconds, loop, quick))
    return hashlib.blake2s(text.encode(), digest_size=9).hexdigest()


def percent(share: float) -> int:
    """Return a share of 0 … 1 in percent."""
    return round(100 * min(max(share, 0.0), 1.0))


def show_bar(words: str, share: float) -> str:
    """Return a bar that says how far something is."""
    return f'<label>{words}<progress max="100" value="{percent(share)}"></progress></label>'


def show_film(path: str, words: str) -> str:
    """Return what plays a film and offers it as a file."""
    address = html.escape(f"gradio_api/file={path}")
    name = html.escape(Path(path).name)
    if path.endswith(".mp4"):
        film = f'<video src="{address}" autoplay loop muted playsinline controls></video>'
    else:
        film = f'<img src="{address}" alt="{name}">'
    return f'{film}<a href="{address}" download="{name}">{words}</a>'
