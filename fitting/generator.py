"""The generator that something is fitted to.

G, digest = open_generator("runs/mine/generator")
"""

from __future__ import annotations

from pathlib import Path

from model import WEIGHTS_NAME, Generator, ModelError, load_network, weights_digest

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "generator"


def open_generator(folder: Path) -> tuple[Generator, str]:
    """Load a frozen generator and the SHA-256 of its weights, 64 hex digits.

    Raises:
        ModelError: no generator with a w, or a file that cannot be used.
    """
    G = load_network(folder)
    if not isinstance(G, Generator):
        raise ModelError(f"{folder} holds no generator with a w")
    return G.freeze(), weights_digest(folder / WEIGHTS_NAME)
