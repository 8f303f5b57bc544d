"""Teach a network to find the latents of a picture's face, so that a match takes seconds.

    pip install -r requirements-fitting.txt
    python -m fitting.encode --out runs/encoder --data FOLDER_OR_ZIP    # for the bundled generator
    python -m fitting.encode --out runs/mine --model runs/mine/generator --data FOLDER_OR_ZIP

The same command resumes where it was stopped, from OUT/encoder-training. It ends with
OUT/encoder, which stands beside a generator's folder: `assets/encoder`, `runs/mine/encoder`, or
`encoder/` of a Hub repository.

1. The encoder starts from the bundled reader of tags and a linear map to the known latents of drawn
   faces (--faces), half of them with styles of two seeds.
2. Then all of it learns from drawn faces and, half of each batch, pictures of --data. What the
   generator draws from the encoder's latents should be like the picture: in pixels at four scales,
   in the maps of EfficientNet-Lite1 and in those of the bundled tag reader. Latents of pictures are
   pulled towards those of seeds and towards each other.
3. Pictures that it never saw tell how near the first answer comes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from fitting.course import Course, FittingError, begin, to_tensor
from fitting.generator import BUNDLED, open_generator
from fitting.readers import open_builder
from model import (
    Encoder,
    Generator,
    ModelError,
    Whitening,
    count_parameters,
    dequantise,
    keep_freed_memory,
    latents_from_seeds,
    quantise,
)
from training.checkpoint import CheckpointError, list_checkpoints
from training.data import Batches, DataError, Faces, pack
from training.metrics import EfficientNetLite1, MetricsError

FIRST_SEED = 7 * 2**29  # of the drawn faces; people and benchmarks start at 0
HELD_OUT = 512  # pictures that nothing is learned from, the last ones of the data
HEAD_SEED = 13 * 2**28  # of those that the linear map is fitted to
TEST_SEED = 7 * 2**29 - 2**20  # of drawn faces that nothing is learned from
SCALES = 4  # of the pixels' loss
CHROMA = 3.0  # weight of colour against lightness; small eyes come out pale otherwise
MAPS = 0.25  # weight of EfficientNet-Lite1's maps
TAGS = 0.1  # weight of the tag reader's maps
PULL = 0.02  # weight of |v|² of a picture
TOGETHER = 0.02  # weight of the squared differences between the layers of a picture
RIDGE = 0.3  # of the linear map, in units of the variance of what it sees
LATENTS = 0.1  # weight of the known latents of a drawn face beside these losses


@dataclass(frozen=True)
class Settings:
    """What an encoder is made with; a folder's checkpoints belong to one of these."""

    generator: str  # SHA-256 of its weights
    data: str  # key of the packed pictures, or ""
    kimg: float  # thousand pictures
    faces: int  # drawn for the linear map
    batch_size: int
    lr: float
    bf16: bool
    seed: int


# ------------------------------------------------------------------------------------------
# What the encoder learns from


def sample_latents(G: Generator, start: int, count: int) -> Tensor:
    """Return ws `[count, num_ws, w_dim]` of seeds, truncated by 0.5 to 1; half of them mixed.

    A mixed face takes its layers from a second face from some layer on.
    """
    rng = np.random.RandomState(start % 2**32)
    z = latents_from_seeds(range(start, start + count), G.z_dim)
    psi = torch.from_numpy(rng.uniform(0.5, 1, (count, 1, 1)).astype(np.float32))
    ws = torch.lerp(G.w_avg.expand(count, G.num_ws, -1), G.mapping(z), psi)
    for index in range(count // 2):
        layer = rng.randint(1, G.num_ws)
        ws[index, layer:] = ws[index + count // 2, layer:]
    return ws


@torch.no_grad()
def draw(G: Generator, ws: Tensor, *, bf16: bool) -> Tensor:
    """Draw faces `[N, C, H, W]` in [-1, 1], rounded to bytes as people see them."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return dequantise(quantise(G.synthesis(ws)))


# ------------------------------------------------------------------------------------------
# Likeness


class Likeness(nn.Module):
    """How unlike two pictures are: pixels at four scales, and the maps of two frozen networks.

    Args:
        images: faces `[N, C, H, W]` whose maps' variance is the unit.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.features = EfficientNetLite1(None)
        self.reader = open_builder()
        with torch.no_grad():
            self.units = [
                [m.var((0, 2, 3)).add(1e-4 * m.var()).rsqrt()[:, None, None] for m in maps]
                for maps in self.look(images)
            ]

    def look(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return EfficientNet-Lite1's maps and the tag reader's."""
        return self.features.feature_maps(images), self.reader.maps(images)

    def forward(self, drawn: Tensor, wanted: Tensor) -> Tensor:
        """Map two times `[N, C, H, W]` to a mean difference."""
        loss = pixel_loss(drawn, wanted)
        with torch.no_grad():
            targets = self.look(wanted)
        for weight, units, found, target in zip(
            (MAPS, TAGS), self.units, self.look(drawn), targets, strict=True
        ):
            for unit, a, b in zip(units, found, target, strict=True):
                loss = loss + weight * ((a - b) * unit).square().mean()
        return loss


def pixel_loss(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared difference at four scales, colour weighed more than lightness."""
    difference = drawn - wanted
    lightness = difference.mean(1, keepdim=True)
    difference = lightness + CHROMA * (difference - lightness)
    loss = difference.square().mean()
    for _ in range(SCALES - 1):
        difference = F.avg_pool2d(difference, 2)
        loss = loss + difference.square().mean()
    return loss


# ------------------------------------------------------------------------------------------
# Learning


@torch.inference_mode()
def fit_head(E: Encoder, G: Generator, faces: int, *, bf16: bool) -> None:
    """Fit the encoder's linear map to drawn faces in closed form: ridge regression, then its SVD.

    The trunks are those of the bundled reader of tags, which see hair, eyes and mouth already.

    Args:
        faces: how many are drawn, rounded up to whole batches of 32.
    """
    reader = open_builder()
    E.whole.load_state_dict(reader.layers.state_dict())
    E.middle.load_state_dict(reader.middle.state_dict())
    E.whitening.load_state_dict(Whitening.of(G).state_dict())
    rows, latents = [], []
    for start in tqdm(range(0, faces, 32), "drawing", unit="batch", disable=None):
        ws = sample_latents(G, HEAD_SEED + start, 32)
        rows.append(E.eval().features(draw(G, ws, bf16=bf16)))
        latents.append(E.whitening.to_v(ws) * E.whitening.scales)
    x, w = torch.cat(rows), torch.cat(latents).flatten(1)
    E.shift.copy_(x.mean(0))
    E.scale.copy_(x.std(0) + 1e-3)
    x, mean = (x - E.shift) / E.scale, w.mean(0)
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1])
    linear = torch.linalg.solve(gram, x.T @ (w - mean))  # [features, num_ws * w_dim]
    # The best map of lower rank for these very faces (Izenman 1975, reduced-rank regression).
    _, vectors = torch.linalg.eigh(torch.cov((x @ linear).T))
    basis = vectors[:, -E.up.in_features :]
    scales = E.whitening.scales.repeat(E.num_ws)
    E.down.weight.copy_((linear @ basis).T)
    E.up.weight.copy_(basis / scales[:, None])
    E.up.bias.copy_(mean / scales)


class Encoding(Course):
    """An encoder that learns to invert a generator."""

    def __init__(self, settings: Settings, G: Generator, faces: Faces | None, folder: Path) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.G = settings, G
        rank = min(384, G.num_ws * G.w_dim)
        self.E = Encoder(G.num_ws, G.w_dim, rank=rank, generator=settings.generator)
        if not list_checkpoints(folder):
            fit_head(self.E, G, settings.faces, bf16=settings.bf16)
        super().__init__({"E": self.E}, settings, folder, betas=(0.9, 0.99), constant=0.6)
        self.pictures = None if faces is None else Batches(
            faces, batch_size_per_process=settings.batch_size // 2, seed=settings.seed,
            device=torch.device("cpu"), rows=np.arange(len(faces) - HELD_OUT),
        )  # fmt: skip
        ws = sample_latents(G, TEST_SEED, 64)
        self.variance = ws.var(0).mean()
        self.likeness = Likeness(draw(G, ws, bf16=settings.bf16))

    def step(self) -> dict[str, float]:
        """Learn from one batch; return losses by name."""
        n = self.settings.batch_size
        pictures = n // 2 if self.pictures else 0
        ws = sample_latents(self.G, FIRST_SEED + self.seen, n - pictures)
        images = draw(self.G, ws, bf16=self.settings.bf16)
        if self.pictures:
            images = torch.cat([images, self.pictures.batch(self.seen // n * pictures)])
        # Batch norms keep the statistics of the tag reader: batches of two kinds have none.
        v = self.E.eval().encode(images)
        # In w: the numbers of v that hardly vary in w hardly show in a face.
        missed = (self.E.whitening.to_w(v[: len(ws)]) - ws).square().mean() / self.variance
        losses = {"latents": LATENTS * missed, "likeness": self.compare(v, images)}
        if pictures:
            losses |= pulls(v[-pictures:])
        self.descend("E_opt", torch.stack(list(losses.values())).sum())
        return {name: round(loss.item(), 4) for name, loss in losses.items()}

    def compare(self, v: Tensor, images: Tensor) -> Tensor:
        """Draw what was encoded and compare it with the pictures."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.bf16):
            drawn = self.G.synthesis(self.E.whitening.to_w(v))
        return self.likeness(drawn.float(), images)


def pulls(v: Tensor) -> dict[str, Tensor]:
    """Return the losses that keep v `[N, num_ws, w_dim]` of pictures near those of seeds."""
    apart = v - v.mean(1, keepdim=True)
    return {"pull": PULL * v.square().mean(), "together": TOGETHER * apart.square().mean()}


# ------------------------------------------------------------------------------------------
# How near it comes


@torch.inference_mode()
def rmse(G: Generator, E: Encoder, images: Tensor) -> list[float]:
    """Return the root mean square difference, of 255, of pictures and their first answers."""
    errors: list[float] = []
    for part in images.split(16):
        drawn = quantise(G.synthesis(E(part))).float()
        errors += (drawn - quantise(part).float()).square().mean((1, 2, 3)).sqrt().tolist()
    return errors


def score(G: Generator, E: Encoder, held_out: np.ndarray | None) -> dict[str, float]:
    """Measure the first answers to faces and pictures that nothing was learned from."""
    ws = G.mapping(latents_from_seeds(range(TEST_SEED, TEST_SEED + 128), G.z_dim), 0.7)
    faces = torch.cat([draw(G, part, bf16=False) for part in ws.split(16)])
    scores = {"drawn_rmse": float(np.median(rmse(G, E, faces)))}
    if held_out is not None:
        scores["picture_rmse"] = float(np.median(rmse(G, E, to_tensor(held_out[-128:]))))
    return {name: round(value, 2) for name, value in scores.items()}


def make_card(settings: Settings, scores: dict[str, float], parameters: int) -> str:
    """Write the card of an encoder."""
    flags = [f"--faces {settings.faces}", f"--kimg {settings.kimg:g}"]
    flags += [f"--batch-size {settings.batch_size}", f"--lr {settings.lr:g}"]
    flags += ["--bf16"] if settings.bf16 else []
    flags += ["--data FACES"] if settings.data else []
    rows = {"drawn_rmse": "faces of seeds, psi 0.7", "picture_rmse": "pictures kept apart"}
    table = "\n".join(f"| {rows[name]} | {value} |" for name, value in scores.items())
    return f"""---
library_name: kaogan
license: mit
---

# Encoder: a picture to latents

Finds the latents of a face like a picture's, for the generator `{settings.generator[:12]}` alone.
It has {parameters:,} parameters.

```bash
python -m fitting.encode {" ".join(flags)}
```

First answers, before any search; the median of the root mean square difference of pixels, of 255:

| | RMSE |
|---|---|
{table}
"""


# ------------------------------------------------------------------------------------------
# The command


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fitting.encode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="such as a run's folder")
    add("--model", type=Path, default=BUNDLED, help="generator's folder (default: bundled)")
    add("--data", nargs="+", metavar="SOURCE", help="pictures too: folders, zips, globs")
    add("--kimg", type=float, default=40.0, help="thousand pictures (default: %(default)s)")
    add("--faces", type=int, default=8192,
        help="drawn for the linear map (default: %(default)s)")  # fmt: skip
    add("--batch-size", type=int, default=16, help="pictures of a step (default: %(default)s)")
    add("--lr", type=float, default=3e-4, help="step size (default: %(default)s)")
    add("--bf16", action="store_true", help="draw in bfloat16: twice as fast on CPUs that have it")
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def teach(options: argparse.Namespace) -> str:
    """Teach an encoder and store it; return what to print."""
    if options.batch_size < 4 or options.kimg <= 0 or options.lr <= 0:
        raise FittingError("--batch-size must be at least 4, --kimg and --lr above 0")
    if options.faces < 64:
        raise FittingError("--faces must be at least 64")
    G, digest = open_generator(options.model)
    faces = pack(options.data, G.resolution, channels=G.img_channels) if options.data else None
    if faces is not None and len(faces) <= 2 * HELD_OUT:
        raise FittingError(f"--data must hold more than {2 * HELD_OUT} pictures")
    names = ("faces", "kimg", "batch_size", "lr", "bf16", "seed")
    values = {name: getattr(options, name) for name in names}
    settings = Settings(digest, faces.key if faces else "", **values)
    work = options.out / "encoder-training"  # a run's folder has checkpoints of its own
    begin(work, settings)
    course = Encoding(settings, G, faces, work / "checkpoints")
    course.run()
    folder = options.out / "encoder"
    store(course.E, folder)
    E = Encoder.from_pretrained(folder).freeze()
    scores = score(G, E, faces.images[-HELD_OUT:] if faces else None)
    card = make_card(settings, scores, count_parameters(E))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return f"{folder}: {json.dumps(scores)}"


def store(E: Encoder, folder: Path) -> None:
    """Save an encoder in 16 bits, but for the whitening, which seeds must pass unchanged."""
    names = [name for name, v in E.state_dict().items() if v.is_floating_point()]
    halves = {name: torch.float16 for name in names if not name.startswith("whitening.")}
    E.save_pretrained(folder, dtype=halves)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    options = parse_arguments(arguments)
    keep_freed_memory()
    faults = (FittingError, ModelError, DataError, MetricsError, CheckpointError, OSError)
    try:
        print(teach(options))
    except faults as error:
        print(f"encode: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
