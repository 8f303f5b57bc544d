"""The tutorial's experiment: train every variant, measure it, draw the report's plots.

    pip install -r requirements-bench.txt
    python -m benchmarks.article --run --data FACES --images 310000      # ten epochs, on a GPU
    python -m benchmarks.article --speed                                 # its step, naive and ours
    python -m benchmarks.article                                         # figures and plots anew

`--run` goes on where it was stopped. Runs lie under runs/article, one folder for each variant.
What the report shows goes to docs/article: figures.json, plots (SVG) and drawn faces (WebP); the
tables between the report's own marks are written anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from benchmarks import common
from benchmarks.contestants import Ours
from model import ArticleDiscriminator, ArticleGenerator, latents_from_seeds, load_network
from training.config import BUNDLED_FACES, PRESETS, make_config
from training.losses import OBJECTIVES

RUNS = common.ROOT / "runs" / "article"
DOCS = common.ROOT / "docs" / "article"
REPORT = common.ROOT / "docs" / "article.md"
EPOCHS = (1, 2, 5, 10)  # of which the last is --images; a shorter run keeps the proportions
TICKS, GRIDS = 80, 10  # lines of statistics and sample grids of a run
PROBE = 8  # latents at which G's gradient is measured under each loss
BATCH, SPEED_REPEATS = 32, 2
DENSE_IMAGES = 310_000
# The flags of train.py, besides those that every run gets.
TUTORIAL: dict[str, list[str]] = {
    "article-minimax": ["--preset", "article-minimax"],
    "article-logsum": ["--preset", "article-logsum"],
    "article-bce": ["--preset", "article-bce"],
    "article-deconv": ["--preset", "article-deconv"],
    "kaogan": ["--preset", "kaogan-64", "--resolution", "96"],
}
# The dense networks are small enough for all ten epochs on one core: there, every loss has its say.
GREY = ["--preset", "dense", "--metric-features", "hog", "--objective"]
DENSE: dict[str, list[str]] = {
    "dense-minimax": [*GREY, "minimax"],
    "dense-logsum": [*GREY, "minimax-logsum"],
    "dense-bce": [*GREY, "bce", "--real-label", "1"],
    "dense": [*GREY, "bce"],
}
VARIANTS = TUTORIAL | DENSE
LABELS = {
    "article-minimax": "minimax",
    "article-logsum": "log of the sum",
    "article-bce": "cross-entropy",
    "article-deconv": "transposed, cross-entropy",
    "kaogan": "Kaogan",
    "dense-minimax": "minimax",
    "dense-logsum": "log of the sum",
    "dense-bce": "cross-entropy",
    "dense": "cross-entropy, 0.9",
}
COLOURS = {"minimax": "#c0392b", "logsum": "#e08e0b", "bce": "#2166ac", "deconv": "#1b9e77"}


# ------------------------------------------------------------------------------------------
# Training


def run_all(options: argparse.Namespace) -> None:
    """Train every variant to as many images, then Kaogan's for as many seconds."""
    for name in options.variants:
        whole, batch_size, samples = options.images, BATCH, options.metric_samples
        if name in DENSE:
            whole, batch_size, samples = DENSE_IMAGES, 100, 2000
        images = whole
        if name == "kaogan":
            images = round(whole * max(1.0, options.kaogan_speed or kaogan_speed()))
        images = -(-images // batch_size) * batch_size  # whole batches
        folder = options.runs / name
        if done(folder) < images:
            tick = max(1, whole // TICKS // batch_size) * batch_size
            marks = [whole * epoch / EPOCHS[-1] / 1000 for epoch in EPOCHS]
            run_to(folder, [
                *VARIANTS[name], "--data", *options.data, "--batch-size", str(batch_size),
                "--total-kimg", str(images / 1000), "--tick-kimg", str(tick / 1000),
                "--metric-at", ",".join(map(str, marks)), "--metric-samples", str(samples),
            ])  # fmt: skip


def run_to(folder: Path, flags: list[str]) -> None:
    """Train one run to its end, resuming from its last checkpoint, and probe what it learned."""
    resume = ["--resume", "latest"] if any(folder.glob("checkpoints/*.safetensors")) else []
    command = [
        sys.executable, "train.py", *flags, "--out", str(folder), *resume, "--keep", "1",
        "--grid-ticks", str(TICKS // GRIDS), "--snapshot-ticks", str(TICKS // 2),
    ]  # fmt: skip
    subprocess.run(command, cwd=common.ROOT, check=True)
    (folder / "probe.json").write_text(json.dumps(probe(folder), indent=2) + "\n")


def done(folder: Path) -> int:
    """Return the images after which a run was last measured; 0 where it never was."""
    return max((round(line["kimg"] * 1000) for line in read_lines(folder, "metrics")), default=0)


def read_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the lines of a run's stats.jsonl or metrics.jsonl; none where there is no file."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def probe(folder: Path) -> dict[str, Any]:
    """Measure a trained pair: the length of G's gradient under each loss, at the same latents."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    G = load_network(folder / "generator").to(device).train()
    D = load_network(folder / "discriminator").to(device).requires_grad_(False)
    logits = D(G(latents_from_seeds(range(PROBE), G.z_dim).to(device)))
    lengths = {}
    for name in ("minimax", "minimax-logsum", "bce"):
        loss = OBJECTIVES[name].g(logits, None)
        gradients = torch.autograd.grad(loss, list(G.parameters()), retain_graph=True)
        lengths[name] = torch.stack(torch._foreach_norm(gradients)).norm().item()
    return {"gradient": lengths, "d_fake": torch.sigmoid(logits).mean().item()}


# ------------------------------------------------------------------------------------------
# Speed


def naive_step(
    G: nn.Module, D: nn.Module, G_opt: Any, D_opt: Any, real: Tensor, z: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Do the tutorial's step with cross-entropy as tutorials write it; z: for D's step, for G's."""
    bce = nn.BCELoss()
    one, zero = torch.ones(len(real), device=real.device), torch.zeros(len(real)).to(real.device)
    D_opt.zero_grad()
    d_loss = bce(D.probability(real), one) + bce(D.probability(G(z[0]).detach()), zero)
    d_loss.backward()
    D_opt.step()
    G_opt.zero_grad()
    g_loss = bce(D.probability(G(z[1])), one)
    g_loss.backward()
    G_opt.step()
    return d_loss.detach(), g_loss.detach()


def make_naive() -> Callable[[], Any]:
    """Return the naive step of untrained networks."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    G, D = ArticleGenerator().to(device), ArticleDiscriminator().to(device)
    optimizers = [torch.optim.Adam(n.parameters(), 2e-4) for n in (G, D)]
    real = torch.rand(BATCH, 3, 96, 96, device=device) * 2 - 1

    def step() -> None:
        z = torch.randn(2, BATCH, G.z_dim, device=device)
        naive_step(G, D, *optimizers, real, (z[0], z[1]))

    return step


def make_ours(name: str) -> Callable[[], Any]:
    """Return a variant's step by train.py."""
    preset, *rest = TUTORIAL[name][1:]
    values = {"data": (str(BUNDLED_FACES),), "batch_size": BATCH, "metric_samples": 0}
    values |= {"penalty_interval": 4} | ({"resolution": int(rest[1])} if rest else {})
    return Ours(make_config(PRESETS[preset], values)).step


def time_step(kind: str) -> float:
    """Return images per second of a step, after one; on a CPU, of the process's own time."""
    step, steps = (make_naive(), 1) if kind == "naive" else (make_ours(kind), 2)

    def clock() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    return BATCH / (sum(common.interleave({"": step}, steps, clock=clock)[""]) / steps)


def measure_speed() -> dict[str, Any]:
    """Time each step in fresh processes, in turns; return images per second, the median of all."""
    kinds = ("naive", "article-bce", "kaogan")
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(SPEED_REPEATS):
        for kind in kinds:
            command = [sys.executable, "-m", "benchmarks.article", "--step", kind]
            printed = subprocess.run(
                command, cwd=common.ROOT, check=True, capture_output=True, text=True
            )
            found[kind].append(float(printed.stdout.split()[-1]))
            print(f"{kind}: {found[kind][-1]:.2f} images/s", flush=True)
    medians = {kind: round(median(rates), 2) for kind, rates in found.items()}
    factors = [a / b for a, b in zip(found["article-bce"], found["naive"], strict=True)]
    cuda = torch.cuda.is_available()
    return {
        "images_per_s": medians,
        "factor": round(median(factors), 2),
        "factors": [round(f, 2) for f in factors],
        "batch_size": BATCH,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def kaogan_speed() -> float:
    """Return how many images Kaogan trains on in the time of one of the tutorial's."""
    path = DOCS / "speed.json"
    if not path.exists():
        raise common.BenchError("run --speed first, or give --kaogan-speed")
    rates = json.loads(path.read_text())["images_per_s"]
    return rates["kaogan"] / rates["article-bce"]


# ------------------------------------------------------------------------------------------
# The report


def report(options: argparse.Namespace) -> str:
    """Write figures, plots and drawn faces into docs/article, and the report's tables."""
    DOCS.mkdir(parents=True, exist_ok=True)
    runs = {name: options.runs / name for name in VARIANTS}
    runs = {name: folder for name, folder in runs.items() if (folder / "metrics.jsonl").exists()}
    if not runs:
        raise common.BenchError(f"{options.runs} holds no run; train with --run")
    figures = {name: collect(folder) for name, folder in runs.items()}
    text = json.dumps(figures, indent=1) + "\n"
    (DOCS / "figures.json").write_text(text, encoding="utf-8")
    draw_plots(figures)
    draw_films(runs)
    tables = list_tables(figures)
    for name, text in tables.items():
        common.renew_section(REPORT, name, text, by="article")
    return "\n\n".join(tables.values())


def collect(folder: Path) -> dict[str, Any]:
    """Return what the report needs of a run: settings, curves, metrics, the probe."""
    config = json.loads((folder / "config.json").read_text())
    kept = ("d_loss", "g_loss", "d_real", "d_fake", "g_gradient", "images_per_s")
    lines = read_lines(folder, "stats")
    curves = {"images": [round(line["kimg"] * 1000) for line in lines]}
    curves |= {k: [line.get(k) for line in lines] for k in kept if k in lines[-1]}
    probe_file = folder / "probe.json"
    metrics = {round(line["kimg"] * 1000): line for line in read_lines(folder, "metrics")}
    return {
        "objective": config["objective"],
        "batch_size": config["batch_size"],
        "facts": json.loads((folder / "facts.json").read_text()),
        "metrics": metrics,
        "probe": json.loads(probe_file.read_text()) if probe_file.exists() else None,
        "curves": curves,
    }


def draw_plots(figures: dict[str, Any]) -> None:
    """Draw losses, what D believes and the length of G's gradient, over images."""
    for family, prefix in (("article", ""), ("dense", "dense-")):
        runs = {k: v for k, v in figures.items() if k.startswith(family)}
        lines = {name: entry["curves"] for name, entry in runs.items()}
        if lines:
            plot(f"{prefix}losses.svg", lines, {"d_loss": "D's loss", "g_loss": "G's loss"})
            beliefs = {"d_real": "D(x), of real pictures", "d_fake": "D(G(z)), of drawn ones"}
            plot(f"{prefix}beliefs.svg", lines, beliefs)
            length = {"g_gradient": "length of G's gradient"}
            plot(f"{prefix}gradient.svg", lines, length, log=True)


def plot(
    name: str, lines: dict[str, dict[str, list]], panels: dict[str, str], *, log: bool = False
) -> None:
    """Draw one panel for each figure, one line for each variant, as an SVG of stable bytes."""
    with common.svg(DOCS / name, len(panels), (9, 3.2)) as (picture, axes):
        for axis, (key, title) in zip(axes, panels.items(), strict=True):
            for variant, curves in lines.items():
                both = zip(curves["images"], curves[key], strict=True)
                points = [(x, y) for x, y in both if y is not None]
                axis.plot(*zip(*points, strict=True), label=LABELS[variant], color=colour(variant))
            axis.set(title=title, xlabel="images shown", yscale="log" if log else "linear")
        handles, labels = axes[0].get_legend_handles_labels()
        if len(labels) > 1:
            picture.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def colour(variant: str) -> str:
    """Return a variant's colour in every plot."""
    return COLOURS.get(variant.rpartition("-")[2], "#444444")


def draw_films(runs: dict[str, Path]) -> None:
    """Join the sample grids of all variants over time into films, and their last ones."""
    for film, names, side in (
        ("samples", [n for n in TUTORIAL if n in runs], 3),
        ("dense", [n for n in DENSE if n in runs], 8),
    ):
        if not names:
            continue
        grids = {name: sorted((runs[name] / "grids").glob("kimg-*.png")) for name in names}
        times = [[kimg(path) for path in grids[name]] for name in names]
        shared = sorted(set(times[0]).intersection(*times))
        frames = [
            strip({n: next(p for p in grids[n] if kimg(p) == t) for n in names}, side, t)
            for t in shared
        ]
        shown = {"save_all": True, "append_images": frames[1:], "loop": 0, "quality": 55}
        frames[0].save(DOCS / f"{film}.webp", duration=[700] * (len(frames) - 1) + [3000], **shown)
        frames[-1].save(DOCS / f"{film}-last.webp", quality=85)
    if "kaogan" in runs:
        last = {"kaogan": runs["kaogan"] / "grid-psi1.png"}
        strip(last, 3, done(runs["kaogan"]) / 1000).save(DOCS / "kaogan-last.webp", quality=85)


def kimg(path: Path) -> float:
    """Return the thousand images in a grid's name."""
    return float(path.stem.removeprefix("kimg-"))


def strip(grids: dict[str, Path], side: int, at: float) -> Image.Image:
    """Set the first `side`² faces of each grid side by side, with names above them."""
    tiles = []
    for path in grids.values():
        with Image.open(path) as grid:
            size = grid.width * side // 8
            tiles.append(grid.convert("RGB").crop((0, 0, size, size)))
    gap, head = 12, 24
    width = sum(tile.width for tile in tiles) + gap * (len(tiles) - 1)
    sheet = Image.new("RGB", (width, tiles[0].height + head), "white")
    pen, x = ImageDraw.Draw(sheet), 0
    for name, tile in zip(grids, tiles, strict=True):
        sheet.paste(tile, (x, head))
        pen.text((x, 2), LABELS[name], fill="black", font_size=15)
        x += tile.width + gap
    pen.text((width, 2), f"{at * 1000:,.0f}", fill="#666666", font_size=15, anchor="ra")
    return sheet


def list_tables(figures: dict[str, Any]) -> dict[str, str]:
    """Return the tables of the report by the names of their sections."""
    tables = {}
    for family, names in (("article", TUTORIAL), ("dense", DENSE)):
        found = {name: figures[name] for name in names if name in figures}
        if found:
            tables[f"{family}-metrics"] = metrics_table(found)
            tables[f"{family}-probe"] = probe_table(found)
    speed = DOCS / "speed.json"
    return tables | (
        {"speed": speed_table(json.loads(speed.read_text()))} if speed.exists() else {}
    )


def metrics_table(figures: dict[str, Any]) -> str:
    """Return Fréchet distance and KID (in thousandths) of every variant at every mark."""
    marks = sorted({int(mark) for entry in figures.values() for mark in entry["metrics"]})
    rows = []
    for name, entry in figures.items():
        found = {int(mark): line for mark, line in entry["metrics"].items()}
        scores = {m: f"{r['frechet']:.1f} / {1000 * r['kid']:.0f}" for m, r in found.items()}
        rows.append([LABELS[name], *(scores.get(mark, "") for mark in marks)])
    return common.table(["", *(f"{mark:,}" for mark in marks)], rows)


def probe_table(figures: dict[str, Any]) -> str:
    """Return the gradients of each trained pair under each loss."""
    names = {"minimax": "minimax", "minimax-logsum": "log of the sum", "bce": "cross-entropy"}
    probes = {k: v["probe"] for k, v in figures.items() if k != "kaogan" and v["probe"]}
    rows = [
        [LABELS[name], f"{p['d_fake']:.2g}", *(f"{p['gradient'][k]:.2g}" for k in names)]
        for name, p in probes.items()
    ]
    return common.table(["trained by", "D(G(z))", *names.values()], rows)


def speed_table(speed: dict[str, Any]) -> str:
    """Return images per second of each step."""
    rates = speed["images_per_s"]
    where = f"{speed['threads']} thread(s), {speed['device']}"
    ours = f"{rates['article-bce']:.1f} ({speed['factor']:.1f} times)"
    rows = [
        ["the tutorial's, written plainly", f"{rates['naive']:.1f}"],
        ["the same mathematics by train.py", ours],
        ["Kaogan's own at 96 px", f"{rates['kaogan']:.1f}"],
    ]
    return common.table([f"step, batch {speed['batch_size']}, {where}", "images/s"], rows)


def run(options: argparse.Namespace) -> str:
    """Do what the command line asks for and return what there is to print."""
    if options.step:
        return str(time_step(options.step))
    if options.speed:
        DOCS.mkdir(parents=True, exist_ok=True)
        speed = measure_speed()
        (DOCS / "speed.json").write_text(json.dumps(speed, indent=2) + "\n")
        return speed_table(speed)
    if not options.run:
        return report(options)
    if not options.data:
        raise common.BenchError("--run needs --data")
    run_all(options)
    return f"{options.runs}: trained"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = common.make_parser("article", __doc__, speed=False)
    add = parser.add_argument
    add("--run", action="store_true", help="train what is not trained yet")
    add("--speed", action="store_true", help="time the step, naive and ours")
    add("--data", nargs="+", help="faces, as train.py takes them")
    add("--images", type=int, default=310_000, help="images of a whole run")
    add("--metric-samples", type=int, default=5000, help="faces for the metrics")
    times = "images of Kaogan in the time of one of the tutorial's (default: as --speed found)"
    add("--kaogan-speed", type=float, default=0.0, help=times)
    add("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    add("--runs", type=Path, default=RUNS, help="folder of the runs")
    add("--step", choices=["naive", *TUTORIAL], help=argparse.SUPPRESS)
    return common.finish("article", parser.parse_args(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
