"""Mix: two faces crossed layer by layer, on a sheet of three by three."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from studio.page.context import (
    LIVE,
    QUIET,
    PageContext,
    busy_on,
    dice,
    faces_gallery,
    fault,
    read_place,
)
from studio.page.i18n import label, say
from studio.recipe import Between, Mix, Recipe, RecipeError, whole_seed

# What each place of the sheet takes from B; places opposite each other complete each other.
SHEET: tuple[tuple[str, ...] | None, ...] = (
    (), ("fine",), ("middle",),
    ("coarse",), None, ("middle", "fine"),
    ("coarse", "fine"), ("coarse", "middle"), ("coarse", "middle", "fine"),
)  # fmt: skip
HALF_WAY = None  # the place in the middle: between the two in z
SETTLE = "(rest) => window.kaogan.settle('mix', rest)"


def cross(a: Recipe, b: int) -> list[Recipe]:
    """Return the nine faces of the sheet of a face and a seed."""
    sheet = []
    for groups in SHEET:
        if groups is HALF_WAY:
            sheet.append(replace(a, between=Between(b, 0.5)))
        elif len(groups) == 3:  # all of B's layers are B; only A's edits stay
            sheet.append(replace(a.plain(b), edits=a.edits))
        else:
            taken = tuple(Mix(b, group) for group in groups)
            sheet.append(replace(a, mix=(*a.mix, *taken)))
    return sheet


class MixTab:
    """The tab of crossings."""

    def __init__(self, context: PageContext) -> None:
        self.context = context
        gr.HTML(label("mix.intro"), elem_classes="lead")
        with gr.Row(elem_id="mix-stage"):
            with gr.Column(elem_id="parents", min_width=280):
                with gr.Row(elem_id="pair"):
                    self.slots = [self._lay_out_slot("a"), self._lay_out_slot("b")]
                with gr.Row(elem_id="mix-bar"):
                    self.swap = gr.Button(
                        label("mix.swap"), size="sm", elem_id="mix-swap", min_width=80
                    )
                    self.both = gr.Button(
                        label("mix.roll"), variant="primary", elem_id="mix-roll", min_width=120
                    )
                self.note = gr.Markdown(elem_id="mix-note", elem_classes="line")
            with gr.Column(elem_id="crossings", min_width=300):
                self.sheet = faces_gallery("tab.mix", "sheet", 3)
        pictures = [slot["face"] for slot in self.slots]
        seeds = [slot["seed"] for slot in self.slots]
        self.shown = [context.mix_place, self.sheet, *pictures, *seeds, self.note]

    def _lay_out_slot(self, name: str) -> dict[str, Any]:
        """Place one of the two parents."""
        slot: dict[str, Any] = {}
        with gr.Column(elem_id=f"slot-{name}", elem_classes="slot", min_width=120):
            slot["face"] = gr.Image(
                label=label(f"mix.{name}"),
                format="png",
                show_label=False,
                interactive=False,
                buttons=[],
                elem_id=f"face-{name}",
                alt_text=name.upper(),
                elem_classes="parent",
            )
            slot["seed"] = gr.Number(label=label(f"mix.{name}"), elem_id=f"seed-{name}")
            slot["met"] = gr.Button(
                label("mix.met"), size="sm", elem_id=f"met-{name}", min_width=60
            )
            slot["kept"] = gr.Dropdown(
                [], label=label("mix.kept"), visible=False, elem_id=f"kept-{name}", filterable=False
            )
        return slot

    def wire(self, to_mix: gr.Button, tab: gr.Tab) -> None:
        """Connect the components with what they do; `to_mix` is Meet's button."""
        context, place, shown = self.context, self.context.mix_place, self.shown
        busy = busy_on(self.sheet)
        dropdowns = [slot["kept"] for slot in self.slots]
        tab.select(self.enter, [place, context.address], shown, **busy)
        tab.select(self.offer, context.keep, dropdowns, **QUIET)
        seeds = [slot["seed"] for slot in self.slots]
        gr.on([s.input for s in seeds], self.type_seeds, [place, *seeds], shown, **LIVE)
        for take, slot in zip((self.put_a, self.put_b), self.slots, strict=True):
            slot["met"].click(take, [place, context.address], shown, **busy)
            slot["kept"].input(take, [place, slot["kept"]], shown, **busy)
        self.swap.click(self.swap_both, place, shown, **busy)
        self.both.click(self.roll_both, None, shown, **busy)
        to_mix.click(self.start, [place, context.address], [context.tabs, *shown], **busy)
        self.sheet.select(self.take, place, [context.tabs, *context.meet_outputs], **QUIET)
        place.change(None, place, None, js=SETTLE, **QUIET)

    # What the events do

    def parse(self, text: Any) -> tuple[Recipe, int]:
        """Read the two faces of an address; what cannot be used is any face."""
        values = read_place(text)
        return self.context.read_short(values.get("a", "")), self.context.read_short(
            values.get("b", "")
        ).seed

    def lay(self, request: gr.Request | None, a: Recipe, b: int, line: str = "") -> tuple[Any, ...]:
        """Return the values of `shown` for two faces."""
        recipes = cross(a, b)
        paths = self.context.album.faces(recipes)
        captions = [caption(request, groups) for groups in SHEET]
        pair = self.context.album.faces([a, recipes[-1]])
        sheet = list(zip(paths, captions, strict=True))
        place = urlencode({"a": self.context.write_short(a), "b": b}, safe="?")
        return place, sheet, *pair, a.seed, b, line

    def enter(self, request: gr.Request, text: Any, address: Any) -> tuple[Any, ...]:
        """Fill the sheet when it is first seen: with the met face and any other."""
        if text and "#seen" in text:
            return (gr.skip(),) * len(self.shown)
        if not text:
            return self.lay(request, self.context.read(address), dice())
        return self.lay(request, *self.parse(text))

    def offer(self, keep: Any) -> list[Any]:
        """Offer the favourites to both choices."""
        return [self.context.offer(keep)] * 2

    def type_seeds(self, request: gr.Request, text: Any, a: Any, b: Any) -> tuple[Any, ...]:
        """Lay the sheet of typed seeds, or say what is wrong with one."""
        old, _ = self.parse(text)
        try:
            first = old if a == old.seed else old.plain(whole_seed(a))
            shown = list(self.lay(request, first, Recipe(b).seed))
        except RecipeError as error:
            return *(gr.skip(),) * (len(self.shown) - 1), fault(request, error, "fault.seed")
        shown[4:6] = [gr.skip(), gr.skip()]
        return tuple(shown)

    def put_a(self, request: gr.Request, text: Any, address: Any) -> tuple[Any, ...]:
        """Make the met face, or a favourite, the first of the two."""
        return self.lay(request, self.context.read(address), self.parse(text)[1])

    def put_b(self, request: gr.Request, text: Any, address: Any) -> tuple[Any, ...]:
        """Make the seed of the met face, or of a favourite, the second of the two."""
        face = self.context.read(address)
        plain = face == face.plain()
        line = "" if plain else say(request, "mix.only-seed")
        return self.lay(request, self.parse(text)[0], face.seed, line)

    def swap_both(self, request: gr.Request, text: Any) -> tuple[Any, ...]:
        """Let the two change places."""
        a, b = self.parse(text)
        return self.lay(request, a.plain(b), a.seed)

    def roll_both(self, request: gr.Request) -> tuple[Any, ...]:
        """Cross two random faces."""
        return self.lay(request, Recipe(dice()), dice())

    def start(self, request: gr.Request, text: Any, address: Any) -> tuple[Any, ...]:
        """Turn to this tab with the met face as A."""
        b = self.parse(text)[1] if text else dice()
        return self.context.go("mix"), *self.lay(request, self.context.read(address), b)

    def take(self, text: Any, picked: gr.SelectData) -> tuple[Any, ...]:
        """Meet the face that was clicked."""
        recipe = cross(*self.parse(text))[picked.index]
        return self.context.go("meet"), *self.context.meet(recipe)


def caption(request: gr.Request | None, groups: tuple[str, ...] | None) -> str:
    """Say what a place of the sheet takes from B."""
    if groups is HALF_WAY:
        return say(request, "mix.half")
    if len(groups) in (0, 3):
        return "A" if not groups else "B"
    return "B " + " ".join(say(request, f"mix.{group}") for group in groups)
