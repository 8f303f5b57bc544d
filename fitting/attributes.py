"""What can be seen in a face: two small readers of tags, learned from labelled faces.

    python -m fitting.attributes --data FOLDER_OR_ZIP                # both, into assets/attributes
    python -m fitting.attributes --data FOLDER_OR_ZIP --only judge --out runs/attributes

Two readers that share neither a network nor a training picture: the `builder` labels generated
faces, from which `fitting.directions` fits directions; the `judge` says in `benchmarks.directions`
whether an edit did what its name promises. Each is a folder with config.json and model.safetensors,
loaded as strictly as a generator. The page needs neither.

    reader = open_reader("assets/attributes/judge")
    logits = reader(images)                     # [N, len(reader.tags)], above 0: the tag is there
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from tqdm import tqdm

from model import (
    NETWORKS,
    WEIGHTS_NAME,
    KaoganModel,
    ModelError,
    keep_freed_memory,
    load_network,
    make_trunk,
)
from training.data import DataError, Faces, indices, pack
from training.metrics import EfficientNetLite0, MetricsError

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "attributes"
SIZE = 64  # px that the judge looks at, and the builder twice: all of a picture, and its middle
MIN_POSITIVES = 150  # labelled pictures without which a tag is not learned
MAX_TAGS = 1000
MAX_WEIGHT = 20.0  # of a rare tag's positives, against noise in the labels
TURN, SCALE, SHIFT = 0.07, 0.05, 0.05  # of the builder's pictures: radians, share, half widths
CONTRAST, BRIGHTNESS = 0.1, 0.04  # likewise, of pictures in [-1, 1]; standard deviations all
HELD_OUT, BUILDER, JUDGE = range(3)  # parts of the data
BLOCK = 256  # pictures read at once outside training
FIGURES = "figures.json"


# ------------------------------------------------------------------------------------------
# The readers


class TagReader(KaoganModel):
    """A network that sees tags in faces.

    `threshold` `[L]` is taken off the logits, so that 0 is where as many pictures of the part kept
    apart are called positive as are labelled so. `typical` `[2, L]` holds the median logits of its
    pictures without and with each tag.

    Args:
        tags: names of the logits.
    Raises:
        ModelError: no list of at least one text.
    """

    size = SIZE  # px of the pictures it looks at, whatever their own size
    balance = 1.0  # exponent of a tag's negatives over its positives, the weight of the latter
    smoothing = 0.0  # of the labels: what a 0 is taken for, and 1 less than that a 1
    threshold: Tensor
    typical: Tensor

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__()
        fits = isinstance(tags, list | tuple) and all(isinstance(t, str) and t for t in tags)
        if not fits or not 1 <= len(tags) <= MAX_TAGS:
            raise ModelError(f"tags must be a list of 1 to {MAX_TAGS} names, not {tags!r:.80}")
        self.tags = tuple(tags)
        self.register_buffer("threshold", torch.zeros(len(tags)))
        self.register_buffer("typical", torch.zeros(2, len(tags)))

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images `[N, C, H, W]` in [-1, 1] into what `score` takes, `[N, …, W']`."""
        raise NotImplementedError

    def score(self, inputs: Tensor) -> Tensor:
        """Map what `prepare` returned to logits `[N, L]`, thresholds not yet taken off."""
        raise NotImplementedError

    def mirror(self, inputs: Tensor) -> Tensor:
        """Turn what `prepare` returned into what it would about return for mirrored pictures."""
        return inputs.flip(3)

    def augment(self, inputs: Tensor) -> Tensor:
        """Change what `prepare` returned in ways that leave the tags as they are, at random."""
        return inputs

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images `[N, C, H, W]` in [-1, 1] to what tags are read from, `[N, …]`, and logits."""
        inputs = self.prepare(images)
        return inputs, self.score(inputs) - self.threshold

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` in [-1, 1] to logits `[N, L]`, above 0 where a tag is seen."""
        return self.score(self.prepare(images)) - self.threshold


def resize(images: Tensor, size: int) -> Tensor:
    """Repeat grey to three channels, clamp to [-1, 1] and bring pictures to `size` px."""
    images = images.expand(-1, 3, -1, -1).clamp(-1, 1)
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)


class PixelReader(TagReader):
    """A residual network of 0.4 M parameters, learned from pixels alone.

    Its last map is read place by place: the faces are aligned, so a cell means the same part.
    """

    balance = 0.5
    smoothing = 0.02
    WIDTHS = (16, 32, 64, 96)  # of the maps of 32, 16, 8 and 4 px
    CELLS = (SIZE // 2 ** len(WIDTHS)) ** 2  # of the last one

    def __init__(self, tags: Sequence[str] = ("smile",)) -> None:
        super().__init__(tags)
        head = (nn.Flatten(), nn.Dropout(0.3), nn.Linear(self.WIDTHS[-1] * self.CELLS, len(tags)))
        self.layers = nn.Sequential(*make_trunk(self.WIDTHS), *head)

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images into `[N, 3, size, size]`."""
        return resize(images, self.size)

    def augment(self, inputs: Tensor) -> Tensor:
        """Turn, scale, shift, blur and tint pictures a little, and hide a part of some."""
        return hide(tint(blur(shake(inputs))))

    def look(self, inputs: Tensor) -> Tensor:
        """Map what `prepare` returned to the last maps, `[N, …, 4, 4]`."""
        return self.layers[:-3](inputs.contiguous(memory_format=torch.channels_last))

    def tell(self, seen: Tensor) -> Tensor:
        """Map what `look` returned to logits `[N, L]`, thresholds not yet taken off."""
        return self.layers[-3:](seen)

    def score(self, inputs: Tensor) -> Tensor:
        """Map what `prepare` returned to logits `[N, L]`."""
        return self.tell(self.look(inputs))

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images `[N, C, H, W]` in [-1, 1] to the last maps `[N, …, 4, 4]` and logits."""
        seen = self.look(self.prepare(images))
        return seen, self.tell(seen) - self.threshold


class TwoViewReader(PixelReader):
    """Two such networks: all of the picture at 64 px, and its middle as it is at 128; the builder.

    The second sees the 64×64 px around eyes and mouth, since a mouth is 3 px wide in the first.
    """

    size = 2 * SIZE
    MIDDLE = (40, 32)  # top and left of the second view, px
    ENDS = (3, 5, 7, 11)  # layers of a trunk that end the maps of 32, 16, 8 and 4 px

    def __init__(self, tags: Sequence[str] = ("smile",)) -> None:
        super().__init__(tags)
        self.layers, self.middle = make_trunk(self.WIDTHS), make_trunk(self.WIDTHS)
        features = 2 * self.WIDTHS[-1] * self.CELLS
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(features, len(tags)))

    def look(self, inputs: Tensor) -> Tensor:
        """Map `[N, 3, 128, 128]` to the last maps `[N, 192, 4, 4]` of both networks."""
        top, left = self.MIDDLE
        whole, middle = F.avg_pool2d(inputs, 2), inputs[:, :, top : top + SIZE, left : left + SIZE]
        views = zip((self.layers, self.middle), (whole, middle), strict=True)
        maps = [net(x.contiguous(memory_format=torch.channels_last)) for net, x in views]
        return torch.cat(maps, 1)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Map images `[N, C, H, W]` in [-1, 1] to the maps of both networks, 32 to 4 px."""
        inputs, maps = self.prepare(images), []
        top, left = self.MIDDLE
        for net, x in (
            (self.layers, F.avg_pool2d(inputs, 2)),
            (self.middle, inputs[:, :, top : top + SIZE, left : left + SIZE]),
        ):
            for index, layer in enumerate(net):
                x = layer(x)
                if index in self.ENDS:
                    maps.append(x)
        return maps

    def tell(self, seen: Tensor) -> Tensor:
        """Map what `look` returned to logits `[N, L]`, thresholds not yet taken off."""
        return self.head(seen)


class FeatureReader(TagReader):
    """A small head on the frozen maps of an ImageNet network; the judge.

    EfficientNet-Lite0's own weights come from its package and are not stored again.
    """

    extractor: EfficientNetLite0 | None

    MAPS = 3  # of 24, 40 and 112 channels, 16, 8 and 4 px
    SIDE = 8  # px that all maps are brought to; the finest one's 2×2 blocks become channels
    CHANNELS = 4 * 24 + 40 + 112
    WIDTH = 96

    def __init__(self, tags: Sequence[str] = ("smile",)) -> None:
        super().__init__(tags)
        self.head = nn.Sequential(
            nn.BatchNorm2d(self.CHANNELS),
            nn.Dropout2d(0.1),
            nn.Conv2d(self.CHANNELS, self.WIDTH, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(self.WIDTH * self.SIDE**2, len(tags)),
        )
        self.__dict__["extractor"] = None  # past nn.Module: it is no part of the stored weights

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images into feature maps `[N, 248, 8, 8]`."""
        extractor = self.extractor
        if extractor is None:
            extractor = EfficientNetLite0(None).to(self.threshold.device)
            self.__dict__["extractor"] = extractor
        return self.gather(extractor.feature_maps(resize(images, SIZE)))

    def gather(self, maps: Sequence[Tensor]) -> Tensor:
        """Bring the extractor's feature maps to one size, `[N, 248, 8, 8]`."""
        fine, middle, coarse = maps[: self.MAPS]
        coarse = F.interpolate(coarse, scale_factor=2, mode="nearest")
        return torch.cat([F.pixel_unshuffle(fine, 2), middle, coarse], 1)

    def mirror(self, inputs: Tensor) -> Tensor:
        """Mirror maps `[N, 248, 8, 8]`, the finest one within its 2×2 blocks too."""
        fine = F.pixel_shuffle(inputs[:, : 4 * 24], 2).flip(3)
        return torch.cat([F.pixel_unshuffle(fine, 2), inputs[:, 4 * 24 :].flip(3)], 1)

    def score(self, inputs: Tensor) -> Tensor:
        """Map `[N, 248, 8, 8]` to logits `[N, L]`."""
        return self.head(inputs)


# So that config.json may name them, whoever loads it.
READERS: dict[str, type[TagReader]] = {
    kind.__name__: kind for kind in (PixelReader, TwoViewReader, FeatureReader)
}
NETWORKS.update(READERS)
ROLES: dict[str, tuple[int, type[TagReader]]] = {
    "builder": (BUILDER, TwoViewReader),
    "judge": (JUDGE, FeatureReader),
}


def open_reader(folder: str | Path, device: str | torch.device = "cpu") -> TagReader:
    """Load a reader, or raise ModelError."""
    reader = load_network(folder)
    if not isinstance(reader, TagReader):
        raise ModelError(f"{folder} holds a {type(reader).__name__}, which reads no tags")
    return reader.to(device).requires_grad_(False)


# ------------------------------------------------------------------------------------------
# Data


def split(count: int) -> np.ndarray:
    """Return each picture's part by a hash of its index: 15 % held out, the rest halved."""
    digests = (hashlib.sha256(b"%d" % i).digest() for i in range(count))
    buckets = np.array([int.from_bytes(d[:4], "big") % 40 for d in digests])
    return np.where(buckets < 6, HELD_OUT, BUILDER + buckets % 2).astype(np.uint8)


def choose_tags(faces: Faces) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the tags to learn, and the positives of those that are too rare.

    Raises:
        DataError: no labels, or no tag that is frequent enough.
    """
    if faces.labels is None:
        raise DataError("the data has no labels.csv: give pictures with tags")
    positives = faces.labels.sum(0, dtype=np.int64)
    counts = dict(zip(faces.label_names, positives.tolist(), strict=True))
    most = len(faces) - MIN_POSITIVES
    tags = tuple(name for name, n in counts.items() if MIN_POSITIVES <= n <= most)
    if not tags:
        raise DataError(f"no tag has {MIN_POSITIVES} pictures with and as many without it")
    return tags, {name: n for name, n in counts.items() if name not in tags}


@torch.inference_mode()
def read_inputs(reader: TagReader, images: np.ndarray, rows: np.ndarray) -> Tensor:
    """Return what `reader.score` takes for pictures uint8 `[N, H, W, C]`, in 16 bits on the CPU."""
    blocks = []
    for start in tqdm(range(0, len(rows), BLOCK), desc="reading", unit="block", disable=None):
        pixels = torch.from_numpy(images[rows[start : start + BLOCK]])
        batch = pixels.to(reader.threshold.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        blocks.append(reader.prepare(batch).half().cpu())
    return torch.cat(blocks)


# ------------------------------------------------------------------------------------------
# Training and figures


def fit(
    reader: TagReader,
    inputs: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    seed: int,
    batch_size: int = 64,
    lr: float = 2e-3,
) -> None:
    """Train in place: class-balanced cross-entropy, AdamW, one cycle of the step size.

    Args:
        reader: on the CPU; it comes back there, in evaluation mode.
        inputs: what `reader.score` takes, `[N, …]`.
        targets: 0 and 1, `[N, L]`.
        epochs: passes over the inputs.
        seed: of order, mirroring, shifts and dropout.
        batch_size: inputs a step, over all processes.
        lr: largest step size.
    """
    accelerator = Accelerator(mixed_precision="no")
    share = max(1, batch_size // accelerator.num_processes)
    steps = math.ceil(epochs * len(inputs) / batch_size)
    positives = targets.sum(0).clamp(min=1)
    weight = ((len(targets) - positives) / positives) ** reader.balance
    weight = weight.clamp(max=MAX_WEIGHT).to(accelerator.device)
    optimizer = torch.optim.AdamW(reader.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    module, optimizer = accelerator.prepare(Scorer(reader.train()), optimizer)
    torch.manual_seed(seed)
    for step in tqdm(range(steps), desc="training", disable=None):
        position = step * batch_size + accelerator.process_index * share
        index, flip = indices(position, share, size=len(inputs), seed=seed)
        x, mirrored = inputs[index].to(accelerator.device).float(), torch.from_numpy(flip)
        x[mirrored] = reader.mirror(x[mirrored])
        x = reader.augment(x)
        y = targets[index].to(accelerator.device).float()
        y = y * (1 - 2 * reader.smoothing) + reader.smoothing
        loss = F.binary_cross_entropy_with_logits(module(x), y, pos_weight=weight)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
    reader.eval().cpu()


class Scorer(nn.Module):
    """`reader.score` as a module, which is what several processes can share."""

    def __init__(self, reader: TagReader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs to logits."""
        return self.reader.score(inputs)


def shake(x: Tensor) -> Tensor:
    """Turn, scale and shift each of a batch `[N, C, H, W]` by a little, repeating the edge."""
    turn, scale = TURN * torch.randn(len(x)), 1 + SCALE * torch.randn(len(x))
    rows = torch.stack([scale * turn.cos(), scale * turn.sin(), SHIFT * torch.randn(len(x))], 1)
    more = torch.stack([-rows[:, 1], rows[:, 0], SHIFT * torch.randn(len(x))], 1)
    turned = torch.stack([rows, more], 1).to(x.device)
    grid = F.affine_grid(turned, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def blur(x: Tensor) -> Tensor:
    """Mix each of a batch `[N, C, H, W]` with what is left of it at half the size."""
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False)
    return torch.lerp(x, soft, torch.rand(len(x), 1, 1, 1, device=x.device))


def tint(x: Tensor) -> Tensor:
    """Change contrast and, by channel, brightness of each of a batch `[N, C, H, W]`."""
    contrast = 1 + CONTRAST * torch.randn(len(x), 1, 1, 1, device=x.device)
    return x * contrast + BRIGHTNESS * torch.randn(len(x), x.shape[1], 1, 1, device=x.device)


def hide(x: Tensor) -> Tensor:
    """Lay a grey square a quarter as wide on every other of a batch `[N, C, H, W]`, in place."""
    side, height = x.shape[2] // 4, x.shape[2]
    for face, (top, left) in zip(x[::2], torch.randint(height - side, (len(x), 2)), strict=False):
        face[:, top : top + side, left : left + side] = torch.rand(1).item() * 2 - 1
    return x


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean precision at the rank of each positive: the area under precision over recall.

    Args:
        scores: `[N]`, higher where the label is likelier.
        labels: `[N]` of 0 and 1.
    Returns:
        0 … 1, a random order gives about the positives' share; NaN without positives.
    """
    ranked = labels[np.argsort(-scores, kind="stable")]
    precision = ranked.cumsum() / np.arange(1, len(ranked) + 1)
    return float(precision[ranked == 1].mean()) if ranked.any() else math.nan


@torch.inference_mode()
def calibrate(reader: TagReader, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Set `threshold` and `typical` from the part kept apart; return average precision by tag."""
    logits = torch.cat([reader.score(x.float()) for x in inputs.split(BLOCK)])
    precision = {}
    for k, tag in enumerate(reader.tags):
        column, present = logits[:, k], targets[:, k] == 1
        count = int(present.sum())
        if not 0 < count < len(column):
            raise DataError(f"the part kept apart has {count} of {len(column)} with {tag}")
        middle = column.sort(descending=True).values[count - 1 : count + 1].mean()
        reader.threshold[k] = middle
        reader.typical[0, k] = column[~present].median() - middle
        reader.typical[1, k] = column[present].median() - middle
        precision[tag] = average_precision(column.numpy(), present.numpy().astype(np.int64))
    return precision


@torch.no_grad()
def start_from(reader: TagReader, file: Path) -> str:
    """Take over each tensor of the same name and shape; return the file's SHA-256, 64 hex digits.

    The network of the picture's middle, where the file has none, starts as the whole picture's.

    Raises:
        ModelError: no readable safetensors, or nothing in it fits.
    """
    try:
        content = file.read_bytes()
        old = load(content)
    except (OSError, SafetensorError):
        raise ModelError(f"{file} is not readable as safetensors; give a reader's folder") from None
    taken = 0
    for name, new in reader.state_dict().items():
        source = old.get(name, old.get(name.replace("middle.", "layers.")))
        if source is not None and source.shape == new.shape:
            new.copy_(source)
            taken += 1
    if not taken:
        raise ModelError(f"{file} holds no tensor that fits a {type(reader).__name__}")
    return hashlib.sha256(content).hexdigest()


def train_reader(
    role: str, faces: Faces, out: Path, *, epochs: int, seed: int, start: Path | None = None
) -> None:
    """Train one reader on its own half and write it, with its figures, into a folder.

    Args:
        start: folder of a reader of the same half, whose weights are taken over where they fit.
    """
    part, kind = ROLES[role]
    tags, _ = choose_tags(faces)
    assert faces.labels is not None  # as choose_tags made sure
    parts = split(len(faces))
    columns = [faces.label_names.index(tag) for tag in tags]
    targets = torch.from_numpy(faces.labels[:, columns].astype(np.uint8))
    torch.manual_seed(seed)
    reader = kind(tags)
    started = start_from(reader, start / WEIGHTS_NAME) if start else None
    begin = time.process_time()
    rows, apart = np.flatnonzero(parts == part), np.flatnonzero(parts == HELD_OUT)
    fit(
        reader,
        read_inputs(reader, faces.images, rows),
        targets[rows],
        epochs=epochs,
        seed=seed,
    )
    precision = calibrate(reader, read_inputs(reader, faces.images, apart), targets[apart])
    reader.save_pretrained(out, dtype=torch.float16)
    figures = {
        "network": kind.__name__,
        "trained_on": len(rows),
        "kept_apart": len(apart),
        "epochs": epochs,
        "seed": seed,
        "started_from": started,
        "cpu_minutes": round((time.process_time() - begin) / 60, 1),
        "positives": dict(zip(tags, targets[apart].sum(0).tolist(), strict=True)),
        "average_precision": {tag: round(value, 4) for tag, value in precision.items()},
    }
    (out / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").unlink(missing_ok=True)  # the Hub's own card; ours is one folder up
    mean = np.mean(list(precision.values()))
    print(f"{role}: mean average precision {mean:.3f} over {len(tags)} tags", flush=True)


def start_clause(figures: dict) -> str:
    """Say which weights a reader started from, where it did."""
    digest = figures.get("started_from")
    return f", from an earlier reader of the same half (SHA-256 {digest[:12]}…)" if digest else ""


def write_card(out: Path, left_out: dict[str, int]) -> None:
    """Write README.md from the figures of the readers that are there."""
    figures = {
        role: json.loads((out / role / FIGURES).read_text("utf-8"))
        for role in ROLES
        if (out / role / FIGURES).is_file()
    }
    first = next(iter(figures.values()))
    lines = ["| tag | share | " + " | ".join(figures) + " |", "|---" * (2 + len(figures)) + "|"]
    for tag, count in first["positives"].items():
        values = (f"{f['average_precision'][tag]:.3f}" for f in figures.values())
        lines.append(f"| {tag} | {count / first['kept_apart']:.3f} | {' | '.join(values)} |")
    means = (np.mean(list(f["average_precision"].values())) for f in figures.values())
    lines.append("| **mean** | | " + " | ".join(f"**{m:.3f}**" for m in means) + " |")
    about = "\n".join(
        f"- `{role}`: {f['network']}, {f['epochs']} epochs over {f['trained_on']:,} pictures, "
        f"seed {f['seed']}, {f['cpu_minutes']} minutes of one CPU thread{start_clause(f)}."
        for role, f in figures.items()
    )
    rare = ", ".join(f"{tag} ({n})" for tag, n in left_out.items()) or "none"
    text = CARD.format(
        about=about, table="\n".join(lines), rare=rare, least=MIN_POSITIVES, n=first["kept_apart"]
    )
    (out / "README.md").write_text(text, encoding="utf-8")


CARD = """\
# Readers of tags

Written by `python -m fitting.attributes --data FOLDER_OR_ZIP`. Two networks that see tags in
faces, the judge at 64 px, the builder at 64 px and, around eyes and mouth, at 128 px; they share no
training picture and no layer. `builder` labels generated faces for
`python -m fitting.directions`; `judge` measures the edits in `python -m benchmarks.directions`.
The page loads neither.

{about}

Average precision on {n:,} pictures that neither was trained on; `share` is that of
pictures with the tag, which is what guessing would get. The labels are an automatic tagger's and
wrong for some.

{table}

Left out, with fewer than {least} labelled pictures: {rare}.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m fitting.attributes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, nargs="+", help="labelled faces, with labels.csv")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder (default: %(default)s)")
    parser.add_argument("--only", choices=tuple(ROLES), help="train this one alone")
    parser.add_argument("--epochs", type=int, default=14, help="passes (default: %(default)s)")
    parser.add_argument("--start", type=Path, help="reader (folder) to train further, with --only")
    parser.add_argument("--seed", type=int, default=0, help="of the builder; the judge's is next")
    options = parser.parse_args(arguments)
    if options.start and not options.only:
        parser.error("--start trains one reader further; name it with --only")
    keep_freed_memory()
    try:
        for offset, (role, (_, kind)) in enumerate(ROLES.items()):
            if options.only in (None, role):
                faces = pack(options.data, kind.size)
                _, left_out = choose_tags(faces)
                folder = options.out / role
                folder.mkdir(parents=True, exist_ok=True)
                seed = options.seed + offset
                train_reader(
                    role, faces, folder, epochs=options.epochs, seed=seed, start=options.start
                )
        write_card(options.out, left_out)
    except (DataError, ModelError, MetricsError, OSError) as error:
        print(f"attributes: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
