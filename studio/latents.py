"""A recipe → the latents that a generator draws; pure functions.

    ws = recipe_to_ws(G, Recipe(42, mix=(Mix(77, "middle"),)))     # [num_ws, w_dim]
    text = encode_ws(G, ws)                                        # for Recipe(seed, 1.0, w=text)

The order: the seed's z, spherically between two, → w (or a given w, linearly between two) →
truncation → mixing → variation → edits.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from model import Generator, KaoganModel, latents_from_seeds
from studio.recipe import MAX_W_TEXT, Recipe, RecipeError

if TYPE_CHECKING:
    from studio.directions import Directions

BY_GROUP, BY_LAYER = 1, 2  # first byte of a latent's text
NEEDS_W = {
    "mix": "its faces cannot be mixed",
    "edits": "its faces cannot be edited",
    "vary": "its faces cannot be varied",
    "steps": "its faces cannot be varied",
    "w": "it cannot draw a given one",
}
MAX_SCALE = 16.0  # largest step of an encoded w; w has about unit variance


def recipe_to_z(G: KaoganModel, recipe: Recipe) -> Tensor:
    """Return z `[1, z_dim]` of a recipe's seed, or spherically between two seeds."""
    z = latents_from_seeds([recipe.seed], G.z_dim)
    if recipe.between:
        z = slerp(z, latents_from_seeds([recipe.between.seed], G.z_dim), recipe.between.share)
    return z


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Walk a share of the great circle from a to b, each `[1, D]` (Shoemake 1985).

    Lengths are interpolated with the angle; where both point the same way, or exactly apart, the
    straight line is walked.
    """
    cosine = torch.cosine_similarity(a.double(), b.double()).item()
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    if np.sin(angle) < 1e-6:
        return torch.lerp(a, b, share)
    near, far = np.sin((1 - share) * angle), np.sin(share * angle)
    return a * (near / np.sin(angle)) + b * (far / np.sin(angle))


def recipe_to_ws(G: Generator, recipe: Recipe, directions: Directions | None = None) -> Tensor:
    """Return the ws `[num_ws, w_dim]` of one recipe that `list_faults` finds no fault with."""
    psi = recipe.truncation[0]
    ws = truncate(G, untruncated(G, recipe), psi, recipe.fine)
    for mix in recipe.mix:
        group = G.layer_groups[mix.group]
        ws[group] = truncate(G, seed_to_ws(G, mix.seed), psi, recipe.fine)[group]
    if recipe.vary:
        ws += recipe.vary.radius * (seed_to_ws(G, recipe.vary.seed) - G.w_avg)
    for step in recipe.steps:
        layers = find_layers(G, step.layers)
        ws[layers] += step.radius * (seed_to_ws(G, step.seed) - G.w_avg)[layers]
    return directions.apply(ws, recipe.edits) if directions and recipe.edits else ws


def untruncated(G: Generator, recipe: Recipe) -> Tensor:
    """Return the ws `[num_ws, w_dim]` of a recipe's seed or w, on its way between two faces."""
    if not recipe.w:
        return G.mapping(recipe_to_z(G, recipe))[0]
    ws = decode_ws(G, recipe.w)
    if recipe.between:
        ws = torch.lerp(ws, seed_to_ws(G, recipe.between.seed), recipe.between.share)
    return ws


def seed_to_ws(G: Generator, seed: int) -> Tensor:
    """Return the untruncated ws `[num_ws, w_dim]` of a seed."""
    return G.mapping(latents_from_seeds([seed], G.z_dim))[0]


def find_layers(G: Generator, name: str) -> slice:
    """Return the layers of a group, or of the block of so many px; none where it has none such."""
    if name in G.layer_groups:
        return G.layer_groups[name]
    sizes = [*G.blocks]
    if name not in sizes:
        return slice(0, 0)
    last = 2 * sizes.index(name) + 1  # the first block has one layer, the others two each
    return slice(max(0, last - 2), last)


def truncate(G: Generator, ws: Tensor, psi: float, fine: float | None = None) -> Tensor:
    """Move ws towards the average face: psi 1 leaves them, 0 gives the average.

    Args:
        ws: `[num_ws, w_dim]`; left as they are.
        psi: of all layers, or of the coarse and middle ones where there is a `fine`.
        fine: psi of the fine layers.
    """
    moved = torch.lerp(G.w_avg.expand_as(ws), ws, psi)
    if fine is not None:
        group = G.layer_groups["fine"]
        moved[group] = torch.lerp(G.w_avg.expand_as(ws[group]), ws[group], fine)
    return moved


# ------------------------------------------------------------------------------------------
# What a generator can do with a recipe


def list_faults(
    G: KaoganModel, directions: Directions | None, why_none: str, recipe: Recipe
) -> Iterator[tuple[str, Any, str]]:
    """Yield what a generator cannot draw of a recipe: field, entry (None: all), sentence.

    Args:
        directions: of this generator, if it has some.
        why_none: a sentence for people who edit where there are no directions.
    """
    if not isinstance(G, Generator):
        for name in NEEDS_W:
            if getattr(recipe, name):
                yield name, None, f"this generator has no w, so {NEEDS_W[name]}"
        return
    yield from list_layer_faults(G, recipe)
    if fault := find_w_fault(G, recipe.w):
        yield "w", None, fault
    if directions is not None:
        yield from (("edits", edit, fault) for edit, fault in directions.list_faults(recipe.edits))
    elif recipe.edits:
        yield "edits", None, why_none.rstrip(".")


def list_layer_faults(G: Generator, recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
    """Yield what names layers that a generator lacks: field, entry, sentence."""
    named: list[tuple[str, Any, str]] = [("mix", mix, mix.group) for mix in recipe.mix]
    named += [("steps", step, step.layers) for step in recipe.steps]
    for field, entry, layers in named:
        span = find_layers(G, layers)
        if span.start == span.stop and layers in G.layer_groups:
            yield field, entry, f"this generator is too small to have {layers} layers"
        elif span.start == span.stop:
            yield field, entry, f"this generator has no block of {layers} px"


def find_w_fault(G: Generator, text: str) -> str:
    """Return what is wrong with a latent's text, or ""."""
    try:
        if text:
            decode_ws(G, text)
    except RecipeError as error:
        return f"{error}"
    return ""


# ------------------------------------------------------------------------------------------
# A latent as text


def encode_ws(G: Generator, ws: Tensor) -> str:
    """Write ws `[num_ws, w_dim]` as text: 1,034 or 3,786 characters for 11 layers of w_dim 256.

    A byte that names the format, then one row for each layer group (BY_GROUP, where the layers of
    each group are alike) or for each layer (BY_LAYER); all in base64url without padding. A row is
    relative to the average w: a little-endian 16-bit float, the step, and w_dim signed bytes, the
    steps. Numbers are exact to half a step.

    Raises:
        RecipeError: ws of another shape, not finite, or too far from the average.
    """
    if ws.shape != (G.num_ws, G.w_dim) or not torch.isfinite(ws).all():
        raise RecipeError(f"a latent here has {G.num_ws}×{G.w_dim} finite numbers")
    groups = filled_groups(G)
    alike = all(torch.equal(ws[g], ws[g.start].expand_as(ws[g])) for g in groups)
    rows = [ws[group.start] for group in groups] if alike else list(ws)
    data = bytes([BY_GROUP if alike else BY_LAYER])
    for row in rows:
        offset = (row - G.w_avg).double().numpy()
        if np.abs(offset).max() > 127 * (MAX_SCALE - 1):
            raise RecipeError("this latent is too far from the average face to be written")
        step = np.float16(np.abs(offset).max() / 127)
        # Rounded, the step may be a little short for the largest offset.
        steps = np.rint(offset / max(float(step), 1e-12)).clip(-127, 127)
        data += step.astype("<f2").tobytes() + steps.astype("i1").tobytes()
    text = base64.urlsafe_b64encode(data).decode().rstrip("=")
    if len(text) > MAX_W_TEXT:
        raise RecipeError("the latents of this generator are too long to be written")
    return text


def decode_ws(G: Generator, text: str) -> Tensor:
    """Read what `encode_ws` wrote as ws `[num_ws, w_dim]`.

    Raises:
        RecipeError: damaged, or of a generator of another shape.
    """
    if not re.fullmatch("[A-Za-z0-9_-]+", text) or len(text) % 4 == 1:
        raise RecipeError("this latent is cut off, or of another generator")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    layers = [slice(i, i + 1) for i in range(G.num_ws)]
    formats = {BY_GROUP: filled_groups(G), BY_LAYER: layers}
    sizes = {key: 1 + len(parts) * (2 + G.w_dim) for key, parts in formats.items()}
    if len(data) not in sizes.values() or len(data) != sizes.get(data[0], len(data)):
        raise RecipeError("this latent is cut off, or of another generator")
    if data[0] not in formats:
        raise RecipeError("this latent is written in an unknown way")
    parts = formats[data[0]]
    rows = np.frombuffer(data[1:], np.uint8).reshape(len(parts), 2 + G.w_dim)
    steps = rows[:, :2].copy().view("<f2").astype(np.float32)  # [rows, 1]
    if not ((steps >= 0) & (steps <= MAX_SCALE)).all():
        raise RecipeError("this latent is damaged")
    offsets = torch.from_numpy(rows[:, 2:].copy().view("i1") * steps)  # [rows, w_dim]
    ws = G.w_avg.expand(G.num_ws, -1).clone()
    for part, offset in zip(parts, offsets, strict=True):
        ws[part] += offset
    return ws


def filled_groups(G: Generator) -> Sequence[slice]:
    """Return the layer groups that a generator has, coarse first."""
    return [group for group in G.layer_groups.values() if group.start < group.stop]
