"""The page: meet a face, change it, keep it by its address.

python app.py                                            # the bundled generator
python app.py --model runs/mine/generator                # a folder that train.py wrote
python app.py --model owner/name --revision <commit>     # from the Hub
python app.py --host 0.0.0.0 --port 7860

KAOGAN_MODEL and KAOGAN_REVISION stand in for --model and --revision, for a Space.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from studio.drawing import TOGETHER
from studio.faces import Studio, prepare_cpu
from studio.match import prepare
from studio.page.about import AboutTab
from studio.page.api import Api
from studio.page.context import QUIET, PageContext
from studio.page.favourites import FavouritesTab
from studio.page.i18n import I18N, LANGUAGES, label
from studio.page.link_previews import LinkPreviews
from studio.page.match import MatchTab
from studio.page.meet import MeetTab
from studio.page.mix import MixTab
from studio.page.morph import MorphTab
from studio.page.sessions import SharedConfig
from studio.page.wall import WallTab
from studio.pictures import WALL_FACES
from studio.ports import check_address, read_port

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Without these, Gradio makes a table of its last 10,000 events after each one, for nobody.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
ASSETS = Path(__file__).resolve().parent / "assets"
THEME = gr.themes.Base(
    primary_hue="rose",
    neutral_hue="stone",
    radius_size="lg",
    font=["system-ui", "sans-serif"],  # nothing is fetched from elsewhere
    font_mono=["ui-monospace", "monospace"],
)
TABS = {
    "meet": MeetTab,
    "wall": WallTab,
    "mix": MixTab,
    "morph": MorphTab,
    "match": MatchTab,
    "keep": FavouritesTab,
    "about": AboutTab,
}
NEED_W = ("mix", "match")  # tabs that a generator without w cannot fill
OPEN_TAB = "() => window.kaogan.open('{tab}')"


class Page(gr.Blocks):
    """Blocks whose public endpoints may get new arguments without breaking those who call them."""

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Fill in the usual values of the last arguments where a call leaves them out."""
        if block_fn.api_visibility == "public":
            inputs += [block.value for block in block_fn.inputs[len(inputs) :]]
        super().validate_inputs(block_fn, inputs)


def build(studio: Studio) -> tuple[gr.Blocks, PageContext]:
    """Make the page of one generator; return it and what its tabs share."""
    with Page(title="Kaogan", analytics_enabled=False, delete_cache=(1800, 7200)) as demo:
        context = PageContext(studio)
        lay_out_head(studio)
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as context.tabs:
            tabs, items = lay_out_tabs(context)
        Api(context, tabs["morph"])
        wire(demo, context, tabs, items)
    demo.default_config = SharedConfig(demo)
    return demo, context


def lay_out_head(studio: Studio) -> None:
    """Place the name, the languages and, where there is one, the notice."""
    with gr.Row(elem_id="head"):
        gr.HTML(label("intro"), elem_id="intro")
        buttons = "".join(
            f'<button type="button" data-language="{tag}" lang="{tag}">{name}</button>'
            for tag, name in LANGUAGES.items()
        )
        gr.HTML(f'<nav aria-label="Language · 语言 · 言語">{buttons}</nav>', elem_id="languages")
    if studio.notice:
        gr.Markdown(label("notice.bundled"), elem_id="notice")


def lay_out_tabs(context: PageContext) -> tuple[dict[str, Any], dict[str, gr.Tab]]:
    """Place all tabs; return what is on them and their buttons, both by name."""
    tabs, items = {}, {}
    for name, kind in TABS.items():
        if name in NEED_W and not context.studio.G.num_ws:
            continue
        with gr.Tab(label(f"tab.{name}"), id=name, elem_id=f"tab-{name}") as items[name]:
            tabs[name] = kind(context)
    context.names = tuple(tabs)
    return tabs, items


def wire(
    demo: gr.Blocks, context: PageContext, tabs: dict[str, Any], items: dict[str, gr.Tab]
) -> None:
    """Connect the tabs with each other and the page with its address."""
    meet = tabs["meet"]
    for name, item in items.items():
        item.select(None, None, None, js=OPEN_TAB.format(tab=name), **QUIET)
    meet.wire()
    tabs["wall"].wire(meet.like, items["wall"])
    tabs["morph"].wire(meet.morph, items["morph"])
    if context.studio.G.num_ws:
        tabs["mix"].wire(meet.mix, items["mix"])
        tabs["match"].wire()
    tabs["keep"].wire(meet.heart, meet.note, items["keep"])
    demo.load(context.open, None, [context.tabs, *context.places, *context.meet_outputs], **QUIET)


def main() -> int:
    """Open the studio and serve the page; return an exit status."""
    parser = argparse.ArgumentParser(description="Serve the Kaogan page.")
    parser.add_argument("--model", metavar="PATH_OR_REPO", default=os.environ.get("KAOGAN_MODEL"))
    parser.add_argument("--revision", metavar="SHA", default=os.environ.get("KAOGAN_REVISION"))
    parser.add_argument(
        "--enlarger",
        metavar="none|DIR",
        help="what makes faces larger; none: Lanczos' filter (default: that of the weights)",
    )
    parser.add_argument("--host", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=read_port, help="default: the first free one from 7860")
    args = parser.parse_args()
    prepare_cpu()
    try:
        host = check_address(args.host, args.port)
        studio = Studio.open(args.model or None, args.revision or None, enlarger=args.enlarger)
        studio.draw(range(WALL_FACES))  # the first forward is slow; no visitor should wait for it
        if studio.G.num_ws:  # what a match must know; while the first visitors look at faces
            threading.Thread(target=prepare, args=(studio,), daemon=True).start()
        launch(*build(studio), host, args.port)
    except (ValueError, OSError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    return 0


def launch(demo: gr.Blocks, context: PageContext, host: str | None, port: int | None) -> None:
    """Serve the page until it is stopped; to programs by MCP too, where gradio[mcp] is there."""
    # Gradio tells everyone in the queue, at each step of it, how long it still is; once in five
    # seconds is enough. 16 at once fill a shared forward.
    queue = {"default_concurrency_limit": TOGETHER, "max_size": 200, "status_update_rate": 5}
    demo.queue(**queue).launch(
        server_name=host,
        server_port=port,
        theme=THEME,
        css_paths=ASSETS / "style.css",
        js=(ASSETS / "page.js").read_text(encoding="utf-8"),
        i18n=I18N,
        app_kwargs={"middleware": [Middleware(LinkPreviews, draw=context.preview)]},
        mcp_server=importlib.util.find_spec("mcp") is not None,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        max_file_size="10mb",
        # Gradio keeps half a megabyte for each of the last 10,000 sessions; the browser has it all.
        state_session_capacity=64,
    )


if __name__ == "__main__":
    sys.exit(main())
