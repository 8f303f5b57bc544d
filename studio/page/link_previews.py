"""The page's HTML as it leaves the server: its name and face for link previews, its language.

Gradio fills in "Gradio" and its own logo where a chat or a search engine looks for a title and a
picture, and takes its language only from `navigator.language`. Whoever is sent an address sees
here the face that it holds, from `/preview.png` with the recipe of the address.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse

from studio.page.context import MAX_ADDRESS
from studio.page.i18n import COOKIE, TEXTS, language
from studio.pictures import PAGE_SIZE
from studio.recipe import NUMBERS, RULES

PREVIEW = "/preview.png"
ANY_FACE = "9"  # seed of the preview of an address without one
# Before Gradio's own script reads it.
LANGUAGE_SCRIPT = """<script>(() => {
  const chosen = document.cookie.match(/(?:^|; )%s=([\\w-]+)/)?.[1];
  const own = (navigator.language || "en").toLowerCase().split("-")[0];
  const language = chosen || {zh: "zh-CN", ja: "ja"}[own] || "en";
  Object.defineProperty(navigator, "language", {get: () => language});
  document.documentElement.lang = language;
})();</script>"""


class LinkPreviews:
    """ASGI middleware that rewrites the head of the page, serves previews, leaves the rest alone.

    Args:
        app: what answers the request.
        draw: query of an address → path of a PNG of its face.
    """

    def __init__(self, app: Any, draw: Callable[[dict[str, str]], str]) -> None:
        self.app, self.draw = app, draw

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or scope["method"] != "GET":
            await self.app(scope, receive, send)
        elif path in ("", "/"):
            await self.app(scope, receive, Rewriter(send, lambda page: rewrite(page, scope)))
        elif path == PREVIEW:
            picture = await to_thread.run_sync(self.draw, {"seed": ANY_FACE} | read_query(scope))
            answer = FileResponse(picture, headers={"cache-control": "public, max-age=86400"})
            await answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)


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


def read_query(scope: dict) -> dict[str, str]:
    """Return the query of a request, cut where nobody writes that much."""
    return dict(parse_qsl(scope.get("query_string", b"")[:MAX_ADDRESS].decode("latin-1")))


def rewrite(page: str, scope: dict) -> str:
    """Put Kaogan's title, description, preview and language script into the head of the page."""
    headers = Headers(scope=scope)
    spoken = language(Request(scope))
    words = describe(read_query(scope), spoken) | preview(scope, headers)
    tags = "".join(
        f'<meta {"property" if ":" in name else "name"}="{name}" content="{html.escape(value)}" />'
        for name, value in words.items()
    )
    page = re.sub(r'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>\s*', "", page)
    page = page.replace('lang="en"', f'lang="{spoken}"', 1)
    return page.replace("<head>", "<head>" + LANGUAGE_SCRIPT % COOKIE + tags, 1)


def describe(query: dict[str, str], spoken: str) -> dict[str, str]:
    """Return what a preview says of an address."""
    seed = query.get("seed", "")
    line = TEXTS["intro.line"][spoken]
    return {
        "og:title": f"Kaogan · {seed}" if re.fullmatch("[0-9]{1,10}", seed) else "Kaogan",
        "og:description": line,
        "og:site_name": "Kaogan",
        "og:type": "website",
        "description": line,
    }


def preview(scope: dict, headers: Headers) -> dict[str, str]:
    """Return where the face of an address is, or nothing where this host's name is not known."""
    host = headers.get("host", "")
    if not re.fullmatch(r"[\w.\[\]-]{1,200}(:[0-9]{1,5})?", host, re.ASCII):
        return {}
    # A proxy in front of a Space speaks https to visitors and http to us.
    https = "https" in (scope["scheme"], headers.get("x-forwarded-proto", ""))
    recipe = {k: v for k, v in read_query(scope).items() if k in (*NUMBERS, *RULES, "rev")}
    where = f"http{'s' * https}://{host}{scope.get('root_path', '')}{PREVIEW}"
    return {
        "og:image": f"{where}?{urlencode(recipe or {'seed': ANY_FACE}, safe='@:,')}",
        "og:image:type": "image/png",
        "og:image:width": str(PAGE_SIZE),
        "og:image:height": str(PAGE_SIZE),
        "twitter:card": "summary",
    }
