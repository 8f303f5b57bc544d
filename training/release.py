"""Bundle a run's networks with the page.

    python -m training.release runs/mine

Writes assets/generator, assets/discriminator and, where the run has them, the projected
discriminator's heads in assets/projected, in 16 bits where that moves no pixel by more than 1/255.
The generator that was bundled until then goes to assets/earlier with its directions, so that
addresses of its faces still draw them; of these only the newest KEPT stay. Further: in
assets/samples, grids of the seeds 0 … 99, and a few single faces that every machine must
draw again; and, where there is none, assets/faces.zip, faces that `accelerate launch train.py`
learns from in a fresh clone: they need not be of the newest weights, and each new zip would stay in
the repository for ever. An encoder of earlier weights is removed; `python -m fitting.encode` makes
one for the new ones. The model card, assets/generator/README.md, is written by people and left
alone.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from model import (
    CONFIG_NAME,
    DIRECTIONS_NAME,
    SEED_MAX,
    WEIGHTS_NAME,
    Discriminator,
    Enlarger,
    Generator,
    KaoganModel,
    ModelError,
    keep_freed_memory,
    latents_from_seeds,
    quantise,
    weights_digest,
)
from training.config import BUNDLED_FACES
from training.hub.contents import fit_encoder
from training.projected import ProjectedDiscriminator

GRID_SIDE = 10  # faces along each side of a sample grid
GRID_PSIS = (1.0, 0.7, 0.5)
LARGE = (8, 4)  # columns and rows of the large faces, drawn as the page draws them
LARGE_PSIS = (0.55, 0.9)  # the page's truncation: coarse and middle layers, fine ones
LARGE_SIZE = 192  # px
GOLDEN_SEEDS = (0, 42, SEED_MAX)  # drawn again by the tests, on any machine
GOLDEN_PSI = 0.7
BUNDLED_COUNT = 1024  # faces for a first training run
CHECKED_SEEDS = 256  # faces compared before and after 16-bit storage
RANKED_SEEDS = 16  # of them, for what each tensor alone moves
WORTH_NARROWING = 512  # values: half the bytes of fewer are not worth an attempt
# Earlier generators in the bundle: two of 18 MB beside the present weights keep a checked-out tree
# under 80 MB. Older ones are found where a Hub repository serves the page.
KEPT = 2
KEPT_FILES = (CONFIG_NAME, WEIGHTS_NAME, DIRECTIONS_NAME)
ORDER = "releases.json"  # of assets/earlier: its folders, newest first
GRID_QUALITY = 80  # of the grids' WebP: each release's stay in the repository for ever


def draw(
    G: Generator, seeds: Sequence[int], psi: float, fine: float | None = None
) -> Iterator[np.ndarray]:
    """Yield the faces of seeds, uint8 `[H, W, C]`."""
    for start in range(0, len(seeds), 32):
        z = latents_from_seeds(seeds[start : start + 32], G.z_dim)
        with torch.inference_mode():  # left before the yield: it would reach the caller
            faces = quantise(G(z, psi, fine)).permute(0, 2, 3, 1).numpy()
        yield from faces


def floating(network: KaoganModel) -> list[str]:
    """Name the tensors of a network that could be stored in 16 bits."""
    return [k for k, v in network.state_dict().items() if v.is_floating_point()]


def rounded(G: Generator, names: Sequence[str]) -> Generator:
    """Return a copy of a generator whose named tensors went through 16 bits."""
    other = copy.deepcopy(G)
    state = other.state_dict()
    other.load_state_dict(state | {name: state[name].half() for name in names})
    return other


def hidden_by_16_bits(G: Generator) -> list[str]:
    """Name tensors of a generator that 16 bits hold without a pixel moving by more than 1/255.

    One after another is tried together with those that held before it: first those that save most
    for what they move alone. Tensors too small to be worth a try stay as they are.
    """
    faces = np.stack(list(draw(G, range(CHECKED_SEEDS), 1.0)))
    state, moved = G.state_dict(), {}
    large = [name for name in floating(G) if state[name].numel() >= WORTH_NARROWING]
    if all(step.max() <= 1 for step in steps_from(faces, rounded(G, large))):
        return large
    for name in large:
        steps = np.stack(list(steps_from(faces[:RANKED_SEEDS], rounded(G, [name]))))
        moved[name] = (steps > 0).mean() / state[name].numel()
    names: list[str] = []
    for name in sorted(moved, key=moved.__getitem__):
        if all(step.max() <= 1 for step in steps_from(faces, rounded(G, [*names, name]))):
            names.append(name)
    return names


def steps_from(faces: np.ndarray, G: Generator) -> Iterator[np.ndarray]:
    """Yield by how many of 255 steps G's first faces are off `[N, H, W, C]`, for each picture."""
    for face, other in zip(faces, draw(G, range(len(faces)), 1.0), strict=True):
        yield np.abs(face.astype(int) - other)


def store(network: KaoganModel, folder: Path) -> None:
    """Store a network: D in 16 bits, of G the tensors where no pixel shows it."""
    names = floating(network)
    if isinstance(network, Generator):
        names = hidden_by_16_bits(network)
        state = network.state_dict()
        share = sum(state[k].numel() for k in names) / sum(v.numel() for v in state.values())
        print(f"in 16 bits: {len(names)} of {len(state)} tensors, {share:.0%} of the values")
    with tempfile.TemporaryDirectory() as scratch:
        network.save_pretrained(scratch, dtype=dict.fromkeys(names, torch.float16))
        if isinstance(network, Generator) and digest(Path(scratch)) != digest(folder):
            retire(folder, folder.parent / "earlier")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            shutil.move(Path(scratch) / name, folder / name)


def digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's weights, 64 hex digits, or "" where there are none."""
    weights = folder / WEIGHTS_NAME
    return weights_digest(weights) if weights.is_file() else ""


def retire(folder: Path, earlier: Path) -> None:
    """Move a generator's files to `earlier`, in a folder named as addresses name the weights.

    Only the newest KEPT folders there stay; ORDER lists them, since a clone keeps no dates.
    """
    if not (revision := digest(folder)[:12]):
        return
    order = earlier / ORDER
    known = json.loads(order.read_text()) if order.is_file() else []
    newest = [revision, *(r for r in known if r != revision)]
    (earlier / revision).mkdir(parents=True, exist_ok=True)
    for name in KEPT_FILES:
        if (folder / name).is_file():
            shutil.move(folder / name, earlier / revision / name)
    for old in newest[KEPT:]:
        shutil.rmtree(earlier / old, ignore_errors=True)
    order.write_text(json.dumps(newest[:KEPT]) + "\n")


def golden_name(seed: int) -> str:
    """Name the file of a golden face."""
    return f"seed{seed:010}.png"


def save_samples(G: Generator, folder: Path, enlarger: Enlarger | None = None) -> None:
    """Write unselected grids, one for each truncation, large faces, and the golden faces."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, pixels in zip(GOLDEN_SEEDS, draw(G, GOLDEN_SEEDS, GOLDEN_PSI), strict=True):
        Image.fromarray(pixels.squeeze()).save(folder / golden_name(seed))
    for psi in GRID_PSIS:
        faces = np.stack(list(draw(G, range(GRID_SIDE**2), psi)))
        save_grid(faces, GRID_SIDE, folder / f"psi{psi:g}.webp")
    columns, rows = LARGE
    faces = np.stack(list(draw(G, range(columns * rows), *LARGE_PSIS)))
    if enlarger is not None:
        planes = torch.from_numpy(faces).permute(0, 3, 1, 2).split(1)
        faces = torch.cat([enlarger.enlarge(face) for face in planes]).permute(0, 2, 3, 1).numpy()
    save_grid(
        np.stack([resize(face, LARGE_SIZE) for face in faces]), columns, folder / "large.webp"
    )


def resize(face: np.ndarray, size: int) -> np.ndarray:
    """Resize a face uint8 `[H, W, C]` to `size` px by Lanczos' filter."""
    image = Image.fromarray(face.squeeze()).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(size, size, -1)


def save_grid(faces: np.ndarray, columns: int, path: Path) -> None:
    """Lay faces uint8 `[N, H, W, C]` row by row on one sheet, N a multiple of `columns`."""
    count, height, width, channels = faces.shape
    rows = count // columns
    sheet = faces.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    pixels = sheet.reshape(rows * height, columns * width, channels)
    Image.fromarray(pixels.squeeze()).save(path, quality=GRID_QUALITY, method=6)


def save_faces(G: Generator, path: Path) -> None:
    """Write faces as WebP into a zip, the data of a first training run."""
    with zipfile.ZipFile(path, "w") as file:
        for seed, pixels in enumerate(draw(G, range(BUNDLED_COUNT), 1.0)):
            buffer = io.BytesIO()
            Image.fromarray(pixels.squeeze()).save(buffer, "WEBP", quality=92, method=6)
            # A fixed date, so that the same generator makes the same file.
            file.writestr(zipfile.ZipInfo(f"{seed:05}.webp"), buffer.getvalue())


def find_enlarger(options: argparse.Namespace) -> Enlarger | None:
    """Bring the run's enlarger along, and return the bundled one, if there is one."""
    own, bundled = options.run / "enlarger", options.assets / "enlarger"
    if (own / WEIGHTS_NAME).is_file():
        Enlarger.from_pretrained(own)  # or ModelError, before anything is replaced
        shutil.copytree(own, bundled, dirs_exist_ok=True)
    return (
        Enlarger.from_pretrained(bundled).freeze() if (bundled / WEIGHTS_NAME).is_file() else None
    )


def drop_encoder(assets: Path) -> None:
    """Remove the bundled encoder where it is not of the bundled generator."""
    folder = assets / "encoder"
    if folder.is_dir() and not fit_encoder(folder, assets / "generator"):
        shutil.rmtree(folder)
        print(f"{folder} was of other weights: make one with python -m fitting.encode")


def main() -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    parser = argparse.ArgumentParser(prog="python -m training.release", description=__doc__)
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument("--assets", type=Path, default=BUNDLED_FACES.parent)
    options = parser.parse_args()
    keep_freed_memory()
    try:
        G = Generator.from_pretrained(options.run / "generator")
        D = Discriminator.from_pretrained(options.run / "discriminator")
        store(G, options.assets / "generator")
        store(D, options.assets / "discriminator")
        drop_encoder(options.assets)
        if (options.run / "projected").is_dir():
            heads = ProjectedDiscriminator.from_pretrained(options.run / "projected")
            store(heads, options.assets / "projected")
        G = Generator.from_pretrained(options.assets / "generator")
        save_samples(G, options.assets / "samples", find_enlarger(options))
        if not (faces := options.assets / BUNDLED_FACES.name).exists():
            save_faces(G, faces)
    except (ModelError, OSError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
