"""The page under load: visitors who ask the real server for faces.

python -m benchmarks.page                     # 50 visitors for a minute
python -m benchmarks.page --quick             # 8 visitors for five seconds
python -m benchmarks.page --visitors 20 --seconds 30

Each visitor asks /generate for a face of another seed, as programs do: a request that joins
the queue, then the stream of its answer. The server is a process of its own on this machine; no
other is asked. The visitors take processor time from it, so what both sides spend on an answer is
told apart. Shared forwards are compared with one by one by calling the same Studio directly, and a
film is drawn and written in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from benchmarks import common

START_SECONDS = 120
SHARED_FACES = 96
PACE = 5.0  # seconds from one roll of a visitor who looks at faces to the next


def start_server(cache: Path) -> tuple[subprocess.Popen, str]:
    """Start app.py with the bundled weights; return it and its address once it answers."""
    port = common.free_port()
    env = os.environ | {"GRADIO_TEMP_DIR": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "app.py", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, cwd=common.ROOT, env=env, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    if not common.wait_until_it_answers(server, address, START_SECONDS):
        raise common.BenchError("app.py did not start")
    return server, address


def memory(pid: int) -> float:
    """Return the resident memory of a process, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1000


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def send(door: HTTPConnection, method: str, path: str, body: Any = None) -> bytes:
    """Send one request over a connection that stays open; return the body of its answer."""
    text = None if body is None else json.dumps(body)
    door.request(method, path, text, {"Content-Type": "application/json"})
    answer = door.getresponse()
    data = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {data[:200]!r}")
    return data


def wait_until_idle(pid: int, patience: float = 90) -> None:
    """Wait until a server has done what it does after its start."""
    deadline, before = time.monotonic() + patience, float("-inf")
    while time.monotonic() < deadline and (now := cpu_seconds(pid)) - before > 0.1:
        before = now
        time.sleep(1)


def ask(door: HTTPConnection, seed: int) -> None:
    """Ask for one face and wait for its file's address; raise RuntimeError for anything else."""
    call = "/gradio_api/call/generate"
    event = json.loads(send(door, "POST", call, {"data": [seed, 0.7, ""]}))["event_id"]
    answer = send(door, "GET", f"{call}/{event}")
    if b"event: complete" not in answer or f"kaogan-{seed}.png".encode() not in answer:
        raise RuntimeError(answer[:200])


def visit(
    address: str, seeds: itertools.count, until: float, pace: float = 0.0, wait: float = 0.0
) -> tuple[list[float], list[str]]:
    """Ask for faces until a time; return the seconds of each answer, and errors.

    Args:
        pace: seconds from one question to the next, where the answer comes sooner.
        wait: seconds before the first one.
    """
    seconds, errors = [], []
    # Python's own client: at 50 visitors a richer one took as much processor time as the server.
    with contextlib.closing(HTTPConnection(urlsplit(address).netloc, timeout=60)) as door:
        time.sleep(wait)
        while time.monotonic() < until:
            start = time.perf_counter()
            try:
                ask(door, next(seeds))
                seconds.append(time.perf_counter() - start)
            except (OSError, HTTPException, RuntimeError) as error:
                errors.append(f"{type(error).__name__}: {error}")
                door.close()
            time.sleep(max(0.0, pace - (time.perf_counter() - start)))
    return seconds, errors


def load(
    address: str, pid: int, visitors: int, seconds: float, first_seed: int, pace: float = 0.0
) -> dict:
    """Let visitors ask the server of a process at once; return what they met.

    With a `pace`, each asks once in so many seconds, one visitor after another.
    """
    seeds, until = itertools.count(first_seed), time.monotonic() + seconds
    start, own, theirs = time.perf_counter(), time.process_time(), cpu_seconds(pid)
    with ThreadPoolExecutor(visitors) as crowd:
        waits = (pace * index / visitors for index in range(visitors))
        met = list(crowd.map(lambda wait: visit(address, seeds, until, pace, wait), waits))
    took = time.perf_counter() - start
    own, theirs = time.process_time() - own, cpu_seconds(pid) - theirs
    times = [t for answers, _ in met for t in answers]
    errors = [e for _, faults in met for e in faults]
    return {
        "visitors": visitors,
        "answers": len(times),
        "p50_ms": round(1000 * median(times)),
        "p95_ms": round(1000 * common.p95(times)),
        "faces_per_second": round(len(times) / took, 1),
        "server_cpu_ms": round(1000 * theirs / len(times), 1),
        "visitors_cpu_ms": round(1000 * own / len(times), 1),
        "errors": errors[:5],
        "error_count": len(errors),
    }


def gain_of_sharing(callers: int = 16) -> dict:
    """Draw the same faces for many callers, one forward for each and shared; in turn."""
    from studio.faces import Studio, prepare_cpu

    prepare_cpu()
    studio = Studio.open()

    def draw_all(limit: int) -> None:
        studio.drawing.together = limit
        list(crowd.map(lambda seed: studio.draw([seed]), range(SHARED_FACES)))

    limits = {"one_by_one": 1, "shared": studio.drawing.together}
    with ThreadPoolExecutor(callers) as crowd:
        cases = {name: partial(draw_all, limit) for name, limit in limits.items()}
        seconds = {k: median(v) for k, v in common.interleave(cases, 5).items()}
    rates = {name: round(SHARED_FACES / took) for name, took in seconds.items()}
    return rates | {"gain": round(seconds["one_by_one"] / seconds["shared"], 2)}


def speed_of_films() -> dict:
    """Draw and write a film of three faces; return frames a second, medians of some turns."""
    from studio.faces import Studio, prepare_cpu
    from studio.morph import frames, write_film
    from studio.recipe import Recipe

    prepare_cpu()
    studio, faces = Studio.open(), [Recipe(7), Recipe(42), Recipe(9)]
    film = {"seconds": 1, "fps": 60}
    count = sum(1 for _ in frames(studio, faces, **film))
    with tempfile.TemporaryDirectory() as folder:
        write = partial(write_film, Path(folder) / "film.mp4", studio, faces, **film)
        cases = {
            "drawn": lambda: sum(1 for _ in frames(studio, faces, **film)),
            "written": write,
            "quick": partial(write, quick=True),
        }
        seconds = common.interleave(cases, 3)
    rates = {name: round(count / median(took)) for name, took in seconds.items()}
    return {"frames": count, "px": studio.size} | rates


def measure(visitors: int, seconds: float) -> dict:
    """Run one server, one visitor alone, then the crowd; then draw without a server."""
    with tempfile.TemporaryDirectory() as cache:
        server, address = start_server(Path(cache))
        # Nothing is left running where this process is told to end.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        stop = threading.Timer(seconds * 5 + 300, server.kill)
        stop.start()
        try:
            load(address, server.pid, 2, 2, 10_000_000)
            wait_until_idle(server.pid)
            one = load(address, server.pid, 1, min(seconds, 10), 20_000_000)
            load(address, server.pid, visitors, min(seconds, 5), 30_000_000)  # fills all buffers
            before = memory(server.pid)
            calm = load(address, server.pid, visitors, seconds, 50_000_000, PACE)
            many = load(address, server.pid, visitors, seconds, 40_000_000)
            after = memory(server.pid)
        finally:
            stop.cancel()
            server.terminate()
            server.wait(20)
    return {
        "one": one,
        "calm": calm | {"visitors": f"{visitors}, one roll each {PACE:g} s"},
        "many": many,
        "memory_mb": {"before": round(before), "after": round(after)},
        "sharing": gain_of_sharing(),
        "film": speed_of_films(),
    }


def run(args: argparse.Namespace) -> tuple[str, dict]:
    """Measure what the command line asks for; return Markdown and the figures."""
    if args.quick:
        args.visitors, args.seconds = 8, 5.0
    figures = measure(args.visitors, args.seconds)
    rows = [
        [m["visitors"], m["answers"], m["p50_ms"], m["p95_ms"], m["faces_per_second"],
         m["server_cpu_ms"], m["visitors_cpu_ms"], m["error_count"]]
        for m in (figures["one"], figures["calm"], figures["many"])
    ]  # fmt: skip
    head = ["visitors", "answers", "p50, ms", "p95, ms", "faces/s", "server, ms", "visitors, ms",
            "errors"]  # fmt: skip
    sharing, memory_mb, film = figures["sharing"], figures["memory_mb"], figures["film"]
    for error in figures["many"]["errors"]:
        print(error, file=sys.stderr)
    return (
        f"{common.table(head, rows)}\n\n"
        f"The server's memory: {memory_mb['before']} MB before, {memory_mb['after']} MB after. "
        f"Drawing for 16 callers at once: one by one {sharing['one_by_one']} faces/s, sharing "
        f"forwards {sharing['shared']} faces/s, {sharing['gain']} times. "
        f"A film of {film['frames']} frames at {film['px']} px: {film['drawn']} frames/s drawn, "
        f"{film['written']} with the enlarger to 512 px and writing the MP4, {film['quick']} with "
        f"Lanczos' filter instead.\n\n"
        f"{args.seconds:g} s of {figures['many']['visitors']} visitors in a process beside the "
        f"server; *server* and *visitors* are processor time for one answer. {common.machine()}."
    ), figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = common.make_parser("page", __doc__)
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    return common.finish("page", parser.parse_args(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
