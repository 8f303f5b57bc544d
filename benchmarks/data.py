"""How fast faces are packed and loaded, against what one would write with PIL and torchvision.

python -m benchmarks.data                     # the bundled faces, as PNG files of 128 px
python -m benchmarks.data --data FACES        # your own
python -m benchmarks.data --quick

One process each and in turns, by the processor's own clock, so that a busy machine slows all alike;
last, packing with as many processes as there are cores, by the wall's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import ROOT, finish, interleave, machine, make_parser, table
from studio.faces import count_cpus
from training.config import BUNDLED_FACES
from training.data import Batches, pack

SOURCE, TARGET = 128, 64  # px of the files, and of the packed faces
BATCH = 32
# A set of this size is read by a process that may own no more memory than the limit.
SET_GIB, LIMIT_GIB = 4, 1
# Run in a process of its own: what it owns is printed in MB, and whether it could copy the set.
LIMITED = """
import json, re, resource, sys
from pathlib import Path
import numpy as np
import torch
from training.data import Batches, Faces
path, side, limit, batch, steps = sys.argv[1], *map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
images = np.memmap(path, np.uint8, "r").reshape(-1, side, side, 3)
faces = Faces(images, None, (), Path(path).parent, "large", {})
loader = Batches(faces, batch_size_per_process=batch, seed=0, device=torch.device("cpu"))
shapes = {tuple(loader.batch(step * batch).shape) for step in range(steps)}
owned = int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
try:
    copied = np.array(images).nbytes > 0
except MemoryError:
    copied = False
print(json.dumps({"owned_mb": owned / 1024, "copied": copied, "shapes": sorted(shapes)}))
"""


def write_files(args: argparse.Namespace, folder: Path, count: int) -> int:
    """Write faces as PNG files into one class's folder, as ImageFolder wants them."""
    faces = pack(args.data, SOURCE, progress=False)
    (folder / "faces").mkdir(parents=True)
    rows = range(min(count, len(faces)))
    for row in rows:
        Image.fromarray(faces.images[row]).save(folder / "faces" / f"{row:06d}.png")
    return len(rows)


def pack_plainly(folder: Path, out: Path) -> None:
    """Do what pack does for good files, in a loop of PIL."""
    faces = []
    for path in sorted(folder.rglob("*.png")):
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        faces.append(np.asarray(image.resize((TARGET, TARGET), Image.Resampling.LANCZOS)))
    np.save(out, np.stack(faces))


def take_turns(cases: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median processor's seconds of each case, called in turns."""
    seconds = interleave(cases, repeats, warm=0, clock=time.process_time)
    return {name: median(values) for name, values in seconds.items()}


def measure_packing(folder: Path, count: int, repeats: int) -> dict[str, float]:
    """Return images/s of packing files, by one process; and by all cores, by the wall's clock."""
    with tempfile.TemporaryDirectory() as scratch:
        caches = (Path(scratch) / str(i) for i in range(1000))

        def ours(workers: int = 1) -> None:
            options = {"cache_dir": next(caches), "workers": workers, "progress": False}
            pack([str(folder)], TARGET, **options)

        plain = Path(scratch) / "plain.npy"
        cases = {"Kaogan, one process": ours, "PIL in a loop": lambda: pack_plainly(folder, plain)}
        rates = {k: count / s for k, s in take_turns(cases, repeats).items()}
        if (cores := count_cpus()) > 1:
            start = time.perf_counter()
            ours(cores)
            rates[f"Kaogan, {cores} processes (wall)"] = count / (time.perf_counter() - start)
        return rates


def measure_loading(folder: Path, count: int, repeats: int) -> dict[str, float]:
    """Return images/s of shuffled, mirrored float batches, by one process."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = max(1, count // BATCH)
    with tempfile.TemporaryDirectory() as scratch:
        faces = pack([str(folder)], TARGET, cache_dir=Path(scratch), workers=1, progress=False)
        ours = Batches(faces, batch_size_per_process=BATCH, seed=0, device=torch.device("cpu"))
        change = transforms.Compose([
            transforms.Resize(TARGET), transforms.CenterCrop(TARGET),
            transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ])  # fmt: skip
        theirs = DataLoader(ImageFolder(folder, change), BATCH, shuffle=True, drop_last=True)
        cases = {
            "Kaogan's Batches": lambda: [ours.batch(i * BATCH) for i in range(steps)],
            "ImageFolder with DataLoader": lambda: list(theirs),
        }
        return {k: steps * BATCH / s for k, s in take_turns(cases, repeats).items()}


def measure_large(quick: bool) -> dict[str, Any]:
    """Read batches of a set larger than the memory that a process may own."""
    size, limit = (SET_GIB << 30, LIMIT_GIB << 30) if not quick else (2 << 30, 1 << 30)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "images.bin"
        row = TARGET * TARGET * 3
        with path.open("wb") as file:
            file.truncate(size // row * row)  # a sparse file, which takes no room on the disk
        command = [sys.executable, "-c", LIMITED, path, TARGET, limit, BATCH, 20 if quick else 200]
        printed = subprocess.run(
            [str(part) for part in command], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
    return {"set_gib": size / 2**30, "limit_gib": limit / 2**30, **json.loads(printed)}


def report(figures: dict[str, Any]) -> str:
    """Write the section."""
    parts = []
    for name, what in (("packing", "packing files to 64 px"), ("loading", "batches of 32")):
        rates = figures[name]
        base = next(iter(rates.values()))
        lines = [(k, f"{rate:,.0f}", f"{rate / base:.2f}") for k, rate in rates.items()]
        parts.append(table((what, "images/s", "against Kaogan"), lines))
    large = figures["large"]
    copied = "could be" if large["copied"] else "could not be"
    return (
        f"## Data\n\n`python -m benchmarks.data`; {figures['count']:,} PNG files of {SOURCE} px; "
        f"{figures['machine']}.\n\n{parts[0]}\n\n{parts[1]}\n\n"
        f"Batches of a set of {large['set_gib']:.0f} GiB, by a process that may own "
        f"{large['limit_gib']:.0f} GiB (RLIMIT_DATA): it owned {large['owned_mb']:.0f} MB, torch "
        f"included; the set {copied} copied into its memory."
    )


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Measure what the command line asks for; return Markdown and the figures."""
    torch.set_num_threads(1)
    repeats = 1 if args.quick else 5
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "set"
        count = write_files(args, folder, 64 if args.quick else args.count)
        figures = {
            "machine": machine(),
            "count": count,
            "packing": measure_packing(folder, count, repeats),
            "loading": measure_loading(folder, count, repeats),
            "large": measure_large(args.quick),
        }
    return report(figures), figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = make_parser("data", __doc__)
    parser.add_argument("--data", nargs="+", default=[str(BUNDLED_FACES)], help="as for train.py")
    parser.add_argument("--count", type=int, default=1000, help="files")
    return finish("data", parser.parse_args(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
