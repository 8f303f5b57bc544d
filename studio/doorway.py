"""The page's HTML as it leaves the server: its name and picture for link previews, its language.

Gradio fills in "Gradio" and its own logo where a chat or a search engine looks for a title and a
picture, and takes its language only from `navigator.language`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders

from studio.words import COOKIE, LANGUAGES, TEXTS, nearest

MAX_QUERY = 4096
# Before Gradio's own script reads it.
LANGUAGE_SCRIPT = """<script>(() => {
  const chosen = document.cookie.match(/(?:^|; )%s=([\\w-]+)/)?.[1];
  const own = (navigator.language || "en").toLowerCase().split("-")[0];
  const language = chosen || {zh: "zh-CN", ja: "ja"}[own] || "en";
  Object.defineProperty(navigator, "language", {get: () => language});
  document.documentElement.lang = language;
})();</script>"""


class Doorway:
    """ASGI middleware that rewrites the head of the page and leaves all else alone.

    Args:
        app: what answers the request.
        picture: query of the page → the address path of a preview picture, or "".
    """

    def __init__(self, app: Any, picture: Callable[[dict[str, str]], str] | None = None) -> None:
        self.app, self.picture = app, picture

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http" or scope["path"] not in ("", "/") or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        answer = Rewriter(send, lambda page: rewrite(page, scope))
        await self.app(scope, receive, answer)


class Rewriter:
    """Holds an HTML answer back until it is whole, then sends it changed."""

    def __init__(self, send: Callable, change: Callable[[str], str]) -> None:
        self.send, self.change = send, change
        self.start: dict | None = None
        self.body = b""

    async def __call__(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            kind = Headers(raw=message["headers"]).get("content-type", "")
            if kind.startswith("text/html"):
                self.start = message
                return
        if self.start is None:
            await self.send(message)
            return
        self.body += message.get("body", b"")
        if message.get("more_body"):
            return
        body = self.change(self.body.decode()).encode()
        MutableHeaders(raw=self.start["headers"])["content-length"] = str(len(body))
        await self.send(self.start)
        await self.send({"type": "http.response.body", "body": body})


def rewrite(page: str, scope: dict) -> str:
    """Put Kaogan's title, description and language script into the head of the page."""
    query = dict(parse_qsl(scope.get("query_string", b"")[:MAX_QUERY].decode("latin-1")))
    headers = Headers(scope=scope)
    language = page_language(headers)
    seed = query.get("seed", "")
    title = f"Kaogan · {seed}" if re.fullmatch("[0-9]{1,10}", seed) else "Kaogan"
    words = {
        "title": title,
        "description": TEXTS["intro.line"][language],
        "site_name": "Kaogan",
        "type": "website",
    }
    tags = "".join(
        f'<meta property="og:{name}" content="{html.escape(value)}" />'
        for name, value in words.items()
    )
    tags += f'<meta name="description" content="{html.escape(words["description"])}" />'
    page = re.sub(r'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>\s*', "", page)
    page = page.replace('lang="en"', f'lang="{language}"', 1)
    return page.replace("<head>", "<head>" + LANGUAGE_SCRIPT % COOKIE + tags, 1)


def page_language(headers: Headers) -> str:
    """Return the language of a request: the chosen one, else the browser's first."""
    chosen = re.search(rf"(?:^|; ){COOKIE}=([\w-]+)", headers.get("cookie", ""))
    if chosen and chosen[1] in LANGUAGES:
        return chosen[1]
    return nearest(re.split("[,;]", headers.get("accept-language", "")[:40])[0]) or "en"
