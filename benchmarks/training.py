"""How fast a training step is, and how far equal time gets: Kaogan against what else is there.

python -m benchmarks.training                          # images/s of a whole step, all contestants
python -m benchmarks.training --part quality --seconds 600 --data FACES
python -m benchmarks.training --part scaling           # batch sizes, 1 and 2 processes
python -m benchmarks.training --quick                  # Kaogan and the DCGAN, in seconds

Contestants are processes of one thread that take turns, so that a busy machine slows all alike;
time is the processor's own for each. The peers, lightweight-gan and stylegan2_pytorch, live in
.venv-peers, which the first run makes, and train on the CPU by benchmarks/peers.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, machine, make_parser, median, publish, table
from training.config import BUNDLED_FACES
from training.data import Faces, pack

VENV = ROOT / ".venv-peers"
PEERS = ("lightweight-gan", "stylegan2-pytorch")
# What trains at which size: the tutorial's networks and the DCGAN are of one size each.
FIELDS = {
    64: ("kaogan", "kaogan-bare", "dcgan", *PEERS),
    96: ("kaogan", "article", "article-deconv"),
}
LEARNERS = ("kaogan", "dcgan", "lightweight-gan")
LABELS = {
    "kaogan": "Kaogan (train.py)",
    "kaogan-bare": "Kaogan's step in bare PyTorch",
    "dcgan": "plain DCGAN",
    "article": "the article's networks",
    "article-deconv": "the article's, transposed convolutions",
    "lightweight-gan": "lightweight-gan 1.2.1",
    "stylegan2-pytorch": "stylegan2_pytorch 1.9.0",
}
OWN_BATCH = {"lightweight-gan": 10}  # to learn with: its command line's
SHEET = 8  # faces of a side
REAL_FACES = 10_000  # that drawn ones are compared with, at most


class Worker:
    """A contestant in its own process; `launch_s` is the time from there to its first step."""

    def __init__(self, name: str, faces: Faces, args: argparse.Namespace, batch: int) -> None:
        python, module = sys.executable, "benchmarks.contestants"
        if name in PEERS:
            python, module = str(args.venv / "bin" / "python"), "benchmarks.peers"
        command = [python, "-m", module, name, "--batch", str(batch), "--threads", "1"]
        command += ["--size", str(faces.images.shape[1]), "--data", "\n".join(args.data)]
        command += ["--images", str(Path(faces.images.filename).resolve())]
        self.name, self.batch, start = name, batch, time.perf_counter()
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in __exit__
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.ask("step 1")
        self.launch_s = time.perf_counter() - start

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and return the answer.

        Raises:
            RuntimeError: the contestant died, with the last it said.
        """
        try:
            print(command, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.log.seek(0)
            raise RuntimeError(f"{self.name} died: {self.log.read()[-2000:]}")
        return json.loads(answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def make_venv(folder: Path) -> None:
    """Make the peers' environment once."""
    ready = folder / "ready"
    if not ready.exists():
        print(f"making {folder} for the peers, some minutes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "-r", ROOT / "requirements-peers.txt"], check=True)
        ready.touch()


def measure_steps(size: int, names: tuple[str, ...], args: argparse.Namespace) -> list[dict]:
    """Time whole training steps of each contestant, in turns; one row each."""
    faces = pack(args.data, size)
    workers: dict[str, Worker] = {}
    try:
        for name in names:
            workers[name] = Worker(name, faces, args, args.batch)
        rows = {name: worker.ask("count") for name, worker in workers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(1 if args.quick else args.repeats):
            for name, worker in workers.items():
                # A cycle holds a penalty; the peers' is four steps, ours sixteen.
                steps = 4 if name in PEERS or args.quick else 16
                seconds[name].append(worker.ask(f"step {steps}")["cpu"])
        return [
            {
                "name": name,
                "size": size,
                "batch": args.batch,
                "images_per_s": args.batch / median(seconds[name]),
                "seconds": seconds[name],
                "launch_s": worker.launch_s,
                **rows[name],
                **worker.ask("facts"),
            }
            for name, worker in workers.items()
        ]
    finally:
        for worker in workers.values():
            worker.__exit__()


def measure_batches(args: argparse.Namespace) -> list[dict]:
    """Time Kaogan's step at several batch sizes and several resolutions, in turns."""
    rows, sizes = [], ((64, 8), (64, 16), (64, 32), (64, 64), (32, 32), (128, 32), (256, 32))
    for size, batch in sizes[:2] if args.quick else sizes:
        with Worker("kaogan", pack(args.data, size), args, batch) as worker:
            flops = worker.ask("count")
            parts = [worker.ask("step 16")["cpu"] for _ in range(1 if args.quick else 3)]
            rate = batch / median(parts)
            rows.append({"size": size, "batch": batch, "images_per_s": rate, **flops})
    return rows


def measure_processes(args: argparse.Namespace) -> list[dict]:
    """Time train.py itself with one process and with two, of one thread each."""
    rows = []
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as out:
            launch = ["--nproc_per_node", str(processes), "train.py"]
            flags = ["--data", *args.data, "--resolution", "64", "--metric-samples", "0"]
            flags += ["--tick-kimg", "0.512", "--total-kimg", "1.024" if args.quick else "3.072"]
            flags += ["--grid-ticks", "99", "--snapshot-ticks", "99", "--out", out]
            subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", *launch, *flags],
                cwd=ROOT,
                check=True,
                capture_output=True,
                env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            )
            lines = (Path(out) / "stats.jsonl").read_text().splitlines()
            rates = [json.loads(line)["images_per_s"] for line in lines[2:]]
            rows.append({"processes": processes, "images_per_s": median(rates)})
    return rows


def measure_quality(args: argparse.Namespace) -> list[dict]:
    """Let each contestant learn for as long on its own clock; measure and show what it draws."""
    from training.metrics import build_extractor, compute_features, evaluate, real_features
    from training.metrics import real_images as batches

    faces = pack(args.data, 64)
    names = ("dcgan",) if args.quick else args.learners
    samples = 64 if args.quick else args.samples
    args.results.mkdir(parents=True, exist_ok=True)

    def learn(name: str) -> dict[str, Any]:
        with Worker(name, faces, args, OWN_BATCH.get(name, args.batch)) as worker:
            learned = worker.ask(f"learn {1 if args.quick else args.seconds}")
            path = args.results / f"faces-{name}.npy"
            worker.ask(f"draw {samples} {path.resolve()}")
            return {"name": name, **learned, "path": path, **worker.ask("facts")}

    with ThreadPoolExecutor(len(names) if args.together else 1) as pool:
        rows = list(pool.map(learn, names))
    extractor = build_extractor("efficientnet-lite0")
    known = {
        "cache_dir": faces.path,
        "data_key": faces.key,
        "limit": samples if args.quick else 10_000,
    }
    real = real_features(faces.images, extractor, **known)
    for row in rows:
        drawn = np.load(row.pop("path"))
        features = compute_features(batches(drawn, np.arange(len(drawn))), extractor)
        row |= evaluate(real, features, features=extractor.name, max_precision=2000).to_dict()
        save_sheet(drawn, args.results / f"faces-{row['name']}.webp")
    return rows


def save_sheet(faces: np.ndarray, path: Path) -> None:
    """Save the first faces as one picture."""
    from PIL import Image

    side = min(SHEET, int(len(faces) ** 0.5))
    _, h, w, c = faces.shape
    grid = faces[: side * side].reshape(side, side, h, w, c).swapaxes(1, 2)
    Image.fromarray(grid.reshape(side * h, side * w, c)).save(path, quality=90)


def speed_table(rows: list[dict]) -> str:
    """Write images/s, sizes and work of each contestant."""
    base = {r["size"]: r["images_per_s"] for r in rows if r["name"] == "kaogan"}
    return table(
        (
            "network", "px", "images/s", "against Kaogan", "parameters G + D, million",
            "GFLOP an image", "GFLOP/s", "launch to first step, s", "peak memory, MB",
        ),
        [
            (
                LABELS[r["name"]],
                r["size"],
                f"{r['images_per_s']:.1f}",
                f"{r['images_per_s'] / base[r['size']]:.2f}",
                f"{r['G'] / 1e6:.2f} + {r['D'] / 1e6:.2f}",
                f"{r['gflop']:.2f}",
                f"{r['gflop'] * r['images_per_s']:.0f}",
                f"{r['launch_s']:.1f}",
                f"{r['peak_mb']:.0f}",
            )
            for r in rows
        ],
    )  # fmt: skip


def overhead(rows: list[dict]) -> str:
    """Say how much of Kaogan's step is spent outside the networks, from steps in turns."""
    seconds = {r["name"]: r["seconds"] for r in rows if r["size"] == 64}
    if "kaogan-bare" not in seconds:
        return ""
    shares = [b / k for k, b in zip(seconds["kaogan"], seconds["kaogan-bare"], strict=True)]
    return (
        f"\n\nThe same step in bare PyTorch, on one batch that is never fetched, takes "
        f"{median(shares):.3f} of its time (median of {len(shares)} turns; "
        f"{min(shares):.3f} to {max(shares):.3f}): the rest is data, random numbers, statistics "
        f"and the bookkeeping of several processes."
    )


def quality_table(rows: list[dict]) -> str:
    """Write what equal time reached."""
    head = (
        "network",
        "images seen",
        "minutes of its own",
        "Fréchet",
        "KID × 1000",
        "precision",
        "recall",
    )
    lines = [
        (
            LABELS[r["name"]],
            f"{r['images']:,}",
            f"{r['cpu'] / 60:.1f}",
            f"{r['frechet']:.1f}",
            f"{1000 * r['kid']:.1f} ± {1000 * r['kid_se']:.1f}",
            f"{r['precision']:.2f}",
            f"{r['recall']:.2f}",
        )
        for r in rows
    ]
    counts = (
        f"{rows[0]['features']}, {rows[0]['num_real']:,} real and {rows[0]['num_fake']:,} drawn"
    )
    return (
        f"{table(head, lines)}\n\nFeatures of {counts} faces of 64 px, batch 32, one thread each."
    )


def report(figures: dict[str, Any]) -> str:
    """Write the section from whatever parts were run."""
    text = f"## Training\n\n`python -m benchmarks.training`; {figures['machine']}."
    if rows := figures.get("steps"):
        text += (
            f"\n\nWhole steps (D, G, penalties, optimizers, average), batch {rows[0]['batch']}, "
            f"one thread, by the process's own clock, in turns.\n\n"
            f"{speed_table(rows)}{overhead(rows)}"
        )
    if rows := figures.get("batches"):
        head = ("px", "batch", "images/s", "GFLOP an image", "GFLOP/s")
        lines = [
            (r["size"], r["batch"], f"{r['images_per_s']:.1f}", f"{r['gflop']:.2f}",
             f"{r['gflop'] * r['images_per_s']:.0f}")
            for r in rows
        ]  # fmt: skip
        text += f"\n\n`--part scaling`: Kaogan's step.\n\n{table(head, lines)}"
    if rows := figures.get("processes"):
        lines = [(r["processes"], f"{r['images_per_s']:.1f}") for r in rows]
        text += f"\n\n{table(('processes', 'images/s of train.py'), lines)}"
    if rows := figures.get("quality"):
        text += f"\n\n`--part quality`: equal time on the same faces.\n\n{quality_table(rows)}"
    return text


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser("training", __doc__.splitlines()[0])
    parts = ("steps", "scaling", "processes", "quality")
    parser.add_argument("--part", choices=parts, nargs="+", default=parts[:1])
    parser.add_argument(
        "--data", nargs="+", default=[str(BUNDLED_FACES)], help="as train.py has it"
    )
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=600, help="of learning, for quality")
    parser.add_argument("--samples", type=int, default=2000, help="faces to measure quality by")
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=LEARNERS)
    parser.add_argument("--together", action="store_true", help="learn at once, not in turn")
    parser.add_argument("--sizes", type=int, nargs="+", choices=FIELDS, default=list(FIELDS))
    parser.add_argument("--venv", type=Path, default=VENV, help="environment of the peers")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the bench; parts that are not run keep their last figures."""
    args = parse_arguments(argv)
    if not args.quick:
        make_venv(args.venv)
    kept = args.results / "training.json"
    figures = json.loads(kept.read_text()) if kept.exists() and not args.quick else {}
    figures["machine"] = machine()
    if "steps" in args.part:
        fields = {64: ("kaogan", "kaogan-bare", "dcgan")} if args.quick else FIELDS
        old = [r for r in figures.get("steps", []) if r["size"] not in args.sizes]
        new = [measure_steps(n, names, args) for n, names in fields.items() if n in args.sizes]
        figures["steps"] = sorted(old + sum(new, []), key=lambda r: r["size"])
    if "scaling" in args.part:
        figures["batches"] = measure_batches(args)
    if "processes" in args.part:
        figures["processes"] = measure_processes(args)
    if "quality" in args.part:
        figures["quality"] = measure_quality(args)
    publish("training", report(figures), figures, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
