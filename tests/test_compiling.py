"""Compiled networks: traced once, exact when resumed, left out where they cannot be had."""

import pytest
import torch
from children import Bench
from test_precision import CPU, TINY
from test_train import tensors
from torch import nn

import train
from training import run as building
from training.checkpoint import list_checkpoints
from training.compiling import Compiler, make_compiler
from training.config import make_config, parse_arguments
from training.losses import d_loss


@pytest.fixture
def counters():
    """Return dynamo's counters, from nothing."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


def build(faces_dir, folder, compiler, monkeypatch, **settings):
    """Build a run on the drawn faces whose networks a given compiler compiles."""
    monkeypatch.setenv("KAOGAN_CACHE", str(folder / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(building, "make_compiler", lambda *_: compiler)
    files = {"data": (str(faces_dir),), "out": str(folder / f"run{compiler.on}")}
    return building.build(make_config(TINY, files, settings))


def test_nothing_is_traced_anew_after_the_first_cycle(faces_dir, tmp_path, monkeypatch, counters):
    """Every network of the step, the projected discriminator's frozen one too, without a break."""
    said, weights = [], []
    for on in (True, False):
        compiler = Compiler(said.append, on, backend="eager")
        run = build(faces_dir, tmp_path, compiler, monkeypatch, projected_weight=1.0)
        for _ in range(run.config.penalty_interval):
            train.step(run)
        traced = dict(counters["stats"])
        for _ in range(2 * run.config.penalty_interval):
            train.step(run)
        assert counters["stats"] == traced
        run.lock.close()
        weights.append(torch.cat([p.flatten() for p in run.G_raw.parameters()]))
    assert not counters["graph_break"] and not said
    # G and D each with and without gradients; embed, and heads on rows and on pictures.
    assert traced["unique_graphs"] == 7
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


class Quadratic(nn.Module):
    """A discriminator whose slope is its input times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 4))

    def forward(self, x):
        return (x.square() * self.weight).sum((1, 2, 3)) / 2


def test_a_penalty_takes_the_network_as_it_is(counters):
    D, compiler = Quadratic(), Compiler(pytest.fail, backend="aot_eager")
    compiler.compile(D)
    real, fake = torch.randn(2, 4, 3, 4, 4)
    with pytest.raises(RuntimeError, match="double backward"):
        d_loss(D, real, fake, "bce", r1_gamma=1.0)[0].backward()
    with compiler.off():
        loss, _ = d_loss(D, real, fake, "bce", r1_gamma=1.0)
    loss.backward()
    assert D.weight.grad.abs().sum() > 0 and compiler.on


def test_where_there_is_no_compiler_the_network_goes_on_as_it_is(monkeypatch, counters):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("/nowhere/c++",))
    monkeypatch.setattr(inductor, "fx_graph_cache", False)
    monkeypatch.setattr(inductor, "cpp_wrapper", False)
    said, layer = [], Quadratic()
    images = torch.randn(2, 3, 4, 4)
    expected = layer(images)
    Compiler(said.append).compile(layer)
    assert torch.equal(layer(images), expected) and torch.equal(layer(images), expected)
    (line,) = said
    assert line.startswith("The networks cannot be compiled here, so the run continues without")
    assert "/nowhere/c++" in line or "compiler" in line


def test_an_old_torch_cannot_compile(monkeypatch):
    said, layer = [], Quadratic()
    monkeypatch.delattr(torch, "compile")
    Compiler(said.append).compile(layer)
    assert layer(torch.ones(2, 3, 4, 4)).shape == (2,)
    assert len(said) == 1 and "no attribute 'compile'" in said[0]


def test_what_a_device_compiles():
    cuda = torch.device("cuda")
    assert make_compiler("auto", cuda, print).on and not make_compiler("auto", CPU, print).on
    assert make_compiler("yes", CPU, print).on and not make_compiler("no", cuda, print).on
    assert make_compiler("reduce-overhead", cuda, print).options == {"mode": "reduce-overhead"}
    assert parse_arguments(["--compile"]).compile == "yes"
    assert parse_arguments(["--compile", "no"]).compile == "no"
    assert parse_arguments([]).compile == "auto"


def test_a_compiled_run_is_resumed_bit_for_bit(tmp_path):
    bench = Bench(tmp_path)
    flags = ["--compile", "--resolution", "8", "--total-kimg"]
    try:
        for out, kimg, *more in (
            ("whole", "0.192"), ("parts", "0.064"), ("parts", "0.192", "--resume", "latest"),
        ):  # fmt: skip
            tweak = ("compile_by", "aot_eager")  # tracing and autograd without a C++ compiler
            status, printed = bench.run(out, *flags, kimg, *more, tweak=tweak)
            assert status == 0 and "cannot be compiled" not in printed, printed
            assert "4 graphs" in printed  # of G and D, each with and without gradients
    finally:
        bench.close()
    whole, parts = (
        tensors(list_checkpoints(tmp_path / out / "checkpoints")[-1]) for out in ("whole", "parts")
    )
    assert [k for k in whole if not torch.equal(whole[k], parts[k])] == []
