"""Write a generator as ONNX, for browsers and for runtimes other than torch.

python -m studio.export --out DIR                         # seeds' latents and psi in, faces out
python -m studio.export --out DIR --model owner/name --revision <commit>
python -m studio.export --out DIR --input ws              # one w for each layer in, faces out
python -m studio.export --out DIR --weights fp32          # twice as large

`--out` gets generator.onnx and generator.json (revision, sizes, what the model card says). The
file is drawn by onnxruntime and compared with torch before the command ends well. The page without
a server is written by `python -m studio.website`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from model import KaoganModel
    from studio.faces import Studio

Network = TypeVar("Network", bound="KaoganModel")

ONNX_NAME, FACTS_NAME = "generator.onnx", "generator.json"
OPSET = 18
MAX_DIFFERENCE = 1  # of 255; a value that lies between two levels may be rounded either way
CHECK_BATCH = 16
CHECK_PSI = (0.7, 1.0, 0.0)  # one after the other, batch by batch
WEIGHTS = ("fp16", "fp32")
SMALL = 1024  # numbers; tensors of fewer stay in fp32


class ExportError(ValueError):
    """A generator that cannot be exported, or whose export draws other faces."""


def writing_parser(module: str, description: str, check_seeds: int) -> argparse.ArgumentParser:
    """Return a parser of what every command takes that writes a generator for browsers.

    Args:
        module: the command's module, as in `python -m module`.
        check_seeds: the default number of faces to compare with torch.
    """
    from studio.__main__ import Parser

    parser = Parser(prog=f"python -m {module}", description=description)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--model", metavar="PATH_OR_REPO", help="folder or Hub repository (default: bundled)"
    )
    parser.add_argument("--revision", metavar="SHA", help="commit, tag or branch of a repository")
    parser.add_argument(
        "--check-seeds",
        type=int,
        default=check_seeds,
        metavar="N",
        help="faces to compare with torch, at least 1 (default: %(default)s)",
    )
    return parser


def run_writing(
    module: str, args: argparse.Namespace, write: Callable[[Studio], str], **options: Any
) -> int:
    """Open the generator that `args` name, write it into `--out`, and print what `write` returns.

    Args:
        options: further arguments of `Studio.open`.
    Returns:
        The exit status: 0, or 2 for what cannot be written, which one sentence on stderr names.
    """
    from studio.faces import Studio, prepare_cpu

    prepare_cpu()
    try:
        if args.check_seeds < 1:
            raise ExportError("--check-seeds takes a number from 1 up")
        studio = Studio.open(args.model, args.revision, fallback=False, **options)
        args.out.mkdir(parents=True, exist_ok=True)
        summary = write(studio)
    except ValueError as error:
        print(f"python -m {module}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where, why = error.filename or args.out, error.strerror or error
        print(f"python -m {module}: cannot write {where}: {why}", file=sys.stderr)
        return 2
    print(summary)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for what cannot be exported."""
    parser = writing_parser("studio.export", "Write a generator as ONNX.", check_seeds=256)
    parser.add_argument(
        "--input",
        choices=("z", "ws"),
        default="z",
        help="z: latents and psi; ws: one w for each layer (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="fp16",
        help="how the file holds them; all arithmetic is fp32 (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    def write(studio: Studio) -> str:
        path = export(studio, args.out, args.input, args.weights)
        share = check(studio, path, args.check_seeds, args.input)
        return (
            f"{path}: {path.stat().st_size / 1e6:.1f} MB, revision {studio.revision}; "
            f"{args.check_seeds} faces within {MAX_DIFFERENCE}/255 of torch, {share:.4%} of their "
            f"values not equal"
        )

    return run_writing("studio.export", args, write)


def export(studio: Studio, folder: Path, kind: str = "z", weights: str = "fp16") -> Path:
    """Write the generator of `studio` as ONNX beside the facts that a program needs.

    Args:
        folder: an existing one; its generator.onnx and generator.json are replaced.
        kind: "z": inputs `z` `[N, z_dim]` and `psi` `[]`; "ws": input `ws`
            `[N, num_ws, w_dim]`. The output is `faces`, uint8 `[N, H, W, C]`, for any N.
        weights: "fp16" or "fp32".
    Returns:
        the path of the .onnx file.
    Raises:
        ExportError: ws of a network without w, weights that fp16 cannot hold, or a missing
            package.
        OSError: what cannot be written.
    """
    network, example = _wrap(studio, kind)
    path = write_onnx(network, example, folder / ONNX_NAME, weights)
    facts = json.dumps(describe(studio, kind), indent=2, ensure_ascii=False) + "\n"
    (folder / FACTS_NAME).write_text(facts, encoding="utf-8")
    return path


def write_onnx(network: Any, example: dict[str, Any], path: Path, weights: str = "fp16") -> Path:
    """Write a module as an ONNX file, whole or not at all, and return its path.

    Args:
        network: a module whose output is `faces`.
        example: its inputs by name; of those with dimensions, the first one is free.
        weights: "fp16" or "fp32".
    """
    proto = _trace(network, example).model_proto
    if weights == "fp16":
        _halve(proto)
    part = path.with_name(f"{path.name}.{os.urandom(4).hex()}.part")
    try:
        part.write_bytes(proto.SerializeToString())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def describe(studio: Studio, kind: str) -> dict[str, Any]:
    """Return what a program without torch has to know of the generator."""
    from studio.recipe import DEFAULT_FINE, DEFAULT_PSI

    return {
        "input": kind,
        "revision": studio.revision,
        "size": studio.size,
        "channels": studio.G.img_channels,
        "z_dim": studio.G.z_dim,
        "psi": DEFAULT_PSI,
        "fine": DEFAULT_FINE,
        "about": studio.about(),
    }


def _halve(proto: Any) -> None:
    """Store an ONNX model's large fp32 tensors as fp16; a Cast gives each back as fp32.

    A runtime casts them once, when it opens the file: what it computes is fp32 as before.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < SMALL:
            continue
        name = tensor.name
        with np.errstate(over="ignore"):
            half = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(half).all():
            raise ExportError(f"fp16 cannot hold the weights {name}; use --weights fp32")
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*casts, *nodes])


def _wrap(studio: Studio, kind: str) -> tuple[Any, dict[str, Any]]:
    """Return a module from latents to uint8 faces, and example inputs by name."""
    import torch
    from torch import Tensor, nn

    from model import Generator, quantise

    class FromZ(nn.Module):
        """z, psi → faces; psi is a tensor here, where model.py takes a number."""

        def __init__(self) -> None:
            super().__init__()
            self.G = thaw(studio.G)

        def forward(self, z: Tensor, psi: Tensor) -> Tensor:
            if not isinstance(self.G, Generator):
                return faces(self.G(z, psi))
            w = torch.lerp(self.G.w_avg, self.G.mapping_network(z), psi)
            return faces(self.G.synthesis(w.unsqueeze(1).expand(-1, self.G.num_ws, -1)))

    class FromWs(nn.Module):
        """ws → faces."""

        def __init__(self, G: Generator) -> None:
            super().__init__()
            self.G = thaw(G)

        def forward(self, ws: Tensor) -> Tensor:
            return faces(self.G.synthesis(ws))

    def faces(images: Tensor) -> Tensor:
        return quantise(images).permute(0, 2, 3, 1)

    if kind == "z":  # of three, because an example of one would fix the batch to one
        return FromZ().eval(), {"z": torch.randn(3, studio.G.z_dim), "psi": torch.tensor(0.5)}
    if not isinstance(studio.G, Generator):
        raise ExportError(f"a {type(studio.G).__name__} has no w; leave out --input ws")
    return FromWs(studio.G).eval(), {"ws": torch.randn(3, studio.G.num_ws, studio.G.w_dim)}


def thaw(network: Network) -> Network:
    """Return a copy that holds its weights alone, without what `freeze` computed from them.

    An exported file computes that when it is opened, and is so much smaller.
    """
    fresh = type(network)(**{k: v for k, v in network.config.items() if k != "architecture"})
    fresh.load_state_dict(network.state_dict())
    return fresh.eval().requires_grad_(False)


def _trace(network: Any, example: dict[str, Any]) -> Any:
    """Trace a module into an ONNX program whose batch is free."""
    import torch

    try:
        import onnxruntime  # noqa: F401  # asked for now rather than after a minute
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"the package {error.name} is missing; pip install -r requirements-export.txt"
        ) from None
    batch = torch.export.Dim("N", max=1 << 20)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about itself
        return torch.onnx.export(
            network,
            kwargs=example,
            input_names=list(example),
            output_names=["faces"],
            dynamic_shapes={k: {0: batch} if v.dim() else {} for k, v in example.items()},
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def check(studio: Studio, path: Path, count: int, kind: str = "z") -> float:
    """Draw the seeds 0 … count - 1 with onnxruntime and compare them with torch.

    Returns:
        the share of values that are not equal.
    Raises:
        ExportError: a value that differs by more than MAX_DIFFERENCE.
    """
    import numpy as np

    session = open_session(path)
    unequal = values = 0
    for batch, first in enumerate(range(0, count, CHECK_BATCH)):
        seeds = range(first, min(first + CHECK_BATCH, count))
        psi = CHECK_PSI[batch % len(CHECK_PSI)]
        expected = studio.draw(seeds, psi)
        (found,) = session.run(None, feed(studio, seeds, psi, kind))
        difference = np.abs(expected.astype(np.int16) - found)
        if (worst := difference.max()) > MAX_DIFFERENCE:
            seed = seeds[int(difference.reshape(len(seeds), -1).max(1).argmax())]
            raise ExportError(
                f"seed {seed} at psi {psi:g} differs by {worst}/255 between torch and {path}; "
                f"report this with your versions of torch and onnxruntime"
            )
        unequal, values = unequal + int((difference > 0).sum()), values + difference.size
    return unequal / values


def open_session(path: Path, threads: int = 0) -> Any:
    """Open a .onnx file on the CPU, with as many threads (0: onnxruntime chooses)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    # Between two faces its threads would keep the cores busy that others of this process want.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feed(studio: Studio, seeds: range, psi: float, kind: str = "z") -> dict[str, np.ndarray]:
    """Return the inputs of an exported file for some seeds at one psi."""
    import numpy as np
    import torch

    from model import Generator, latents_from_seeds

    z = latents_from_seeds(seeds, studio.G.z_dim)
    if kind == "z":
        return {"z": z.numpy(), "psi": np.array(psi, np.float32)}
    assert isinstance(studio.G, Generator)
    with torch.inference_mode():
        return {"ws": studio.G.mapping(z, psi).contiguous().numpy()}


if __name__ == "__main__":
    sys.exit(main())
