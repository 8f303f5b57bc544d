"""A run's folder → the files of one commit, read at one moment.

    snapshot = take_snapshot(folder, config, kimg=416.0)

A repository gets the generator at its root (config.json, model.safetensors, the card as README.md,
and directions.safetensors if it has one), discriminator/, the heads of a projected discriminator in
projected/, an enlarger and an encoder if the run has them, grids, stats.jsonl, and
train_config.json without local paths.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from model import CONFIG_NAME, DIRECTIONS_NAME, WEIGHTS_NAME, weights_digest
from training.config import TrainConfig
from training.hub.card import LOCAL, format_kimg, make_card, read_metrics
from training.hub.errors import PublishError


@dataclass(frozen=True)
class Snapshot:
    """What one commit uploads, read at one moment, so that training may overwrite its files.

    Attributes:
        folder: the run's.
        kimg: thousand images that its generator has seen.
        files: path in the repository → contents.
        tag: a name for the commit; none if empty.
    """

    folder: Path
    kimg: float
    files: dict[str, bytes]
    tag: str = ""

    @property
    def message(self) -> str:
        """The commit's message."""
        return f"{format_kimg(self.kimg)} kimg" + (f", {self.tag}" if self.tag else "")


def take_snapshot(
    folder: Path, config: TrainConfig, *, kimg: float, repo: str = "", tag: str = ""
) -> Snapshot:
    """Read what a run publishes.

    Raises:
        PublishError: it holds no generator yet.
        OSError: a file cannot be read.
        ValueError: no valid card can be made of it.
    """
    places = {name: folder / "generator" / name for name in (CONFIG_NAME, WEIGHTS_NAME)}
    for path in places.values():
        if not path.is_file():
            raise PublishError(f"{path} is missing: {folder} holds no generator to publish yet")
    if fit_directions(folder / "generator"):
        places[DIRECTIONS_NAME] = folder / "generator" / DIRECTIONS_NAME
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        for network in ("discriminator", "projected", "enlarger"):
            places[f"{network}/{name}"] = folder / network / name
        if fit_encoder(folder / "encoder", folder / "generator"):
            places[f"encoder/{name}"] = folder / "encoder" / name
    places["enlarger/README.md"] = folder / "enlarger" / "README.md"  # it names the teacher
    grids = find_grids(folder)
    places |= grids
    places["stats.jsonl"] = folder / "stats.jsonl"
    if read_metrics(folder, kimg):
        places["metrics.json"] = folder / "metrics.json"
    files = {name: path.read_bytes() for name, path in places.items() if path.is_file()}
    picture = "grid-psi0.7.png" if "grid-psi0.7.png" in grids else next(iter(grids), "")
    card = make_card(folder, config, kimg=kimg, repo=repo, tag=tag, picture=picture)
    files["README.md"] = card.encode()
    files["train_config.json"] = (json.dumps(shareable(config), indent=2) + "\n").encode()
    return Snapshot(folder, kimg, files, tag)


def fit_directions(generator: Path) -> bool:
    """Tell whether directions lie beside a generator's weights and were made for just these."""
    path = generator / DIRECTIONS_NAME
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            made_for = (file.metadata() or {}).get("generator")
    except SafetensorError:
        return False
    return made_for == weights_digest(generator / WEIGHTS_NAME)


def fit_encoder(encoder: Path, generator: Path) -> bool:
    """Tell whether an encoder was made for just a generator's weights."""
    try:
        made_for = json.loads((encoder / CONFIG_NAME).read_text(encoding="utf-8"))["generator"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return made_for == weights_digest(generator / WEIGHTS_NAME)


def find_grids(folder: Path) -> dict[str, Path]:
    """Return the newest grid, and those of the run's end unless the run was resumed since then."""
    newest = sorted((folder / "grids").glob("kimg-*.png"))[-1:]
    found = {f"grids/{path.name}": path for path in newest}
    for path in (folder / "grid-psi1.png", folder / "grid-psi0.7.png"):
        if path.is_file() and all(path.stat().st_mtime >= n.stat().st_mtime for n in newest):
            found[path.name] = path
    return found


def shareable(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that others can use; data only where it lies on the Hub."""
    settings = {k: v for k, v in config.public().items() if k not in LOCAL}
    if all(source.startswith("hf://") for source in config.data):
        settings["data"] = list(config.data)
    return settings
