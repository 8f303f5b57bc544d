"""What goes wrong inside a forked child: a kill at an exact place, a limit, a clock, a NaN."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import tqdm.std


def die_at(event: str, path: str, count: int) -> None:
    """Send this process SIGKILL when Python is about to do `event` to the count-th such path.

    Events are those of `sys.audit`: "open", "os.rename" (its old name), "os.remove".
    """
    left = [count]

    def hook(name: str, arguments: tuple) -> None:
        if name == event and path in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def limit_files(size: int) -> None:
    """Let no file grow beyond `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def turn_clock_back() -> None:
    """Let the wall clock lose an hour each time somebody looks at it."""
    now = [time.time()]

    def clock() -> float:
        now[0] -= 3600
        return now[0]

    time.time = tqdm.std.time = clock


def spoil_batch(position: int) -> None:
    """Turn the batch at one position of the data into NaN."""
    from training.data import Batches

    whole = Batches.batch

    def batch(self: Batches, at: int) -> object:
        images = whole(self, at)
        return images * float("nan") if at == position else images

    Batches.batch = batch


def become_nobody() -> None:
    """Give up root's right to read everything."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setegid(65534)
        os.seteuid(65534)


def spoil_weights(nimg: int) -> None:
    """Set one weight of D to infinity once so many images were seen, after the step."""
    import train

    whole = train.update_ema

    def update(run: train.Run) -> None:
        whole(run)
        if run.nimg == nimg:
            next(run.D_raw.parameters()).data.view(-1)[0] = float("inf")

    train.update_ema = update


def pack_as_nobody(data: str, cache: str) -> None:
    """Pack without root's rights and print what came of it."""
    from training.data import pack

    pack(
        data, 8, cache_dir=Path(cache) / "root", workers=1, progress=False
    )  # imports what it needs
    become_nobody()
    faces = pack(data, 16, cache_dir=Path(cache), workers=1, progress=False)
    print(len(faces), faces.skipped)


def watch(report: str, folder: str, task: str, *arguments: Any) -> None:
    """Call a function of this module and report, as JSON, how it ended and what it cost.

    The report names the result or the error, CPU seconds, MiB beyond what the process began with,
    and every path outside `folder` that Python touched other than to read.
    """
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, 4 * 2**30))  # a bomb hits nobody else
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is counted from here on
    outside: list[str] = []
    changing = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}
    changing |= {"os.truncate", "os.chmod", "os.system", "subprocess.Popen", "socket.connect"}

    def hook(event: str, values: tuple) -> None:
        writes = event == "open" and isinstance(values[2], int) and values[2] & 0o103
        if (writes or event in changing) and not str(values[0]).startswith((folder, "/dev/null")):
            outside.append(f"{event} {values[0]}")
        if event == "pickle.find_class":
            outside.append(f"{event} {values}")

    sys.addaudithook(hook)
    started, before = time.process_time(), memory("VmRSS")
    try:
        found = f"{globals()[task](*arguments)}"
    except ValueError as error:  # what the command line prints as one sentence
        found = f"{type(error).__name__}: {error}"
    answer = {
        "found": found,
        "seconds": time.process_time() - started,
        "mib": memory("VmHWM") - before,
        "outside": outside,
    }
    Path(report).write_text(json.dumps(answer))


def memory(kind: str) -> float:
    """Return a figure of /proc/self/status, MiB: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) / 1024


def pack_data(data: str | list[str], cache: str) -> str:
    """Pack and return the count and what was skipped."""
    from training.data import pack

    faces = pack(data, 16, cache_dir=Path(cache), workers=1, progress=False)
    return f"{len(faces)} {faces.skipped}"


def load_generator(folder: str) -> str:
    """Load a network from a folder."""
    from model import Generator

    return str(Generator.from_pretrained(folder).resolution)


def read_settings(path: str) -> str:
    """Read a file of settings as `--config` does."""
    from training.config import make_config, read_config_file

    return str(make_config(read_config_file(path)).resolution)


def resume_tiny(path: str) -> str:
    """Load a checkpoint into a tiny network and its optimizer."""
    import torch

    from training.checkpoint import load_checkpoint

    network = torch.nn.Linear(4, 8)
    optimizer = torch.optim.Adam(network.parameters(), 0.01, (0.0, 0.99))
    return str(load_checkpoint(Path(path), {"G": network}, {"opt": optimizer}))


def list_zip(path: str) -> str:
    """List the pictures of a zip."""
    from training.data.sources import find_entries

    return str(len(find_entries(path)[0]))


def forbid_pickle(probe: str = "") -> None:
    """End this process with a message when anything looks up a class to unpickle."""

    def hook(event: str, values: tuple) -> None:
        if event == "pickle.find_class":
            print(f"unpickled {values[1:]}", flush=True)
            os._exit(9)

    sys.addaudithook(hook)
    if probe:
        pickle.loads(pickle.dumps(Path("x")))


def compile_by(backend: str) -> None:
    """Compile a run's networks by another backend, and say at its end how many graphs those are."""
    import train
    from training.compiling import Compiler

    made, finish = Compiler.__init__, train.finish

    def make(self: Compiler, say: object, on: bool = True, **options: object) -> None:
        made(self, say, on, **options, backend=backend)

    def count(*arguments: object) -> None:
        finish(*arguments)
        print(f"{sys.modules['torch._dynamo.utils'].counters['stats']['unique_graphs']} graphs")

    Compiler.__init__, train.finish = make, count
