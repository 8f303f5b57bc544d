"""A pack → endless shuffled batches on a device.

    batches = Batches(faces, batch_size_per_process=32, seed=0, device=torch.device("cuda"))
    real = batches.batch(position=0)                    # [32, 3, 64, 64] in [-1, 1]

The order is a pure function of the seed and of how many images were shown, so a resumed run needs
no sampler state.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from training.data.packing import Faces

UPLOAD_BYTES = 64 * 2**20  # copied to the device at a time
DEVICE_SHARE = 0.4  # of the free device memory the set may take
HELD_OUT_SEED = 2006_06676  # of the pictures that no run learns from


@lru_cache(maxsize=4)
def _epoch(size: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an epoch's order and its flips."""
    # The raw stream of a bit generator is promised to stay the same in every NumPy; the
    # permutation methods built upon it are not.
    stream = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    order = np.argsort(stream.random_raw(size), kind="stable")
    flips = stream.random_raw(size) >> np.uint64(63) == 1
    return order, flips


def indices(
    position: int, count: int, *, size: int, seed: int, xflip: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return which pictures stand at `count` positions of the endless order, from `position` on.

    A position counts the images shown since the start of the run, by all processes. Each run of
    `size` positions is one epoch, a fresh permutation of the set drawn from (seed, epoch).
    Returns the indices, int64 [count] in [0, size), and whether each is to be mirrored,
    bool [count]. Raises ValueError for a negative position, count or seed, or an empty set.
    """
    if position < 0 or count < 0 or seed < 0 or size < 1:
        raise ValueError(f"{position=}, {count=}, {seed=} must be ≥ 0 and {size=} ≥ 1")
    epochs, offsets = np.divmod(np.arange(position, position + count, dtype=np.int64), size)
    index = np.empty(count, np.int64)
    flip = np.zeros(count, bool)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        order, flips = _epoch(size, seed, int(epoch))
        index[here] = order[offsets[here]]
        if xflip:
            flip[here] = flips[offsets[here]]
    return index, flip


def split(size: int, held: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose `held` of `size` pictures at random, always the same ones.

    Returns the indices of the others and of the chosen, both ascending, int64. Raises ValueError
    where fewer than one would be left.
    """
    if not 0 <= held < size:
        raise ValueError(f"{held=} must be ≥ 0 and below {size=}")
    order, _ = _epoch(size, HELD_OUT_SEED, 0)
    return np.sort(order[held:]), np.sort(order[:held])


class Batches:
    """Shuffled batches of real images for one process of a run.

    The set is kept on the device where `on_device` is true, or, with `on_device` None, where the
    device is a CUDA one and the set takes less than 40 % of its free memory; else each batch is
    gathered from the memory map on the host.
    """

    def __init__(
        self,
        faces: Faces,
        *,
        batch_size_per_process: int,
        seed: int,
        xflip: bool = True,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device,
        on_device: bool | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        """Raise ValueError where rank or batch size is out of range.

        `rows`, int64 [M], are the pictures of the set that are shown; None for all of them.
        """
        if batch_size_per_process < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"{batch_size_per_process=} must be ≥ 1 and 0 ≤ {rank=} < {world_size=}"
            )
        self.faces = faces
        self.rows = np.arange(len(faces)) if rows is None else rows
        self.batch_size = batch_size_per_process
        self.seed = seed
        self.xflip = xflip
        self.rank = rank
        self.device = torch.device(device)
        if on_device is None:
            on_device = self.device.type == "cuda" and (
                faces.images.nbytes < DEVICE_SHARE * torch.cuda.mem_get_info(self.device)[0]
            )
        self.resident = self._upload() if on_device else None  # uint8 [N, H, W, C]

    def batch(self, position: int) -> torch.Tensor:
        """Return this process's share of the step whose first image stands at `position`.

        `position` is the same in every process: process r takes the B images that start at
        position + r·B, so 2 processes of 16 see what 1 process of 32 sees. Returns float32
        [B, C, H, W] in [-1, 1] on the device, channels last in memory.
        """
        index, flip = indices(
            position + self.rank * self.batch_size,
            self.batch_size,
            size=len(self.rows),
            seed=self.seed,
            xflip=self.xflip,
        )
        index = self.rows[index]
        mirrored = self._send(torch.from_numpy(flip))
        if self.resident is not None:
            pixels = self.resident.index_select(0, self._send(torch.from_numpy(index)))
        else:
            pixels = self._send(torch.from_numpy(np.asarray(self.faces.images[index])))
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
        images = pixels.permute(0, 3, 1, 2).to(torch.float32)  # [B, H, W, C] → [B, C, H, W]
        return images.div_(127.5).sub_(1)

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Move a tensor to the device without waiting for it."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _upload(self) -> torch.Tensor:
        """Copy the set to the device in blocks, so that the host never holds it whole."""
        images = self.faces.images
        resident = torch.empty(images.shape, dtype=torch.uint8, device=self.device)
        rows = max(1, UPLOAD_BYTES // images[0].nbytes)
        for start in range(0, len(images), rows):
            block = torch.from_numpy(np.array(images[start : start + rows]))
            resident[start : start + rows].copy_(block)
        return resident
