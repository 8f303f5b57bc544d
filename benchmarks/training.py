"""How fast a training step is, and how far equal time gets: Kaogan against what else is there.

python -m benchmarks.training                          # images/s of a whole step, all contestants
python -m benchmarks.training --part overhead          # against the same step in bare PyTorch
python -m benchmarks.training --part quality --seconds 600 --data FACES
python -m benchmarks.training --part processes         # two cores: train.py by 1 and 2 processes
python -m benchmarks.training --part                   # write the tables of earlier runs anew
python -m benchmarks.training --quick                  # Kaogan and the DCGAN, in seconds

Contestants are processes of one thread that take turns, so that a busy machine slows all alike;
time is the processor's own for each. The peers, lightweight-gan and stylegan2_pytorch, live in
.venv-peers, which the first run makes, and train on the CPU by benchmarks/peers.py. Parts that are
not run keep their last figures, as do contestants that --contestants leaves out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from benchmarks import common
from training.config import BUNDLED_FACES, PRESETS
from training.data import Faces, pack

VENV = common.ROOT / ".venv-peers"
PEERS = ("lightweight-gan", "stylegan2-pytorch")
# What trains at which size: the tutorial's networks and the DCGAN are of one size each.
FIELDS = {
    64: ("kaogan", "kaogan-bare", "dcgan", *PEERS),
    96: ("kaogan", "article", "article-deconv"),
}
LEARNERS = ("kaogan", "kaogan-quick", "kaogan-patch", "kaogan-projected", "dcgan", PEERS[0])
LABELS = {
    "kaogan": "Kaogan (train.py)",
    "kaogan-bare": "Kaogan's step in bare PyTorch",
    "kaogan-quick": "Kaogan, --preset quick-64 (batches of 8)",
    "kaogan-patch": "Kaogan, --patch 2",
    "kaogan-projected": "Kaogan, --patch 2 --projected-weight 1",
    "dcgan": "plain DCGAN",
    "article": "the article's networks",
    "article-deconv": "the article's, transposed convolutions",
    "lightweight-gan": "lightweight-gan 1.2.1",
    "stylegan2-pytorch": "stylegan2_pytorch 1.9.0",
}
OVERHEAD_BATCH = 32  # of the preset kaogan-64
OWN_BATCH = {  # to learn with
    "lightweight-gan": 10,  # its command line's
    "kaogan-quick": PRESETS["quick-64"]["batch_size"],
}
# What model.keep_freed_memory asks of glibc, given to the plain networks too. The peers stay as
# they come: they would save a third of a step, and lightweight-gan grow from 5 to 9 GB.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1)}
STRIP = 16  # faces of a row
STRIPS = common.DOC.parent / "performance" / "quality.webp"
REAL_FACES = 10_000  # that drawn ones are compared with, at most


class Worker:
    """A contestant in its own process; `launch_s` is its computing until its first step is done."""

    def __init__(self, name: str, faces: Faces, args: argparse.Namespace, batch: int) -> None:
        python, module = sys.executable, "benchmarks.contestants"
        if name in PEERS:
            python, module = str(VENV / "bin" / "python"), "benchmarks.peers"
        command = [python, "-m", module, name, "--batch", str(batch)]
        command += ["--size", str(faces.images.shape[1]), "--data", "\n".join(args.data)]
        command += ["--images", str(Path(faces.images.filename).resolve())]
        self.name, self.batch = name, batch
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in __exit__
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        env = os.environ | ({} if name in PEERS else KEEP_MEMORY) | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, cwd=common.ROOT, text=True, env=env, **pipes)
        self.launch_s = self.ask("step 1")["whole"]

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
            self.process.wait()  # else its time is counted to whatever is started next
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


def make_venv() -> None:
    """Make the peers' environment once."""
    if not (VENV / "ready").exists():
        print(f"making {VENV} for the peers, some minutes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        pip = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "-r", common.ROOT / "requirements-peers.txt"], check=True)
        (VENV / "ready").touch()


def measure_steps(size: int, names: tuple[str, ...], args: argparse.Namespace) -> list[dict]:
    """Time whole training steps of each contestant, in turns; one row each."""
    faces = pack(args.data, size)
    with ExitStack() as stack:
        workers = {n: stack.enter_context(Worker(n, faces, args, args.batch)) for n in names}
        count = "count 4" if args.quick else "count"
        counted = {name: worker.ask(count) for name, worker in workers.items()}
        # A peer's cycle of four steps takes minutes, so the one that is counted is also timed:
        # counting costs microseconds an operation.
        seconds = {name: [counted[name]["cpu"]] for name in names if name in PEERS}
        ours = {name: worker for name, worker in workers.items() if name not in PEERS}
        # At least a cycle, which holds a lazy penalty.
        steps = {name: 4 if args.quick else max(4, counted[name]["cycle"]) for name in ours}
        seconds |= take_turns(ours, 1 if args.quick else args.repeats, steps)
        rows = []
        for name, worker in workers.items():
            row = {"name": name, "size": size, "batch": args.batch, "seconds": seconds[name]}
            row["images_per_s"] = args.batch / median(seconds[name])
            row |= {"launch_s": worker.launch_s, "gflop": counted[name]["gflop"]}
            rows.append(row | worker.ask("facts"))
        return rows


def measure_fields(args: argparse.Namespace) -> list[dict]:
    """Time the steps of all contestants, one resolution after another."""
    fields = {64: ("kaogan", "kaogan-bare", "dcgan")} if args.quick else FIELDS
    rows = []
    for size, names in fields.items():
        rows += measure_steps(size, tuple(n for n in names if n in args.contestants), args)
    return rows


def take_turns(
    workers: dict[str, Worker], turns: int, steps: dict[str, int]
) -> dict[str, list[float]]:
    """Return the processor's seconds of a step in each turn of some steps."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(turns):
        for name, worker in workers.items():
            seconds[name].append(worker.ask(f"step {steps[name]}")["cpu"])
    return seconds


def measure_overhead(args: argparse.Namespace) -> dict[str, Any]:
    """Time train.py's step and the same one in bare PyTorch, in short turns; the preset's batch."""
    faces, names = pack(args.data, 64), ("kaogan", "kaogan-bare")
    with ExitStack() as stack:
        workers = {n: stack.enter_context(Worker(n, faces, args, OVERHEAD_BATCH)) for n in names}
        turns, steps = (1, 4) if args.quick else (4 * args.repeats, 8)
        seconds = take_turns(workers, turns, dict.fromkeys(names, steps))
    return {"batch": OVERHEAD_BATCH, "seconds": seconds}


def measure_processes(args: argparse.Namespace) -> list[dict]:
    """Time train.py itself with one process and with two, of one thread each."""
    rows = []
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node"]
            command += [str(processes), "train.py", "--data", *args.data, "--resolution", "64"]
            command += ["--total-kimg", "1.024" if args.quick else "3.072", "--tick-kimg", "0.512"]
            command += ["--grid-ticks", "99", "--snapshot-ticks", "99", "--metric-samples", "0"]
            env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            options = {"cwd": common.ROOT, "check": True, "capture_output": True}
            subprocess.run([*command, "--out", out], env=env, **options)
            lines = (Path(out) / "stats.jsonl").read_text().splitlines()
            rates = [json.loads(line)["images_per_s"] for line in lines[2:]]
            rows.append({"processes": processes, "images_per_s": median(rates)})
    return rows


def measure_quality(args: argparse.Namespace) -> list[dict]:
    """Let each contestant learn for as long on its own clock; measure and show what it draws."""
    from training.metrics import build_extractor, compute_features, evaluate, real_features
    from training.metrics import real_images as batches

    faces, rows = pack(args.data, 64, progress=False), []
    samples, seconds = (64, 1) if args.quick else (args.samples, args.seconds)
    args.results.mkdir(parents=True, exist_ok=True)
    for name in ("dcgan",) if args.quick else [n for n in LEARNERS if n in args.contestants]:
        with Worker(name, faces, args, OWN_BATCH.get(name, args.batch)) as worker:
            learned = worker.ask(f"learn {seconds}")
            worker.ask(f"draw {samples} {(args.results / f'faces-{name}.npy').resolve()}")
            rows.append({"name": name, **learned, **worker.ask("facts")})
    extractor = build_extractor("efficientnet-lite0")
    limit = samples if args.quick else REAL_FACES
    known = {"cache_dir": faces.path, "data_key": faces.key, "limit": limit}
    real = real_features(faces.images, extractor, **known)
    for row in rows:
        drawn = np.load(args.results / f"faces-{row['name']}.npy")
        features = compute_features(batches(drawn, np.arange(len(drawn))), extractor)
        row |= evaluate(real, features, features=extractor.name, max_precision=2000).to_dict()
    return rows


def speed_table(rows: list[dict]) -> str:
    """Write images/s, sizes and work of each contestant."""
    base = {r["size"]: r["images_per_s"] for r in rows if r["name"] == "kaogan"}
    head = (
        "network", "px", "batch", "images/s", "against Kaogan", "parameters G + D, million",
        "GFLOP an image", "GFLOP/s", "launch and first step, s", "peak memory, MB",
    )  # fmt: skip
    lines = [
        (
            LABELS[r["name"]], r["size"], r["batch"], f"{r['images_per_s']:.2f}",
            f"{r['images_per_s'] / base[r['size']]:.2f}" if r["size"] in base else "",
            f"{r['G'] / 1e6:.2f} + {r['D'] / 1e6:.2f}", f"{r['gflop']:.2f}",
            f"{r['gflop'] * r['images_per_s']:.0f}", f"{r['launch_s']:.1f}", f"{r['peak_mb']:.0f}",
        )
        for r in rows
    ]  # fmt: skip
    return common.table(head, lines)


def overhead(figures: dict[str, Any]) -> str:
    """Say what Kaogan's step costs over the same one in bare PyTorch, from steps in turns."""
    seconds = figures["seconds"]
    pairs = zip(seconds["kaogan"], seconds["kaogan-bare"], strict=True)
    shares = [bare / ours for ours, bare in pairs]
    low, middle, high = quantiles(shares, n=4) if len(shares) > 1 else shares * 3
    rest = f"{1 - middle:.1%} of the step" if middle < 1 else "less than the turns differ by"
    return (
        f"`--part overhead`: at batch {figures['batch']} and 64 px the same step in bare PyTorch, "
        f"on one batch that is never fetched, takes {middle:.3f} of the time of train.py's "
        f"(median of {len(shares)} turns, quartiles {low:.3f} and {high:.3f}). What is not spent "
        f"in the networks, on data, random numbers, statistics and the bookkeeping of several "
        f"processes, is {rest}."
    )


def quality_table(rows: list[dict]) -> str:
    """Write what equal time reached."""
    head = (
        "network", "images seen", "minutes of its own", "Fréchet", "KID × 1000", "precision",
        "recall",
    )  # fmt: skip
    lines = [
        (
            LABELS[r["name"]], f"{r['images']:,}", f"{r['cpu'] / 60:.1f}", f"{r['frechet']:.1f}",
            f"{1000 * r['kid']:.1f} ± {1000 * r['kid_se']:.1f}", f"{r['precision']:.2f}",
            f"{r['recall']:.2f}",
        )
        for r in rows
    ]  # fmt: skip
    first = rows[0]
    return (
        f"{common.table(head, lines)}\n\nFeatures of {first['features']}, "
        f"{first['num_real']:,} real and {first['num_fake']:,} drawn faces of 64 px; batches of 32 "
        f"but where said, of 10 for lightweight-gan; one thread each."
    )


def report(figures: dict[str, Any]) -> str:
    """Write the section from whatever parts were run."""
    text = f"## Training\n\n`python -m benchmarks.training`; {figures['machine']}."
    if rows := figures.get("steps"):
        text += (
            f"\n\nWhole steps (D, G, penalties, optimizers, average) of one thread, by the "
            f"process's own clock; in turns, but for the peers: one cycle of four steps each.\n\n"
            f"{speed_table(rows)}"
        )
    if known := figures.get("overhead"):
        text += f"\n\n{overhead(known)}"
    if rows := figures.get("processes"):
        lines = [(r["processes"], f"{r['images_per_s']:.1f}") for r in rows]
        text += f"\n\n{common.table(('processes', 'images/s of train.py'), lines)}"
    if rows := figures.get("quality"):
        text += f"\n\n`--part quality`: equal time on the same faces.\n\n{quality_table(rows)}"
        text += f"\n\n![{STRIP} unselected faces of each, in the table's order]"
        text += f"({STRIPS.relative_to(common.DOC.parent)})"
    return text


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "steps": measure_fields,
    "overhead": measure_overhead,
    "processes": measure_processes,
    "quality": measure_quality,
}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = common.make_parser("training", __doc__)
    parser.add_argument("--part", choices=PARTS, nargs="*", default=["steps", "overhead"])
    parser.add_argument(
        "--data", nargs="+", default=[str(BUNDLED_FACES)], help="as train.py has it"
    )
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=600, help="of learning, for quality")
    parser.add_argument("--samples", type=int, default=2000, help="faces to measure quality by")
    parser.add_argument("--contestants", nargs="+", choices=LABELS, default=list(LABELS))
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Measure what the command line asks for; parts that are not run keep their last figures."""
    if not args.quick and {"steps", "quality"} & set(args.part):
        make_venv()
    new = {name: PARTS[name](args) for name in args.part}
    old = common.kept_figures("training", args)
    for name in {"steps", "quality"} & set(new):
        new[name] = merge_rows(old.get(name, []), new[name])
    if "quality" in new and not args.quick:
        files = [args.results / f"faces-{row['name']}.npy" for row in new["quality"]]
        common.save_sheet(np.stack([np.load(file)[:STRIP] for file in files]), STRIPS)
    figures = old | new | {"machine": common.machine() if new else old["machine"]}
    return report(figures), figures


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    return common.finish("training", parse_arguments(argv), run)


def merge_rows(old: list[dict], new: list[dict]) -> list[dict]:
    """Replace the rows of what was measured again; sort by resolution and contestant."""

    def place(row: dict) -> tuple[int, int]:
        return row.get("size", 0), list(LABELS).index(row["name"])

    rows = {place(row): row for row in [*old, *new]}
    return [rows[key] for key in sorted(rows)]


if __name__ == "__main__":
    sys.exit(main())
