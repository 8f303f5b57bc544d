"""What the benches share: command lines, timing in turns, tables, plots, and where results go.

A bench of speed prints its table, writes its figures to runs/benchmarks/NAME.json (git ignores it)
and, unless --quick, puts the table into its section of docs/performance.md. Other benches write
into the document that --docs names.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "runs" / "benchmarks"
DOC = ROOT / "docs" / "performance.md"


class BenchError(ValueError):
    """Something that is needed to measure is not there, or what was measured cannot be."""


def make_parser(name: str, about: str, *, speed: bool = True) -> argparse.ArgumentParser:
    """Return a bench's command line.

    Args:
        about: the module's text.
        speed: whether its figures are kept and its table is of docs/performance.md.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if speed:
        parser.add_argument(
            "--quick", action="store_true", help="seconds instead of minutes; docs stay as they are"
        )
        parser.add_argument("--results", type=Path, default=RESULTS, help="folder for NAME.json")
        parser.set_defaults(docs=DOC)
    return parser


def finish(name: str, options: argparse.Namespace, work: Callable[..., Any], by: str = "") -> int:
    """Do a bench's work and return the command's status; a fault is one sentence and status 2.

    Args:
        work: takes the options; returns Markdown, which is printed and written into the section of
            `options.docs` where there is one, or Markdown and the figures to keep as NAME.json.
        by: the bench, where its name is not the section's.
    """
    try:
        done = work(options)
        text, figures = done if isinstance(done, tuple) else (done, None)
        print(text)
        if figures is not None:
            options.results.mkdir(parents=True, exist_ok=True)
            (options.results / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
        document = getattr(options, "docs", None)
        if document and not getattr(options, "quick", False):
            renew_section(document, name, text, by)
    except (ValueError, OSError) as error:
        print(f"benchmarks.{by or name}: {error}", file=sys.stderr)
        return 2
    return 0


def kept_figures(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of an earlier run, of which a run of some parts renews some."""
    path = options.results / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() and not options.quick else {}


def save_sheet(faces: np.ndarray, path: Path) -> None:
    """Save faces `[rows, columns, H, W, C]` as one picture."""
    rows, columns, h, w, c = faces.shape
    pixels = faces.swapaxes(1, 2).reshape(rows * h, columns * w, c)
    Image.fromarray(pixels).save(path, quality=90)


def interleave(
    cases: Mapping[str, Callable[[], Any]],
    repeats: int,
    warm: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call the cases in turn, so that what else the machine does meets all alike.

    Args:
        clock: `time.process_time` leaves out what other processes take of the core, which is
            right for one thread; with several it adds them up.
    Returns:
        seconds of each of the `repeats` calls, by case; `warm` calls before them are not timed.
    """
    for case in cases.values():
        for _ in range(warm):
            case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            start = clock()
            case()
            seconds[name].append(clock() - start)
    return seconds


def clock_for(threads: int) -> Callable[[], float]:
    """Return the process's own clock for one thread, so that other processes count little."""
    return time.process_time if threads == 1 else time.perf_counter


def seconds_of_children() -> float:
    """Return what the processor has worked for this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def p95(values: Sequence[float]) -> float:
    """Return the value that 95 of 100 do not exceed."""
    return sorted(values)[min(len(values) - 1, round(0.95 * (len(values) - 1)))]


def machine() -> str:
    """Name processor, usable cores and torch, as a caption under a table."""
    import torch

    from studio.faces import count_cpus

    name = platform.processor() or "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.+)", info.read_text())):
        name = found[1]
    cores = f"{n} cores" if (n := count_cpus()) > 1 else "1 core"
    return f"{name}, {cores}, torch {torch.__version__}, {platform.system()}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until_it_answers(process: subprocess.Popen, address: str, seconds: float) -> bool:
    """Wait until an address of a process answers; kill it and return False where it does not."""
    import httpx  # comes with gradio

    deadline = time.monotonic() + seconds
    while True:
        try:
            httpx.get(address, timeout=5).raise_for_status()
            return True
        except httpx.HTTPError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                return False
            time.sleep(0.3)


@contextmanager
def svg(path: Path, panels: int, size: tuple[float, float], **options: Any) -> Iterator[Any]:
    """Yield a figure and its panels, side by side; write it as SVG of stable bytes."""
    import matplotlib  # of requirements-bench.txt

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "kaogan", "font.size": 10, "svg.fonttype": "none"}
    from matplotlib import pyplot

    options |= {"figsize": size, "layout": "constrained", "squeeze": False}
    picture, axes = pyplot.subplots(1, panels, **options)
    yield picture, axes[0]
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, metadata={"Date": None})
    pyplot.close(picture)


def renew_section(path: Path, name: str, text: str, by: str = "") -> None:
    """Replace what stands between the marks of a section, or append the section.

    Args:
        by: the bench, where its name is not the section's.
    Raises:
        ValueError: a section that begins and does not end.
    """
    begin = f"<!-- {name}: written by python -m benchmarks.{by or name} -->"
    end = f"<!-- end {name} -->"
    document = path.read_text(encoding="utf-8") if path.exists() else ""
    section = f"{begin}\n{text.strip()}\n{end}"
    if begin not in document:
        document = f"{document.rstrip()}\n\n{section}\n".lstrip()
    elif end not in document:
        raise ValueError(f"{path} lacks the line {end}; add it where the section ends")
    else:
        before, _, rest = document.partition(begin)
        document = before + section + rest.partition(end)[2]
    path.write_text(document, encoding="utf-8")
