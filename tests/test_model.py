"""The networks: seeds, shapes, what a face may depend on, and strict loading."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import model
from model import (
    NETWORKS,
    SEED_MAX,
    ArticleDiscriminator,
    ArticleGenerator,
    Discriminator,
    Generator,
    ModelError,
    ToRGB,
    check_seed,
    count_parameters,
    default_channels,
    first_weights,
    latents_from_seeds,
    load_network,
    smooth_patches,
)


@pytest.fixture
def G():
    torch.manual_seed(0)
    network = Generator(resolution=32, channels=(32, 32, 16, 16), z_dim=16, w_dim=24).eval()
    network.update_w_avg()
    return network.requires_grad_(False)


def pixels(images):
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.int16)


# Seeds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "first"),
    [
        (0, (1.7640524, 0.4001572, 0.978738, 2.2408931)),
        (42, (0.4967142, -0.1382643, 0.6476885, 1.5230299)),
        (2**31, (0.3184761, -0.3457535, 0.2255674, 1.5130305)),
        (SEED_MAX, (0.6484087, 0.6693235, -1.0805438, 0.2845010)),
    ],
)
def test_golden_latents(seed, first):
    z = latents_from_seeds([seed], 128)
    assert z.shape == (1, 128)
    assert z.dtype == torch.float32
    np.testing.assert_allclose(z[0, :4], first, rtol=0, atol=1e-6)


def test_latents_do_not_depend_on_company():
    together = latents_from_seeds(range(40), 100)
    for seed in (0, 17, 39):
        assert torch.equal(together[seed], latents_from_seeds([seed], 100)[0])
    assert latents_from_seeds([], 100).shape == (0, 100)


def test_numpy_seeds_are_seeds():
    assert check_seed(np.uint32(7)) == 7


@pytest.mark.parametrize("seed", [-1, SEED_MAX + 1, 1.5, "7", None, True, float("nan")])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ModelError, match="whole number from 0"):
        latents_from_seeds([seed], 8)


# Shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [4, 6, 12, 24, 32, 48, 64, 96, 128])
def test_resolutions(resolution):
    widths = default_channels(resolution, 128, 32)
    G = Generator(resolution=resolution, channels=widths, z_dim=8, w_dim=8)
    D = Discriminator(resolution=resolution, channels=widths)
    images = G(torch.randn(4, 8))
    assert images.shape == (4, 3, resolution, resolution)
    assert D(images).shape == (4,)
    assert G.mapping(torch.randn(2, 8)).shape == (2, G.num_ws, 8)
    assert not list(D.buffers())


@pytest.mark.parametrize("resolution", [0, 5, 7, 40, 28, 100, 2048, 64.0, "64", None])
def test_other_resolutions_are_refused(resolution):
    with pytest.raises(ModelError, match="resolution must be"):
        default_channels(resolution, 128, 32)


@pytest.mark.parametrize(("resolution", "patch"), [(64, 2), (64, 4), (24, 2), (128, 4)])
def test_a_patch_leaves_out_the_last_levels(resolution, patch):
    widths = default_channels(resolution // patch, 256, 16)
    G = Generator(resolution, widths, z_dim=8, w_dim=8, patch=patch)
    D = Discriminator(resolution, widths, patch=patch)
    images = G(torch.randn(4, 8))
    assert images.shape == (4, 3, resolution, resolution)
    assert D(images).shape == (4,)
    whole = Generator(resolution // patch, widths, z_dim=8, w_dim=8)
    assert G.num_ws == whole.num_ws
    assert list(G.blocks) == list(whole.blocks)


@pytest.mark.parametrize("patch", [2, 4])
def test_no_grid_of_patches_shows(patch):
    """Whatever pattern the places of a patch make, smoothing leaves its mean."""
    tile = torch.randn(1, 3, patch, patch)
    smooth = smooth_patches(tile.repeat(1, 1, 8, 8), patch)
    assert smooth.shape == (1, 3, 8 * patch, 8 * patch)
    inner = smooth[:, :, patch:-patch, patch:-patch]
    torch.testing.assert_close(inner, tile.mean((2, 3), keepdim=True).expand_as(inner))
    flat = torch.full((1, 3, 16, 16), 0.7)
    torch.testing.assert_close(smooth_patches(flat, patch), flat)


@pytest.mark.parametrize(
    ("resolution", "patch"), [(64, 3), (64, True), (66, 4), (40, 2), (2048, 2), (64, "2")]
)
def test_other_patches_are_refused(resolution, patch):
    for kind in (Generator, Discriminator):
        with pytest.raises(ModelError, match="patch|resolution"):
            kind(resolution, (16, 16, 16, 16), patch=patch)


def test_grey():
    G = Generator(resolution=8, channels=(16, 16), z_dim=8, w_dim=8, img_channels=1)
    D = Discriminator(resolution=8, channels=(16, 16), img_channels=1)
    assert D(G(torch.randn(4, 8))).shape == (4,)


def test_pictures_start_with_variety_over_z():
    torch.manual_seed(0)
    with torch.no_grad():
        images = Generator()(latents_from_seeds(range(16), 128))
    assert 0.05 < images.std(0).mean() < 0.3
    assert images.abs().max() < 2  # faint: no colour is far out of range


def test_article_layers():
    """Every layer's output shape and both parameter counts, as the tutorial gives them."""
    with torch.device("meta"):
        G, D = ArticleGenerator(z_dim=100), ArticleDiscriminator()
        shapes = []
        for layer in [*G.layers, *D.features, *D.classifier]:
            layer.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
        assert D(G(torch.randn(2, 100))).shape == (2,)
    assert (
        shapes[:10]
        == [(15, 192, 192)] * 2 + [(50, 192, 192)] * 3 + [(25, 192, 192)] * 3 + [(3, 96, 96)] * 2
    )
    assert shapes[10:] == [(32, 96, 96)] * 2 + [(32, 48, 48)] + [(64, 48, 48)] * 2 + [
        (64, 16, 16)
    ] + [(1024,)] * 2 + [(1,)]
    assert (round(count_parameters(G) / 1e6, 1), round(count_parameters(D) / 1e6, 1)) == (
        55.9,
        16.8,
    )


def test_article_probability_is_the_sigmoid_of_the_logit():
    torch.manual_seed(0)
    D = ArticleDiscriminator()
    images = torch.rand(2, 3, 96, 96)
    assert torch.allclose(D.probability(images), 1 / (1 + torch.exp(-D(images))))


# What a face may depend on ----------------------------------------------------------------


def test_face_does_not_depend_on_batch_place_or_threads(G):
    seeds = list(range(20))
    z = latents_from_seeds(seeds, 16)
    alone = torch.cat([pixels(G(z[i : i + 1], 0.7)) for i in seeds])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for size in (3, 16, 20):
                batched = torch.cat([pixels(G(part, 0.7)) for part in z.split(size)])
                assert (batched - alone).abs().max() <= 1
            assert (pixels(G(z.flip(0), 0.7)).flip(0) - alone).abs().max() <= 1
    finally:
        torch.set_num_threads(threads)


def test_drawing_twice_is_the_same(G):
    z = latents_from_seeds([3], 16)
    assert torch.equal(G(z), G(z))


def test_psi(G):
    z = latents_from_seeds(range(4), 16)
    w, average = G.mapping(z), G.w_avg
    assert torch.allclose(G.mapping(z, 0.0), average.expand_as(w), atol=1e-6)
    assert torch.allclose(G.mapping(z, 0.5), (w + average) / 2, atol=1e-6)
    spread = [G(z, psi).std(0).mean() for psi in (0.0, 0.5, 1.0)]
    assert spread[0] < 1e-3 < spread[1] < spread[2]


def test_styles_mix_by_layer(G):
    """Fine styles of another face must leave the coarse features alone, and change the picture."""
    a, b = G.mapping(latents_from_seeds([1, 2], 16))
    mixed = a.clone()
    mixed[-2:] = b[-2:]
    x, y = G.synthesis(torch.stack([a, mixed]))
    assert not torch.allclose(x, y, atol=1e-3)
    seen = []
    handle = G.blocks["16"].register_forward_hook(lambda _m, _i, out: seen.append(out[1]))
    G.synthesis(torch.stack([a, mixed]))
    handle.remove()
    assert torch.allclose(seen[0][0], seen[0][1], atol=1e-5)


def test_demodulation_equals_weights_modulated_per_sample(G):
    """The shared convolution equals the paper's: scale and normalise each sample's weights."""
    conv = G.blocks["8"].conv1
    x, w = torch.randn(2, 32, 8, 8), torch.randn(2, 24)
    styles = conv.affine(w)
    expected = []
    for i in range(2):
        weight = conv.weight * styles[i].view(1, -1, 1, 1)
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        y = torch.nn.functional.conv2d(x[i : i + 1], weight, padding=1) * math.sqrt(2)
        expected.append(torch.nn.functional.leaky_relu(y + conv.bias.view(1, -1, 1, 1), 0.2))
    assert torch.allclose(conv(x, w), torch.cat(expected), atol=1e-4)


def test_a_picture_is_a_convolution_of_styled_features():
    torch.manual_seed(0)
    layer = ToRGB(16, 12, 8)
    x, w = torch.randn(3, 16, 8, 8).contiguous(memory_format=torch.channels_last), torch.randn(3, 8)
    style = layer.affine(w)
    expected = F.conv2d(x * style[:, :, None, None], layer.weight, layer.bias)
    torch.testing.assert_close(layer(x, w), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_smoothing_is_two_boxes_with_replicated_edges(patch):
    x = torch.randn(2, 3, 16, 16)
    padded = F.pad(x, (patch - 1,) * 4, mode="replicate")
    expected = F.avg_pool2d(F.avg_pool2d(padded, patch, 1), patch, 1)
    torch.testing.assert_close(smooth_patches(x, patch), expected, rtol=1e-5, atol=1e-6)


def test_a_frozen_generator_draws_the_same_faces(G, tmp_path):
    z = latents_from_seeds(range(8), G.z_dim)
    expected, state = pixels(G(z, 0.7)), {k: v.clone() for k, v in G.state_dict().items()}
    assert (pixels(G.freeze()(z, 0.7)) - expected).abs().max() <= 1
    G.save_pretrained(tmp_path)
    loaded = Generator.from_pretrained(tmp_path)
    assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())
    ws = G.mapping(z).clone().requires_grad_()  # which a match of a picture follows
    (gradient,) = torch.autograd.grad(G.synthesis(ws).square().mean(), ws)
    ws = ws.detach().requires_grad_()
    (as_before,) = torch.autograd.grad(loaded.synthesis(ws).square().mean(), ws)
    torch.testing.assert_close(gradient, as_before, rtol=1e-3, atol=1e-6)


def test_the_most_real_of_each_group_is_chosen():
    torch.manual_seed(0)
    D = Discriminator(16, (16, 16, 16))
    images = torch.randn(10, 3, 16, 16)
    chosen = D.most_real(images, 4)
    assert [int(place) // 4 for place in chosen] == [0, 1, 2]
    for start, place in zip((0, 4, 8), chosen, strict=True):
        scores = D(images[start : start + 4])
        assert scores[place - start] == scores.max()
    assert torch.equal(D.most_real(images[4:8], 4), chosen[1:2] - 4)  # whatever else is drawn
    assert D.most_real(images, 1).tolist() == list(range(10))


def test_minibatch_deviation_looks_at_consecutive_groups():
    torch.manual_seed(0)
    D = Discriminator(resolution=8, channels=(16, 16), group_size=4).requires_grad_(False)
    a, b = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    assert torch.allclose(D(torch.cat([a, b])), torch.cat([D(a), D(b)]), atol=1e-5)
    assert not torch.allclose(D(a)[:1], D(a[:1].repeat(4, 1, 1, 1))[:1], atol=1e-4)


# Saving and loading -----------------------------------------------------------------------


@pytest.fixture
def saved(G, tmp_path):
    G.save_pretrained(tmp_path / "g")
    return tmp_path / "g"


def test_round_trip(G, saved):
    z = latents_from_seeds([5, 6], 16)
    for loaded in (Generator.from_pretrained(saved), load_network(str(saved))):
        assert isinstance(loaded, Generator)
        assert not loaded.training
        assert torch.equal(loaded(z, 0.7), G(z, 0.7))
        assert loaded.config == G.config


def test_constructor_arguments_come_back(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["architecture"] == "Generator"
    assert config["channels"] == [32, 32, 16, 16]


def test_half_storage_keeps_pixels(G, tmp_path):
    G.save_pretrained(tmp_path / "half", dtype=torch.float16)
    G.save_pretrained(tmp_path / "full")
    sizes = [(tmp_path / k / "model.safetensors").stat().st_size for k in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = Generator.from_pretrained(tmp_path / "half")
    z = latents_from_seeds(range(8), 16)
    assert (pixels(loaded(z)) - pixels(G(z))).abs().max() <= 1


def test_first_weights_are_those_of_randn():
    torch.manual_seed(3)
    expected = torch.randn(5, 7) / 0.01
    torch.manual_seed(3)
    assert torch.allclose(first_weights(5, 7, divisor=0.01), expected, rtol=1e-6)


def test_loading_imports_no_compiler(saved):
    code = (
        "import sys; from model import load_network; load_network(sys.argv[1]);"
        "sys.exit('sympy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, saved], cwd=Path(model.__file__).parent, check=True)


def test_every_network_round_trips(tmp_path):
    small = {
        "Generator": (8, (16, 16), 4, 4),
        "Discriminator": (8, (16, 16)),
        "ArticleGenerator": (1,),
    }
    for name, kind in NETWORKS.items():
        network = kind(*small.get(name, ()))
        network.save_pretrained(tmp_path / name)
        loaded = kind.from_pretrained(tmp_path / name)
        for key, tensor in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key].float(), tensor.float()), key


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_config(folder, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


FAULTS = {
    "missing tensor": (
        lambda f: change_tensors(f, lambda t: t.pop("const")),
        "lacks tensors: const",
    ),
    "extra tensor": (
        lambda f: change_tensors(f, lambda t: t.update(more=torch.zeros(1))),
        "unknown tensors: more",
    ),
    "misshapen tensor": (
        lambda f: change_tensors(f, lambda t: t.update(w_avg=torch.zeros(3))),
        "misshapen tensors: w_avg",
    ),
    "not a number": (
        lambda f: change_tensors(f, lambda t: t["w_avg"].fill_(float("nan"))),
        "no finite numbers",
    ),
    "integer tensor": (
        lambda f: change_tensors(f, lambda t: t.update(w_avg=torch.zeros(24, dtype=torch.int32))),
        "has the type torch.int32",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "only a pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pickled weights are never loaded",
    ),
    "a pickle in disguise": (
        lambda f: torch.save({"const": torch.zeros(1)}, f / "model.safetensors"),
        "not a readable safetensors file",
    ),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-9]
        ),
        "not a readable safetensors file",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a readable safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "list config": (lambda f: (f / "config.json").write_text("[1]"), "not a configuration of ours"),
    "foreign config": (
        lambda f: change_config(f, architecture="UNet"),
        "not a configuration of ours",
    ),
    "nameless config": (
        lambda f: change_config(f, architecture=...),
        "not a configuration of ours",
    ),
    "unknown entry": (lambda f: change_config(f, depth=3), "unknown entries: depth"),
    "absurd size": (lambda f: change_config(f, resolution=2**40), "resolution must be"),
    "absurd width": (lambda f: change_config(f, channels=[10**9] * 4), "channels must be"),
    "absurd latent": (lambda f: change_config(f, z_dim=10**12), "z_dim must be"),
    "wrong type": (lambda f: change_config(f, channels="many"), "channels must be"),
    "other width": (lambda f: change_config(f, channels=[32, 32, 16, 8]), "misshapen tensors"),
    "huge config": (lambda f: (f / "config.json").write_text(" " * 70000 + "{}"), "larger than"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_folders_are_refused(saved, fault):
    damage, words = FAULTS[fault]
    damage(saved)
    with pytest.raises(ModelError, match=words):
        Generator.from_pretrained(saved)


def test_wrong_class_is_refused(saved):
    with pytest.raises(ModelError, match="describes a Generator, not a Discriminator"):
        Discriminator.from_pretrained(saved)


def test_neither_folder_nor_repository(saved):
    shutil.rmtree(saved)
    with pytest.raises(ModelError, match="neither a folder nor a Hub repository"):
        Generator.from_pretrained(saved)


def test_unreachable_hub(monkeypatch, tmp_path):
    """Offline with an empty cache: a sentence, and no random network."""
    with pytest.raises(ModelError, match="could not fetch config.json of nobody/nothing"):
        Generator.from_pretrained("nobody/nothing", cache_dir=tmp_path, local_files_only=True)
