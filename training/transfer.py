"""Start a run from trained networks: fine-tune on other pictures, or grow to a larger resolution.

    taken = take_over(G, Generator.from_pretrained("assets/generator"))

Every tensor of the same name and shape is taken. A level that is wider than the old one begins by
doing the same. Where only the patch differs (the px that one place of the last level paints or
takes in), the layer next to the picture is converted, so that the new network draws the old one's
picture enlarged and judges it by its reduction. A level that the old generator lacks starts with a
picture layer of zero: the first pictures are the old ones, enlarged. Where such a level takes the
place of a patch, at the same resolution, it learns first to imitate it: to draw the old pictures,
and to see in them what the old first layer saw.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import (
    CONFIG_NAME,
    Discriminator,
    Generator,
    KaoganModel,
    ModelError,
    SynthesisBlock,
    latents_from_seeds,
    load_generator,
    load_network,
)
from training.projected import ProjectedDiscriminator

IMITATION_STEPS = 240  # a minute for each network at 128 px on a CPU core; then the gain is small
IMITATION_BATCH = 8
IMITATION_LR = 0.01


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


def open_heads(source: str) -> ProjectedDiscriminator | None:
    """Load the heads of a projected discriminator that taught beside D, if there are some.

    Args:
        source: as `open_pair` takes it; the heads lie in projected/, those of an older run in aid/.
    Raises:
        ModelError: heads that are there but broken, or a Hub that does not answer.
    """
    if Path(source).is_dir():
        for name in ("projected", "aid"):
            if (Path(source) / name / CONFIG_NAME).is_file():
                return ProjectedDiscriminator.from_pretrained(source, subfolder=name)
        return None
    try:
        return ProjectedDiscriminator.from_pretrained(source, subfolder="projected")
    except ModelError as error:
        if "no such file" not in str(error):
            raise
        return None


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
        if name in old and (fitting := fit(name, old[name], new)) is not None:
            new.copy_(fitting)
            taken += 1
    if not taken:
        raise ModelError("no tensor of --init-from fits these networks; match their sizes")
    if isinstance(network, Generator) and isinstance(source, Generator):
        for level in network.blocks.keys() - source.blocks.keys():
            block = network.blocks[level]
            assert isinstance(block, SynthesisBlock)
            block.to_rgb.weight.zero_()
    return taken, len(network.state_dict())


def fit(name: str, old: Tensor, new: Tensor) -> Tensor | None:
    """Return a tensor in the shape of a fresh one, or None where it does not fit."""
    shape = new.shape
    if old.shape == shape:
        return old
    painting = name.endswith((".to_rgb.weight", ".to_rgb.bias"))
    if painting and old.shape[1:2] == shape[1:2]:  # [C * patch², …], or its bias
        resized = repeat_or_mean(old, shape[0])
        return None if resized is None else fit_kernel(resized, shape)
    if name == "from_rgb.weight" and old.shape[0] == shape[0]:  # [out, C * patch², 1, 1]
        ratio = shape[1] / old.shape[1]
        resized = repeat_or_mean(old.transpose(0, 1), shape[1])
        # The new places share the old one's sum; an equalised layer divides by √(in_channels).
        return None if resized is None else resized.transpose(0, 1) * ratio**-0.5
    return widen(name, old, new)


def widen(name: str, old: Tensor, new: Tensor) -> Tensor | None:
    """Return the fresh tensor of a wider level with the old one in it, or None where that is none.

    What a level gets besides, those who look at it begin by leaving out, with weights of zero, so
    the network does what the old one did (after Chen et al. 2016, arXiv 1511.05641, who copy units
    instead). The last layers of D, which see statistics of the batch as well, are not widened.
    """
    inside = name.startswith(("blocks.", "from_rgb.")) or name == "const"
    channels = 1 if new.ndim == 1 or name == "const" or ".affine." in name else 2
    if not inside or old.ndim != new.ndim or old.shape[channels:] != new.shape[channels:]:
        return None
    if any(less > more for less, more in zip(old.shape, new.shape, strict=True)):
        return None
    wide = new.clone()
    if channels == 1:
        wide[: len(old)] = old
        return wide
    ours, theirs = old.shape[:2]
    wide[:ours] = 0
    # An equalised layer divides by √(in_channels); to one that demodulates it is all the same.
    wide[:ours, :theirs] = old * (new.shape[1] / theirs) ** 0.5
    return wide


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


def imitate(G: nn.Module, D: nn.Module, old_G: KaoganModel, old_D: nn.Module | None) -> list[str]:
    """Teach levels that stand where a patch stood to do what the patch did; the rest stays.

    Call it after `take_over`. A network without such a level is left alone. The faces looked at
    are those that `old_G` draws of the seeds 0, 1, ….

    Returns:
        for each network that learned, its name and the error left: the root mean square of the
        difference over that of what is imitated.
    """
    for old in filter(None, (old_G, old_D)):
        old.requires_grad_(False)
    said = []
    if isinstance(G, Generator) and isinstance(old_G, Generator) and gives_up_patch(G, old_G):
        error = learn(G, old_G, lambda z: (G(z), old_G(z)), old_G.z_dim)
        said.append(f"G {error:.2f}")
    if type(D) is type(old_D) is Discriminator and gives_up_patch(D, old_D):
        level = len(D.blocks) - len(old_D.blocks)

        def look(z: Tensor) -> tuple[Tensor, Tensor]:
            faces = old_G(z)
            return D.features(faces)[level], old_D.features(faces)[0]

        error = learn(D, old_D, look, old_G.z_dim)
        said.append(f"D {error:.2f}")
    return said


def lacking(network: nn.Module, other: nn.Module) -> set[str]:
    """Return the names of `network`'s tensors that `other` has not, or not in that shape."""
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    return {n for n, tensor in network.state_dict().items() if shapes.get(n) != tensor.shape}


def gives_up_patch(new: Generator | Discriminator, old: Generator | Discriminator) -> bool:
    """Tell whether `new` is `old` but for levels of features where that has a patch."""
    deeper = new.resolution == old.resolution and len(new.blocks) > len(old.blocks)
    return deeper and all("_rgb." in name for name in lacking(old, new))


def learn(
    new: nn.Module, old: nn.Module, look: Callable[[Tensor], tuple[Tensor, Tensor]], z_dim: int
) -> float:
    """Fit what `new` does not have from `old`, so that the two tensors of `look(z)` come close."""
    names = lacking(new, old)
    parameters = [p for name, p in new.named_parameters() if name in names]
    optimizer = torch.optim.Adam(parameters, IMITATION_LR, (0.9, 0.99))
    for step in range(IMITATION_STEPS):
        optimizer.param_groups[0]["lr"] = IMITATION_LR * min(1, 2 - 2 * step / IMITATION_STEPS)
        seeds = range(step * IMITATION_BATCH, (step + 1) * IMITATION_BATCH)
        ours, theirs = look(latents_from_seeds(seeds, z_dim).to(parameters[0].device))
        error = (ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()
        for parameter, grad in zip(parameters, torch.autograd.grad(error, parameters), strict=True):
            parameter.grad = grad
        optimizer.step()
    optimizer.zero_grad()
    return error.item()


def init_from(source: str, G: nn.Module, D: nn.Module, say: Callable[[str], None]) -> None:
    """Give new networks the weights of trained ones; say what was taken.

    Raises:
        ModelError: as `open_pair` and `take_over` do.
    """
    device = next(G.parameters()).device
    old_G, old_D = open_pair(source)
    old_G, old_D = old_G.to(device), old_D and old_D.to(device)
    parts = ["G {} of {}".format(*take_over(G, old_G))]
    if old_D is not None and type(old_D) is type(D):  # another kind of critic learns afresh
        parts.append("D {} of {}".format(*take_over(D, old_D)))
    else:
        parts.append("D none")
    say(f"Starting from {source}: tensors taken: {', '.join(parts)}.")
    if left := imitate(G, D, old_G, old_D):
        say(f"The new levels imitate the patch; relative error left: {', '.join(left)}.")


def init_heads(source: str, P: ProjectedDiscriminator, say: Callable[[str], None]) -> None:
    """Give a new projected discriminator the heads of a trained one, where there are fitting ones.

    Raises:
        ModelError: as `open_heads` does.
    """
    old = open_heads(source)
    if old and old.sizes == P.sizes:
        say("Projected discriminator: tensors taken: {} of {}.".format(*take_over(P, old)))
    elif old:
        say(
            f"Projected discriminator: {source} judges at {old.side} px, this run at {P.side} px, "
            f"so its heads learn afresh."
        )
    else:
        say(f"Projected discriminator: {source} holds none, so its heads learn afresh.")
