"""What of a device's speed a training step reaches: formats, precisions and compilation in turns.

python -m benchmarks.step                                       # this device, the default recipe
python -m benchmarks.step --resolution 128 --projected-weight 0.5          # flags of train.py
python -m benchmarks.step --preset kaogan-128 --batch-size 256 --profile     # and where time goes
python -m benchmarks.step --host --resolution 128 --projected-weight 0.5    # what the host does
python -m benchmarks.step --quick                               # seconds, nothing compiled

Every way takes the whole step of train.py (D, penalties, G, optimizers, average) for one cycle of
its lazy penalty. Its operations are counted and set against what one plain large convolution
reaches on the same device in the same precision. On a GPU a last cycle runs in which every wait
of the host for the device is an error.

--host counts the operators that a step dispatches, and times the step where arithmetic costs next
to nothing: every network at its depth with few channels, batches of 1, eagerly and compiled. That
is what a GPU waits for that is faster than its host.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import training.projected
import training.run
from benchmarks.common import clock_for, finish, interleave, machine, make_parser, table
from benchmarks.contestants import Ours
from benchmarks.worker import count_operations
from training.config import TrainConfig
from training.config import parse_arguments as parse_settings
from training.metrics import EfficientNetLite0
from training.precision import Precision
from training.projected import ProjectedDiscriminator

OURS = "train.py"  # the way that others are compared with


class PlainLayout(TorchFunctionMode):
    """Leaves pictures plane by plane where the networks ask for channels_last."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # noqa: ANN204
        kwargs = dict(kwargs or {})
        if kwargs.get("memory_format") is torch.channels_last:
            kwargs["memory_format"] = torch.contiguous_format
        return function(*args, **kwargs)


# How a step is taken: what differs from the run's settings, but for "plain", whose weights lie
# plane by plane, and "precision", which train.py would not choose there.
WAYS: dict[str, dict[str, Any]] = {
    OURS: {},
    "in fp32": {"mixed_precision": "no"},  # TF32 where the GPU has it
    "in bf16": {"precision": "bf16"},
    "not channels_last": {"plain": True},
    "compiled": {"compile": "yes"},
    "not compiled": {"compile": "no"},
}
HOST_WAYS = ("not compiled", "compiled")


class NarrowEfficientNet(EfficientNetLite0):
    """The frozen network with an eighth of its channels and random weights."""

    STAGES = tuple((*stage, width // 8) for *stage, width in EfficientNetLite0.STAGES)
    CHANNELS = tuple(width // 8 for width in EfficientNetLite0.CHANNELS)

    def _load(self) -> None:
        """Keep the weights as they were drawn."""


class NarrowProjectedDiscriminator(ProjectedDiscriminator):
    """The projected discriminator with the fewest channels that it can have."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, mixed=8, width=8)


def names_of_ways(device: str, compiled: bool) -> list[str]:
    """Return the ways that are another on a device: train.py's own precision is left out."""
    left_out = {"in bf16", "compiled"} if device == "cuda" else {"in fp32", "not compiled"}
    left_out |= set() if compiled else {"compiled"}
    return [name for name in WAYS if name not in left_out]


class Stepper(Ours):
    """A run of train.py that takes its steps in one of the ways."""

    def __init__(self, name: str, config: TrainConfig) -> None:
        way = dict(WAYS[name])
        plain, precision = way.pop("plain", False), way.pop("precision", "")
        super().__init__(dataclasses.replace(config, **way))
        self.around = PlainLayout if plain else contextlib.nullcontext
        self.batch = config.batch_size
        self.device = self.run.accelerator.device
        for network in self.networks() if plain else ():
            network.to(memory_format=torch.contiguous_format)
        if precision:
            self.run.precision = Precision(precision, self.device)
        self.dtype = self.run.precision.dtype

    def networks(self) -> list[torch.nn.Module]:
        """Return every network that learns."""
        return [self.G, self.D, *([self.run.P_raw] if self.run.P else [])]

    def step(self) -> None:
        """Take one step of train.py's."""
        with self.around():
            super().step()

    def whole_cycle(self) -> None:
        """Take the steps from one penalty to the next."""
        for _ in range(self.cycle):
            self.step()

    def clock(self) -> float:
        """Return seconds: of the wall once a GPU is done, of one thread's work, or of the wall."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return clock_for(torch.get_num_threads())()

    def images_per_s(self) -> float:
        """Time one cycle."""
        start = self.clock()
        self.whole_cycle()
        return self.cycle * self.batch / (self.clock() - start)

    def flop_per_image(self) -> float:
        """Count the operations of one image's step, FLOP: the mean of a cycle.

        A multiplication and an addition are two; what is not a product or a convolution is none.
        """
        return 1e9 * count_operations(self, self.batch)["gflop"]

    @torch.no_grad()
    def convolution_flop_per_s(self) -> float:
        """Return what one large 3×3 convolution of 256 channels at 32 px reaches, FLOP/s."""
        n = 256 if self.device.type == "cuda" else 4
        x, w = (
            torch.randn(shape, device=self.device, dtype=self.dtype)
            for shape in ((n, 256, 32, 32), (256, 256, 3, 3))
        )
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
        case = {"": lambda: F.conv2d(x, w, padding=1)}
        return 2 * n * 256 * 256 * 9 * 32**2 / min(interleave(case, 20, 3, self.clock)[""])

    def waits(self) -> str:
        """Return how the host waited for a GPU within a cycle of steps; "" where it did not."""
        if self.device.type != "cuda":
            return ""
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.whole_cycle()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return ""

    def where_time_goes(self) -> str:
        """Return torch's table of the operators that a cycle of steps spends its time in."""
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=kinds) as profile:
            self.whole_cycle()
        return profile.key_averages().table(f"self_{self.device.type}_time_total", 25)

    def operators(self) -> float:
        """Count what Python and autograd dispatch in a step: the mean of a cycle.

        An operator that another one calls is not counted, nor are kernels that a compiler wrote.
        """
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            self.whole_cycle()
        return sum(map(is_dispatched, profile.events())) / self.cycle

    def host_ms(self) -> float:
        """Time one step of a cycle on this thread's own clock, ms."""
        start = time.process_time()
        self.whole_cycle()
        return 1000 * (time.process_time() - start) / self.cycle

    def describe(self) -> dict[str, Any]:
        """Return what the run is made of and where it runs."""
        if self.device.type == "cuda":
            where = f"{torch.cuda.get_device_name(self.device)}, torch {torch.__version__}"
        else:
            threads = torch.get_num_threads()
            where = f"{machine()}, {threads} thread{'s' * (threads > 1)}"
        return {
            "device": self.device.type,
            "machine": where,
            "precision": str(self.dtype).removeprefix("torch."),
            "parameters": [sum(p.numel() for p in net.parameters()) for net in self.networks()],
        }

    def close(self) -> None:
        """Give its folder back."""
        self.run.lock.close()
        self.folder.cleanup()


def is_operator(name: str) -> bool:
    """Tell whether a profiler's event is an operator, and not a node of autograd's graph."""
    return "::" in name and not name.startswith(("autograd::", "torch::"))


def is_dispatched(event: Any) -> bool:
    """Tell whether an event is an operator that no other operator called."""
    above = event.cpu_parent
    while above is not None:
        if is_operator(above.name):
            return False
        above = above.cpu_parent
    return is_operator(event.name)


# A way has a process of its own, since accelerate knows one precision a process.
stepper: Stepper


def open_stepper(name: str, config: TrainConfig, narrow: bool) -> None:
    """Build this process's run; what it prints is not the bench's."""
    global stepper
    if narrow:  # no setting of train.py changes these
        vars(training.projected)["EfficientNetLite0"] = NarrowEfficientNet
        vars(training.run)["ProjectedDiscriminator"] = NarrowProjectedDiscriminator
    with contextlib.redirect_stdout(sys.stderr):
        stepper = Stepper(name, config)


def ask(what: str) -> Any:
    """Answer from this process's run."""
    return getattr(stepper, what)()


def open_way(
    stack: ExitStack, name: str, config: TrainConfig, narrow: bool = False
) -> Callable[[str], Any]:
    """Return what asks a way's own process."""
    spawn = get_context("spawn")
    process = ProcessPoolExecutor(1, spawn, open_stepper, (name, config, narrow))
    stack.enter_context(process)
    return lambda what: process.submit(ask, what).result()


def measure(config: TrainConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Time every way's step, in turns, and the plain convolution of its precision."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with ExitStack() as stack:
        names = names_of_ways(device, not args.quick)
        ways = {name: open_way(stack, name, config) for name in names}
        flop = ways[OURS]("flop_per_image")
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(1 + (1 if args.quick else args.repeats)):  # the first is to warm up
            for name, tell in ways.items():
                speed = tell("images_per_s")
                speeds[name] += [speed] if turn else []
        rows = []
        for name, tell in ways.items():
            row = {"way": name, "images_per_s": speeds[name]}
            row["convolution"] = tell("convolution_flop_per_s")
            rows.append(row | {"precision": tell("describe")["precision"]})
        if args.profile:
            print(ways[OURS]("where_time_goes"))
        figures = {"waits": ways[OURS]("waits"), **ways[OURS]("describe")}
        for tell in ways.values():
            tell("close")
    sizes = {"px": config.resolution, "batch": config.batch_size}
    return {"rows": rows, "flop": flop, **sizes, **figures}


def shrink(config: TrainConfig) -> TrainConfig:
    """Return the same depths with 4 channels on every level, and batches of 1."""
    small = {"channel_max": 4, "g_channel_min": 4, "z_dim": 8, "w_dim": 8, "batch_size": 1}
    return dataclasses.replace(config, **small, group_size=1, gradient_accumulation=1)


def measure_host(config: TrainConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Count and time what the host does for one step, eagerly and compiled."""
    rows, figures, times = [], {}, 1 if args.quick else args.repeats
    for name in HOST_WAYS[: 1 if args.quick else None]:  # compiling takes minutes of every core
        with ExitStack() as stack:
            tell = open_way(stack, name, shrink(config), narrow=True)
            tell("whole_cycle")
            host_ms = [tell("host_ms") for _ in range(times)]
            rows.append({"way": name, "operators": tell("operators"), "host_ms": host_ms})
            figures = tell("describe")
            tell("close")
    return {"rows": rows, "px": config.resolution, **figures}


def report_host(figures: dict[str, Any]) -> str:
    """Write the section on the host."""
    first, lines = figures["rows"][0], []
    for row in figures["rows"]:
        operators, ms = row["operators"], median(row["host_ms"])
        shares = operators / first["operators"], ms / median(first["host_ms"])
        cells = f"{operators:,.0f}", f"{shares[0]:.2f}×", f"{ms:.1f}", f"{shares[1]:.2f}×"
        lines.append((row["way"], *cells))
    head = ("step", "operators", "to eager", "ms", "to eager")
    return (
        f"## What the host does for one step\n\n"
        f"`{' '.join(['python -m benchmarks.step --host', *figures['flags']])}`; the levels of "
        f"{figures['px']} px with 4 channels each, batches of 1, an eighth of the channels of the "
        f"frozen network; {figures['machine']}. Operators: what Python and autograd dispatch, "
        f"without kernels that the compiler wrote. Milliseconds: of the host's processor. Both are "
        f"means of a cycle of the lazy penalty.\n\n"
        f"{table(head, lines)}"
    )


def report(figures: dict[str, Any]) -> str:
    """Write the section."""
    speeds = [median(row["images_per_s"]) for row in figures["rows"]]
    lines = [
        (
            row["way"], row["precision"], f"{speed:.1f}", f"{speed / speeds[0]:.2f}×",
            f"{figures['flop'] * speed / 1e9:,.0f}", f"{row['convolution'] / 1e9:,.0f}",
            f"{figures['flop'] * speed / row['convolution']:.0%}",
        )
        for row, speed in zip(figures["rows"], speeds, strict=True)
    ]  # fmt: skip
    head = ("step", "precision", "images/s", "to train.py", "GFLOP/s", "convolution's", "share")
    millions = " + ".join(f"{n / 1e6:.2f}" for n in figures["parameters"])
    cycles = len(figures["rows"][0]["images_per_s"])
    text = (
        f"## One training step, and what the device can do\n\n"
        f"`{' '.join(['python -m benchmarks.step', *figures['flags']])}`; {figures['px']} px, "
        f"batches of {figures['batch']}, {figures['flop'] / 1e9:.2f} GFLOP an image, {millions} "
        f"million parameters; {figures['machine']}. In turns, the median of {cycles} cycles of the "
        f"lazy penalty. Share: of what one plain large convolution reaches in the same precision. "
        f"Compiled: every step but D's with a penalty.\n\n{table(head, lines)}"
    )
    if figures["device"] == "cuda":
        waits = figures["waits"]
        text += f"\n\nThe host waits: {waits}." if waits else "\n\nNo step waits for the host."
    return text


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, TrainConfig]:
    """Read the command line; flags that are not the bench's are train.py's."""
    parser = make_parser("step", __doc__)
    parser.add_argument("--repeats", type=int, default=5, help="cycles of each way")
    parser.add_argument("--host", action="store_true", help="count and time the host's work only")
    parser.add_argument("--profile", action="store_true", help="print where time goes, too")
    args, rest = parser.parse_known_args(argv)
    args.flags = rest
    return args, dataclasses.replace(parse_settings(rest), metric_samples=0)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    args, config = parse_arguments(argv)
    take, write = (measure_host, report_host) if args.host else (measure, report)

    def run(_: argparse.Namespace) -> tuple[str, dict[str, Any]]:
        figures = {"flags": args.flags} | take(config, args)
        return write(figures), figures

    return finish("host" if args.host else "step", args, run, by="step")


if __name__ == "__main__":
    sys.exit(main())
