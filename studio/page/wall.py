"""Wall: 24 faces at a time, of seeds in a row or of small steps around one face."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from model import SEED_MAX
from studio.best import best_of
from studio.page.context import (
    LIVE,
    QUIET,
    PageContext,
    busy_on,
    dice,
    faces_gallery,
    read_place,
    slide,
)
from studio.page.i18n import label, say
from studio.pictures import WALL_FACES
from studio.recipe import DEFAULT_FINE, DEFAULT_PSI, Recipe, Vary, number_text

PART = 6  # faces that are shown as soon as they are drawn
BEST_OF = 4  # candidates for each place; the discriminator keeps one
RADIUS = 0.35  # of a step around a face, in w
SETTLE = "(rest) => window.kaogan.settle('wall', rest)"


@dataclass(frozen=True)
class Place:
    """Where on the wall a visitor stands, as it stands in the address."""

    first: int = 0  # seed of the first face; with `like`, of the first step
    psi: float = DEFAULT_PSI
    fine: float = DEFAULT_FINE
    like: str = ""  # query of the face whose variations hang here
    radius: float = RADIUS
    best: bool = False

    @property
    def seeds_per_face(self) -> int:
        return BEST_OF if self.best else 1

    @property
    def page(self) -> int:
        """Seeds that one page of the wall takes."""
        return WALL_FACES * self.seeds_per_face

    def text(self) -> str:
        """Write the place for the address; what is as usual is left out."""
        usual = Place()
        values: dict[str, Any] = {"first": self.first}
        if (self.psi, self.fine) != (usual.psi, usual.fine):
            values |= {"wpsi": number_text(self.psi), "wfine": number_text(self.fine)}
        if self.like:
            values |= {"like": self.like, "radius": f"{self.radius:g}"}
        if self.best:
            values["best"] = BEST_OF
        return urlencode(values)

    @classmethod
    def parse(cls, text: Any) -> Place:
        """Read a place from an address; what cannot be used is as usual."""
        values = read_place(text)
        first = values.get("first", "")
        psi = to_float(values.get("wpsi"), None)
        fine = to_float(values.get("wfine"), psi)  # a wall of before had psi alone
        return cls(
            first=min(int(first), SEED_MAX) if first.isdecimal() and len(first) < 11 else 0,
            psi=slide(psi),
            fine=slide(fine, DEFAULT_FINE),
            like=values.get("like", ""),
            radius=min(max(to_float(values.get("radius"), RADIUS), 0.05), 1.0),
            best=values.get("best") == str(BEST_OF),
        )


def to_float(text: Any, otherwise: Any) -> Any:
    """Return the number that a text says, else `otherwise`."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        return otherwise
    return number if number == number else otherwise


class WallTab:
    """The tab of many faces."""

    def __init__(self, context: PageContext) -> None:
        self.context = context
        with gr.Row(elem_id="wall-tools", elem_classes="tools"):
            self.first = gr.Number(
                0, label=label("wall.first"), elem_id="wall-first", min_width=100
            )
            self.psi = gr.Slider(
                0, 1, DEFAULT_PSI, step=0.05, label=label("psi"), buttons=[], min_width=140,
                elem_id="wall-psi",
            )  # fmt: skip
            self.fine = gr.Slider(
                0, 1, DEFAULT_FINE, step=0.05, label=label("fine"), buttons=[], min_width=140,
                elem_id="wall-fine", visible=bool(context.studio.G.num_ws),
            )  # fmt: skip
            self.radius = gr.Slider(
                0.05, 1, RADIUS, step=0.05, label=label("wall.radius"), buttons=[], min_width=160,
                elem_id="wall-radius", visible=False,
            )  # fmt: skip
            self.best = gr.Checkbox(
                label=label("wall.best"),
                info=label("wall.best.info"),
                elem_id="wall-best",
                min_width=140,
                visible=context.studio.D is not None,
            )
            self.jump = gr.Button(label("wall.jump"), elem_id="wall-jump", size="sm", min_width=80)
        with gr.Row(elem_id="wall-like", visible=False) as self.like_row:
            self.like_note = gr.Markdown(elem_id="wall-like-note")
            self.leave = gr.Button(
                label("wall.leave"), size="sm", elem_id="wall-leave", min_width=80
            )
        self.note = gr.Markdown(elem_id="wall-note", elem_classes="line")
        self.wall = faces_gallery("tab.wall", "wall", 6)
        with gr.Row(elem_id="turn"):
            self.back = gr.Button(label("wall.back"), elem_id="wall-back", min_width=80)
            self.more = gr.Button(
                label("wall.more"), variant="primary", elem_id="wall-more", min_width=140
            )
        self.shown = [
            context.wall_place, context.wall_faces, self.wall, self.first, self.psi, self.fine,
            self.radius, self.best, self.like_row, self.like_note,
        ]  # fmt: skip

    def wire(self, like: gr.Button, tab: gr.Tab) -> None:
        """Connect the components with what they do; `like` is Meet's button."""
        context = self.context
        place, busy = context.wall_place, busy_on(self.wall)
        tab.select(self.enter, [place, context.wall_faces], self.shown, **busy)
        knobs: list[Any] = [self.first, self.psi, self.fine, self.radius, self.best]
        gr.on(
            [k.input for k in knobs], self.change, [place, *knobs], [*self.shown, self.note], **LIVE
        )
        self.back.click(self.turn_back, place, self.shown, **busy)
        self.more.click(self.turn_on, place, self.shown, **busy)
        self.jump.click(self.jump_far, place, self.shown, **busy)
        self.leave.click(self.leave_like, place, self.shown, **busy)
        like.click(self.more_like, [context.address, place], [context.tabs, *self.shown], **QUIET)
        self.wall.select(
            self.take, context.wall_faces, [context.tabs, *context.meet_outputs], **QUIET
        )
        place.change(None, place, None, js=SETTLE, **QUIET)

    # What the events do

    def hang(self, request: gr.Request | None, place: Place) -> Iterator[tuple[Any, ...]]:
        """Yield the values of `shown` for a place, as its faces are drawn."""
        album = self.context.album
        seeds = self.seeds(place)
        recipes: list[Recipe] = []
        for start in range(0, max(1, len(seeds)), PART * place.seeds_per_face):
            part = seeds[start : start + PART * place.seeds_per_face]
            recipes += self.recipes(place, part)
            missing = -(-len(seeds) // place.seeds_per_face) - len(recipes)
            paths = [*album.faces(recipes), *[album.blank()] * missing]
            captions = [*self.captions(place, recipes), *[""] * missing]
            yield self.values(request, place, recipes, list(zip(paths, captions, strict=True)))

    def values(
        self,
        request: gr.Request | None,
        place: Place,
        recipes: list[Recipe],
        pictures: list[tuple[str, str]],
    ) -> tuple[Any, ...]:
        """Return the values of `shown` for what is drawn of a place."""
        has_w = bool(self.context.studio.G.num_ws)
        like = self.context.read(place.like).seed if place.like else 0
        return (
            place.text(),
            [self.context.query(recipe) for recipe in recipes],
            pictures,
            place.first,
            gr.update(value=place.psi, visible=not place.like),
            gr.update(value=place.fine, visible=has_w and not place.like),
            gr.update(value=place.radius, visible=bool(place.like)),
            place.best,
            gr.update(visible=bool(place.like)),
            say(request, "wall.like", seed=like) if place.like else "",
        )

    @staticmethod
    def seeds(place: Place) -> range:
        """Return the seeds of one page of the wall; the last page may be short."""
        return range(place.first, min(place.first + place.page, SEED_MAX + 1))

    def recipes(self, place: Place, seeds: range) -> list[Recipe]:
        """Return the faces of some seeds of a place, of each four the best where it asks for it."""
        if place.like:
            face = self.context.read(place.like)
            every = [replace(face, vary=Vary(seed, place.radius)) for seed in seeds]
        else:
            fine = place.fine if self.context.studio.G.num_ws else None
            every = [Recipe(seed, place.psi, fine) for seed in seeds]
        if place.best and self.context.studio.D is not None:
            return best_of(self.context.studio, every, BEST_OF)
        return every

    @staticmethod
    def captions(place: Place, recipes: list[Recipe]) -> list[str]:
        """Return the seed of each face, or the number of each step."""
        return [str(r.vary.seed if place.like and r.vary else r.seed) for r in recipes]

    def enter(self, request: gr.Request, text: Any, faces: Any) -> Iterator[tuple[Any, ...]]:
        """Fill the wall when it is first seen."""
        if faces:
            yield (gr.skip(),) * len(self.shown)
        else:
            yield from self.hang(request, Place.parse(text))

    def change(
        self,
        request: gr.Request,
        text: Any,
        first: Any,
        psi: Any,
        fine: Any,
        radius: Any,
        best: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Hang what the controls describe, or say what is wrong with a typed seed."""
        old = Place.parse(text)
        if not isinstance(first, int | float) or not 0 <= first <= SEED_MAX or first != int(first):
            yield *(gr.skip(),) * len(self.shown), say(request, "fault.seed")
            return
        radius = min(max(to_float(radius, RADIUS), 0.05), 1.0)
        psis: dict[str, Any] = {"psi": slide(psi), "fine": slide(fine, DEFAULT_FINE)}
        place = replace(old, first=int(first), **psis, radius=radius, best=bool(best))
        for values in self.hang(request, place):
            shown = list(values)
            shown[3:8] = [gr.skip()] * 5  # the controls stay under the visitor's hand
            yield *shown, ""

    def turn_back(self, request: gr.Request, text: Any) -> Iterator[tuple[Any, ...]]:
        """Turn to the page before."""
        yield from self.turn(request, text, -1)

    def turn_on(self, request: gr.Request, text: Any) -> Iterator[tuple[Any, ...]]:
        """Turn to the next page."""
        yield from self.turn(request, text, 1)

    def turn(self, request: gr.Request, text: Any, pages: int) -> Iterator[tuple[Any, ...]]:
        """Turn the wall by some pages; after the last comes the first."""
        place = Place.parse(text)
        count = -(-(SEED_MAX + 1) // place.page)
        offset = place.first % place.page
        first = (place.first // place.page + pages) % count * place.page + offset
        yield from self.hang(request, replace(place, first=min(first, SEED_MAX)))

    def jump_far(self, request: gr.Request, text: Any) -> Iterator[tuple[Any, ...]]:
        """Hang a random page."""
        place = Place.parse(text)
        yield from self.hang(request, replace(place, first=dice() // place.page * place.page))

    def more_like(self, request: gr.Request, address: Any, text: Any) -> Iterator[tuple[Any, ...]]:
        """Turn to the wall and hang small steps around the met face there."""
        like = self.context.read(address).query()
        place = replace(Place.parse(text), first=0, like=like, best=False)
        turn = self.context.go("wall")
        for values in self.hang(request, place):
            yield turn, *values
            turn = gr.skip()  # whoever has chosen a face meanwhile stays with it

    def leave_like(self, request: gr.Request, text: Any) -> Iterator[tuple[Any, ...]]:
        """Hang seeds again."""
        yield from self.hang(request, replace(Place.parse(text), first=0, like=""))

    def take(self, faces: Any, picked: gr.SelectData) -> tuple[Any, ...]:
        """Meet the face that was clicked."""
        if not 0 <= picked.index < len(faces):  # a place that is not drawn yet
            return (gr.skip(),) * (1 + len(self.context.meet_outputs))
        return self.context.go("meet"), *self.context.meet(self.context.read(faces[picked.index]))
