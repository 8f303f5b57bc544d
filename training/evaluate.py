"""Measure a generator against real faces.

    python -m training.evaluate --model assets/generator --data FOLDER_OR_ZIP --samples 10000

Faces of seeds 0, 1, 2 … are compared with all real ones; each printed line names its features and
counts, since figures with others do not compare. `--best-of 4` measures what rejection does: of
each four seeds in a row, the face that the discriminator finds most real.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from model import (
    Discriminator,
    KaoganModel,
    ModelError,
    keep_freed_memory,
    latents_from_seeds,
    load_generator,
)
from training.data import DataError, Faces, pack
from training.metrics import (
    FEATURES,
    MetricsError,
    Scores,
    build_extractor,
    compute_features,
    evaluate,
    fake_images,
    real_features,
)


def score(
    G: KaoganModel,
    faces: Faces,
    *,
    samples: int,
    features: str,
    reals: int | None = None,
    psi: float = 1.0,
    fine: float | None = None,
    best_of: int = 1,
    D: Discriminator | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Scores:
    """Compare what G draws with packed real faces.

    Args:
        G: a generator of latents `[N, z_dim]`, on `device`.
        faces: real faces at G's resolution; their features are kept beside them.
        samples: faces to draw, of seeds 0 … samples - 1.
        features: a name in `training.metrics.FEATURES`.
        reals: how many real faces to use, spread evenly over all; None for all.
        psi: truncation.
        fine: that of the fine layers, where it is another one; for a generator with w alone.
        best_of: candidates for each face; `D`, on `device`, keeps one of them where more than one.
    Raises:
        MetricsError: features that cannot be had, too few pictures.
    """
    truncation = (psi,) if fine is None else (psi, fine)
    extractor = build_extractor(features, device=device)
    real = real_features(
        faces.images, extractor, cache_dir=faces.path, data_key=faces.key, limit=reals
    )

    @torch.no_grad()
    def draw(start: int, count: int) -> torch.Tensor:
        seeds = range(start * best_of, (start + count) * best_of)
        images = torch.cat(
            [G(z.to(device), *truncation) for z in latents_from_seeds(seeds, G.z_dim).split(64)]
        )
        return images if D is None else images[D.most_real(images.clamp(-1, 1), best_of)]

    batches: Iterable[torch.Tensor] = fake_images(draw, samples)
    total = -(-samples // 64)
    batches = tqdm(batches, total=total, desc=f"{features}, psi {psi:g}", disable=not progress)
    fake = compute_features(batches, extractor)
    return evaluate(real, fake, features=features, device=device)


def open_critic(options: argparse.Namespace, G: KaoganModel) -> Discriminator | None:
    """Load the discriminator that chooses, if one is asked for, or raise ModelError."""
    if options.best_of < 1 or (options.best_of > 1) != (options.critic is not None):
        raise ModelError("--best-of takes a number over 1, together with --critic FOLDER")
    if options.critic is None:
        return None
    D = Discriminator.from_pretrained(options.critic)
    if (D.resolution, D.img_channels) != (G.resolution, G.img_channels):
        raise ModelError(f"{options.critic} judges other pictures than {options.model} draws")
    return D


def describe(told: dict[str, Any]) -> str:
    """Say at which truncation faces were drawn, and of how many each was chosen."""
    fine = "" if told["fine"] is None else f", fine {told['fine']:g}"
    chosen = f", best of {told['best_of']}" if told["best_of"] > 1 else ""
    return f"psi {told['psi']:g}{fine}{chosen}"


def main() -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or Hub repository of a generator")
    parser.add_argument("--revision", help="commit, tag or branch of the repository")
    parser.add_argument(
        "--data", required=True, nargs="+", help="real faces, as train.py takes them"
    )
    parser.add_argument("--samples", type=int, default=10_000, help="faces to draw")
    parser.add_argument("--psi", type=float, nargs="+", default=[1.0], help="truncations")
    parser.add_argument("--fine", type=float, help="truncation of the fine layers, with every psi")
    parser.add_argument(
        "--features", nargs="+", default=["efficientnet-lite0", "hog"], choices=sorted(FEATURES)
    )
    parser.add_argument("--best-of", type=int, default=1, help="candidates for each face")
    parser.add_argument("--critic", help="folder of the discriminator that chooses among them")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures = []
    try:
        G = load_generator(options.model, revision=options.revision).to(device)
        if options.fine is not None and not G.num_ws:
            raise ModelError(f"{options.model} has no w, so --fine cannot be used")
        D = open_critic(options, G)
        faces = pack(options.data, G.resolution, channels=G.img_channels)
        for features in options.features:
            for psi in options.psi:
                scores = score(
                    G,
                    faces,
                    samples=options.samples,
                    features=features,
                    psi=psi,
                    fine=options.fine,
                    best_of=options.best_of,
                    D=D.to(device) if D else None,
                    device=device,
                )
                told = {"psi": psi, "fine": options.fine, "best_of": options.best_of}
                print(f"{describe(told)}: {scores.line()}", flush=True)
                figures.append({**told, **scores.to_dict()})
        if options.json:
            options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    except (ModelError, DataError, MetricsError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
