"""The page: draw a face, keep it by its address.

python app.py                                            # the bundled generator
python app.py --model runs/mine/generator                # a folder that train.py wrote
python app.py --model owner/name --revision <commit>     # from the Hub
python app.py --host 0.0.0.0 --port 7860

KAOGAN_MODEL and KAOGAN_REVISION stand in for --model and --revision, for a Space.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gradio as gr

from studio.faces import Studio, prepare_cpu
from studio.page import Page
from studio.pictures import WALL_FACES
from studio.recipe import DEFAULT_PSI

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
ASSETS = Path(__file__).resolve().parent / "assets"
THEME = gr.themes.Base(
    primary_hue="rose",
    neutral_hue="stone",
    radius_size="lg",
    font=["system-ui", "sans-serif"],  # nothing is fetched from elsewhere
    font_mono=["ui-monospace", "monospace"],
)
# On a phone the face is far above the wall.
SHOW_FACE = "() => document.getElementById('face').scrollIntoView({block: 'nearest'})"
INTRO = """<h1><span lang="ja">顔</span> Kaogan</h1>
<p>Every number is a face that nobody drew. Roll until one looks back, then keep its address.</p>"""
SHOW_ADDRESS = (ASSETS / "address.js").read_text(encoding="utf-8")


def build(studio: Studio) -> gr.Blocks:
    """Make the page of one generator."""
    with gr.Blocks(title="Kaogan", analytics_enabled=False, delete_cache=(1800, 7200)) as demo:
        gr.HTML(INTRO, elem_id="intro")
        if studio.notice:
            gr.Markdown(studio.notice, elem_id="notice")
        with gr.Row(elem_id="stage"):
            with gr.Column(elem_id="easel", min_width=300):
                ui = lay_out_face()
            with gr.Column(elem_id="hall", min_width=300):
                lay_out_wall(ui)
        gr.Markdown(studio.about(), elem_id="about")
        wire(demo, ui, Page(studio, ui.face.GRADIO_CACHE))
    return demo


def lay_out_face() -> SimpleNamespace:
    """Place the large face and what chooses it."""
    ui = SimpleNamespace()
    ui.face = gr.Image(
        label="Face",
        format="png",
        show_label=False,
        interactive=False,
        buttons=["download", "fullscreen"],
        alt_text="The face of this seed",
        elem_id="face",
    )
    ui.note = gr.Markdown(elem_id="note")
    with gr.Row(elem_id="choose"):
        ui.seed = gr.Number(label="Seed", elem_id="seed", min_width=140)
        ui.roll = gr.Button("Roll a new face", variant="primary", elem_id="roll", min_width=140)
    ui.psi = gr.Slider(
        0,
        1,
        DEFAULT_PSI,
        step=0.05,
        label="Variety",
        info="Left: nearer to the average face, cleaner. Right: bolder.",
        buttons=[],
        elem_id="psi",
    )
    ui.link = gr.Textbox(
        label="Address of this face", interactive=False, buttons=["copy"], elem_id="link"
    )
    return ui


def lay_out_wall(ui: SimpleNamespace) -> None:
    """Place the wall of faces and what turns it."""
    ui.wall = gr.Gallery(
        label="Wall",
        columns=4,
        format="png",
        show_label=False,
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="wall",
    )
    ui.first = gr.Number(0, visible=False, label="First seed")
    with gr.Row(elem_id="turn"):
        ui.back = gr.Button("← Back", min_width=80)
        ui.more = gr.Button("More faces →", min_width=140)


def wire(demo: gr.Blocks, ui: SimpleNamespace, page: Page) -> None:
    """Connect components with what they do; two events are open as an API."""
    face = [ui.seed, ui.face, ui.link, ui.note]
    quiet = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
    live = {**quiet, "trigger_mode": "always_last"}
    for event in (
        demo.load(page.open, None, [ui.psi, ui.first, ui.wall, *face], **quiet),
        ui.seed.input(page.show, [ui.seed, ui.psi], face, **live),
        ui.psi.input(page.show, [ui.seed, ui.psi], face, **live),
        ui.roll.click(page.roll, ui.psi, face, **quiet),
        ui.wall.select(page.take, ui.psi, face, **quiet),
    ):
        event.then(None, ui.link, ui.link, js=SHOW_ADDRESS, **quiet)
    ui.wall.select(None, js=SHOW_FACE, **quiet)
    ui.psi.input(page.hang, [ui.first, ui.psi], ui.wall, **live)
    for button, pages in ((ui.back, -1), (ui.more, 1)):
        turn = partial(page.turn, pages=pages)
        button.click(turn, [ui.first, ui.psi], [ui.first, ui.wall], **quiet)
    seed, psi = gr.Number(visible=False, label="seed"), gr.Number(0.7, visible=False, label="psi")
    gr.on([], page.generate, [seed, psi], ui.face, api_name="generate")
    gr.on([], page.wall, [seed, psi], ui.wall, api_name="wall")


def main() -> int:
    """Open the studio and serve the page; return an exit status."""
    parser = argparse.ArgumentParser(description="Serve the Kaogan page.")
    parser.add_argument("--model", metavar="PATH_OR_REPO", default=os.environ.get("KAOGAN_MODEL"))
    parser.add_argument("--revision", metavar="SHA", default=os.environ.get("KAOGAN_REVISION"))
    parser.add_argument("--host", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    args = parser.parse_args()
    prepare_cpu()
    try:
        studio = Studio.open(args.model or None, args.revision or None)
        studio.draw(range(WALL_FACES))  # the first forward is slow; no visitor should wait for it
        launch(build(studio), args.host, args.port)
    except (ValueError, OSError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    return 0


def launch(demo: gr.Blocks, host: str | None, port: int | None) -> None:
    """Serve the page until it is stopped."""
    demo.queue(default_concurrency_limit=4, max_size=200).launch(
        server_name=host,
        server_port=port,
        theme=THEME,
        css_paths=ASSETS / "style.css",
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        max_file_size="5mb",
    )


if __name__ == "__main__":
    sys.exit(main())
