"""Small faces → large ones: by an enlarger, or by Lanczos' filter.

    enlarging = find_enlarging("assets/generator", None, G)
    large = enlarging(faces, 512)           # uint8 [N, 128, 128, C] → uint8 [N, 512, 512, C]

A large face is a function of the small one's pixels alone, whatever the machine or the batch.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from PIL import Image

from model import WEIGHTS_NAME, Enlarger, KaoganModel, ModelError, fetch_file, weights_digest

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "enlarger"
FOLDER = "enlarger"  # beside a generator's folder, or in its repository
NONE = "none"  # asked for by who wants Lanczos' filter
LANCZOS = "lanczos"  # how PNGs name it
LARGEST = 128  # px; larger faces need less than four times, and cost four times as much


@dataclass(frozen=True)
class Enlarging:
    """How faces are made larger.

    Attributes:
        network: None for Lanczos' filter.
        name: first 12 hex digits of the SHA-256 of the network's weights, or "lanczos".
    """

    network: Enlarger | None = None
    name: str = LANCZOS

    @torch.inference_mode()
    def __call__(self, faces: np.ndarray, size: int) -> np.ndarray:
        """Enlarge faces uint8 `[N, H, H, C]` to `[N, size, size, C]`; none becomes smaller.

        What the network makes four times as large is brought to `size` by Lanczos' filter.
        """
        if not len(faces) or faces.shape[1] >= size:
            return faces
        if self.network is not None:
            planes = torch.from_numpy(np.ascontiguousarray(faces)).permute(0, 3, 1, 2)
            # One by one: together they are no faster, and take more memory.
            large = [self.network.enlarge(face) for face in planes.split(1)]
            faces = torch.cat(large).permute(0, 2, 3, 1).contiguous().numpy()
        return faces if faces.shape[1] == size else np.stack([resize(face, size) for face in faces])


def resize(face: np.ndarray, size: int) -> np.ndarray:
    """Resize one face uint8 `[H, H, C]` to `size` px by Lanczos' filter."""
    image = Image.fromarray(face[:, :, 0] if face.shape[2] == 1 else face)
    resized = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))
    return resized.reshape(size, size, -1)


def find_enlarging(
    target: str | Path, commit: str | None, G: KaoganModel, choice: str | Path | None = None
) -> Enlarging:
    """Return how the faces of a generator are made larger.

    Args:
        target, commit: the generator's folder, or its repository and commit.
        G: the generator; faces of more than LARGEST px are enlarged by Lanczos' filter.
        choice: "none" for Lanczos' filter, a folder with an enlarger, or None: the one beside the
            weights, else the bundled one.
    Raises:
        ModelError: a `choice` that cannot be used. A broken enlarger beside the weights is
            logged, and the bundled one is used.
    """
    if choice == NONE or G.resolution > LARGEST:
        return Enlarging()
    if choice is not None:
        return load_enlarging(choice)
    try:
        own = find_own(target, commit)
        if own is not None:
            return own
    except ModelError as error:
        logging.getLogger(__name__).warning("%s; the bundled enlarger is used", error)
    return load_enlarging(BUNDLED) if (BUNDLED / WEIGHTS_NAME).is_file() else Enlarging()


def find_own(target: str | Path, commit: str | None) -> Enlarging | None:
    """Return the enlarger beside a generator, None where there is none."""
    if Path(target).is_dir():
        beside = Path(target).absolute().parent / FOLDER
        return load_enlarging(beside) if (beside / WEIGHTS_NAME).is_file() else None
    try:
        return load_enlarging(target, revision=commit, subfolder=FOLDER)
    except ModelError as error:
        if isinstance(error.__cause__, RemoteEntryNotFoundError):  # which is no fault
            return None
        raise


def load_enlarging(folder_or_repo: str | Path, **where: Any) -> Enlarging:
    """Load an enlarger and name it by its weights, or raise ModelError."""
    network = Enlarger.from_pretrained(folder_or_repo, **where).freeze()
    place = (folder_or_repo, where.get("subfolder", ""), WEIGHTS_NAME, where.get("revision"))
    digest = weights_digest(fetch_file(*place, sys.maxsize))
    return Enlarging(network, digest[:12])
