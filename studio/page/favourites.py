"""Keep: favourites, which live in the visitor's browser as recipes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gradio as gr

from studio.page.context import (
    MAX_KEPT,
    MAX_NAME,
    QUIET,
    PageContext,
    busy_on,
    faces_gallery,
    fault,
)
from studio.page.i18n import label, say
from studio.pictures import SHEET_CELL, contact_sheet, save_png
from studio.recipe import RecipeError

FORMAT = "kaogan-favourites-1"
MAX_IMPORT = 2_000_000  # bytes
EXPORT = f"""(keep) => window.kaogan.save("kaogan-favourites.json",
  JSON.stringify({{format: "{FORMAT}", faces: keep || []}}, null, 1))"""
FETCH = """(file) => file &&
  setTimeout(() => document.querySelector('#sheet-file')?.click(), 100)"""


class FavouritesTab:
    """The tab of favourites."""

    def __init__(self, context: PageContext) -> None:
        self.context = context
        self.folder = Path(context.folder.name) / "contact"
        gr.HTML(label("keep.intro"), elem_classes="lead")
        self.note = gr.Markdown(elem_id="keep-note", elem_classes="line")
        self.empty = gr.HTML(label("keep.empty"), elem_id="keep-empty", elem_classes="empty")
        self.kept = faces_gallery("tab.keep", "kept", 6)
        with gr.Row(elem_id="chosen", visible=False) as self.panel:
            self.name = gr.Textbox(
                label=label("keep.name"), max_lines=1, max_length=MAX_NAME, elem_id="keep-name",
                min_width=160,
            )  # fmt: skip
            self.rename = gr.Button(label("keep.rename"), elem_id="keep-rename", min_width=80)
            self.meet = gr.Button(
                label("keep.meet"), variant="primary", elem_id="keep-meet", min_width=90
            )
            self.delete = gr.Button(label("keep.delete"), elem_id="keep-delete", min_width=80)
        with gr.Row(elem_id="keep-files"):
            self.export = gr.Button(label("keep.export"), size="sm", elem_id="export", min_width=90)
            self.load = gr.UploadButton(
                label("keep.import"), size="sm", file_types=[".json"], type="filepath",
                elem_id="import", min_width=90,
            )  # fmt: skip
            self.sheet = gr.Button(label("keep.sheet"), size="sm", elem_id="contact", min_width=90)
            self.file = gr.DownloadButton(visible="hidden", elem_id="sheet-file")
        self.shown = [self.kept, self.empty, self.panel, self.name, context.chosen]

    def wire(self, heart: gr.Button, note: Any, tab: gr.Tab) -> None:
        """Connect the components with what they do; heart and note are Meet's."""
        context, keep, chosen = self.context, self.context.keep, self.context.chosen
        heart.click(self.add, [keep, context.address], [keep, note], **QUIET)
        tab.select(self.hang, keep, self.shown, **busy_on(self.kept))
        self.kept.select(self.choose, keep, [self.panel, self.name, chosen], **QUIET)
        changed = [keep, *self.shown, self.note]
        gr.on(
            [self.rename.click, self.name.submit],
            self.name_one, [keep, chosen, self.name], changed, **QUIET,
        )  # fmt: skip
        self.delete.click(self.delete_one, [keep, chosen], changed, **QUIET)
        self.meet.click(self.take, [keep, chosen], [context.tabs, *context.meet_outputs], **QUIET)
        self.export.click(None, keep, None, js=EXPORT, **QUIET)
        self.load.upload(self.merge, [keep, self.load], changed, **QUIET)
        made = self.sheet.click(self.draw_sheet, keep, [self.file, self.note], **QUIET)
        made.success(None, self.file, None, js=FETCH, **QUIET)

    # What the events do

    def add(self, request: gr.Request, keep: Any, address: Any) -> tuple[Any, str]:
        """Keep the met face."""
        faces = self.context.favourites(keep)
        recipe, _, album = self.context.find(address, request)
        query = recipe.query(album.studio.revision)
        if any(face["face"] == query for face in faces):
            return gr.skip(), say(request, "keep.already")
        if len(faces) >= MAX_KEPT:
            return gr.skip(), say(request, "keep.full", most=MAX_KEPT)
        return [*faces, {"name": f"{recipe.seed}", "face": query}], say(request, "keep.added")

    def hang(self, keep: Any) -> tuple[Any, ...]:
        """Return the values of `shown`: all favourites, none of them chosen."""
        faces = self.context.favourites(keep)
        paths = self.context.find_small([face["face"] for face in faces])
        names = [face["name"] for face in faces]
        return (
            gr.update(value=list(zip(paths, names, strict=True)), selected_index=None),
            gr.update(visible=not faces),
            gr.update(visible=False),
            "",
            -1,
        )

    def choose(self, keep: Any, picked: gr.SelectData) -> tuple[Any, ...]:
        """Show what can be done with the clicked favourite."""
        faces = self.context.favourites(keep)
        if not 0 <= picked.index < len(faces):
            return gr.update(visible=False), "", -1
        return gr.update(visible=True), faces[picked.index]["name"], picked.index

    def name_one(self, request: gr.Request, keep: Any, chosen: Any, name: Any) -> tuple[Any, ...]:
        """Give the chosen favourite another name."""
        faces = self.context.favourites(keep)
        name = " ".join(str(name or "").split())[:MAX_NAME]
        if not is_index(chosen, faces) or not name:
            return gr.skip(), *(gr.skip(),) * len(self.shown), say(request, "keep.no-name")
        faces[int(chosen)] = {**faces[int(chosen)], "name": name}
        return faces, *self.hang(faces), ""

    def delete_one(self, request: gr.Request, keep: Any, chosen: Any) -> tuple[Any, ...]:
        """Take the chosen favourite away."""
        faces = self.context.favourites(keep)
        line = ""
        if is_index(chosen, faces):
            line = say(request, "keep.deleted", name=faces.pop(int(chosen))["name"])
        return faces, *self.hang(faces), line

    def take(self, request: gr.Request, keep: Any, chosen: Any) -> tuple[Any, ...]:
        """Meet the chosen favourite."""
        faces = self.context.favourites(keep)
        if not is_index(chosen, faces):
            return gr.skip(), *(gr.skip(),) * len(self.context.meet_outputs)
        address = faces[int(chosen)]["face"]
        return self.context.go("meet"), *self.context.meet(*self.context.find(address, request))

    def merge(self, request: gr.Request, keep: Any, upload: Any) -> tuple[Any, ...]:
        """Add the favourites of an exported file to those that are here."""
        faces = self.context.favourites(keep)
        path = self.context.take_upload(upload)
        try:
            more = read_export(path)
        except (RecipeError, OSError) as error:
            line = fault(request, error, "fault.import")
            return gr.skip(), *(gr.skip(),) * len(self.shown), line
        finally:
            self.context.forget_upload(path)
        known = {face["face"] for face in faces}
        new = [face for face in self.context.favourites(more) if face["face"] not in known]
        room = MAX_KEPT - len(faces)
        faces += new[:room]
        line = say(request, "keep.merged", count=len(new[:room]))
        return faces, *self.hang(faces), line

    def draw_sheet(self, request: gr.Request, keep: Any) -> tuple[str | None, str]:
        """Draw all favourites on one picture, or say that there are none."""
        faces = self.context.favourites(keep)
        if not faces:
            return None, say(request, "keep.nothing")
        pixels, captions = [], []
        for face in faces:
            recipe, _, album = self.context.find(face["face"], request)
            studio = album.studio
            pixels += [studio.enlarge(studio.draw_recipes([recipe]), SHEET_CELL)[0]]
            captions += [str(recipe.seed)]
        path = self.folder / os.urandom(6).hex() / "kaogan-favourites.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet = contact_sheet(pixels, captions)
        save_png(sheet, path, {"revision": self.context.studio.revision})
        return str(path), ""


def is_index(chosen: Any, faces: list[Any]) -> bool:
    """Tell whether a number from the browser names one of the favourites."""
    return isinstance(chosen, int | float) and chosen == chosen and 0 <= chosen < len(faces)


def read_export(path: Path) -> Any:
    """Read the favourites of an exported file, or raise RecipeError with a sentence."""
    if path.stat().st_size > MAX_IMPORT:
        raise RecipeError("a file of favourites has at most 2 MB")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise RecipeError("this file is no JSON; choose one that this page exported") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise RecipeError("this file holds no favourites; choose one that this page exported")
    return value.get("faces")
