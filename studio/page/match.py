"""Match: a visitor's picture → the nearest face, side by side. Nothing of the picture is kept."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import gradio as gr
from gradio.components.imageslider import SliderData
from gradio.data_classes import ImageData
from PIL import Image, ImageOps

from studio.match import SECONDS, match, open_upload
from studio.morph import Stopped
from studio.page.context import QUIET, PageContext, fault
from studio.page.i18n import label, say
from studio.page.morph import percent, show_bar
from studio.pictures import PAGE_SIZE, data_url, to_image
from studio.recipe import Recipe

SLOW_SECONDS = 30.0  # without an encoder
POLL_SECONDS = 0.2


class MatchTab:
    """The tab of matching."""

    def __init__(self, context: PageContext) -> None:
        self.context = context
        gr.HTML(label("match.intro"), elem_classes="lead")
        with gr.Row(elem_id="match-stage"):
            with gr.Column(elem_id="match-left", min_width=280):
                self.upload = gr.Image(
                    label=label("match.upload"),
                    type="filepath",
                    sources=["upload", "clipboard"],
                    buttons=[],
                    height=320,
                    elem_id="upload",
                )
                with gr.Row(elem_id="match-bar"):
                    self.go = gr.Button(
                        label("match.go"), variant="primary", elem_id="match-go", min_width=140
                    )
                    self.stop = gr.Button(label("match.stop"), elem_id="match-stop", min_width=80)
                self.bar = gr.HTML(elem_id="match-progress")
                self.note = gr.Markdown(elem_id="match-note", elem_classes="line")
            with gr.Column(elem_id="match-right", min_width=280):
                self.empty = gr.HTML(
                    label("match.empty"), elem_id="match-empty", elem_classes="empty"
                )
                self.pair = gr.ImageSlider(
                    label=label("match.pair"), show_label=False, interactive=False,
                    buttons=["fullscreen"], elem_id="pair-slider", visible=False,
                )  # fmt: skip
                # Both pictures travel inside the answer, so that no file of them is written.
                self.pair.postprocess = as_data  # type: ignore[method-assign, assignment]
                self.meet = gr.Button(label("match.meet"), elem_id="match-meet", visible=False)
        self.shown = [
            context.match_found, self.bar, self.empty, self.pair, self.meet, self.note, self.upload
        ]  # fmt: skip

    def wire(self) -> None:
        """Connect the components with what they do."""
        context = self.context
        self.go.click(self.find, self.upload, self.shown, **QUIET, concurrency_limit=1)
        self.stop.click(context.stop, None, None, **QUIET)
        self.meet.click(
            self.take, context.match_found, [context.tabs, *context.meet_outputs], **QUIET
        )

    def find(self, request: gr.Request, upload: Any) -> Iterator[tuple[Any, ...]]:
        """Look for the nearest face, show what is found so far, forget the picture."""
        skip = gr.skip()
        if not upload:
            yield skip, "", skip, skip, skip, say(request, "match.none"), skip
            return
        path = self.context.take_upload(upload)
        try:
            picture = open_upload(path)
        except (ValueError, OSError) as error:
            yield skip, "", skip, skip, skip, fault(request, error, "fault.upload"), None
            return
        finally:
            self.context.forget_upload(path)
        yield from self.search(request, picture)

    def search(self, request: gr.Request, picture: Image.Image) -> Iterator[tuple[Any, ...]]:
        """Yield what to show while a face is looked for, after the first answer, and at the end."""
        skip, show, hide = gr.skip(), gr.update(visible=True), gr.update(visible=False)
        square = fit_square(picture)
        studio = self.context.studio
        reached = [0.0]
        first: queue.SimpleQueue[Recipe] = queue.SimpleQueue()
        slow = "" if studio.encoder else say(request, "match.slow")
        with self.context.stoppable(request) as stop, ThreadPoolExecutor(1) as one:
            looking = one.submit(
                match, studio, picture,
                seconds=SECONDS if studio.encoder else SLOW_SECONDS,
                progress=partial(reached.__setitem__, 0), found=first.put, stop=stop,
            )  # fmt: skip
            yield skip, searching_bar(request, 0.0), show, hide, hide, slow, skip
            while not looking.done():
                with suppress(queue.Empty):
                    recipe = first.get(timeout=POLL_SECONDS)
                    yield self.found(request, square, recipe, "match.first")
                yield skip, searching_bar(request, reached[0]), *[skip] * 5
        try:
            yield self.found(request, square, looking.result(), "match.done")
        except Stopped:
            yield skip, "", show, hide, hide, say(request, "morph.stopped"), None
        except (ValueError, OSError) as error:
            yield skip, "", skip, skip, skip, fault(request, error, "fault.match"), None

    def found(
        self, request: gr.Request, square: Image.Image, recipe: Recipe, line: str
    ) -> tuple[Any, ...]:
        """Return the values of `shown` for a found face, and a line in words."""
        studio = self.context.studio
        face = to_image(studio.enlarge(studio.draw_recipes([recipe]), PAGE_SIZE)[0])
        return (
            recipe.query(),
            "" if line == "match.done" else gr.skip(),
            gr.update(visible=False),
            self.side_by_side(square, face),
            gr.update(visible=True),
            say(request, line),
            None if line == "match.done" else gr.skip(),
        )

    @staticmethod
    def side_by_side(square: Image.Image, face: Image.Image) -> Any:
        """Return the slider with the picture at its left and a face at its right."""
        large = face.convert("RGB").resize((PAGE_SIZE, PAGE_SIZE), Image.Resampling.LANCZOS)
        return gr.update(value=(square, large), visible=True)

    def take(self, found: Any) -> tuple[Any, ...]:
        """Meet the found face."""
        return self.context.go("meet"), *self.context.meet(self.context.read(found))


def as_data(value: tuple[Image.Image, Image.Image] | None) -> SliderData | None:
    """Turn two pictures into data: addresses, in place of `gr.ImageSlider.postprocess`."""
    if value is None:
        return None
    left, right = (ImageData(url=data_url(image)) for image in value)
    return SliderData(root=(left, right))


def searching_bar(request: gr.Request, share: float) -> str:
    """Return a bar that says how far a search is."""
    return show_bar(say(request, "match.busy", percent=percent(share)), share)


def fit_square(picture: Image.Image) -> Image.Image:
    """Return the middle square of a picture at the page's size."""
    return ImageOps.fit(picture.convert("RGB"), (PAGE_SIZE, PAGE_SIZE), Image.Resampling.LANCZOS)
