"""Teach a small network to enlarge faces from 128 to 512 px as a large published one does.

    pip install -r requirements-fitting.txt
    python -m fitting.enlarge --out runs/enlarger                       # for the bundled generator
    python -m fitting.enlarge --out runs/enlarger --data FOLDER_OR_ZIP  # and from pictures
    python -m fitting.enlarge --out runs/mine --model runs/mine/generator

The same command resumes where it was stopped, from OUT/enlarger-training. It ends with
OUT/enlarger, which stands beside a generator's folder: `assets/enlarger`, `runs/mine/enlarger`, or
`enlarger/` of a Hub repository.

1. Pairs: faces drawn at psi 0.5 to 1 and, with --data, one picture for every three of them, each
   enlarged by the teacher.
2. The student learns from crops of the pairs. Its loss is the mean absolute difference of the
   pixels and of their gradients and, from --adversarial-from on, a patch discriminator's
   (hinge loss; Isola et al. 2017, arXiv 1611.07004): differences alone leave its lines soft.
3. Pairs that it never saw tell how near it comes to the teacher, in dB and in gradient energy.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from tqdm import tqdm

from fitting.course import Course, FittingError, begin, to_tensor
from fitting.generator import BUNDLED, open_generator
from fitting.teacher import LICENCE, TEACHERS, Teacher, TeacherError
from model import (
    WEIGHTS_NAME,
    Enlarger,
    Generator,
    ModelError,
    count_parameters,
    keep_freed_memory,
    latents_from_seeds,
    quantise,
    weights_digest,
)
from training.checkpoint import CheckpointError
from training.data import DataError, pack

SIZE = 128  # px of the small pictures
FIRST_SEED = 3 * 2**30  # of the drawn faces; people and benchmarks start at 0
DATA_EVERY = 4  # with --data, one pair of so many is one of its pictures
WORK = "enlarger-training"  # below --out, of pairs and checkpoints: a run has its own
HELD_OUT = 48  # pairs that nothing is learned from, the last ones
CROP = 32  # px of a small crop
GRADIENT_WEIGHT = 1.0


@dataclass(frozen=True)
class Settings:
    """What a student is made with; a folder's pairs and checkpoints belong to one of these."""

    generator: str  # SHA-256 of its weights
    teacher: str
    data: bool
    pairs: int
    width: int
    layers: int
    kimg: float  # thousand crops
    batch_size: int
    lr: float
    adversarial: float  # weight of the discriminator's loss
    adversarial_from: float  # share of the crops after which it counts
    init_from: str  # SHA-256 of the weights that the student starts from, or ""
    seed: int


# ------------------------------------------------------------------------------------------
# Pairs


class Pairs:
    """Small and large pictures of the same faces, in two files that grow until all are there.

    Attributes:
        low, high: uint8 `[N, 128, 128, 3]` and `[N, 512, 512, 3]`.
    """

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.low = open_array(folder / "low.npy", (count, SIZE, SIZE, 3))
        scale = Enlarger.scale
        self.high = open_array(folder / "high.npy", (count, scale * SIZE, scale * SIZE, 3))

    def missing(self) -> list[int]:
        """Return the indices of the pairs that are not there yet."""
        # The small picture is written last, and no face is black.
        return [index for index in range(len(self.low)) if not self.low[index].any()]

    def crops(self, count: int, held_out: int, *key: int) -> tuple[Tensor, Tensor]:
        """Return `count` crops, the same for the same key.

        Returns:
            `[count, 3, CROP, CROP]` and `[count, 3, 4·CROP, 4·CROP]` in [-1, 1].
        """
        rng, scale = np.random.RandomState(key), Enlarger.scale
        rows = rng.randint(len(self.low) - held_out, size=count)
        low, high = [], []
        for row, (y, x), flip in zip(
            rows,
            rng.randint(SIZE - CROP + 1, size=(count, 2)),
            rng.randint(2, size=count),
            strict=True,
        ):
            step = 1 - 2 * flip
            low.append(self.low[row, y : y + CROP, x : x + CROP][:, ::step])
            y, x, side = scale * y, scale * x, scale * CROP
            high.append(self.high[row, y : y + side, x : x + side][:, ::step])
        return to_tensor(np.stack(low)), to_tensor(np.stack(high))


def open_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Open an array of bytes in a file, made of zeros where it is not there."""
    mode = "r+" if path.is_file() else "w+"
    array = np.lib.format.open_memmap(path, mode, np.uint8, None if mode == "r+" else shape)
    if array.shape != shape:
        raise FittingError(
            f"{path} holds {array.shape[0]} pairs, not {shape[0]}; use another --out"
        )
    return array


@torch.inference_mode()
def draw(G: Generator, index: int) -> np.ndarray:
    """Draw the face of one pair, uint8 `[128, 128, 3]`, at truncations of its own."""
    psi, fine = sorted(np.random.RandomState(index).uniform(0.5, 1, 2).tolist())
    z = latents_from_seeds([FIRST_SEED + index], G.z_dim)
    face = quantise(G.synthesis(G.mapping(z, psi, fine)))[0].expand(3, -1, -1)
    image = Image.fromarray(face.permute(1, 2, 0).contiguous().numpy())
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def make_pairs(pairs: Pairs, G: Generator, data: np.ndarray | None, teacher: Teacher) -> None:
    """Draw and enlarge what is missing."""
    for index in tqdm(pairs.missing(), "pairs", unit="pair", disable=None):
        if data is not None and index % DATA_EVERY == DATA_EVERY - 1:
            face = data[index // DATA_EVERY % len(data)]
        else:
            face = draw(G, index)
        pairs.high[index] = teacher(face)
        pairs.low[index] = face


# ------------------------------------------------------------------------------------------
# Learning


class PatchDiscriminator(nn.Module):
    """Which of two large pictures of one small one is the teacher's, place by place."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(6, width, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, 2 * width, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * width, 2 * width, 3, 1, 1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(2 * width, 1, 3, 1, 1)),
        )

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Map `[N, 3, H, W]` and `[N, 3, 4H, 4W]` to logits `[N, 1, H, W]`."""
        shown = F.interpolate(low, scale_factor=Enlarger.scale, mode="nearest")
        return self.layers(torch.cat([high, shown], 1))


def gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of neighbours in a row and in a column."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def difference(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute difference of pixels and of their gradients."""
    slopes = zip(gradients(found), gradients(wanted), strict=True)
    return (found - wanted).abs().mean() + GRADIENT_WEIGHT * sum(
        (a - b).abs().mean() for a, b in slopes
    )


class Enlarging(Course):
    """A student and its discriminator."""

    unit = "crop"

    def __init__(
        self, settings: Settings, pairs: Pairs, folder: Path, start: Enlarger | None = None
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.pairs = settings, pairs
        self.student = Enlarger(settings.width, settings.layers)
        if start is not None:
            self.student.load_state_dict(start.state_dict())
        self.D = PatchDiscriminator()
        networks = {"student": self.student, "D": self.D}
        super().__init__(networks, settings, folder, betas=(0.5, 0.99), constant=1 / 3)

    def step(self) -> dict[str, float]:
        """Learn from one batch of crops; return losses by name."""
        settings = self.settings
        low, high = self.pairs.crops(settings.batch_size, HELD_OUT, settings.seed, self.seen)
        found = self.student(low)
        loss = difference(found, high)
        losses = {"difference": loss.item()}
        if settings.adversarial and self.seen >= settings.adversarial_from * self.total:
            losses["D"] = self.step_discriminator(low, high, found.detach())
            loss = loss - settings.adversarial * self.D(low, found).mean()
        self.descend("student_opt", loss)
        return losses

    def step_discriminator(self, low: Tensor, high: Tensor, found: Tensor) -> float:
        """Let D learn to tell the teacher's crops from the student's; return its loss."""
        loss = F.relu(1 - self.D(low, high)).mean() + F.relu(1 + self.D(low, found)).mean()
        self.descend("D_opt", loss)
        return loss.item()


# ------------------------------------------------------------------------------------------
# How near it came


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of uint8 pictures, dB."""
    error = np.square(a.astype(np.float64) - b).mean()
    return 10 * math.log10(255**2 / max(error, 1e-12))


def energy(faces: np.ndarray) -> float:
    """Return the mean squared gradient of uint8 `[N, H, W, 3]`, in units of one level."""
    rows, columns = (np.diff(faces.astype(np.float64), axis=axis) for axis in (1, 2))
    return float(np.square(rows).mean() + np.square(columns).mean())


def score(student: Enlarger, pairs: Pairs) -> dict[str, float]:
    """Compare the student and Lanczos' filter with the teacher on the pairs kept apart."""
    low, wanted = pairs.low[-HELD_OUT:], pairs.high[-HELD_OUT:]
    planes = torch.from_numpy(low.copy()).permute(0, 3, 1, 2)
    rows = [student.enlarge(row[None])[0].permute(1, 2, 0).numpy() for row in planes]
    large = (wanted.shape[2], wanted.shape[1])
    lanczos = [np.asarray(Image.fromarray(f).resize(large, Image.Resampling.LANCZOS)) for f in low]
    found, plain = np.stack(rows), np.stack(lanczos)
    whole = energy(wanted)
    return {
        "decibels": round(decibels(found, wanted), 2),
        "lanczos_decibels": round(decibels(plain, wanted), 2),
        "gradient_energy": round(energy(found) / whole, 3),
        "lanczos_gradient_energy": round(energy(plain) / whole, 3),
    }


def make_card(settings: Settings, scores: dict[str, float], parameters: int) -> str:
    """Write the card of an enlarger."""
    options = {
        "teacher": settings.teacher,
        "pairs": settings.pairs,
        "width": settings.width,
        "layers": settings.layers,
        "kimg": f"{settings.kimg:g}",
        "lr": f"{settings.lr:g}",
        "adversarial": f"{settings.adversarial:g}",
        "adversarial-from": f"{settings.adversarial_from:g}",
        "seed": settings.seed,
    }
    flags = [f"--{name} {value}" for name, value in options.items()]
    flags += ["--data FACES"] if settings.data else []
    flags += ["--init-from FIRST/enlarger"] if settings.init_from else []
    return f"""---
library_name: kaogan
pipeline_tag: image-to-image
license: mit
---

# Enlarger: 128 to 512 px

Enlarges faces four times, those of the generator `{settings.generator[:12]}` above all. It has
{parameters:,} parameters, after SRVGGNetCompact (arXiv 2107.10833).

It learned from {TEACHERS[settings.teacher]} ({LICENCE}):

```bash
python -m fitting.enlarge {" ".join(flags[:3])} \\
    {" ".join(flags[3:])}
```

On {HELD_OUT} pairs that it never saw, beside the teacher:

| | dB | gradient energy |
|---|---|---|
| this enlarger | {scores["decibels"]} | {scores["gradient_energy"]:.0%} |
| Lanczos | {scores["lanczos_decibels"]} | {scores["lanczos_gradient_energy"]:.0%} |
"""


# ------------------------------------------------------------------------------------------
# The command


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fitting.enlarge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="such as a run's folder")
    add("--model", type=Path, default=BUNDLED, help="generator's folder (default: bundled)")
    add("--data", nargs="+", metavar="SOURCE", help="pictures too: folders, zips, globs")
    add("--teacher", choices=TEACHERS, default="x4plus-anime", help="(default: %(default)s)")
    add("--pairs", type=int, default=1000, help="faces to enlarge (default: %(default)s)")
    add("--width", type=int, default=48, help="channels (default: %(default)s)")
    add("--layers", type=int, default=6, help="hidden convolutions (default: %(default)s)")
    add("--kimg", type=float, default=120.0, help="thousand crops (default: %(default)s)")
    add("--batch-size", type=int, default=16, help="crops of a step (default: %(default)s)")
    add("--lr", type=float, default=1e-3, help="step size (default: %(default)s)")
    add("--adversarial", type=float, default=0.01,
        help="weight of the discriminator's loss; 0: none (default: %(default)s)")  # fmt: skip
    add("--adversarial-from", type=float, default=0.5, metavar="SHARE",
        help="of the crops, after which that loss counts (default: %(default)s)")  # fmt: skip
    add("--init-from", type=Path, metavar="DIR", help="an enlarger of the same size to start from")
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def read_settings(options: argparse.Namespace, generator: str) -> Settings:
    """Check the command line's numbers; a folder that was begun with others is refused."""
    if options.pairs <= HELD_OUT:
        raise FittingError(f"--pairs must be more than the {HELD_OUT} that are kept apart")
    if options.batch_size < 1 or options.kimg <= 0 or options.adversarial < 0 or options.lr <= 0:
        raise FittingError("--batch-size, --kimg and --lr must be above 0, --adversarial not below")
    if not 0 <= options.adversarial_from <= 1:
        raise FittingError("--adversarial-from is a share from 0 to 1")
    names = set(Settings.__dataclass_fields__) - {"generator", "data", "init_from"}
    values = {name: getattr(options, name) for name in names}
    start = weights_digest(options.init_from / WEIGHTS_NAME) if options.init_from else ""
    settings = Settings(generator=generator, data=bool(options.data), init_from=start, **values)
    begin(options.out / WORK, settings)
    return settings


def open_start(options: argparse.Namespace) -> Enlarger | None:
    """Load the enlarger to start from, if one is asked for."""
    if options.init_from is None:
        return None
    start = Enlarger.from_pretrained(options.init_from)
    asked = {"width": options.width, "layers": options.layers}
    if {name: start.config[name] for name in asked} != asked:
        raise FittingError(
            f"{options.init_from} has other sizes; give its --width {start.config['width']} and "
            f"--layers {start.config['layers']}"
        )
    return start


def teach(options: argparse.Namespace) -> str:
    """Make the pairs, teach the student, store it; return what to print."""
    G, digest = open_generator(options.model)
    start = open_start(options)
    settings = read_settings(options, digest)
    work = options.out / WORK
    pairs = Pairs(work / "pairs", settings.pairs)
    if pairs.missing():
        data = pack(options.data, SIZE).images if options.data else None
        make_pairs(pairs, G, data, Teacher(settings.teacher))
    course = Enlarging(settings, pairs, work / "checkpoints", start)
    course.run()
    folder = options.out / "enlarger"
    course.student.save_pretrained(folder, dtype=torch.float16)
    scores = score(Enlarger.from_pretrained(folder).freeze(), pairs)
    card = make_card(settings, scores, count_parameters(course.student))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return f"{folder}: {json.dumps(scores)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    options = parse_arguments(arguments)
    keep_freed_memory()
    try:
        print(teach(options))
    except (FittingError, TeacherError, ModelError, DataError, CheckpointError, OSError) as error:
        print(f"enlarge: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
