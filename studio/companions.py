"""What lies beside a generator and was made for it: directions, a discriminator, an encoder.

    directions, why_none = find_directions("assets/generator", None, G, digest)
    encoder = find_encoder("owner/name", commit, G, digest)

What is broken is logged and left out: the faces themselves need none of it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub.errors import RemoteEntryNotFoundError

import model
from model import (
    Discriminator,
    Encoder,
    Generator,
    KaoganModel,
    ModelError,
    fetch_file,
    load_network,
)
from studio.directions import Directions, DirectionsError, largest_file, read_directions

ENCODER = "encoder"  # its folder, beside a generator's or in its repository
NO_DIRECTIONS = "These weights have no directions file, so there are no sliders by name."
NO_W = "These weights have no w, so there are no sliders by name."


def find_directions(
    target: str | Path, commit: str | None, G: KaoganModel, digest: str
) -> tuple[Directions | None, str]:
    """Return the directions beside a generator and "", or None and a sentence that says why.

    Args:
        target, commit: the generator's folder, or its repository and commit.
        G, digest: the generator, and the SHA-256 of its weights.
    """
    if not isinstance(G, Generator):
        return None, NO_W
    if Path(target).is_dir() and not (Path(target) / model.DIRECTIONS_NAME).is_file():
        return None, NO_DIRECTIONS
    try:
        path = fetch_file(target, "", model.DIRECTIONS_NAME, commit, largest_file(G))
        return read_directions(path, G, digest), ""
    except ModelError as error:
        if isinstance(error.__cause__, RemoteEntryNotFoundError):  # which is no fault
            return None, NO_DIRECTIONS
        logging.getLogger(__name__).warning("%s", error)
        why = "the directions file could not be fetched"
    except DirectionsError as error:
        logging.getLogger(__name__).warning("%s: %s", target, error)
        why = f"{error}"
    return None, f"There are no sliders by name: {why}."


def find_discriminator(folder: Path, G: KaoganModel) -> Discriminator | None:
    """Return the discriminator in the folder beside a local generator's, where one fits."""
    beside = folder.absolute().parent / "discriminator"
    if not folder.is_dir() or not (beside / model.CONFIG_NAME).is_file():
        return None
    try:
        D = load_network(beside)
    except ModelError as error:
        logging.getLogger(__name__).warning("no discriminator: %s", error)
        return None
    shape = (G.resolution, G.img_channels)
    if not isinstance(D, Discriminator) or (D.resolution, D.img_channels) != shape:
        return None
    return D.freeze()


def find_encoder(
    target: str | Path, commit: str | None, G: KaoganModel, digest: str
) -> Encoder | None:
    """Return the encoder that was fitted to a generator, or None.

    Args:
        target, commit: the generator's folder, or its repository and commit.
        G, digest: the generator, and the SHA-256 of its weights.
    """
    if not G.num_ws:
        return None
    where: dict[str, Any] = {"revision": commit, "subfolder": ENCODER}
    if Path(target).is_dir():
        target, where = Path(target).absolute().parent / ENCODER, {}
        if not (target / model.CONFIG_NAME).is_file():
            return None
    try:
        encoder = Encoder.from_pretrained(target, **where).freeze()
    except ModelError as error:
        if not isinstance(error.__cause__, RemoteEntryNotFoundError):  # which is no fault
            logging.getLogger(__name__).warning("no encoder: %s", error)
        return None
    shape = (encoder.num_ws, encoder.w_dim)
    if encoder.generator != digest or shape != (G.num_ws, G.w_dim):
        logging.getLogger(__name__).warning(
            "the encoder beside %s was fitted to another generator", target
        )
        return None
    return encoder
