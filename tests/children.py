"""Processes forked from one that has imported torch and trained nothing: a training run in 0.5 s.

Faults need runs in processes of their own (to kill, to limit, to give other rights), and importing
torch anew for each of them would take most of the tests' time.
"""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import draw_face

from benchmarks.common import free_port

ROOT = Path(__file__).resolve().parents[1]
# What a run imports only when it needs it; the torch modules alone take three seconds.
PRELOAD = ["children", "train", "torch._dynamo", "tqdm.std", "PIL.ImageMath", "jinja2"]
SMALL = [
    "--resolution", "16", "--channel-base", "256", "--channel-max", "16", "--z-dim", "16",
    "--w-dim", "16", "--batch-size", "16", "--tick-kimg", "0.064", "--snapshot-ticks", "1",
    "--penalty-interval", "2", "--augment", "translation,colour", "--metric-samples", "0",
    "--workers", "1",
]  # fmt: skip


class Child:
    """A forked process that calls `function(*arguments)`; what it prints goes to a file."""

    def __init__(self, function: Callable, *arguments: Any, log: Path) -> None:
        self.log = log
        self.process = _context().Process(target=_enter, args=(function, arguments, str(log)))
        self.process.start()

    def kill(self) -> None:
        """Send SIGKILL and wait."""
        self.process.kill()
        self.process.join()

    def wait(self, seconds: float = 120) -> int:
        """Wait for its end and return its exit status, negative for a signal."""
        self.process.join(seconds)
        if late := self.process.is_alive():
            self.kill()
        assert not late, f"still busy after {seconds} s: {self.printed()}"
        return self.process.exitcode

    def printed(self) -> str:
        """Return what it printed so far."""
        return self.log.read_text() if self.log.exists() else ""

    def wait_until(self, condition: Callable[[], Any], seconds: float = 120) -> None:
        """Wait until something holds; fail where the process ended before."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), self.printed()
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.002)


def _context() -> Any:
    """Return the context whose server has imported what a run needs, with one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    changed = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    old = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context


def _enter(function: Callable, arguments: tuple, log: str) -> None:
    """Send a child's streams to its log and begin."""
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    function(*arguments)


def train(
    flags: list[str], env: dict[str, str], launch: str = "", tweak: str = "", *arguments: Any
) -> None:
    """Run `train.py FLAGS`, after `tweak(*arguments)` of the module faults.

    `launch` is a file of `accelerate config`: the run then gets the environment that
    `accelerate launch --config_file` would give it.
    """
    os.environ.update({"ACCELERATE_USE_CPU": "true", **env})
    if launch:
        launcher = importlib.import_module("accelerate.commands.launch")
        asked = launcher.launch_command_parser().parse_args(["--config_file", launch, "train.py"])
        asked, _, _ = launcher._validate_launch_command(asked)
        os.environ.update(launcher.prepare_simple_launcher_cmd_env(asked)[1])
    if tweak:
        getattr(importlib.import_module("faults"), tweak)(*arguments)
    command = importlib.import_module("train")
    sys.argv = ["train.py", *flags]
    sys.exit(command.main())


def draw(flags: list[str], env: dict[str, str]) -> None:
    """Run `python -m studio FLAGS`."""
    os.environ.update({"HF_HUB_OFFLINE": "1", **env})
    sys.exit(importlib.import_module("studio.__main__").main(flags))


class Bench:
    """Drawn faces, a cache and runs of train.py on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.children = folder, []
        self.data = folder / "drawn"
        self.data.mkdir(parents=True)
        for index in range(24):
            draw_face(index, 24, 24).save(self.data / f"{index:02d}.png")
        self.env = {"KAOGAN_CACHE": str(folder / "cache")}

    def start(
        self, out: str | Path, *flags: str, launch: str = "", tweak: tuple = ("",), **env: str
    ) -> Child:
        """Start a run into `out`."""
        out = self.folder / out
        log = self.folder / f"{out.name}-{len(self.children)}.log"
        arguments = [*SMALL, "--data", str(self.data), "--out", str(out), *flags]
        child = Child(train, arguments, self.env | env, launch, *tweak, log=log)
        self.children.append(child)
        return child

    def run(self, out: str | Path, *flags: str, **options) -> tuple[int, str]:
        """Run to the end; return the status and what was printed."""
        child = self.start(out, *flags, **options)
        return child.wait(), child.printed()

    def start_ranks(self, out: str, count: int, *flags: str, **options) -> list[Child]:
        """Start a run of so many processes that exchange gradients."""
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(count),
        }
        return [
            self.start(out, *flags, RANK=str(r), LOCAL_RANK=str(r), **shared, **options)
            for r in range(count)
        ]

    def run_ranks(self, out: str, count: int, *flags: str, **options) -> tuple[int, str]:
        """Run as so many processes to their end; return what `run` returns."""
        ranks = self.start_ranks(out, count, *flags, **options)
        statuses = [child.wait() for child in ranks]
        return max(statuses, key=abs), "".join(child.printed() for child in ranks)

    def close(self) -> None:
        """End what still runs."""
        for child in self.children:
            if child.process.is_alive():
                child.kill()
