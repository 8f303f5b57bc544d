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
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
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


def count_flops(G: torch.nn.Module) -> float:
    """Return the operations of one face, FLOP (a multiplication and an addition are two)."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        G(torch.zeros(1, G.z_dim), PSI)
    return counter.get_total_flops()


def measure(
    studio: Studio, threads: int, exported: Path, batches: Sequence[int], *, calls: int
) -> list[dict]:
    """Time both engines at every batch size with some threads; one row each."""
    torch.set_num_threads(threads)
    ways = {OURS: torch_engine(studio.G), "onnxruntime": onnx_engine(exported, threads)}
    rows, clock = [], common.clock_for(threads)
    for batch in batches:
        z = latents_from_seeds(range(batch), studio.G.z_dim).numpy()
        expected = ways[OURS](z).astype(int)
        cases = {name: (lambda draw=draw, z=z: draw(z)) for name, draw in ways.items()}
        seconds = common.interleave(cases, max(3, calls // batch), warm=2, clock=clock)
        for name, draw in ways.items():
            row = {"engine": name, "threads": threads, "batch": batch}
            row["p50_ms"] = 1000 * median(seconds[name])
            row["p95_ms"] = 1000 * common.p95(seconds[name])
            row["faces_per_s"] = 1000 * batch / row["p50_ms"]
            rows.append(row | {"worst_of_255": int(np.abs(draw(z) - expected).max())})
    return rows


def measure_start(quick: bool) -> dict[str, float]:
    """Return the processor's seconds of a process until its first face is on disk, and of imports.

    On an idle machine with warm files they are those of the wall's clock, too.
    """
    seconds = {}
    with tempfile.TemporaryDirectory() as out:
        commands = {"first face": ["-m", "studio", "--seeds", "0", "--out", out]}
        commands |= {f"import {module}": ["-c", f"import {module}"] for module in IMPORTS}
        for name, arguments in commands.items():
            runs, command = [], [sys.executable, *arguments]
            for _ in range(1 if quick else 3):
                start = common.seconds_of_children()
                subprocess.run(command, cwd=common.ROOT, check=True, capture_output=True)
                runs.append(common.seconds_of_children() - start)
            seconds[name] = min(runs)
    return seconds


def report(figures: dict[str, Any]) -> str:
    """Write the section: one table and the start."""
    rows = figures["rows"]
    ours = {(r["threads"], r["batch"]): r["p50_ms"] for r in rows if r["engine"] == OURS}
    lines = [
        (
            r["engine"], r["threads"], r["batch"], f"{r['p50_ms']:.1f} / {r['p95_ms']:.1f}",
            f"{r['faces_per_s']:.0f}", f"{ours[r['threads'], r['batch']] / r['p50_ms']:.2f}×",
            r["worst_of_255"],
        )
        for r in rows
    ]  # fmt: skip
    head = (
        "engine", "threads", "batch", "ms a batch p50 / p95", "faces/s", "against studio",
        "worst of 255",
    )  # fmt: skip
    start = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in figures["start"].items())
    return (
        f"## Drawing\n\n`python -m benchmarks.generation`; {figures['size']} px, "
        f"{figures['gflop']:.3f} GFLOP a face; {figures['machine']}. One thread: by the process's "
        f"own clock.\n\n{common.table(head, lines)}\n\nStart of a process, the processor's "
        f"seconds: {start}."
    )


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Measure what the command line asks for; return Markdown and the figures."""
    if args.quick:
        args.threads, args.batches = [1], [1, 4]
    prepare_cpu()
    studio = Studio.open(args.model)
    figures = {
        "machine": common.machine(),
        "size": studio.size,
        "gflop": count_flops(studio.G) / 1e9,
        "start": measure_start(args.quick),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        exported = export(studio, Path(folder), weights="fp32")
        for threads in args.threads:
            calls = 3 if args.quick else 60
            figures["rows"] += measure(studio, threads, exported, args.batches, calls=calls)
    return report(figures), figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = common.make_parser("generation", __doc__)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="folder of a generator")
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="faces at once")
    return common.finish("generation", parser.parse_args(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
