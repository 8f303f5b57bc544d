"""The page's words in its languages: assets/words.json holds key → language → sentence.

What stands on the page from the start is translated in the browser by Gradio's own `gr.I18n`;
what the server says later is said in the language that the visitor's request asks for, which the
script in studio/page/link_previews.py keeps the same as the browser's.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request

LANGUAGES = {"en": "English", "zh-CN": "中文", "ja": "日本語"}
COOKIE = "kaogan-language"  # set by the language buttons
TEXTS: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).resolve().parents[2] / "assets" / "words.json").read_text(encoding="utf-8")
)
I18N = gr.I18n(**{lang: {k: t[lang] for k, t in TEXTS.items()} for lang in LANGUAGES})


def label(key: str, otherwise: str = "") -> Any:
    """Return what a component takes as a label in the visitor's language.

    A key without words gives `otherwise`, for names that come with the weights.
    """
    return I18N(key) if key in TEXTS or not otherwise else otherwise


@cache
def nearest(tag: str) -> str:
    """Return our language for a tag such as `zh-TW` or `ja-JP`, "" where there is none."""
    base = tag.strip().lower().split("-")[0]
    return next((lang for lang in LANGUAGES if lang.lower().split("-")[0] == base), "")


def language(request: gr.Request | Request | None) -> str:
    """Return the language that a request asks for: by the visitor's choice, else the browser's."""
    if request is None:
        return "en"
    chosen = dict(request.cookies or {}).get(COOKIE, "")
    if chosen in LANGUAGES:
        return chosen
    # Only the first tag counts: Gradio's page, too, looks at nothing but navigator.language.
    wished = dict(request.headers or {}).get("accept-language", "")[:40].split(",")[0]
    return nearest(wished.split(";")[0]) or "en"


def say(request: gr.Request | None, key: str, **values: Any) -> str:
    """Return a sentence in the visitor's language."""
    return TEXTS[key][language(request)].format(**values)
