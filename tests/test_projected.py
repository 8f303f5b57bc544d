"""The critic on frozen features: what learns, what does not, and where it is penalised."""

import copy

import pytest
import torch

from model import ModelError, load_network
from training.config import make_config
from training.losses import d_loss, g_loss, squared_gradient
from training.projected import ProjectedDiscriminator
from training.run import kaogan_networks


@pytest.fixture
def D():
    torch.manual_seed(0)
    return ProjectedDiscriminator(64, width=16)


def test_only_the_heads_learn(D):
    images = torch.randn(4, 3, 64, 64)
    assert D(images).shape == (4, 4)
    D(images).sum().backward()
    assert {name.split(".")[0] for name, p in D.named_parameters() if p.grad is not None} == {
        "heads"
    }
    assert not any(p.requires_grad for p in D.frozen(images.device).parameters())
    assert not any("_frozen" in name or "blocks" in name for name in D.state_dict())


@pytest.mark.parametrize(("resolution", "channels"), [(16, 3), (64, 1), (96, 3), (128, 3)])
def test_sizes_and_grey(resolution, channels):
    D = ProjectedDiscriminator(resolution, channels, width=8)
    assert D(torch.randn(2, channels, resolution, resolution)).shape == (2, 4)


def test_it_looks_at_larger_pictures_reduced(D):
    D.eval()
    torch.manual_seed(1)
    images = torch.randn(2, 3, 128, 128, requires_grad=True)
    seen = D(images)
    assert seen.shape == (2, 4)
    assert D.embed(images).shape == D.embed(torch.randn(2, 3, 64, 64)).shape
    with torch.no_grad():  # what is finer than its pixels it hardly sees …
        fine, coarse = (
            torch.tensor([1.0, -1.0]).repeat_interleave(n).repeat(64 // n) for n in (1, 8)
        )
        moved = [(D(images + 0.3 * stripes) - seen).norm() for stripes in (fine, coarse)]
    assert moved[0] < 0.1 * moved[1]
    spectrum = torch.fft.fft2(torch.autograd.grad(seen.sum(), images)[0]).abs()
    assert spectrum[..., 60:68, :].mean() < 0.05 * spectrum[..., 12:20, :].mean()  # … nor teaches


def test_rows_are_judged_as_their_pictures_are(D):
    D.eval()  # a forward in training mode moves the estimates of spectral norms
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(D(D.embed(images)), D(images))
    assert D.embed(images).shape == (3, D.mixed * sum(size**2 for size in D.sizes))


def test_g_learns_through_the_frozen_network_and_d_is_penalised_at_its_rows(D):
    fake = torch.randn(4, 3, 64, 64, requires_grad=True)
    loss, _ = g_loss(D, fake, "hinge")
    loss.backward()
    assert fake.grad.abs().sum() > 0
    D.zero_grad()
    D.eval()
    real = torch.randn(4, 3, 64, 64)
    plain, _ = d_loss(D, real, fake, "hinge")
    loss, stats = d_loss(D, real, fake, "hinge", r1_gamma=2.0)
    torch.testing.assert_close(loss, plain + stats["r1"])
    rows = D.embed(real).requires_grad_(True)
    torch.testing.assert_close(stats["r1"], squared_gradient(D(rows), rows).mean())
    loss.backward()
    assert all(p.grad is not None for p in D.heads.parameters())


def test_it_is_saved_without_the_frozen_network_and_comes_back(D, tmp_path):
    D.eval()
    D.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 3e6
    again = load_network(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again(images), D(images))
    torch.testing.assert_close(copy.deepcopy(D)(images), D(images))


@pytest.mark.parametrize("fault", [{"resolution": 7}, {"img_channels": 2}, {"width": 1e9}])
def test_faulty_sizes_are_refused(fault):
    with pytest.raises(ModelError, match=next(iter(fault))):
        ProjectedDiscriminator(**fault)


def test_a_run_gets_it_by_a_flag():
    _, D = kaogan_networks(make_config({"critic": "projected", "resolution": 32}))
    assert isinstance(D, ProjectedDiscriminator)
    assert D.resolution == 32
