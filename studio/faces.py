"""Recipes → latents → images.

from studio.faces import Studio
from studio.recipe import Edit, Mix, Recipe

studio = Studio.open()                              # the bundled generator
faces = studio.draw([42, 43], psi=0.7)              # uint8 [2, H, W, C]
face = studio.draw_recipes([Recipe(42, edits=(Edit("smile", 1.5), Edit("hair", "#3fa34d")))])[0]
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

import model
from model import (
    Discriminator,
    Encoder,
    Generator,
    KaoganModel,
    ModelError,
    fetch_file,
    load_generator,
    weights_digest,
)
from studio.companions import (
    NO_DIRECTIONS,
    find_directions,
    find_discriminator,
    find_encoder,
)
from studio.directions import Directions
from studio.drawing import DrawingQueue
from studio.enlarging import Enlarging, find_enlarging
from studio.latents import NEEDS_W, list_faults, recipe_to_ws, recipe_to_z
from studio.recipe import Recipe, RecipeError, check_truncation
from studio.revisions import PATIENCE, Revisions

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "generator"
MAX_BATCH = 1024


class Studio:
    """A generator and what people should know about it; every method may be called by many
    threads at once, and requests that arrive together share one forward pass.

    Attributes:
        G: the generator, in evaluation mode.
        D: the discriminator that it was trained with, or None where only G is there.
        source: where its weights came from, for people.
        revision: first 12 hex digits of the SHA-256 of its `model.safetensors`.
        repo: the Hub repository that was asked for, or "".
        notice: "", or a sentence that says why other weights than the asked ones are in use.
        directions: its sliders and colours, or None.
        directions_notice: "", or a sentence that says why there are none.
        enlarging: how its faces are made larger.
        encoder: finds the latents of pictures for it, or None.
    """

    def __init__(
        self,
        G: KaoganModel,
        *,
        source: str,
        revision: str,
        notice: str = "",
        card: str = "",
        repo: str = "",
        D: Discriminator | None = None,
        directions: Directions | None = None,
        directions_notice: str = "",
        enlarging: Enlarging | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self.G, self.D, self.encoder = G, D, encoder
        self.enlarging = enlarging or Enlarging()
        self.source, self.revision, self.notice = source, revision, notice
        self.repo, self.directions = repo, directions
        self.directions_notice = directions_notice or ("" if directions else NO_DIRECTIONS)
        self._card = card
        self.drawing = DrawingQueue(self._render)
        self._revisions = Revisions(type(self)._load)

    @classmethod
    def open(
        cls,
        path_or_repo: str | Path | None = None,
        revision: str | None = None,
        *,
        fallback: bool = True,
        enlarger: str | Path | None = None,
    ) -> Self:
        """Load a generator.

        Args:
            path_or_repo: folder or Hub repository `owner/name`; the bundled weights when None.
            revision: commit, tag or branch, for a repository only.
            fallback: use the bundled weights, with a `notice`, where a repository cannot be
                reached or used. A folder that cannot be used always raises.
            enlarger: "none" for Lanczos' filter, a folder with an enlarger, or None: the one
                beside the weights, else the bundled one.
        Raises:
            ModelError: no usable generator.
        """
        target = BUNDLED if path_or_repo is None else path_or_repo
        is_folder = path_or_repo is None or Path(target).is_dir()
        if is_folder and revision:
            raise ModelError("a revision is only for a Hub repository; leave it out for a folder")
        try:
            return cls._load(target, revision, enlarger)
        except ModelError as error:
            if is_folder or not fallback:
                raise
            logging.getLogger(__name__).warning("%s", error)  # the whole story, for the operator
            studio = cls._load(BUNDLED, None, enlarger)
            studio.notice = (
                f"The weights of {str(path_or_repo):.100} could not be loaded, so these faces "
                f"come from the bundled ones."
            )
            studio.repo = str(path_or_repo)  # it may be back when an address names a revision
            return studio

    @classmethod
    def _load(
        cls, target: str | Path, revision: str | None, enlarger: str | Path | None = None
    ) -> Self:
        """Load a generator from one place or raise ModelError."""
        is_folder = Path(target).is_dir()
        commit = None if is_folder else find_commit(str(target), revision)
        G = load_generator(target, revision=commit).freeze()
        weights = fetch_file(target, "", model.WEIGHTS_NAME, commit, sys.maxsize)
        card = weights.with_name("README.md")
        is_bundled = is_folder and Path(target).resolve() == BUNDLED
        source = "the bundled weights" if is_bundled else str(target)
        digest = weights_digest(weights)
        directions, why = find_directions(target, commit, G, digest)
        return cls(
            G,
            D=find_discriminator(Path(target), G),
            repo="" if is_folder else str(target),
            source=f"{source} at {revision}" if revision else source,
            revision=digest[:12],
            card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
            directions=directions,
            directions_notice=why,
            enlarging=find_enlarging(target, commit, G, enlarger),
            encoder=find_encoder(target, commit, G, digest),
        )

    @property
    def size(self) -> int:
        """Height and width of a face, px."""
        return self.G.resolution

    def about(self) -> str:
        """Say what is shown, as Markdown: the model card's first paragraph, then plain facts."""
        parameters = model.count_parameters(self.G) / 1e6
        # A visitor need not know where on this machine a folder lies.
        source = self.source if self.repo else Path(self.source.removesuffix("/generator")).name
        facts = (
            f"{self.size}×{self.size} px · {parameters:.3g} million parameters · "
            f"{source}, revision `{self.revision}`"
        )
        if not self.G.num_ws:
            facts += " · no w: variety scales z, and faces cannot be mixed or edited"
        paragraph = first_paragraph(self._card)
        return f"{paragraph}\n\n{facts}" if paragraph else facts

    def draw(
        self,
        seeds: Iterable[int],
        psi: float | None = None,
        fine: float | None = None,
        *,
        batch_size: int = 16,
    ) -> np.ndarray:
        """Draw one face for each seed.

        Args:
            seeds: 0 … 2³²−1 each; a face depends on its seed and psi, not on its neighbours.
            psi, fine: truncation, -2 … 2, as `Recipe` takes them.
            batch_size: faces drawn at once; bounds the memory, not the result.
        Returns:
            uint8 `[N, H, W, C]`, C 3 (RGB) or 1 (grey).
        Raises:
            ValueError: a seed, psi or batch size out of range.
        """
        batches = list(self.draw_batches(seeds, psi, fine, batch_size=batch_size))
        return np.concatenate([self._no_faces(), *batches])

    def draw_batches(
        self,
        seeds: Iterable[int],
        psi: float | None = None,
        fine: float | None = None,
        *,
        batch_size: int = 16,
    ) -> Iterator[np.ndarray]:
        """Yield what `draw` returns, at most `batch_size` faces at a time, as they are drawn."""
        psi, fine = check_truncation(psi, fine)
        recipes = (Recipe(model.check_seed(seed), psi, fine) for seed in seeds)
        return self._stream(recipes, batch_size, self._latents)

    def draw_recipes(self, recipes: Iterable[Recipe], *, batch_size: int = 16) -> np.ndarray:
        """Draw one face for each recipe, as `draw` does for seeds.

        Raises:
            RecipeError: a recipe that this generator cannot draw; one clear sentence.
        """
        batches = list(self.recipe_batches(recipes, batch_size=batch_size))
        return np.concatenate([self._no_faces(), *batches])

    def recipe_batches(
        self, recipes: Iterable[Recipe], *, batch_size: int = 16
    ) -> Iterator[np.ndarray]:
        """Yield what `draw_recipes` returns, at most `batch_size` faces at a time."""
        return self._stream(map(self.check, recipes), batch_size, self._latents)

    def draw_ws(self, ws: Tensor, *, batch_size: int = 16) -> np.ndarray:
        """Draw ws `[N, num_ws, w_dim]` as uint8 `[N, H, W, C]`."""
        return np.concatenate([self._no_faces(), *self.ws_batches(ws, batch_size=batch_size)])

    def ws_batches(self, ws: Iterable[Tensor], *, batch_size: int = 16) -> Iterator[np.ndarray]:
        """Yield what `draw_ws` returns; ws may also come one by one, each `[num_ws, w_dim]`.

        Raises:
            RecipeError: ws of another shape, or a generator without w.
        """
        return self._stream(map(self._check_ws, ws), batch_size, torch.stack)

    def ws(self, recipes: Iterable[Recipe]) -> Tensor:
        """Return the ws `[N, num_ws, w_dim]` of recipes, everything in them applied.

        Raises:
            RecipeError: a recipe that cannot be drawn, or a generator without w.
        """
        if not self.G.num_ws:
            raise RecipeError("this generator has no w")
        checked = [self.check(recipe) for recipe in recipes]
        if not checked:
            return torch.zeros(0, self.G.num_ws, self.G.w_dim)
        return self.drawing.run(partial(self._latents, checked)).clone()  # a tensor like any other

    def enlarge(self, faces: np.ndarray, size: int) -> np.ndarray:
        """Make drawn faces uint8 `[N, H, W, C]` larger: `[N, size, size, C]`; none smaller."""
        # Face by face, so that others' faces are drawn in between.
        large = [self.drawing.run(partial(self.enlarging, face[None], size)) for face in faces]
        return np.concatenate(large) if large else faces

    def check(self, recipe: Recipe) -> Recipe:
        """Return a recipe that this generator can draw, or raise RecipeError with a sentence."""
        for _, _, fault in self._faults(recipe):
            raise RecipeError(fault)
        return recipe

    def usable(self, recipe: Recipe) -> tuple[Recipe, str]:
        """Return what of a recipe this generator can draw, and sentences about the rest, or ""."""
        sentences = []
        fields: dict[str, Any] = {n: getattr(recipe, n) for n in NEEDS_W}
        for name, entry, fault in self._faults(recipe):
            sentences.append(f"{fault[0].upper()}{fault[1:]}.")
            whole = type(recipe).__dataclass_fields__[name].default
            left = tuple(e for e in fields[name] if e != entry) if entry else whole
            fields[name] = left
        if not self.G.num_ws:  # psi scales z there, which has no layers
            fields["fine"] = None
        return replace(recipe, **fields), " ".join(dict.fromkeys(sentences))

    def open_revision(self, rev: str, patience: float = PATIENCE) -> Studio | None:
        """Return a studio of other weights, as an address names them: an earlier release, or a
        commit of this studio's repository.

        Args:
            rev: first 12 hex digits of their SHA-256; anything else may be asked for.
            patience: seconds to wait for the Hub.
        Returns:
            None where neither the bundle nor the repository has such a revision, or the Hub has
            not answered within that time. The two used last are kept open.
        """
        if rev == self.revision:
            return self
        return self._revisions.open(self.repo, rev, patience)

    def _faults(self, recipe: Recipe) -> Iterator[tuple[str, Any, str]]:
        """Yield what this generator cannot draw of a recipe: field, entry, sentence."""
        return list_faults(self.G, self.directions, self.directions_notice, recipe)

    def _check_ws(self, ws: Tensor) -> Tensor:
        """Return one face's ws `[num_ws, w_dim]`, or raise RecipeError."""
        if not self.G.num_ws:
            raise RecipeError("this generator has no w")
        if tuple(ws.shape) != (self.G.num_ws, self.G.w_dim):
            raise RecipeError(
                f"ws of one face are [{self.G.num_ws}, {self.G.w_dim}] here, not {list(ws.shape)}"
            )
        return ws.detach()

    def _no_faces(self) -> np.ndarray:
        """Return an array of no faces, `[0, H, W, C]`."""
        return np.zeros((0, self.size, self.size, self.G.img_channels), np.uint8)

    def _stream(
        self, items: Iterable[Any], batch_size: int, latents: Callable[[list[Any]], Tensor]
    ) -> Iterator[np.ndarray]:
        """Draw batch after batch, the next one while the caller works on the last."""
        if type(batch_size) is not int or not 1 <= batch_size <= MAX_BATCH:
            raise RecipeError(f"a batch holds 1 to {MAX_BATCH} faces, not {batch_size!r:.40}")
        return self._draw_ahead(iter(items), batch_size, latents)

    def _draw_ahead(
        self, items: Iterator[Any], batch_size: int, latents: Callable[[list[Any]], Tensor]
    ) -> Iterator[np.ndarray]:
        """Yield batches; one is always being drawn."""
        ahead = None
        while batch := list(islice(items, batch_size)):
            started = self.drawing.submit(len(batch), partial(latents, batch))
            if ahead is not None:
                yield ahead.result()
            ahead = started
        if ahead is not None:
            yield ahead.result()

    def _latents(self, recipes: list[Recipe]) -> Tensor:
        """Return what the generator draws recipes from: ws, or z where it has no w.

        Each recipe's are computed alone, so they do not depend on its neighbours to the last bit.
        """
        if isinstance(self.G, Generator):
            return torch.stack([recipe_to_ws(self.G, r, self.directions) for r in recipes])
        return torch.cat([recipe_to_z(self.G, r) * r.truncation[0] for r in recipes])

    def _render(self, latents: Tensor) -> np.ndarray:
        """Draw latents as uint8 `[N, H, W, C]`."""
        draw = self.G.synthesis if isinstance(self.G, Generator) else self.G
        return to_uint8(draw(latents))


def find_commit(repo: str, revision: str | None) -> str:
    """Return the commit that a revision of a repository names now, or named when last reached."""
    config = fetch_file(repo, "", model.CONFIG_NAME, revision, model.MAX_CONFIG_BYTES)
    return config.parent.name  # the cache keeps a folder for each commit


def to_uint8(images: Tensor) -> np.ndarray:
    """Quantise images `[N, C, H, W]` in [-1, 1] (beyond: clamped) to uint8 `[N, H, W, C]`."""
    return model.quantise(images).permute(0, 2, 3, 1).contiguous().numpy()


def first_paragraph(card: str) -> str:
    """Return the first paragraph of a model card that is neither front matter nor a heading."""
    body = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", body))
    return next((p for p in paragraphs if re.match(r"[^#<!|`\s]", p)), "")[:600]


def prepare_cpu() -> None:
    """Set this process up for drawing: keep freed memory, and as many threads as there are CPUs.

    torch counts the host's CPUs even where a container may use only two of them; the surplus
    threads then wait for each other. A set OMP_NUM_THREADS is left alone.
    """
    model.keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(count_cpus(), torch.get_num_threads())))


def count_cpus() -> int:
    """Return how many CPUs this process may use, by affinity and by the container's quota."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cpus = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cpus, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return cpus
