"""torch.compile for the networks of a run, and what happens where it cannot be had.

    compiler = make_compiler("auto", device, print)
    compiler.compile(G)           # its forward, and embed where it has one
    with compiler.off():          # a penalty, since compiled code is differentiated only once
        ...

A network is compiled when it is first called. If that fails, one sentence says why, and the run
computes with the networks as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

METHODS = ("forward", "embed")  # of a network, each compiled by itself


class Compiler:
    """Compiles networks in place until one of them cannot be.

    Args:
        say: prints a line.
        on: whether to compile at all.
        options: what torch.compile takes besides.
    """

    def __init__(self, say: Callable[[str], None], on: bool = True, **options: Any) -> None:
        self.say, self.on, self.options = say, on, options

    def compile(self, network: nn.Module) -> None:
        """Have a network's methods compiled when they are first called."""
        for name in METHODS:
            if self.on and hasattr(network, name):
                setattr(network, name, self.function(getattr(network, name)))

    def function(self, plain: Callable) -> Callable:
        """Return a function of positional arguments that is compiled when it is first called."""
        compiled = plain
        if self.on:
            try:  # shapes are those of a run's batches, so each is compiled for itself
                compiled = torch.compile(plain, dynamic=False, **self.options)
            except (AttributeError, RuntimeError) as error:  # an old torch, or too new a Python
                self._give_up(error)

        def call(*arguments: Any) -> Any:
            if not self.on:
                return plain(*arguments)
            try:
                return compiled(*arguments)
            except compile_faults() as error:
                self._give_up(error)
                return plain(*arguments)

        return call

    @contextlib.contextmanager
    def off(self, really: bool = True) -> Iterator[None]:
        """Compute with the networks as they are, so that they can be differentiated twice."""
        before, self.on = self.on, self.on and not really
        try:
            yield
        finally:
            self.on = before

    def begin_step(self) -> None:
        """Let CUDA graphs, where they are used, take the memory of the last step's outputs."""
        if self.on and self.options.get("mode"):
            torch.compiler.cudagraph_mark_step_begin()

    def _give_up(self, error: Exception) -> None:
        """Compile no more, and say why."""
        self.on = False
        self.say(
            f"The networks cannot be compiled here, so the run continues without, slower: "
            f"{first_line(error)}"
        )


def make_compiler(asked: str, device: torch.device, say: Callable[[str], None]) -> Compiler:
    """Turn `--compile` into what is done on a device: `auto` compiles on a GPU alone."""
    on = asked not in ("auto", "no") or (asked == "auto" and device.type == "cuda")
    options = {"mode": asked} if asked == "reduce-overhead" else {}
    return Compiler(say, on, **options)


def compile_faults() -> tuple[type[Exception], ...]:
    """Return what torch raises where it cannot compile; asked for only once something is raised."""
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)


def first_line(error: BaseException) -> str:
    """Return an error's first line that says something, its class where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
