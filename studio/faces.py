"""Seeds → latents → images.

from studio.faces import Studio

studio = Studio.open()                              # the bundled generator
faces = studio.draw([42, 43], psi=0.7)              # uint8 [2, H, W, C]
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

import model
from model import KaoganModel, ModelError, latents_from_seeds, load_network
from studio.recipe import DEFAULT_PSI, RecipeError, check_psi

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "generator"
MAX_BATCH = 1024


class Studio:
    """A generator and what people should know about it; every method may be called by many
    threads at once.

    Attributes:
        G: the generator, in evaluation mode.
        source: where its weights came from, for people.
        revision: first 12 hex digits of the SHA-256 of its `model.safetensors`.
        notice: "", or a sentence that says why other weights than the asked ones are in use.
    """

    def __init__(
        self, G: KaoganModel, *, source: str, revision: str, notice: str = "", card: str = ""
    ) -> None:
        self.G, self.source, self.revision, self.notice = G, source, revision, notice
        self._card = card
        # One thread draws for everyone: OpenMP keeps a team of threads for each caller's thread,
        # and 40 callers with a lock measured 1.6 times slower than one thread with a queue.
        self._drawing = ThreadPoolExecutor(1, thread_name_prefix="draw")

    @classmethod
    def open(
        cls,
        path_or_repo: str | Path | None = None,
        revision: str | None = None,
        *,
        fallback: bool = True,
    ) -> Self:
        """Load a generator.

        Args:
            path_or_repo: folder or Hub repository `owner/name`; the bundled weights when None.
            revision: commit, tag or branch, for a repository only.
            fallback: use the bundled weights, with a `notice`, where a repository cannot be
                reached or used. A folder that cannot be used always raises.
        Raises:
            ModelError: no usable generator.
        """
        target = BUNDLED if path_or_repo is None else path_or_repo
        is_folder = path_or_repo is None or Path(target).is_dir()
        if is_folder and revision:
            raise ModelError("a revision is only for a Hub repository; leave it out for a folder")
        try:
            return cls._load(target, revision)
        except ModelError as error:
            if is_folder or not fallback:
                raise
            logging.getLogger(__name__).warning("%s", error)  # the whole story, for the operator
            studio = cls._load(BUNDLED, None)
            studio.notice = (
                f"The weights of {str(path_or_repo):.100} could not be loaded, so these faces "
                f"come from the bundled ones."
            )
            return studio

    @classmethod
    def _load(cls, target: str | Path, revision: str | None) -> Self:
        """Load a generator from one place or raise ModelError."""
        G = load_network(target, revision=revision)
        if not hasattr(G, "z_dim"):
            raise ModelError(f"{target} holds a {type(G).__name__}, which draws no faces")
        if Path(target).is_dir():
            weights, card = Path(target) / model.WEIGHTS_NAME, Path(target) / "README.md"
        else:
            repo = str(target)
            weights = Path(
                hf_hub_download(repo, model.WEIGHTS_NAME, revision=revision, local_files_only=True)
            )
            card = weights.parent / "README.md"
        source = "the bundled weights" if target == BUNDLED else str(target)
        return cls(
            G,
            source=f"{source} at {revision}" if revision else source,
            revision=hashlib.sha256(weights.read_bytes()).hexdigest()[:12],
            card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
        )

    @property
    def size(self) -> int:
        """Height and width of a face, px."""
        return self.G.resolution

    def about(self) -> str:
        """Say what is shown, as Markdown: the model card's first paragraph, then plain facts."""
        parameters = model.count_parameters(self.G) / 1e6
        facts = (
            f"{self.size}×{self.size} px · {parameters:.1f} million parameters · "
            f"{self.source}, revision `{self.revision}`"
        )
        paragraph = first_paragraph(self._card)
        return f"{paragraph}\n\n{facts}" if paragraph else facts

    def draw(
        self, seeds: Iterable[int], psi: float = DEFAULT_PSI, *, batch_size: int = 16
    ) -> np.ndarray:
        """Draw one face for each seed.

        Args:
            seeds: 0 … 2³²−1 each; a face depends on its seed and psi, not on its neighbours.
            psi: truncation, -2 … 2.
            batch_size: faces drawn at once; bounds the memory, not the result.
        Returns:
            uint8 `[N, H, W, C]`, C 3 (RGB) or 1 (grey).
        Raises:
            ValueError: a seed, psi or batch size out of range.
        """
        batches = list(self.draw_batches(seeds, psi, batch_size=batch_size))
        empty = np.zeros((0, self.size, self.size, self.G.img_channels), np.uint8)
        return np.concatenate([empty, *batches])

    def draw_batches(
        self, seeds: Iterable[int], psi: float = DEFAULT_PSI, *, batch_size: int = 16
    ) -> Iterator[np.ndarray]:
        """Yield what `draw` returns, at most `batch_size` faces at a time, as they are drawn."""
        psi = check_psi(psi)
        if type(batch_size) is not int or not 1 <= batch_size <= MAX_BATCH:
            raise RecipeError(f"a batch holds 1 to {MAX_BATCH} faces, not {batch_size!r:.40}")
        return self._stream(iter(seeds), psi, batch_size)

    def _stream(self, seeds: Iterator[int], psi: float, batch_size: int) -> Iterator[np.ndarray]:
        """Draw batch after batch, the next one while the caller works on the last."""
        ahead = None
        while batch := list(islice(seeds, batch_size)):
            z = latents_from_seeds(batch, self.G.z_dim)
            started = self._drawing.submit(self._draw_batch, z, psi)
            if ahead is not None:
                yield ahead.result()
            ahead = started
        if ahead is not None:
            yield ahead.result()

    @torch.inference_mode()
    def _draw_batch(self, z: Tensor, psi: float) -> np.ndarray:
        """Draw z `[N, z_dim]` as uint8 `[N, H, W, C]`."""
        return to_uint8(self.G(z, psi))


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
