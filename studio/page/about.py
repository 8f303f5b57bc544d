"""About: what draws here, what it learned from, and the story that it began with."""

from __future__ import annotations

import warnings
from pathlib import Path

import gradio as gr

from studio.page.context import HOME, PageContext
from studio.page.i18n import label

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "assets" / "samples" / "psi0.7.webp"
STORY = ROOT / "docs" / "article"
# What benchmarks/article.py drew: the tutorial's networks, then the small ones to their end.
CURVES = ("losses", "dense-losses")


class AboutTab:
    """The tab of explanations; nothing on it changes."""

    def __init__(self, context: PageContext) -> None:
        with gr.Row(elem_id="about"):
            with gr.Column(elem_id="about-text", min_width=300):
                gr.HTML(label("about.what"))
                gr.Markdown(context.studio.about(), elem_id="card")
                gr.HTML(label("about.data"))
                gr.HTML(label("about.training"))
                gr.HTML(label("about.seeds"))
                gr.HTML(label("about.licence"))
                if HOME:
                    gr.Markdown(f"[{HOME}]({HOME}/tree/main)", elem_id="code-link")
            with gr.Column(elem_id="about-pictures", min_width=280):
                if SAMPLES.is_file():
                    gr.Image(
                        str(SAMPLES), label=label("about.samples"), show_label=True,
                        interactive=False, buttons=["fullscreen"], elem_id="samples",
                        alt_text="Seeds 0 … 99",
                    )  # fmt: skip
                self._tell_story()

    def _tell_story(self) -> None:
        """Place the story of the first article, with its curves where they are drawn."""
        gr.HTML(label("about.story"))
        for name in CURVES:
            if (STORY / f"{name}.svg").is_file():
                with warnings.catch_warnings(action="ignore"):  # of a watermark, which is not asked
                    gr.Image(
                        str(STORY / f"{name}.svg"), show_label=False, interactive=False,
                        label=label(f"about.{name}"), buttons=["fullscreen"],
                        elem_classes="story", alt_text=name,
                    )  # fmt: skip
                gr.HTML(label(f"about.{name}"), elem_classes="legend")
