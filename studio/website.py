"""Write the page without a server: a folder that any file server, or a static Space, serves.

python -m studio.website --out web                        # the bundled generator; `make web`
python -m studio.website --out DIR --model owner/name --revision <commit>

The folder gets the page's own files (where it is not `web/` itself), what they share with the
other page, and what the browser draws with:

    generator.onnx              ws `[N, num_ws, w_dim]` → faces, uint8 `[N, H, W, C]`; weights fp16
    latents.safetensors         z → w: `mapping.0.weight` `[w_dim, z_dim]`, …, and `w_avg`
    directions.safetensors      sliders and colours, where the generator has some
    enlarger.onnx               faces → faces four times as large, where there is an enlarger
    generator.json              sizes, the model card's words, bytes and SHA-256 of these files

A generator without w draws from `z` `[N, z_dim]` and needs the first and the last file alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.export import (
    MAX_DIFFERENCE,
    ONNX_NAME,
    check,
    describe,
    export,
    run_writing,
    thaw,
    write_onnx,
    writing_parser,
)

if TYPE_CHECKING:
    from torch import Tensor

    from model import Enlarger
    from studio.directions import Directions
    from studio.faces import Studio

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "web"
SHARED = ("style.css", "page.js", "words.json")  # of assets/
LATENTS_NAME, ENLARGER_NAME, FACTS_NAME = "latents.safetensors", "enlarger.onnx", "generator.json"
PROBE = 16  # pixels along each side of the average face by which a browser's GPU is tested


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for what cannot be written."""
    parser = writing_parser("studio.website", "Write the page without a server.", check_seeds=32)
    parser.add_argument(
        "--enlarger",
        metavar="none|DIR",
        help="what makes faces larger; none: the browser (default: that of the weights)",
    )
    args = parser.parse_args(argv)

    def write(studio: Studio) -> str:
        files = write_site(studio, args.out, args.check_seeds)["files"]
        total = sum(file["bytes"] for name, file in files.items() if "asyncify" not in name)
        return (
            f"{args.out}: revision {studio.revision}, {args.check_seeds} faces within "
            f"{MAX_DIFFERENCE}/255 of torch; a visitor's first download is {total / 1e6:.1f} MB"
        )

    return run_writing("studio.website", args, write, enlarger=args.enlarger)


def write_site(studio: Studio, folder: Path, check_seeds: int = 0) -> dict[str, Any]:
    """Write the page that draws with `studio` and return its facts.

    Args:
        folder: an existing one; what an earlier page left there is replaced.
        check_seeds: faces to compare with torch; 0 for none.
    Raises:
        ExportError: a generator that cannot be exported, or whose export draws other faces.
        OSError: what cannot be written.
    """
    copy_page(folder)
    kind = "ws" if studio.G.num_ws else "z"
    path = export(studio, folder, kind)
    if check_seeds:
        check(studio, path, check_seeds, kind)
    files = [ONNX_NAME, *write_latents(studio, folder), *write_enlarger(studio, folder)]
    runtime = sorted(f"runtime/{file.name}" for file in (folder / "runtime").glob("*.wasm.gz"))
    facts = describe(studio, kind) | describe_latents(studio)
    facts["files"] = {name: describe_file(folder / name) for name in (*files, *runtime)}
    text = json.dumps(facts, ensure_ascii=False) + "\n"
    (folder / FACTS_NAME).write_text(text, encoding="utf-8")
    return facts


def copy_page(folder: Path) -> None:
    """Copy what the page is written in, but not onto itself."""
    if folder.resolve() != PAGE:
        made = {FACTS_NAME, *SHARED}
        own = [p for p in PAGE.glob("*.*") if p.suffix in (".html", ".js", ".css", ".md")]
        for file in own:
            if file.name not in made:
                shutil.copy(file, folder)
        if (PAGE / "runtime").is_dir():
            shutil.copytree(PAGE / "runtime", folder / "runtime", dirs_exist_ok=True)
    for name in SHARED:
        shutil.copy(ROOT / "assets" / name, folder)


def write_latents(studio: Studio, folder: Path) -> list[str]:
    """Write what leads from z to ws, and the directions; return the names of the files."""
    from safetensors.torch import save, save_file

    from model import DIRECTIONS_NAME, EqualLinear, Generator

    names = (LATENTS_NAME, DIRECTIONS_NAME)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if not isinstance(studio.G, Generator):
        return []
    tensors = {"w_avg": studio.G.w_avg}
    for index, layer in enumerate(studio.G.mapping_network.layers):
        assert isinstance(layer, EqualLinear)
        weight, bias = layer.scale()
        tensors |= {f"mapping.{index}.weight": weight, f"mapping.{index}.bias": bias}
    save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, folder / names[0])
    (folder / names[0]).chmod(0o644)  # safetensors makes files for the owner alone
    if studio.directions is None:
        return [LATENTS_NAME]
    (folder / names[1]).write_bytes(save(*pack_directions(studio.directions)))
    return list(names)


def pack_directions(directions: Directions) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return sliders and colours as tensors and metadata of one format, whatever they came in.

    Metadata `sliders`: a JSON list of their names, kinds, ranges and families. A plain step is
    `unit.SLIDER`, with `place_map.SLIDER` and `place_bias.SLIDER` where its way depends on where a
    face stands; all else is named and shaped as in studio/directions.py.
    """
    from studio.directions import Lead

    tensors: dict[str, Tensor] = {}
    for name, move in directions.moves.items():
        if isinstance(move, Lead):
            family = directions.sliders[name].family
            tensors |= {f"family_map.{family}": move.weight, f"family_bias.{family}": move.bias}
            tensors |= {f"family_step.{family}": move.step, f"target.{name}": move.targets}
        else:
            tensors[f"unit.{name}"] = move.unit
            if move.place_map is not None and move.place_bias is not None:
                tensors[f"place_map.{name}"] = move.place_map
                tensors[f"place_bias.{name}"] = move.place_bias.reshape(1)
    for part, colour in directions.colours.items():
        tensors |= {f"colour_map.{part}": colour.weight, f"colour_bias.{part}": colour.bias}
        for kind in ("step", "mean", "bounds", "aim"):
            tensors[f"colour_{kind}.{part}"] = getattr(colour, kind)
    sliders = json.dumps([asdict(slider) for slider in directions.sliders.values()])
    parts = json.dumps(list(directions.colours))
    # Copies: rows of one tensor share their memory, which safetensors refuses.
    return {k: v.clone().contiguous() for k, v in tensors.items()}, {
        "sliders": sliders,
        "colours": parts,
    }


def write_enlarger(studio: Studio, folder: Path) -> list[str]:
    """Write the enlarger of the faces as ONNX, where there is one; return the file's name."""
    import torch
    from torch import nn

    (folder / ENLARGER_NAME).unlink(missing_ok=True)
    network = studio.enlarging.network
    if network is None:
        return []

    class Enlarge(nn.Module):
        """uint8 faces `[N, H, W, C]` → uint8 faces `[N, 4H, 4W, C]`."""

        def __init__(self, network: Enlarger) -> None:
            super().__init__()
            self.network = thaw(network)

        def forward(self, small: Tensor) -> Tensor:
            return self.network.enlarge(small.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    size, channels = studio.size, studio.G.img_channels
    example = {"small": torch.zeros(3, size, size, channels, dtype=torch.uint8)}
    write_onnx(Enlarge(network).eval(), example, folder / ENLARGER_NAME)
    return [ENLARGER_NAME]


def describe_latents(studio: Studio) -> dict[str, Any]:
    """Return what the page has to know of w, of larger faces, and of other releases."""
    from model import LRELU_SLOPE, Generator
    from studio.revisions import EARLIER

    earlier = EARLIER / "releases.json"
    facts: dict[str, Any] = {
        "num_ws": studio.G.num_ws,
        "enlarger": studio.enlarging.name if studio.enlarging.network else "",
        "earlier": json.loads(earlier.read_text()) if earlier.is_file() else [],
        "directions_notice": studio.directions_notice,
    }
    if isinstance(studio.G, Generator):
        groups = studio.G.layer_groups.items()
        facts |= {
            "w_dim": studio.G.w_dim,
            "groups": {name: [layers.start, layers.stop] for name, layers in groups},
            "slope": LRELU_SLOPE,
            "probe": probe(studio),
        }
    return facts


def probe(studio: Studio) -> list[int]:
    """Return PROBE × PROBE pixels of the average face, row by row, all channels of each."""
    from model import Generator

    assert isinstance(studio.G, Generator)
    face = studio.draw_ws(studio.G.w_avg.expand(1, studio.G.num_ws, -1))[0]
    at = [(2 * i + 1) * studio.size // (2 * PROBE) for i in range(PROBE)]
    return face[at][:, at].reshape(-1).tolist()


def describe_file(path: Path) -> dict[str, Any]:
    """Return size and SHA-256, by which the page knows a file that is cut off or damaged."""
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


if __name__ == "__main__":
    sys.exit(main())
