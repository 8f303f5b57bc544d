"""A run's folder → its model card, Markdown with the Hub's metadata.

card = make_card(folder, config, kimg=416.0, repo="owner/name")
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from training.config import BUNDLED_FACES, TrainConfig

# Settings that name things of the trainer's machine or account.
LOCAL = ("data", "out", "resume", "workers", "push_to_hub", "private", "hub_token")
FACTS = ("hardware", "pictures", "parameters", "torch")  # of facts.json, for the card
OMITTED = (*LOCAL, "data_name", "license", "log_with")


def make_card(
    folder: Path,
    config: TrainConfig,
    *,
    kimg: float,
    repo: str = "",
    tag: str = "",
    picture: str = "",
) -> str:
    """Write a run's model card: metadata, how to draw, how it was trained, figures, limits.

    Args:
        folder: the run's; stats.jsonl, metrics.json and facts.json are used where they exist.
        kimg: thousand images that the generator has seen.
        repo: owner/name of the repository the card is for, if any.
        tag: its revision there, if it has a name.
        picture: address of a sample grid, relative to the card.
    Raises:
        ValueError: huggingface_hub refuses the metadata.
    """
    name = repo.split("/")[-1] or f"kaogan-{config.resolution}"
    metrics = read_metrics(folder, kimg)
    dataset, dataset_name = describe_data(config)
    data = ModelCardData(
        model_name=name,
        library_name="kaogan",
        pipeline_tag="unconditional-image-generation",
        license=config.license,
        datasets=[dataset] if dataset else None,
        tags=["gan", "anime", "image-generation"],
        eval_results=list_eval_results(metrics, dataset, dataset_name) or None,
    )
    size = f"{config.resolution}×{config.resolution}"
    parts = [
        f"# {name}",
        f"A GAN that draws {size} px faces, one for each seed, trained from scratch on "
        f"{dataset_name} for {kimg * 1000:,.0f} images.",
        f"![Faces of the seeds 0 to 63, unselected]({picture})" if picture else "",
        usage_section(config, repo, tag),
        training_section(folder, config, kimg, published=bool(repo)),
        results_section(metrics),
        "## Limits\n\nIt knows only the kind of face it was shown, at this size, and repeats the "
        "leanings of those pictures. A face is made up from a random number; it may still come "
        "close to a picture that was shown.",
    ]
    body = "\n\n".join(part for part in parts if part)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def describe_data(config: TrainConfig) -> tuple[str, str]:
    """Return the data set's id on the Hub, or "", and what to call it; never a local path."""
    found = [re.match(r"hf://([\w.-]+/[\w.-]+)", source) for source in config.data]
    source = found[0][1] if len(found) == 1 and found[0] else ""
    name = config.data_name
    dataset = name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else source
    if config.data == (str(BUNDLED_FACES),):
        name = name or "the faces that come with Kaogan"
    return dataset, name or dataset or "a private collection of pictures"


def list_eval_results(metrics: dict[str, Any], dataset: str, name: str) -> list[EvalResult]:
    """Return the figures for the card's model-index."""
    features = metrics.get("features", "")
    titles = {
        "frechet": ("fid" if features == "inception" else "frechet-distance", "Fréchet distance"),
        "kid": ("kid", "Kernel distance"),
        "precision": ("precision", "Precision"),
        "recall": ("recall", "Recall"),
    }
    return [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=dataset or "pictures",
            dataset_name=name,
            metric_type=kind,
            metric_name=f"{title} ({features} features)",
            metric_value=metrics[key],
            metric_args={k: metrics[k] for k in ("num_real", "num_fake", "psi") if k in metrics},
        )
        for key, (kind, title) in titles.items()
        if isinstance(metrics.get(key), int | float)
    ]


def usage_section(config: TrainConfig, repo: str, tag: str) -> str:
    """Return the card's section on using the weights."""
    place = repo or "FOLDER"
    pinned = f', revision="{tag}"' if repo and tag else ""
    flag = f" --revision {tag}" if repo and tag else ""
    shape = f"[8, {config.img_channels}, {config.resolution}, {config.resolution}]"
    return f"""## Draw

With Kaogan's `model.py` (PyTorch, safetensors, no pickle):

```python
from model import load_network, latents_from_seeds

G = load_network("{place}"{pinned})
faces = G(latents_from_seeds(range(8), G.z_dim), 0.7)  # {shape} in about [-1, 1]
```

```bash
python app.py --model {place}{flag}
python -m studio --seeds 0-63 --out faces --model {place}{flag}
```"""


def training_section(folder: Path, config: TrainConfig, kimg: float, *, published: bool) -> str:
    """Return the card's section on the run: figures, settings other than the default, command."""
    facts = read_json(folder / "facts.json")
    lines = [line for line in read_stats(folder) if line.get("kimg", 0) <= kimg]
    rows = {"images seen": f"{kimg * 1000:,.0f}"}
    if lines and "minutes" in lines[-1]:
        rows["minutes"] = f"{lines[-1]['minutes']:.1f}"
    rows |= {k: str(facts[k]) for k in FACTS if k in facts}
    default = TrainConfig().public()
    rows |= {
        k.replace("_", " "): ", ".join(map(str, v)) if isinstance(v, tuple) else f"{v}"
        for k, v in config.public().items()
        if k not in OMITTED and v != default[k]
    }
    settings = "train_config.json" if published else "../config.json"
    table = "\n".join(f"| {k} | {v} |" for k, v in rows.items())
    return f"""## Training

| | |
|---|---|
{table}

Every setting stands in `{settings}`. With pictures of your own:

```bash
accelerate launch train.py --config {settings} --data FOLDER_OR_ZIP --out runs/mine
```"""


def results_section(metrics: dict[str, Any]) -> str:
    """Return the card's section on the metrics, or "" where none were measured."""
    keys = ("frechet", "kid", "precision", "recall")
    if not all(isinstance(metrics.get(k), int | float) for k in keys):
        return ""
    return (
        "## Figures\n\n| Fréchet distance | KID | precision | recall |\n|---|---|---|---|\n| "
        + " | ".join(f"{metrics[k]:.4g}" for k in keys)
        + f" |\n\n{metrics.get('features')} features of {metrics.get('num_real')} real and "
        f"{metrics.get('num_fake')} drawn faces at psi {metrics.get('psi', 1.0):g}; figures with "
        "other features or counts do not compare."
    ) + (
        f" The weights are the average of G with a half-life of {metrics['ema_kimg']:g} thousand "
        "images, chosen among several by these figures."
        if isinstance(metrics.get("ema_kimg"), int | float)
        else ""
    )


def format_kimg(kimg: float) -> str:
    """Write thousand images without needless digits."""
    return f"{kimg:.3f}".rstrip("0").rstrip(".")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_metrics(folder: Path, kimg: float) -> dict[str, Any]:
    """Return the metrics of this very generator; those of an earlier one do not count."""
    metrics = read_json(folder / "metrics.json")
    return metrics if metrics.get("kimg") == kimg else {}


def read_stats(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of stats.jsonl that are whole."""
    with contextlib.suppress(OSError):
        for line in (folder / "stats.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)
