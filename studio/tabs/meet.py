"""Meet: one large face, what changes it, and the address that keeps it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from studio.recipe import DEFAULT_PSI, Edit, Recipe, RecipeError, recipe_from_png
from studio.tabs.desk import HOME, LIVE, QUIET, Desk, busy_on, dice, fault, slide
from studio.words import label, say

COLOURS = ("hair", "eyes")
FOLLOW = "(address) => window.kaogan.follow(address)"
STEP = "(address) => window.kaogan.step({by})"


class Meet:
    """The tab of the large face."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.controls: dict[str, Any] = {}
        with gr.Row(elem_id="stage"):
            with gr.Column(elem_id="easel", min_width=300):
                self._lay_out_face()
            with gr.Column(elem_id="tools", min_width=300):
                self._lay_out_tools()
        self.shown = [desk.address, self.face, self.note]
        desk.meet_outputs = [*self.shown, self.seed, self.psi, *self.controls.values()]
        desk.meet = self.all

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

    def _lay_out_tools(self) -> None:
        """Place what chooses and changes a face."""
        with gr.Row(elem_id="choose"):
            self.seed = gr.Number(label=label("seed"), elem_id="seed", min_width=120)
            self.psi = gr.Slider(
                0,
                1,
                DEFAULT_PSI,
                step=0.05,
                label=label("psi"),
                info=label("psi.info"),
                buttons=[],
                elem_id="psi",
                min_width=180,
            )
        self._lay_out_directions()
        self.link = gr.Textbox(
            label=label("meet.link"),
            info=label("meet.link.info"),
            interactive=False,
            buttons=["copy"],
            max_lines=3,
            elem_id="link",
        )
        with gr.Row(elem_id="onward"):
            self.like = gr.Button(label("meet.like"), size="sm", elem_id="like", min_width=0)
            self.mix = gr.Button(label("meet.mix"), size="sm", elem_id="to-mix", min_width=0)
            self.morph = gr.Button(label("meet.morph"), size="sm", elem_id="to-morph", min_width=0)
            self.restore = gr.UploadButton(
                label("meet.restore"),
                size="sm",
                file_types=[".png"],
                type="filepath",
                elem_id="restore",
                min_width=0,
            )

    def _lay_out_directions(self) -> None:
        """Place a slider for each direction that comes with the weights, in folding sections."""
        directions = self.desk.studio.directions
        if directions is None:
            notice = self.desk.studio.directions_notice
            gr.Markdown(notice or label("meet.no-directions"), elem_id="no-directions")
            return
        sliders = directions.sliders.values()
        kinds = {
            "features": [s for s in sliders if s.kind == "attribute"],
            "deeper": [s for s in sliders if s.kind != "attribute"],
        }
        colours = [part for part in COLOURS if part in directions.colours]
        if colours:
            with gr.Accordion(label("meet.colours"), open=True, elem_classes="section"), gr.Row():
                for part in colours:
                    self.controls[part] = gr.ColorPicker(
                        label=label(f"colour.{part}"), elem_id=f"edit-{part}", min_width=120
                    )
        for name, entries in kinds.items():
            if not entries:
                continue
            with gr.Accordion(
                label(f"meet.{name}"), open=name == "features", elem_classes="section sliders"
            ):
                for entry in entries:
                    self.controls[entry.name] = self._slider(entry)
        with gr.Row(elem_id="hold-row"):
            self.hold = gr.Checkbox(label=label("meet.hold"), elem_id="hold", min_width=160)
            self.reset = gr.Button(label("meet.reset"), size="sm", elem_id="reset", min_width=0)

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
        )

    def wire(self) -> None:
        """Connect the components with what they do."""
        desk, everything = self.desk, self.desk.meet_outputs
        edits = list(self.controls.values())
        changers = [self.seed.input, self.psi.input, *(c.input for c in edits)]
        gr.on(
            changers, self.change, [desk.address, self.seed, self.psi, *edits], self.shown, **LIVE
        )
        hold = [self.hold] if edits else []
        self.roll.click(
            self.roll_one, [desk.address, self.psi, *hold], everything, **busy_on(self.face)
        )
        if edits:
            self.reset.click(self.reset_all, desk.address, everything, **QUIET)
        for button, by in ((self.undo, -1), (self.redo, 1)):
            button.click(
                self.show, desk.address, everything, js=STEP.format(by=by), **busy_on(self.face)
            )
        self.restore.upload(self.open_png, self.restore, everything, **QUIET)
        desk.address.change(None, desk.address, self.link, js=FOLLOW, **QUIET)

    # What the events do

    def all(self, recipe: Recipe, line: str = "") -> tuple[Any, ...]:
        """Return the values of `desk.meet_outputs` for a face."""
        edits = {edit.name: edit.value for edit in recipe.edits}
        values = (edits.get(n, None if n in COLOURS else 0) for n in self.controls)
        return *self.face_of(recipe, line), recipe.seed, recipe.psi, *values

    def face_of(self, recipe: Recipe, line: str = "") -> tuple[str, str, str]:
        """Return address, picture and line of a face."""
        return HOME + self.desk.query(recipe), self.desk.album.face(recipe), line

    def change(self, request: gr.Request, address: Any, seed: Any, psi: Any, *edits: Any) -> tuple:
        """Show the face that the controls describe, or say what is wrong with a typed seed."""
        recipe = self.desk.read(address)
        try:
            if seed != recipe.seed:
                recipe = replace(recipe, seed=seed, w="")
            recipe = replace(recipe, psi=slide(psi), edits=read_edits(self.controls, edits))
        except RecipeError as error:
            return gr.skip(), gr.skip(), seed_fault(seed, error, request)
        return self.face_of(recipe)

    def roll_one(self, address: Any, psi: Any, hold: Any = False) -> tuple:
        """Show a face that nobody asked for, with the sliders as they stand where held."""
        edits = self.desk.read(address).edits if hold else ()
        return self.all(Recipe(dice(), slide(psi), edits=edits))

    def reset_all(self, address: Any) -> tuple:
        """Show the seed's own face: no edits, no mix, no step aside."""
        recipe = self.desk.read(address)
        return self.all(Recipe(recipe.seed, recipe.psi, w=recipe.w))

    def show(self, request: gr.Request, address: Any) -> tuple:
        """Show the face of an address."""
        return self.all(*self.desk.read_with_line(address, request))

    def open_png(self, request: gr.Request, upload: Any) -> tuple:
        """Show the face whose recipe a PNG carries; the file is not kept."""
        try:
            path = self.desk.take_upload(upload)
            recipe, line = recipe_from_png(path, self.desk.studio.revision)
        except (ValueError, OSError) as error:
            line = fault(request, error, "fault.png")
            return gr.skip(), gr.skip(), line, *(gr.skip(),) * (len(self.controls) + 2)
        return self.all(recipe, line)


def read_edits(controls: dict[str, Any], values: tuple[Any, ...]) -> tuple[Edit, ...]:
    """Return the edits of the controls that were touched."""
    touched = zip(controls, values, strict=True)
    return tuple(Edit(name, value) for name, value in touched if value not in (None, "", 0))


def seed_fault(seed: Any, error: Exception, request: gr.Request) -> str:
    """Say what is wrong with a typed seed."""
    if seed is None:
        return say(request, "fault.seed")
    return fault(request, error, "fault.seed")
