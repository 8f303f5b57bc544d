"""How fast faces are drawn: torch as the studio uses it, against onnxruntime.

python -m benchmarks.generation                 # 1 and 2 threads, batches of 1 to 64
python -m benchmarks.generation --quick         # the bundled generator in seconds
python -m benchmarks.generation --threads 2 --batches 1 16
python -m benchmarks.generation --model runs/mine/generator

Both draw the same latents in turn, so that a busy machine slows both alike. onnxruntime gets the
file that `python -m studio.export` writes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import (
    ROOT,
    clock_for,
    finish,
    interleave,
    machine,
    make_parser,
    median,
    p95,
    table,
)  # fmt: skip
from model import latents_from_seeds, quantise
from studio.export import export, open_session
from studio.faces import BUNDLED, Studio, prepare_cpu

PSI = 0.7
Draw = Callable[[np.ndarray], np.ndarray]  # z [N, z_dim] → uint8 [N, H, W, C]
THREADS, BATCHES = (1, 2), (1, 4, 16, 64)
OURS = "studio (torch)"
IMPORTS = ("numpy", "torch", "studio.faces", "gradio")


def torch_engine(G: torch.nn.Module) -> Draw:
    """Draw with a torch network."""

    @torch.inference_mode()
    def draw(z: np.ndarray) -> np.ndarray:
        return quantise(G(torch.from_numpy(z), PSI)).permute(0, 2, 3, 1).contiguous().numpy()

    return draw


def onnx_engine(path: Path, threads: int) -> Draw:
    """Draw with onnxruntime."""
    session, psi = open_session(path, threads), np.array(PSI, np.float32)
    return lambda z: session.run(None, {"z": z, "psi": psi})[0]


def measure_peak(quick: bool) -> dict[str, float]:
    """Return what the machine reaches in one product and one convolution, GFLOP/s."""
    n = 512 if quick else 1536
    a = torch.randn(n, n)
    x = torch.randn(16, 96, 32, 32).contiguous(memory_format=torch.channels_last)
    w = torch.randn(96, 96, 3, 3).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        cases = {"matmul": lambda: a @ a, "convolution": lambda: F.conv2d(x, w, padding=1)}
        clock = clock_for(torch.get_num_threads())
        seconds = interleave(cases, 3 if quick else 12, clock=clock)
    flops = {"matmul": 2 * n**3, "convolution": 2 * 16 * 96 * 96 * 9 * 32**2}
    return {k: flops[k] / min(v) / 1e9 for k, v in seconds.items()}


def count_flops(G: torch.nn.Module) -> float:
    """Return the operations of one face, FLOP (a multiplication and an addition are two)."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        G(torch.zeros(1, G.z_dim), PSI)
    return counter.get_total_flops()


def measure(
    studio: Studio, threads: int, exported: Path, batches: Sequence[int], *, calls: int = 60
) -> list[dict]:
    """Time both engines at every batch size with some threads; one row each."""
    torch.set_num_threads(threads)
    ways = {OURS: torch_engine(studio.G), "onnxruntime": onnx_engine(exported, threads)}
    rows = []
    for batch in batches:
        z = latents_from_seeds(range(batch), studio.G.z_dim).numpy()
        expected = ways[OURS](z).astype(int)
        cases = {name: (lambda draw=draw, z=z: draw(z)) for name, draw in ways.items()}
        seconds = interleave(cases, max(3, calls // batch), warm=2, clock=clock_for(threads))
        for name, draw in ways.items():
            apart = np.abs(draw(z) - expected)
            rows.append(
                {
                    "engine": name,
                    "threads": threads,
                    "batch": batch,
                    "p50_ms": 1000 * median(seconds[name]),
                    "p95_ms": 1000 * p95(seconds[name]),
                    "faces_per_s": batch / median(seconds[name]),
                    "worst_of_255": int(apart.max()),
                    "mean_of_255": float(apart.mean()),
                }
            )
    return rows


def seconds_of_children() -> float:
    """Return what the processor has worked for this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_start(quick: bool) -> dict[str, float]:
    """Return the processor's seconds of a process until its first face is on disk, and of imports.

    On an idle machine with warm files they are those of the wall's clock, too.
    """
    seconds = {}
    with tempfile.TemporaryDirectory() as out:
        command = ["-m", "studio", "--seeds", "0", "--out", out]
        for name, arguments in {
            "first face": command,
            **{f"import {m}": ["-c", f"import {m}"] for m in IMPORTS},
        }.items():
            runs = []
            for _ in range(1 if quick else 3):
                start = seconds_of_children()
                subprocess.run(
                    [sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True
                )
                runs.append(seconds_of_children() - start)
            seconds[name] = min(runs)
    return seconds


def report(figures: dict[str, Any]) -> str:
    """Write the section: one table, the peaks, the start."""
    ours = {(r["threads"], r["batch"]): r["p50_ms"] for r in figures["rows"] if r["engine"] == OURS}
    peaks = figures["peak"]
    rows = [
        (
            r["engine"],
            r["threads"],
            r["batch"],
            f"{r['p50_ms']:.1f} / {r['p95_ms']:.1f}",
            f"{r['faces_per_s']:.0f}",
            f"{ours[r['threads'], r['batch']] / r['p50_ms']:.2f}×",
            f"{figures['gflop'] * r['faces_per_s'] / peaks[r['threads']]['convolution']:.0%}",
            f"{r['worst_of_255']} ({r['mean_of_255']:.3f})",
        )
        for r in figures["rows"]
    ]
    head = (
        "engine", "threads", "batch", "ms a batch p50 / p95", "faces/s", "against studio",
        "of the peak", "worst (mean) of 255",
    )  # fmt: skip
    reached = "; ".join(
        f"{threads} thread(s) {peak['matmul']:.0f} GFLOP/s in a matrix product, "
        f"{peak['convolution']:.0f} in a 3×3 convolution"
        for threads, peak in peaks.items()
    )
    start = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in figures["start"].items())
    return (
        f"## Drawing\n\n`python -m benchmarks.generation`; {figures['size']} px, "
        f"{figures['gflop']:.3f} GFLOP a face; {figures['machine']}. One thread: by the process's "
        f"own clock.\n\n{table(head, rows)}\n\nPeaks: {reached}. Start of a process, the "
        f"processor's seconds: {start}."
    )


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Measure what the command line asks for; return Markdown and the figures."""
    if args.quick:
        args.threads, args.batches = [1], [1, 4]
    prepare_cpu()
    studio = Studio.open(args.model)
    figures: dict[str, Any] = {"machine": machine(), "size": studio.size, "peak": {}, "rows": []}
    figures |= {"gflop": count_flops(studio.G) / 1e9, "start": measure_start(args.quick)}
    with tempfile.TemporaryDirectory() as folder:
        exported = export(studio, Path(folder), weights="fp32")
        for threads in sorted(set(args.threads)):
            torch.set_num_threads(threads)
            figures["peak"][threads] = measure_peak(args.quick)
            calls = 3 if args.quick else 60
            figures["rows"] += measure(studio, threads, exported, args.batches, calls=calls)
    return report(figures), figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = make_parser("generation", __doc__)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="folder of a generator")
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="faces at once")
    return finish("generation", parser.parse_args(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
