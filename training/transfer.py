"""Start a run from trained networks: fine-tune on other pictures, or grow to a larger resolution.

    taken = take_over(G, Generator.from_pretrained("assets/generator"))

Every tensor of the same name and shape is taken. Where only the patch differs (the px that one
place of the last level paints or takes in), the layer next to the picture is converted, so that the
new network draws the old one's picture enlarged and judges it by its reduction. A level that the
old generator lacks starts with a picture layer of zero: the first pictures are the old ones,
enlarged.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import CONFIG_NAME, Generator, KaoganModel, ModelError, load_generator, load_network


def open_pair(source: str) -> tuple[KaoganModel, KaoganModel | None]:
    """Load a generator and, if there is one, its discriminator.

    Args:
        source: a folder of a run or of assets/ (with generator/ and discriminator/), a folder of a
            generator, or a Hub repository with the generator at its root.
    Raises:
        ModelError: no usable generator, or a discriminator that is there but broken.
    """
    nested = (Path(source) / "generator" / CONFIG_NAME).is_file()
    G = load_generator(source, subfolder="generator" if nested else "")
    if Path(source).is_dir() and not (Path(source) / "discriminator" / CONFIG_NAME).is_file():
        return G, None
    try:
        return G, load_network(source, subfolder="discriminator")
    except ModelError as error:
        if Path(source).is_dir() or "no such file" not in str(error):
            raise
        return G, None


@torch.no_grad()
def take_over(network: nn.Module, source: nn.Module) -> tuple[int, int]:
    """Copy what fits of a trained network into a new one.

    Returns:
        how many of the new network's tensors were taken, and how many it has.
    Raises:
        ModelError: networks of two kinds, or nothing that fits.
    """
    if type(network) is not type(source):
        raise ModelError(
            f"a {type(source).__name__} cannot start a {type(network).__name__}; "
            f"choose another --init-from or --networks"
        )
    old, taken = source.state_dict(), 0
    for name, new in network.state_dict().items():
        if name in old and (fitting := fit(name, old[name], new.shape)) is not None:
            new.copy_(fitting)
            taken += 1
    if not taken:
        raise ModelError("no tensor of --init-from fits these networks; match their sizes")
    if isinstance(network, Generator) and isinstance(source, Generator):
        for level in network.blocks.keys() - source.blocks.keys():
            network.blocks[level].to_rgb.weight.zero_()
    return taken, len(network.state_dict())


def fit(name: str, old: Tensor, shape: torch.Size) -> Tensor | None:
    """Return a tensor in the wanted shape, or None where it does not fit."""
    if old.shape == shape:
        return old
    if ".to_rgb." in name and old.shape[1:2] == shape[1:2]:  # [C * patch², …], or its bias
        resized = repeat_or_mean(old, shape[0])
        return None if resized is None else fit_kernel(resized, shape)
    if name == "from_rgb.weight" and old.shape[0] == shape[0]:  # [out, C * patch², 1, 1]
        ratio = shape[1] / old.shape[1]
        resized = repeat_or_mean(old.transpose(0, 1), shape[1])
        # The new places share the old one's sum; an equalised layer divides by √(in_channels).
        return None if resized is None else resized.transpose(0, 1) * ratio**-0.5
    return None


def fit_kernel(old: Tensor, shape: torch.Size) -> Tensor:
    """Put a 1×1 kernel into the middle of a larger one, or take the middle of a larger one.

    An equalised layer divides by the kernel's side, hence the factor.
    """
    if old.shape == shape:
        return old
    margin = (shape[-1] - old.shape[-1]) // 2
    return F.pad(old, (margin,) * 4) * (shape[-1] / old.shape[-1])


def repeat_or_mean(old: Tensor, count: int) -> Tensor | None:
    """Repeat each row, or average groups of rows, to get `count`; None where neither divides."""
    if count % len(old) == 0:
        return old.repeat_interleave(count // len(old), 0)
    if len(old) % count == 0:
        return old.unflatten(0, (count, len(old) // count)).mean(1)
    return None


def init_from(source: str, G: nn.Module, D: nn.Module) -> str:
    """Give new networks the weights of trained ones; return a line about what was taken.

    Raises:
        ModelError: as `open_pair` and `take_over` do.
    """
    old_G, old_D = open_pair(source)
    parts = ["G {} of {}".format(*take_over(G, old_G))]
    if type(old_D) is type(D):  # another kind of critic learns afresh
        parts.append("D {} of {}".format(*take_over(D, old_D)))
    else:
        parts.append("D none")
    return f"Starting from {source}: tensors taken: {', '.join(parts)}."
