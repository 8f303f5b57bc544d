"""Meet: one large face, what changes it, and the address that keeps it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from studio.another import COLOURED, PARTS, another
from studio.colours import shown_colours
from studio.companions import NO_DIRECTIONS, NO_W
from studio.page.context import HOME, LIVE, QUIET, PageContext, busy_on, dice, fault, slide
from studio.page.i18n import label, say
from studio.pictures import Album
from studio.recipe import (
    DEFAULT_FINE,
    DEFAULT_PSI,
    Edit,
    Recipe,
    RecipeError,
    read_png_text,
    recipe_from_png,
)

# Answered at once: Gradio's queue adds a second request and its own pace. The drawing thread
# has a queue anyway.
AT_ONCE: dict[str, Any] = {"queue": False}
FOLLOW = "(address) => window.kaogan.follow(address)"
STEP = "(address) => window.kaogan.step({by})"
APART = "(address) => window.kaogan.apart(address)"


class MeetTab:
    """The tab of the large face."""

    def __init__(self, context: PageContext) -> None:
        self.context = context
        self.colours: dict[str, gr.ColorPicker] = {}
        self.sliders: dict[str, gr.Slider] = {}
        with gr.Row(elem_id="stage"):
            with gr.Column(elem_id="easel", min_width=300):
                self._lay_out_face()
            with gr.Column(elem_id="tools", min_width=300):
                self._lay_out_tools()
        self.shown = [context.address, self.face, self.note]
        pickers, sliders = self.colours.values(), self.sliders.values()
        context.meet_outputs = [
            *self.shown, self.seed, self.psi, self.fine, *pickers, *sliders
        ]  # fmt: skip
        context.meet = self.all

    def _lay_out_face(self) -> None:
        """Place the large face, its line, and the buttons under it."""
        self.face = gr.Image(
            label=label("meet.face"),
            format="png",
            show_label=False,
            interactive=False,
            buttons=["download", "fullscreen"],
            elem_id="face",
        )
        self.note = gr.Markdown(elem_id="note", elem_classes="line")
        with gr.Row(elem_id="bar"):
            self.undo = gr.Button(label("meet.undo"), elem_id="undo", min_width=0)
            self.roll = gr.Button(
                label("meet.roll"), variant="primary", elem_id="roll", min_width=0
            )
            self.redo = gr.Button(label("meet.redo"), elem_id="redo", min_width=0)
            self.heart = gr.Button(label("meet.keep"), elem_id="heart", min_width=0)
        self.link = gr.Textbox(
            label=label("meet.link"),
            info=label("meet.link.info"),
            interactive=False,
            buttons=["copy"],
            max_lines=3,
            elem_id="link",
        )

    def _lay_out_tools(self) -> None:
        """Place what chooses and changes a face."""
        with gr.Row(elem_id="choose"):
            self.seed = gr.Number(label=label("seed"), elem_id="seed", min_width=110)
            self.psi = variety_slider("psi", DEFAULT_PSI)
            has_w = bool(
                self.context.studio.G.num_ws
            )  # else faces have neither neighbours nor layers
            self.fine = variety_slider("fine", DEFAULT_FINE, visible=has_w)
        with gr.Row(elem_id="onward"):
            self.like = gr.Button(
                label("meet.like"), size="sm", elem_id="like", min_width=0, visible=has_w
            )
            self.mix = gr.Button(
                label("meet.mix"), size="sm", elem_id="to-mix", min_width=0, visible=has_w
            )
            self.morph = gr.Button(label("meet.morph"), size="sm", elem_id="to-morph", min_width=0)
            self.restore = gr.UploadButton(
                label("meet.restore"),
                size="sm",
                file_types=[".png"],
                type="filepath",
                elem_id="restore",
                min_width=0,
            )
        with gr.Row(elem_id="another", visible=has_w):
            self.another = {
                part: gr.Button(
                    label(f"another.{part}"), size="sm", elem_id=f"another-{part}", min_width=0
                )
                for part in PARTS
            }
        self._lay_out_directions()

    def _lay_out_directions(self) -> None:
        """Place a slider for each direction that comes with the weights, in folding sections."""
        directions = self.context.studio.directions
        if directions is None:
            self._say_why_there_are_none()
            return
        sliders = directions.sliders.values()
        named = [s for s in sliders if s.kind == "attribute"]
        shades = [s for s in named if s.name.partition("-")[0] in COLOURED and "-" in s.name]
        kinds = {
            "features": [s for s in named if s not in shades],
            "shades": shades,
            "deeper": [s for s in sliders if s.kind != "attribute"],
        }
        colours = [part for part in COLOURED if part in directions.colours]
        if colours:
            with gr.Accordion(label("meet.colours"), open=True, elem_classes="section"), gr.Row():
                for part in colours:
                    self.colours[part] = gr.ColorPicker(
                        label=label(f"colour.{part}"), elem_id=f"edit-{part}", min_width=120
                    )
        for name, entries in kinds.items():
            if not entries:
                continue
            with gr.Accordion(
                label(f"meet.{name}"), open=name == "features", elem_classes="section sliders"
            ):
                for entry in entries:
                    self.sliders[entry.name] = self._slider(entry)
        with gr.Row(elem_id="hold-row"):
            self.hold = gr.Checkbox(label=label("meet.hold"), elem_id="hold", min_width=160)
            self.reset = gr.Button(label("meet.reset"), size="sm", elem_id="reset", min_width=0)

    def _say_why_there_are_none(self) -> None:
        """Tell a visitor that there are no sliders; a fault of the file in its own words."""
        studio = self.context.studio
        with gr.Column(elem_id="no-directions"):
            gr.Markdown(label("meet.no-directions" if studio.G.num_ws else "meet.no-w"))
            if studio.directions_notice not in (NO_DIRECTIONS, NO_W):
                gr.Markdown(studio.directions_notice)

    def _slider(self, entry: Any) -> gr.Slider:
        """Place the slider of one direction."""
        title = entry.name.replace("-", " ").capitalize()
        return gr.Slider(
            entry.low,
            entry.high,
            0,
            step=entry.step,
            label=label(f"direction.{entry.name}", title),
            buttons=[],
            elem_id=f"edit-{entry.name}",
            elem_classes="even" if entry.low == -entry.high else None,  # filled from its middle
        )

    def wire(self) -> None:
        """Connect the components with what they do."""
        context, everything = self.context, self.context.meet_outputs
        controls: list[Any] = [self.seed, self.psi, self.fine, *self.sliders.values()]
        gr.on(
            [control.input for control in controls],
            self.change,
            [context.address, *controls],
            self.shown,
            **LIVE,
            **AT_ONCE,
        )
        for part, picker in self.colours.items():
            picker.input(
                self.painter(part), [context.address, picker], self.shown, **LIVE, **AT_ONCE
            )
        edits = self.colours or self.sliders
        hold = [self.hold] if edits else []
        self.roll.click(
            self.roll_one,
            [context.address, self.psi, self.fine, *hold],
            everything,
            **busy_on(self.face),
            **AT_ONCE,
        )
        if edits:
            self.reset.click(self.reset_all, context.address, everything, **QUIET, **AT_ONCE)
        for button, by in ((self.undo, -1), (self.redo, 1)):
            button.click(
                self.show,
                context.address,
                everything,
                js=STEP.format(by=by),
                **busy_on(self.face),
                **AT_ONCE,
            )
        for part, button in self.another.items():
            button.click(
                self.changer(part),
                context.address,
                everything,
                js=APART,
                **busy_on(self.face),
                **AT_ONCE,
            )
        self.restore.upload(self.open_png, self.restore, everything, **QUIET, **AT_ONCE)
        context.address.change(None, context.address, self.link, js=FOLLOW, **QUIET)

    # What the events do

    def all(self, recipe: Recipe, line: str = "", album: Album | None = None) -> tuple[Any, ...]:
        """Return values for `context.meet_outputs`; with an `album`, by other weights."""
        edits = {edit.name: edit.value for edit in recipe.edits}
        shown = shown_colours(self.context.studio, recipe) if self.colours else {}
        colours = (edits.get(part, shown.get(part)) for part in self.colours)
        values = (edits.get(name, 0) for name in self.sliders)
        controls = (recipe.seed, *recipe.truncation, *colours, *values)
        return *self.face_of(recipe, line, album), *controls

    def face_of(
        self, recipe: Recipe, line: str = "", album: Album | None = None
    ) -> tuple[str, str, str]:
        """Return address, picture and line of a face."""
        album = album or self.context.album
        return HOME + recipe.query(album.studio.revision), album.face(recipe), line

    def change(
        self, request: gr.Request, address: Any, seed: Any, psi: Any, fine: Any, *sliders: Any
    ) -> tuple[Any, ...]:
        """Show the face that the controls describe, or say what is wrong with a typed seed."""
        recipe = self.context.read(address)
        colours = tuple(edit for edit in recipe.edits if isinstance(edit.value, str))
        try:
            if seed != recipe.seed:
                recipe = replace(recipe, seed=seed, w="")
            moved = self.read_sliders(sliders)
            recipe = replace(recipe, **self.truncation(psi, fine), edits=(*colours, *moved))
        except RecipeError as error:
            return gr.skip(), gr.skip(), control_fault(seed, error, request)
        return self.face_of(recipe)

    def read_sliders(self, values: tuple[Any, ...]) -> tuple[Edit, ...]:
        """Return the edits of the sliders that were moved, inside their ranges."""
        edits = []
        for (name, slider), value in zip(self.sliders.items(), values, strict=True):
            if isinstance(value, int | float) and value:
                edits.append(Edit(name, min(max(value, slider.minimum), slider.maximum)))
        return tuple(edits)

    def painter(self, part: str) -> Callable[..., tuple[Any, ...]]:
        """Return what a part's colour picker does."""

        def paint(request: gr.Request, address: Any, colour: Any) -> tuple[Any, ...]:
            recipe = self.context.read(address)
            others = tuple(edit for edit in recipe.edits if edit.name != part)
            try:
                recipe = replace(recipe, edits=(*others, Edit(part, to_hex(colour))))
            except RecipeError as error:
                return gr.skip(), gr.skip(), control_fault(recipe.seed, error, request)
            return self.face_of(recipe)

        return paint

    def truncation(self, psi: Any, fine: Any) -> dict[str, Any]:
        """Return what the two sliders of variety say, as a recipe's fields."""
        fine = slide(fine, DEFAULT_FINE) if self.context.studio.G.num_ws else None
        return {"psi": slide(psi), "fine": fine}

    def roll_one(self, address: Any, psi: Any, fine: Any, hold: Any = False) -> tuple:
        """Show a random face, with the sliders as they stand where held."""
        edits = self.context.read(address).edits if hold else ()
        return self.all(Recipe(dice(), **self.truncation(psi, fine), edits=edits))

    def changer(self, part: str) -> Callable[..., tuple]:
        """Return what the button for another hair, expression or colouring does."""

        def change(request: gr.Request, address: Any) -> tuple:
            context = self.context
            recipe = context.read(address)
            try:
                return self.all(another(context.studio, recipe, part, dice()))
            except RecipeError as error:  # there is no room for more edits
                return self.all(recipe, control_fault(recipe.seed, error, request))

        return change

    def reset_all(self, address: Any) -> tuple:
        """Show the seed's own face: no edits, no mix, no step aside."""
        recipe = self.context.read(address)
        return self.all(replace(recipe.plain(), w=recipe.w))

    def show(self, request: gr.Request, address: Any) -> tuple:
        """Show the face of an address."""
        return self.all(*self.context.find(address, request))

    def open_png(self, request: gr.Request, upload: Any) -> tuple[Any, ...]:
        """Show the face whose recipe a PNG carries; the file is not kept."""
        context = self.context
        try:
            path = context.take_upload(upload)
            recipe, line, album = self.read_png(path)
            context.forget_upload(path)
        except (ValueError, OSError) as error:
            recipe, line, album = None, fault(request, error, "fault.png"), context.album
        if recipe is None:
            line = fault(request, ValueError(line), "fault.png")
            return gr.skip(), gr.skip(), line, *(gr.skip(),) * (len(context.meet_outputs) - 3)
        if album is not context.album:
            query = recipe.query(album.studio.revision)
            return self.all(*context.find(query, request))
        recipe, more = context.studio.usable(recipe)
        if line or more:
            line = fault(request, ValueError(f"{line} {more}".strip()), "fault.address")
        return self.all(recipe, line)

    def read_png(self, path: Path) -> tuple[Recipe | None, str, Album]:
        """Return the recipe of a PNG, a line about it, and whose faces show it."""
        try:
            rev = read_png_text(path).get("revision", "")
        except RecipeError as error:
            return None, f"{error}", self.context.album
        album = self.context.album_of(rev)
        return *recipe_from_png(path, album.studio.revision), album


def to_hex(colour: Any) -> str:
    """Return what a colour picker says, `#rrggbb` or `rgba(r, g, b, a)`, as `#rrggbb`."""
    text = colour[:60] if isinstance(colour, str) else ""
    numbers = re.findall(r"[0-9]+(?:\.[0-9]+)?", text)
    if text.startswith("rgb") and len(numbers) >= 3:
        return "#" + "".join(f"{min(round(float(n)), 255):02x}" for n in numbers[:3])
    return text


def control_fault(seed: Any, error: Exception, request: gr.Request) -> str:
    """Say what is wrong with a typed seed, or with too many edits."""
    if seed is None:
        return say(request, "fault.seed")
    key = "fault.seed" if "seed" in str(error) else "fault.edits"
    return fault(request, error, key)


def variety_slider(name: str, value: float, visible: bool = True) -> gr.Slider:
    """Return the slider, 0 to 1, of one truncation: `psi` or `fine`."""
    return gr.Slider(
        0,
        1,
        value,
        step=0.05,
        label=label(name),
        info=label(f"{name}.info"),
        buttons=[],
        elem_id=name,
        min_width=170,
        visible=visible,
    )
