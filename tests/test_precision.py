"""What a step computes in, with the precisions of a GPU on a CPU."""

import json

import pytest
import torch

import train
from model import Discriminator, Generator, latents_from_seeds
from training import run as building
from training.checkpoint import CheckpointError, list_checkpoints
from training.compiling import Compiler
from training.config import make_config
from training.precision import Precision, choose_precision
from training.snapshot import save

TINY = {
    "resolution": 16, "channel_base": 256, "channel_max": 16, "z_dim": 16, "w_dim": 16,
    "batch_size": 8, "penalty_interval": 2, "metric_samples": 0, "workers": 1,
}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture
def build(faces_dir, tmp_path, monkeypatch):
    """Build runs on the drawn faces, in the precision of some GPU."""
    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    made = []

    def make(precision, **settings):
        monkeypatch.setattr(building, "choose_precision", lambda *_: Precision(precision, CPU))
        folder = {"data": (str(faces_dir),), "out": str(tmp_path / f"run{len(made)}")}
        made.append(building.build(make_config(TINY, folder | settings)))
        return made[-1]

    yield make
    for run in made:
        run.lock.close()


def test_a_penalised_step_is_float32_and_the_others_are_not(build):
    run = build("bf16")
    seen = []
    run.D_raw.conv.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    train.d_step(run)
    assert set(seen) == {torch.float32}
    run.nimg += run.config.batch_size
    seen.clear()
    train.d_step(run)
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("patch", [1, 2])
def test_a_picture_is_summed_in_float32(patch):
    """Six levels that add up to white; in bf16 its steps there are half a level of 8 bits."""
    G = Generator(128 * patch, (8,) * 6, z_dim=8, w_dim=8, patch=patch).requires_grad_(False)
    for block in G.blocks.values():
        block.to_rgb.bias.fill_(0.97 / 6)
    z = latents_from_seeds([0, 1], 8)
    wide = G(z)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = G(z)
    assert narrow.dtype == torch.float32
    assert (narrow - wide).abs().mean() < 1 / 1024
    assert narrow.unique().numel() > 10 * narrow.bfloat16().unique().numel()


# ------------------------------------------------------------------------------------------
# fp16


def networks(patch=1):
    """Return G and D of six and five levels, with weights that have learned biases."""
    torch.manual_seed(0)
    G = Generator(64 * patch, (16, 16, 16, 8, 8), z_dim=8, w_dim=8, patch=patch)
    D = Discriminator(64 * patch, (16, 16, 16, 8, 8), patch=patch)
    for network in (G, D):
        for name, tensor in network.requires_grad_(False).named_parameters():
            if name.endswith("bias") and "affine" not in name:
                tensor.normal_(std=0.1)
    return G, D


def in_half():
    return torch.autocast("cpu", torch.float16)


@pytest.mark.parametrize("patch", [1, 2])
def test_float16_draws_and_judges_as_float32_does(patch):
    G, D = networks(patch)
    z = latents_from_seeds(range(4), 8)
    faces, logits = G(z), D(G(z))
    with in_half():
        half, judged = G(z), D(faces)
    assert half.dtype == judged.dtype == torch.float32
    assert (half - faces).abs().max() < 4e-3 * faces.abs().max()
    torch.testing.assert_close(judged, logits, rtol=0, atol=0.01 * logits.std().item() + 1e-3)


@pytest.mark.parametrize("patch", [1, 2])
def test_styles_a_hundred_times_too_large_do_not_overflow(patch):
    """Demodulation undoes them; what paints without it grows with them, in float32."""
    G, D = networks(patch)
    z = latents_from_seeds(range(4), 8)
    for name, tensor in G.named_parameters():
        if ".affine." in name:
            tensor.mul_(100)
    wide = G(z)
    with in_half():
        half = G(z)
    assert wide.abs().max() > 5 and half.isfinite().all()
    assert (half - wide).abs().max() < 4e-3 * wide.abs().max()
    for name, tensor in G.named_parameters():
        if ".weight" in name and ".affine." not in name:
            tensor.mul_(1e5)  # beyond float16 by themselves
    for name, tensor in D.named_parameters():
        if name.startswith(("blocks", "from_rgb")):
            tensor.mul_(1e4)
    with in_half():
        images, logits = G(z), D(wide)
    assert images.isfinite().all() and logits.isfinite().all()


def test_a_gradient_that_overflows_leaves_a_step_out_and_is_counted(build):
    run = build("fp16", r1_gamma=0.0)
    for _ in range(3):
        train.step(run)
    assert train.skipped_steps(run) == {"d_skipped": 0, "g_skipped": 0}
    run.precision._scaler("D").load_state_dict(
        run.precision._scaler("D").state_dict() | {"scale": 2.0**120}
    )
    before = [[p.clone() for p in n.parameters()] for n in (run.D_raw, run.G_raw)]
    train.step(run)
    assert all(map(torch.equal, before[0], run.D_raw.parameters()))
    assert not any(map(torch.equal, before[1], run.G_raw.parameters()))
    assert train.skipped_steps(run) == {"d_skipped": 1, "g_skipped": 0}
    scales = json.loads(run.precision.state["scales"])
    assert scales == {"D": [2.0**119, 0], "G": [2.0**16, 4]}
    assert all(p.isfinite().all() for p in run.D_raw.parameters())


def test_scaled_losses_take_the_steps_of_plain_ones(build):
    """With the scale out of the gradient again, and the same length of it in the log."""
    steps, lengths = {}, {}
    for name in ("no", "fp16"):
        run = build(name, gradient_norm=True, gradient_accumulation=2)
        start = [p.clone() for p in run.G_raw.parameters()]
        train.step(run)
        moved = zip(start, run.G_raw.parameters(), strict=True)
        steps[name] = torch.cat([(b - a).flatten() for a, b in moved])
        lengths[name] = train.read_stats(run)["g_gradient"]
    assert lengths["fp16"] == pytest.approx(lengths["no"], rel=0.1)  # not by a factor of 65,536
    # Adam's first step is a gradient's sign, which rounding may turn where it is nearly zero.
    assert (steps["fp16"].sign() == steps["no"].sign()).float().mean() > 0.9


def test_penalties_stay_float32_and_scales_come_back(build):
    run = build("fp16", tick_kimg=0.016)
    seen = []
    run.D_raw.conv.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    train.step(run)
    assert seen[:2] == [torch.float32] * 2 and seen[2] == torch.float16
    run.precision._scaler("G").load_state_dict(
        run.precision._scaler("G").state_dict() | {"scale": 512.0, "_growth_tracker": 7}
    )
    train.step(run)
    save(run)
    run.lock.close()
    other = {"out": str(run.folder), "resume": "latest"}
    again = build("fp16", **other)
    assert again.precision.state == run.precision.state
    assert json.loads(again.precision.state["scales"])["G"] == [512.0, 8]
    for one in (run, again):
        train.step(one)
    weights = zip(run.G_raw.parameters(), again.G_raw.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    again.lock.close()
    assert list_checkpoints(run.folder / "checkpoints")
    assert build("no", **other).precision.state == {}  # they are not needed there


def test_scales_and_ends_that_are_none_are_refused(build, monkeypatch):
    run = build("fp16", max_minutes=1.0)
    faults = [{"scales": s} for s in ("{", "[1]", '{"G": [0, 1]}', '{"G": "x"}', '{"G": [NaN, 1]}')]
    for fault in [*faults, {"end": "soon"}]:
        state = {"nimg": 0, "seconds": 0} | fault
        monkeypatch.setattr(building, "load_checkpoint", lambda *_, state=state: state)
        with pytest.raises(CheckpointError, match="no schedule or loss scales to resume with"):
            building.resume_from(run, run.folder / "x")


def test_float16_is_traced_in_one_piece():
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    G, D = networks()
    z = latents_from_seeds(range(4), 8)
    compiler = Compiler(pytest.fail, backend="eager")
    with in_half():
        expected = D(G(z))
        for network in (G, D):
            compiler.compile(network)
        torch.testing.assert_close(D(G(z)), expected)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 2


def test_what_a_gpu_computes_in(monkeypatch):
    gpu = torch.device("cuda", 0)
    for bf16, capability, name, hint in (
        (True, (9, 0), "bf16", False), (False, (7, 5), "no", True), (False, (6, 1), "no", False),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda bf16=bf16, **_: bf16)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        chosen = choose_precision("auto", gpu)
        assert (chosen.name, "--mixed-precision fp16" in chosen.hint) == (name, hint)
        assert choose_precision("fp16", gpu).name == "fp16"
    assert choose_precision("fp16", CPU).name == "no"
