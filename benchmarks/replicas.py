"""Two pages behind nginx: visitors hop between them and lose nothing.

    apt-get install nginx-light
    pip install -r requirements-test.txt      # for the browser
    python -m benchmarks.replicas

Starts two real pages with the bundled weights and nginx by docs/replicas.conf. Programs ask from
several addresses, so that both replicas answer; a visitor in Chromium keeps a face, the replica
that served them is killed, and after a reload the other must show the same address's face and the
same favourites. Anything else ends in status 2.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks import common
from benchmarks.page import start_server

CONF = common.ROOT / "docs" / "replicas.conf"
PROGRAMS = 12  # addresses that programs ask from, 127.0.0.2 on (Linux has them all)
FACES = 4  # that each asks for
PATIENCE = 60_000  # ms, for what the visitor waits for
SMALL_FACE = "#face img"


def port_of(address: str) -> str:
    """Return the port of an address."""
    return address.rpartition(":")[2]


def start_nginx(folder: Path, pages: list[str]) -> tuple[subprocess.Popen, str]:
    """Start nginx before two pages, by the documented file with other ports."""
    if shutil.which("nginx") is None:
        raise common.BenchError("this needs nginx: apt-get install nginx-light")
    port, conf = common.free_port(), folder / "replicas.conf"
    text = CONF.read_text(encoding="utf-8")
    for old, new in zip(("7860", "7861", "8080"), [*map(port_of, pages), str(port)], strict=True):
        text = re.sub(rf"\b{old}\b", new, text)
    conf.write_text(text, encoding="utf-8")
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(conf)])
    address = f"http://127.0.0.1:{port}"
    if not common.wait_until_it_answers(process, f"{address}/config", 30):
        raise common.BenchError("nginx did not start")
    return process, address


def ask(address: str, source: str, seed: int) -> tuple[str, str, float]:
    """Ask for a face from one of this machine's addresses.

    Returns:
        the replica that answered, the picture's SHA-256, and seconds.
    """
    start = time.perf_counter()
    transport = httpx.HTTPTransport(local_address=source)
    with httpx.Client(base_url=address, transport=transport, timeout=60) as client:
        body = {"data": [seed, 0.7, ""]}
        event = client.post("/gradio_api/call/generate", json=body).raise_for_status().json()
        answer = client.get(f"/gradio_api/call/generate/{event['event_id']}").raise_for_status()
        found = re.search(r'"path":\s*"([^"]+)"', answer.text)
        if found is None:
            raise common.BenchError(f"{source} asked for {seed} and got {answer.text[:200]}")
        picture = client.get(f"/gradio_api/file={found[1]}").raise_for_status()
    seconds = time.perf_counter() - start
    return answer.headers["X-Replica"], hashlib.sha256(picture.content).hexdigest(), seconds


def programs(address: str) -> dict[str, Any]:
    """Ask from several addresses; every replica must answer, and all alike."""
    answers: dict[str, int] = {}
    pictures: dict[int, set[str]] = {}
    times = []
    for program in range(PROGRAMS):
        for seed in range(FACES):
            replica, digest, seconds = ask(address, f"127.0.0.{program + 2}", seed)
            answers[replica] = answers.get(replica, 0) + 1
            pictures.setdefault(seed, set()).add(digest)
            times.append(seconds)
    if len(answers) != 2 or any(len(found) != 1 for found in pictures.values()):
        raise common.BenchError(f"answers by replica {answers}, pictures by seed {pictures}")
    return {"answers": answers, "ms": round(1000 * sorted(times)[len(times) // 2])}


def visitor(address: str, pages: dict[str, subprocess.Popen]) -> dict[str, Any]:
    """Keep a face, lose the replica, reload: the same face and the same favourites."""
    from tests.browser import open_browser, pixels

    with open_browser() as browser:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        served = page.goto(f"{address}/?seed=42&psi=0.7&edit=smile:1").headers["x-replica"]
        page.wait_for_selector(SMALL_FACE)
        page.wait_for_function("() => location.search.includes('rev=')")
        before, link = pixels(page, SMALL_FACE), page.url
        page.click("#heart")
        page.wait_for_function("() => document.querySelector('#note').innerText.trim() !== ''")
        pages[served].kill()
        pages[served].wait()
        start = time.perf_counter()
        then = page.goto(link).headers["x-replica"]
        page.wait_for_selector(SMALL_FACE)
        after = pixels(page, SMALL_FACE)
        seconds = time.perf_counter() - start
        page.click("#tab-keep-button")
        page.wait_for_selector("#kept img")
        kept = page.locator("#kept img").count()
    # A replica that is gone answers for some seconds as "the first, then the second".
    then, same = then.split(", ")[-1], (before == after).all()
    if then == served or not same or kept != 1:
        raise common.BenchError(f"{served}, then {then}: same face {same}, {kept}")
    return {"first": served, "then": then, "reload_s": round(seconds, 2)}


def measure() -> dict[str, Any]:
    """Start everything, ask, hop, and stop everything."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, pages = Path(name), {}
        for index in range(2):
            server, address = start_server(folder / str(index))
            stack.callback(server.wait)
            stack.callback(server.kill)
            pages[address.removeprefix("http://")] = server
        nginx, address = start_nginx(folder, list(pages))
        stack.callback(nginx.wait)
        stack.callback(nginx.terminate)
        return {"programs": programs(address), "visitor": visitor(address, pages)}


def run(_: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Try everything; return Markdown and the figures."""
    figures = measure()
    counts = sorted(figures["programs"]["answers"].values())
    rows = [
        ["programs at 12 addresses, 4 faces each", f"{counts[0]} + {counts[1]} answers, all alike"],
        ["one face through nginx, picture included", f"{figures['programs']['ms']} ms"],
        ["a visitor whose replica is killed", "same face, same favourites from the other"],
        ["their reload to the face", f"{figures['visitor']['reload_s']} s"],
    ]
    return f"{common.table(['', ''], rows)}\n\n{common.machine()}.", figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    options = common.make_parser("replicas", __doc__).parse_args(arguments)
    return common.finish("replicas", options, run)


if __name__ == "__main__":
    sys.exit(main())
