"""Training data: sources → pictures → a pack → batches.

faces = pack("faces.zip", resolution=64)
batches = Batches(faces, batch_size_per_process=32, seed=0, device=torch.device("cuda"))
real = batches.batch(position=0)                    # [32, 3, 64, 64] in [-1, 1]
"""

from training.data.batches import Batches, indices, split
from training.data.errors import DataError
from training.data.packing import Faces, default_cache_dir, pack

__all__ = ["Batches", "DataError", "Faces", "default_cache_dir", "indices", "pack", "split"]
