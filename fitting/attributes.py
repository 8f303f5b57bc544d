"""What can be seen in a face: two small readers of tags, learned from labelled faces.

    python -m fitting.attributes --data FOLDER_OR_ZIP                # both, into assets/attributes
    python -m fitting.attributes --data FOLDER_OR_ZIP --only judge --out runs/attributes

Two readers that share neither a network nor a training picture: the `builder` labels generated
faces, from which `fitting.directions` fits directions; the `judge` says in `benchmarks.directions`
whether an edit did what its name promises. Each is a folder with config.json and model.safetensors,
loaded as strictly as a generator. The page needs neither.
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

from fitting.readers import READERS, FeatureReader, TagReader, TwoViewReader
from model import WEIGHTS_NAME, ModelError, dequantise, keep_freed_memory
from training.data import DataError, Faces, indices, pack
from training.metrics import MetricsError

MIN_POSITIVES = 150  # labelled pictures without which a tag is not learned
MAX_WEIGHT = 20.0  # of a rare tag's positives, against noise in the labels
HELD_OUT, BUILDER, JUDGE = range(3)  # parts of the data
BLOCK = 256  # pictures read at once outside training
FIGURES = "figures.json"
ROLES: dict[str, tuple[int, type[TagReader]]] = {
    "builder": (BUILDER, TwoViewReader),
    "judge": (JUDGE, FeatureReader),
}


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
        batch = dequantise(pixels.to(reader.threshold.device).permute(0, 3, 1, 2))
        blocks.append(reader.prepare(batch).half().cpu())
    return torch.cat(blocks)


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
    parser.add_argument("--out", type=Path, default=READERS, help="folder (default: %(default)s)")
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
