"""The tutorial's presets: shapes, sizes, real steps through train.py, and what comes of them."""

import gzip
import json
import math
import struct

import numpy as np
import pytest
import torch
from conftest import draw_face
from PIL import Image

import train
from model import (
    ArticleDeconvGenerator,
    ArticleDiscriminator,
    ArticleGenerator,
    DenseDiscriminator,
    DenseGenerator,
    count_parameters,
    latents_from_seeds,
    load_network,
)
from studio.faces import Studio
from training.config import PRESETS, make_config
from training.data import DataError, pack
from training.idx import read_idx, write_zip
from training.losses import OBJECTIVES

PRESET_NAMES = ("article-minimax", "article-logsum", "article-bce", "article-deconv", "dense")


def shapes_of(network, layers, batch):
    """Return the shape of each layer's output, without the batch."""
    found = []
    for layer in layers:
        layer.register_forward_hook(lambda _m, _i, out: found.append(tuple(out.shape[1:])))
    network(batch)
    return found


def test_deconv_layers():
    """6 px to 96 px, each layer twice as large; as many parameters as the discriminator, nearly."""
    with torch.device("meta"):
        G = ArticleDeconvGenerator()
        shapes = shapes_of(G, G.layers, torch.randn(2, 100))
        ours, theirs = count_parameters(G), count_parameters(ArticleDiscriminator())
    levels = [(1152, 6, 6), (512, 12, 12), (256, 24, 24), (128, 48, 48)]
    assert shapes == [s for level in levels for s in [level] * 3] + [(3, 96, 96)] * 2
    assert 0.95 < ours / theirs < 1.05


def test_dense_layers():
    with torch.device("meta"):
        G, D = DenseGenerator(), DenseDiscriminator()
        shapes = shapes_of(G, G.layers, torch.randn(2, 100))
        assert shapes == [(128,)] * 4 + [(784,)] * 2
        assert shapes_of(D, D.layers, torch.randn(2, 1, 28, 28)) == [(128,)] * 4 + [(1,)]
        assert D(G(torch.randn(2, 100))).shape == (2,)
        slopes = [
            m.negative_slope for n in (G, D) for m in n.layers if hasattr(m, "negative_slope")
        ]
    assert slopes == [0.01] * 4
    assert count_parameters(G) == 101 * 128 + 129 * 128 + 129 * 784
    assert count_parameters(D) == 785 * 128 + 129 * 128 + 129


def test_the_dense_generator_is_fed_uniform_numbers():
    """Seeds give normal numbers; behind the first line of the network they are uniform."""
    G, seen = DenseGenerator(), []
    G.layers[0].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        G(latents_from_seeds(range(500), 100))
        G(latents_from_seeds(range(500), 100), psi=0.5)
    u = np.sort(seen[0].numpy().ravel())
    # The largest gap between the sample's distribution function and the uniform one
    # (Kolmogorov and Smirnov); 1.95 / sqrt(n) is passed by one uniform sample in a thousand.
    ideal = (np.arange(len(u)) + 0.5) / len(u)
    assert np.abs((u + 1) / 2 - ideal).max() < 1.95 / math.sqrt(len(u))
    assert torch.equal(seen[1], seen[0] * 0.5)


@pytest.mark.parametrize("name", ["minimax", "minimax-logsum", "bce"])
def test_losses_are_finite_at_saturated_logits(name):
    """Where a rounded D(x) is 0 and a rounded D(G(z)) is 1 (or the reverse), and mixed."""
    for real, fake in ((-1e5, 1e5), (1e5, -1e5), (-200.0, 200.0), (0.0, 1e5)):
        x = torch.tensor([real, 0.5, real, real], requires_grad=True)
        y = torch.full((4,), fake, requires_grad=True)
        for loss in (OBJECTIVES[name].d(x, y, 1.0), OBJECTIVES[name].g(y, None)):
            assert torch.isfinite(loss)
            found = torch.autograd.grad(loss, (x, y), allow_unused=True)
            assert all(g.isfinite().all() for g in found if g is not None)
    # The naive spelling, of a rounded probability, is infinite there.
    assert torch.isinf(torch.log(1 - torch.sigmoid(torch.tensor(200.0))))


def test_the_presets_are_the_tutorials():
    for name in PRESET_NAMES:
        config = make_config(PRESETS[name])
        assert (config.beta1, config.beta2) == (0.9, 0.999)
        assert config.g_lr == config.d_lr == (1e-3 if name == "dense" else 2e-4)
        assert (config.averaged, config.r1_gamma, config.r2_gamma) == (False, 0, 0)
        assert (config.augment, config.xflip, config.z_dim) == ("", False, 100)
        assert config.gradient_norm
    dense = make_config(PRESETS["dense"])
    assert (dense.resolution, dense.img_channels, dense.batch_size) == (28, 1, 100)
    assert (dense.objective, dense.real_label) == ("bce", 0.9)
    objectives = [make_config(PRESETS[name]).objective for name in PRESET_NAMES]
    assert objectives == ["minimax", "minimax-logsum", "bce", "bce", "bce"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Return a folder of a dozen drawn faces."""
    folder = tmp_path_factory.mktemp("faces")
    for index in range(12):
        draw_face(index).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module", params=PRESET_NAMES)
def trained(request, faces, tmp_path_factory):
    """Train a preset for three steps and return its name and the run's folder."""
    out = tmp_path_factory.mktemp(request.param)
    batch = 10 if request.param == "dense" else 2
    flags = {
        "data": (str(faces),), "out": str(out), "batch_size": batch, "total_kimg": 3 * batch / 1000,
        "tick_kimg": batch / 1000, "grid_ticks": 100, "metric_samples": 0, "workers": 1,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAOGAN_CACHE", str(out / "cache"))
        patch.setattr("training.snapshot.GRID_SIDE", 2)
        train.train(make_config(PRESETS[request.param], flags))
    return request.param, out


def test_every_preset_trains(trained):
    name, out = trained
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    assert len(lines) == 4  # before the first step and after each
    for line in lines[1:]:
        assert {"d_loss", "g_loss", "d_real", "d_fake", "g_gradient"} <= line.keys()
        assert all(math.isfinite(value) for value in line.values())
        assert 0 <= line["d_fake"] <= 1 and 0 <= line["d_real"] <= 1
        assert line["g_gradient"] > 0
    losses = {line["g_loss"] for line in lines[1:]}
    assert len(losses) == 3  # each step on latents of its own
    if name in ("article-minimax", "article-logsum"):
        # Before anything is learned D says about a half: log(1/2), of a sum of two: log(1).
        wanted = math.log(0.5) if name == "article-minimax" else math.log(2 * 0.5)
        assert lines[1]["g_loss"] == pytest.approx(wanted, abs=0.3)
    resolution, mode = (28, "L") if name == "dense" else (96, "RGB")
    with Image.open(out / "grids" / "kimg-00000.000.png") as grid:
        assert (grid.size, grid.mode) == ((2 * resolution,) * 2, mode)


def test_what_a_preset_draws_is_loaded_by_the_studio(trained):
    name, out = trained
    studio = Studio.open(out / "generator")
    faces = studio.draw([1, 2, 3], psi=1)
    assert faces.shape == ((3, 28, 28, 1) if name == "dense" else (3, 96, 96, 3))
    assert faces.dtype == np.uint8
    alone = studio.draw([2], psi=1)[0]
    assert np.abs(alone.astype(int) - faces[1]).max() <= 1  # as in company, but for rounding
    assert not np.array_equal(faces[0], faces[1])
    still = studio.draw([1, 2], psi=0)
    assert np.abs(still[0].astype(int) - still[1]).max() <= 1
    assert "no w: variety scales z" in studio.about()


def test_without_an_average_the_generator_is_the_trained_one(trained):
    """--ema-kimg 0: no second set of weights, neither in memory nor in the checkpoint."""
    from safetensors import safe_open

    _, out = trained
    (checkpoint,) = (out / "checkpoints").glob("*.safetensors")
    G = load_network(out / "generator")
    with safe_open(checkpoint, framework="pt") as file:
        assert not [key for key in file.keys() if key.startswith("G_ema/")]  # noqa: SIM118
        for key, tensor in G.state_dict().items():
            assert torch.equal(file.get_tensor(f"G/{key}"), tensor), key


# ------------------------------------------------------------------------------------------
# IDX files


def idx_file(path, pictures, header=None):
    """Write pictures, uint8 [N, H, W], as an IDX file, packed where the name says so."""
    header = header or struct.pack(">IIII", 0x803, *pictures.shape)
    data = header + pictures.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["images-idx3-ubyte", "images-idx3-ubyte.gz"])
def test_idx_files_become_the_pack_of_their_pixels(tmp_path, name):
    """Digits reach the pack bit for bit: IDX → zip → pack at their own size."""
    pictures = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
    source = idx_file(tmp_path / name, pictures)
    assert write_zip(read_idx(source), tmp_path / "digits.zip") == 7
    faces = pack(
        str(tmp_path / "digits.zip"), 28, channels=1, cache_dir=tmp_path / "cache", progress=False
    )
    assert np.array_equal(faces.images[..., 0], pictures)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(8), "no IDX file"),
        (b"\0\0\x08\x03", "no IDX file"),
        (struct.pack(">IIII", 0x801, 7, 28, 28), "no IDX file"),
        (struct.pack(">IIII", 0x803, 8, 28, 28), "ends after 7 of 8 pictures"),
        (struct.pack(">IIII", 0x803, 2**32 - 1, 28, 28), "at most 1,000,000"),
        (struct.pack(">IIII", 0x803, 1, 2**31, 2**31), "at most 1,000,000 of 1024 px"),
    ],
)
def test_idx_faults_get_one_sentence(tmp_path, header, words):
    source = tmp_path / "images"
    source.write_bytes(header + (bytes(7 * 28 * 28) if len(header) == 16 else b""))
    with pytest.raises(DataError, match=words):
        write_zip(read_idx(source), tmp_path / "digits.zip")
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


def test_a_damaged_gz_gets_one_sentence(tmp_path):
    source = idx_file(tmp_path / "images.gz", np.zeros((9, 28, 28), np.uint8))
    source.write_bytes(source.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        list(read_idx(source))


# ------------------------------------------------------------------------------------------
# The fast step is the plain one


def test_the_fast_step_has_the_gradients_of_the_plain_one(faces, tmp_path, monkeypatch):
    """train.py's step of article-bce against the tutorial's, written plainly, from equal weights.

    After one step Adam's first moment is a tenth of the gradient, of every weight of D and of G;
    the weights of D have moved before G's gradient is taken, so both halves are compared.
    """
    from benchmarks.article import naive_step
    from training.run import build

    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    flags = {"data": (str(faces),), "out": str(tmp_path / "run"), "batch_size": 2, "workers": 1,
             "metric_samples": 0}  # fmt: skip
    run = build(make_config(PRESETS["article-bce"], flags))
    G, D = ArticleGenerator(), ArticleDiscriminator()
    G.load_state_dict(run.G_raw.state_dict())
    D.load_state_dict(run.D_raw.state_dict())
    optimizers = [torch.optim.Adam(n.parameters(), 2e-4) for n in (G, D)]
    z = tuple(train.latents(run, stream, 0) for stream in (train.D_LATENTS, train.G_LATENTS))
    plain = naive_step(G, D, *optimizers, train.real_batch(run, 0).contiguous(), z)
    train.d_step(run)
    train.g_step(run)
    run.lock.close()
    assert [run.sums[k].item() for k in ("d_loss", "g_loss")] == pytest.approx(
        [loss.item() for loss in plain], rel=1e-4
    )
    pairs = ((run.D_opt.optimizer, optimizers[1], 1e-3), (run.G_opt.optimizer, optimizers[0], 0.03))
    for ours, theirs, tolerance in pairs:  # of G more: D's first step is the sign of its gradient
        moments = [[s["exp_avg"] for s in o.state.values()] for o in (ours, theirs)]
        whole = torch.stack(torch._foreach_norm(moments[1])).norm()
        assert whole > 0
        for a, b in zip(*moments, strict=True):
            # A bias before a batch norm has no gradient but rounding: measured by the whole.
            assert (a - b).norm() < tolerance * max(b.norm(), whole / 100)
