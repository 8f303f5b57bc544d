"""The page under load: visitors who ask the real server for faces.

python -m benchmarks.page                     # 50 visitors for a minute
python -m benchmarks.page --quick             # 8 visitors for five seconds
python -m benchmarks.page --visitors 20 --seconds 30

Each visitor asks /generate for a face of another seed, as programs do: a request that joins
the queue, then the stream of its answer. The server is a process of its own on this machine; no
other is asked. Shared forwards are compared with one by one by calling the same Studio directly.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from benchmarks.common import ROOT, machine, make_parser, median, p95, publish, table

MOST_VISITORS, MOST_SECONDS = 200, 300
START_SECONDS = 120
SHARED_FACES = 96


def start_server(cache: Path) -> tuple[subprocess.Popen, str]:
    """Start app.py with the bundled weights; return it and its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"GRADIO_TEMP_DIR": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "app.py", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    while True:
        try:
            httpx.get(address, timeout=5).raise_for_status()
            return server, address
        except httpx.HTTPError:
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                raise SystemExit("benchmarks.page: app.py did not start") from None
            time.sleep(0.3)


def memory(pid: int) -> float:
    """Return the resident memory of a process, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1000


def ask(client: httpx.Client, seed: int) -> None:
    """Ask for one face and wait for its file's address; raise RuntimeError for anything else."""
    body = {"data": [seed, 0.7, ""]}
    event = client.post("/gradio_api/call/generate", json=body).raise_for_status().json()
    answer = client.get(f"/gradio_api/call/generate/{event['event_id']}").raise_for_status().text
    if "event: complete" not in answer or f"kaogan-{seed}.png" not in answer:
        raise RuntimeError(answer[:200])


def visit(address: str, seeds: itertools.count, until: float) -> tuple[list[float], list[str]]:
    """Ask for faces until a time; return the seconds of each answer, and errors."""
    seconds, errors = [], []
    with httpx.Client(base_url=address, timeout=60) as client:
        while time.monotonic() < until:
            start = time.perf_counter()
            try:
                ask(client, next(seeds))
                seconds.append(time.perf_counter() - start)
            except (httpx.HTTPError, RuntimeError) as error:
                errors.append(f"{type(error).__name__}: {error}")
    return seconds, errors


def load(address: str, visitors: int, seconds: float, first_seed: int) -> dict:
    """Let visitors ask at once; return what they met."""
    seeds, until = itertools.count(first_seed), time.monotonic() + seconds
    start = time.perf_counter()
    with ThreadPoolExecutor(visitors) as crowd:
        met = list(crowd.map(lambda _: visit(address, seeds, until), range(visitors)))
    took = time.perf_counter() - start
    times = [t for answers, _ in met for t in answers]
    errors = [e for _, faults in met for e in faults]
    return {
        "visitors": visitors,
        "answers": len(times),
        "p50_ms": round(1000 * median(times)),
        "p95_ms": round(1000 * p95(times)),
        "faces_per_second": round(len(times) / took, 1),
        "errors": errors[:5],
        "error_count": len(errors),
    }


def gain_of_sharing(callers: int = 16) -> dict:
    """Draw the same faces for many callers, one forward for each and shared; in turn."""
    from studio.faces import Studio, prepare_cpu

    prepare_cpu()
    studio = Studio.open()
    together = studio.drawing.together
    rates: dict[int, list[float]] = {1: [], together: []}
    with ThreadPoolExecutor(callers) as crowd:
        for turn in range(6):
            for limit, seen in rates.items():
                studio.drawing.together = limit
                start = time.perf_counter()
                list(crowd.map(lambda seed: studio.draw([seed]), range(SHARED_FACES)))
                if turn:  # the first turn warms up
                    seen.append(SHARED_FACES / (time.perf_counter() - start))
    alone, shared = (median(seen) for seen in rates.values())
    return {"one_by_one": round(alone), "shared": round(shared), "gain": round(shared / alone, 2)}


def measure(visitors: int, seconds: float) -> dict:
    """Run one server, one visitor alone, then the crowd; then compare drawing alone."""
    with tempfile.TemporaryDirectory() as cache:
        server, address = start_server(Path(cache))
        # Nothing is left running where this process is told to end.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        stop = threading.Timer(seconds * 4 + 300, server.kill)
        stop.start()
        try:
            load(address, 2, 2, 10_000_000)
            one = load(address, 1, min(seconds, 10), 20_000_000)
            load(address, visitors, min(seconds, 5), 30_000_000)  # buffers of a full queue
            before = memory(server.pid)
            many = load(address, visitors, seconds, 40_000_000)
            after = memory(server.pid)
        finally:
            stop.cancel()
            server.terminate()
            server.wait(20)
    return {
        "one": one,
        "many": many,
        "memory_mb": {"before": round(before), "after": round(after)},
        "sharing": gain_of_sharing(),
    }


def bounded(most: float):
    """Return a reader of numbers from 1 to `most`."""

    def read(text: str) -> float:
        value = float(text)
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"a number from 1 to {most:g} is needed")
        return value

    return read


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = make_parser("page", __doc__.splitlines()[0])
    parser.add_argument("--visitors", type=bounded(MOST_VISITORS), default=50)
    parser.add_argument("--seconds", type=bounded(MOST_SECONDS), default=60)
    args = parser.parse_args()
    if args.quick:
        args.visitors, args.seconds = 8, 5.0
    figures = measure(int(args.visitors), args.seconds)
    rows = [
        [m["visitors"], m["answers"], m["p50_ms"], m["p95_ms"], m["faces_per_second"],
         m["error_count"]]
        for m in (figures["one"], figures["many"])
    ]  # fmt: skip
    head = ["visitors", "answers", "p50, ms", "p95, ms", "faces/s", "errors"]
    sharing, memory_mb = figures["sharing"], figures["memory_mb"]
    text = (
        f"{table(head, rows)}\n\n"
        f"The server's memory: {memory_mb['before']} MB before, {memory_mb['after']} MB after. "
        f"Drawing for 16 callers at once: one by one {sharing['one_by_one']} faces/s, sharing "
        f"forwards {sharing['shared']} faces/s, {sharing['gain']} times.\n\n"
        f"{args.seconds:g} s of {figures['many']['visitors']} visitors in a process beside the "
        f"server, on {machine()}."
    )
    publish("page", text, figures, args)
    if figures["many"]["errors"]:
        print(json.dumps(figures["many"]["errors"], indent=1))


if __name__ == "__main__":
    main()
