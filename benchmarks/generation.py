"""How fast faces are drawn: torch as the studio uses it, against what else could draw them.

python -m benchmarks.generation                 # torch, onnxruntime, OpenVINO; 1 and 2 threads
python -m benchmarks.generation --all           # also int8 and torch.compile: many minutes
python -m benchmarks.generation --quick         # the bundled generator in seconds
python -m benchmarks.generation --threads 2 --batches 1 16      # some rows; the others are kept
python -m benchmarks.generation --threads --start               # only the start of a process
python -m benchmarks.generation --model runs/mine/generator

All engines draw the same latents in turn, so that a busy machine slows all alike. Those other than
torch get the file that `python -m studio.export` writes.
"""

from __future__ import annotations

import argparse
import json
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
    interleave,
    machine,
    make_parser,
    median,
    p95,
    publish,
    table,
)
from model import latents_from_seeds, load_network, quantise
from studio.export import export, open_session
from studio.faces import BUNDLED, Studio, prepare_cpu

PSI = 0.7
Draw = Callable[[np.ndarray], np.ndarray]  # z [N, z_dim] → uint8 [N, H, W, C]
CALIBRATION = 64  # latents that fix the ranges of 8-bit numbers
THREADS, BATCHES = (1, 2), (1, 4, 16, 64)
IMPORTS = ("numpy", "torch", "studio.faces", "gradio")


def torch_engine(G: torch.nn.Module) -> Draw:
    """Draw with a torch network."""

    @torch.inference_mode()
    def draw(z: np.ndarray) -> np.ndarray:
        return quantise(G(torch.from_numpy(z), PSI)).permute(0, 2, 3, 1).contiguous().numpy()

    return draw


class PlainLayout(torch.nn.Module):
    """A frozen generator whose pictures and weights lie plane by plane, not in channels_last."""

    def __init__(self, G: torch.nn.Module) -> None:
        super().__init__()
        self.G = G.to(memory_format=torch.contiguous_format)

    def forward(self, z: torch.Tensor, psi: float) -> torch.Tensor:
        """Draw as `Generator.forward` does."""
        ws, used, rgb = self.G.mapping(z, psi), 0, None
        x = self.G.const.expand(len(z), -1, -1, -1).contiguous()
        for block in self.G.blocks.values():
            count = 1 if block.conv0 is None else 2
            x, rgb = block(x, rgb, ws[:, used : used + count])
            used += count
        return rgb


def onnx_engine(path: Path, threads: int) -> Draw:
    """Draw with onnxruntime."""
    session, psi = open_session(path, threads), np.array(PSI, np.float32)
    return lambda z: session.run(None, {"z": z, "psi": psi})[0]


def openvino_engine(path: Path, threads: int) -> Draw:
    """Draw with OpenVINO."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(str(path), "CPU", options)
    psi = np.array(PSI, np.float32)
    return lambda z: network({"z": z, "psi": psi})[0]


def quantise_weights(path: Path, z_dim: int) -> Path:
    """Write a copy whose convolutions compute in 8 bits, fitted to some latents."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Latents(CalibrationDataReader):
        """Batches that the ranges of the 8-bit numbers are read from."""

        def __init__(self) -> None:
            self.seeds = iter(range(10_000, 10_000 + CALIBRATION))

        def get_next(self) -> dict[str, Any] | None:
            seed = next(self.seeds, None)
            if seed is None:
                return None
            z = latents_from_seeds([seed], z_dim).numpy()
            return {"z": z, "psi": np.array(PSI, np.float32)}

    out = path.with_name("int8.onnx")
    quantize_static(
        path,
        out,
        Latents(),
        op_types_to_quantize=["Conv"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
    return out


def engines(folder: Path, threads: int, files: dict[str, Path], compiled: bool) -> dict[str, Draw]:
    """Return every way to draw the generator in `folder`."""
    frozen = load_network(folder).freeze()
    ways = {
        "studio (torch)": torch_engine(frozen),
        "torch, not frozen": torch_engine(load_network(folder)),
        "torch, not channels_last": torch_engine(PlainLayout(load_network(folder).freeze())),
        "onnxruntime": onnx_engine(files["fp32"], threads),
        "openvino": openvino_engine(files["fp32"], threads),
    }
    if "int8" in files:
        ways["onnxruntime int8"] = onnx_engine(files["int8"], threads)
    if compiled:
        torch._dynamo.reset()
        ways["torch.compile"] = torch_engine(torch.compile(frozen, dynamic=True))
    return ways


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
    folder: Path,
    threads: int,
    files: dict[str, Path],
    batches: Sequence[int],
    *,
    compiled: bool = False,
    calls: int = 30,
) -> list[dict]:
    """Time every engine at every batch size with some threads; one row each."""
    torch.set_num_threads(threads)
    ways = engines(folder, threads, files, compiled)
    z_dim = load_network(folder).z_dim
    rows = []
    for batch in batches:
        z = latents_from_seeds(range(batch), z_dim).numpy()
        expected = ways["studio (torch)"](z).astype(int)
        cases = {name: (lambda draw=draw, z=z: draw(z)) for name, draw in ways.items()}
        seconds = interleave(cases, max(3, calls // batch), warm=2, clock=clock_for(threads))
        for name, draw in ways.items():
            rows.append(
                {
                    "engine": name,
                    "threads": threads,
                    "batch": batch,
                    "p50_ms": 1000 * median(seconds[name]),
                    "p95_ms": 1000 * p95(seconds[name]),
                    "faces_per_s": batch / median(seconds[name]),
                    "worst_of_255": int(np.abs(draw(z) - expected).max()),
                    "mean_of_255": float(np.abs(draw(z) - expected).mean()),
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
    """Write the section: one table, the peak, the start."""
    base = {
        (r["threads"], r["batch"]): r["p50_ms"]
        for r in figures["rows"]
        if r["engine"] == "studio (torch)"
    }
    peak = figures["peak"]["1"]["convolution"]
    rows = [
        (
            r["engine"],
            r["threads"],
            r["batch"],
            f"{r['p50_ms']:.1f} / {r['p95_ms']:.1f}",
            f"{r['faces_per_s']:.0f}",
            f"{base[r['threads'], r['batch']] / r['p50_ms']:.2f}×",
            f"{figures['gflop'] * r['faces_per_s'] / figures['peak'][str(r['threads'])]['convolution']:.0%}",  # noqa: E501
            f"{r['worst_of_255']} ({r['mean_of_255']:.3f})",
        )
        for r in figures["rows"]
    ]
    head = (
        "engine", "threads", "batch", "ms a batch p50 / p95", "faces/s", "against studio",
        "of the peak", "worst (mean) of 255",
    )  # fmt: skip
    start = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in figures["start"].items())
    return (
        f"## Drawing\n\n`python -m benchmarks.generation`; {figures['size']} px, "
        f"{figures['gflop']:.3f} GFLOP a face; {figures['machine']}. One thread: by the process's "
        f"own clock.\n\n{table(head, rows)}\n\n"
        f"Peak of one thread: {figures['peak']['1']['matmul']:.0f} GFLOP/s in a matrix product, "
        f"{peak:.0f} in a 3×3 convolution. Start of a process, the processor's seconds: {start}."
    )


def main(argv: list[str] | None = None) -> int:
    """Run the bench."""
    parser = make_parser("generation", __doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=BUNDLED, help="folder of a generator")
    parser.add_argument("--all", action="store_true", help="also int8 and torch.compile")
    parser.add_argument("--threads", type=int, nargs="*", default=THREADS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="faces at once")
    parser.add_argument("--start", action="store_true", help="measure the start again too")
    parser.add_argument("--calls", type=int, default=60, help="of one face; fewer of batches")
    args = parser.parse_args(argv)
    if args.quick:
        args.threads, args.batches, args.calls = [1], [1, 4], 3
    prepare_cpu()
    studio = Studio.open(args.model)
    figures = kept_figures(args) | {
        "machine": machine(),
        "size": studio.size,
        "gflop": count_flops(studio.G) / 1e9,
    }
    if args.start or "start" not in figures:
        figures["start"] = measure_start(args.quick)
    with tempfile.TemporaryDirectory() as folder:
        files = {"fp32": export(studio, Path(folder), weights="fp32")}
        if args.all:
            files["int8"] = quantise_weights(files["fp32"], studio.G.z_dim)
        for threads in args.threads:
            torch.set_num_threads(threads)
            figures["peak"][str(threads)] = measure_peak(args.quick)
            options = {"compiled": args.all, "calls": args.calls}
            new = measure(args.model, threads, files, args.batches, **options)
            figures["rows"] = merge_rows(figures["rows"], new)
    publish("generation", report(figures), figures, args)
    return 0


def kept_figures(args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of an earlier run, of which this one renews some."""
    path = args.results / "generation.json"
    if path.exists() and not args.quick:
        return json.loads(path.read_text())
    return {"rows": [], "peak": {}}


def merge_rows(old: list[dict], new: list[dict]) -> list[dict]:
    """Replace every row of the threads and batches that were measured again."""
    renewed = {(row["threads"], row["batch"]) for row in new}
    kept = [row for row in old if (row["threads"], row["batch"]) not in renewed]
    return sorted(kept + new, key=lambda row: (row["threads"], row["batch"]))


if __name__ == "__main__":
    sys.exit(main())
