"""Pictures of the page as it is now.

python -m tests.screenshots                  # the two of the README, into assets/
python -m tests.screenshots --all /tmp/look  # every tab, three languages, light, dark and phone
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import open_browser
from tests.visitor import ROOT, free_port, open_page, serve

BUNDLED = ROOT / "assets" / "generator"
TABS = ("meet", "wall", "mix", "morph", "match", "keep", "about")
PLACES = {"wall": "&first=0", "mix": "&a=11&b=57", "morph": "&faces=1;7;9;15"}
LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}
README = (("meet", "light", "?seed=28"), ("wall", "dark", "?seed=28"))
MAX_BYTES = 300_000


def take(context, address: str, tab: str) -> Image.Image:
    """Open a tab of the page and return what is in view once its pictures are there."""
    page = context.new_page()
    page.set_default_timeout(60_000)
    open_page(page, address + ("" if tab == "meet" else f"&tab={tab}{PLACES.get(tab, '')}"))
    page.wait_for_timeout(1500)
    if tab == "wall":  # its faces come in parts, blanks in the place of those still to come
        page.wait_for_function(
            "() => { const faces = [...document.querySelectorAll('#wall .thumbnail-item img')];"
            " return faces.length > 23 && !faces.some((i) => i.src.includes('blank.png')); }"
        )
    page.wait_for_function("() => [...document.images].every((i) => !i.offsetParent || i.complete)")
    image = Image.open(io.BytesIO(page.screenshot()))
    page.close()
    return image.convert("RGB")


def save(image: Image.Image, path: Path) -> None:
    """Write a WebP of less than MAX_BYTES."""
    for quality in (90, 80, 65):
        image.save(path, quality=quality, method=6)
        if path.stat().st_size < MAX_BYTES:
            break
    print(f"{path}: {path.stat().st_size // 1000} kB")


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__)
    parser.add_argument("--all", type=Path, metavar="DIR", help="every tab, language and look")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as cache,
        serve(BUNDLED, Path(cache), free_port()) as url,
        open_browser() as browser,
    ):
        if args.all is None:
            for tab, look, query in README:
                context = browser.new_context(**LOOKS[look], locale="en")
                save(take(context, f"{url}/{query}", tab), ROOT / "assets" / f"page-{tab}.webp")
            return
        args.all.mkdir(parents=True, exist_ok=True)
        for language in ("en", "zh-CN", "ja"):
            for look, options in LOOKS.items():
                context = browser.new_context(**options, locale=language)
                for tab in TABS:
                    image = take(context, f"{url}/?seed=9", tab)
                    save(image, args.all / f"{tab}-{language}-{look}.webp")
                context.close()


if __name__ == "__main__":
    main()
