"""Starting from trained networks: what is taken, what is converted, what is refused."""

import pytest
import torch
import torch.nn.functional as F

from model import (
    ArticleGenerator,
    Discriminator,
    Generator,
    ModelError,
    latents_from_seeds,
    smooth_patches,
    upsample,
)
from training import transfer
from training.config import make_config
from training.projected import ProjectedDiscriminator
from training.run import kaogan_networks
from training.transfer import imitate, init_from, init_heads, open_pair, take_over

WIDTHS = (32, 16, 16)  # of 4, 8 and 16 px


@pytest.fixture
def z():
    return latents_from_seeds(range(8), 12)


def make_generator(resolution=16, widths=WIDTHS, **options):
    network = Generator(resolution, widths, z_dim=12, w_dim=20, **options)
    return network.requires_grad_(False).eval()


def draw_without_last(G, z):
    """Draw the picture as it stands before the last level adds to it."""
    ws, x, rgb = G.mapping(z), G.const.expand(len(z), -1, -1, -1), None
    for index, block in enumerate(list(G.blocks.values())[:-1]):
        x, rgb = block(x, rgb, ws[:, :1] if index == 0 else ws[:, :2])
    return rgb


def enlarge(images, patch):
    return images.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def test_the_same_sizes_are_taken_whole(z):
    old, new = make_generator(), make_generator()
    assert take_over(new, old) == (len(old.state_dict()),) * 2
    assert torch.equal(new(z), old(z))


@pytest.mark.parametrize("patch", [2, 4])
def test_a_patch_draws_and_judges_what_was_drawn_and_judged(z, patch):
    old_G, old_D = make_generator(), Discriminator(16, WIDTHS)
    G = make_generator(16 * patch, patch=patch)
    D = Discriminator(16 * patch, WIDTHS, patch=patch)
    assert take_over(G, old_G) == (len(old_G.state_dict()),) * 2
    assert take_over(D, old_D) == (len(old_D.state_dict()),) * 2
    with torch.no_grad():
        before = draw_without_last(old_G, z)
        last = enlarge(old_G(z) - upsample(before), patch)
        torch.testing.assert_close(
            G(z), upsample(before, 2 * patch) + smooth_patches(last, patch), rtol=0, atol=1e-4
        )
        images = old_G(z)
        torch.testing.assert_close(D(enlarge(images, patch)), old_D(images))


def test_a_patch_is_given_up_again(z):
    old, new = make_generator(), make_generator()
    with_patch = make_generator(32, patch=2)
    take_over(with_patch, old)
    assert take_over(new, with_patch) == (len(new.state_dict()),) * 2
    torch.testing.assert_close(new(z), old(z))


def test_a_larger_generator_starts_with_the_enlarged_picture(z):
    old, new = make_generator(), make_generator(32, (*WIDTHS, 16))
    taken, of = take_over(new, old)
    assert taken == len(old.state_dict()) < of
    larger = F.interpolate(old(z), scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(new(z) - new.blocks["32"].to_rgb.bias.view(1, -1, 1, 1), larger)


def test_wider_levels_begin_by_doing_the_same(z):
    old, new = make_generator(), make_generator(widths=(48, 24, 32))
    old_D, new_D = Discriminator(16, (32, 16, 16)), Discriminator(16, (32, 24, 40))
    for network in (old, new, old_D, new_D):  # biases are zero at first, and would hide
        for name, tensor in network.state_dict().items():
            if name.endswith("bias"):
                torch.nn.init.normal_(tensor)
    assert take_over(new, old) == (len(new.state_dict()),) * 2
    assert take_over(new_D, old_D) == (len(new_D.state_dict()),) * 2
    with torch.no_grad():
        torch.testing.assert_close(new(z), old(z), rtol=0, atol=1e-3)
        torch.testing.assert_close(new_D(new(z)), old_D(old(z)), rtol=1e-3, atol=1e-3)
    new.requires_grad_(True)(z).square().mean().backward()
    gradient = new.blocks["16"].to_rgb.weight.grad
    assert (gradient[:, 16:] != 0).all()  # what is new can learn


def test_a_narrower_level_takes_nothing():
    old, new = make_generator(widths=(32, 24, 16)), make_generator()
    taken, of = take_over(new, old)
    assert 0 < taken < of
    assert new.blocks["8"].conv1.weight.shape[0] == 16


def test_kinds_and_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="cannot start a Generator"):
        take_over(make_generator(), ArticleGenerator())
    other = Generator(12, (24, 8), z_dim=7, w_dim=9)
    with pytest.raises(ModelError, match="no tensor"):
        take_over(make_generator(), other)


def test_a_run_and_a_generator_alone_are_found(tmp_path):
    G, D = make_generator(), Discriminator(16, WIDTHS)
    G.save_pretrained(tmp_path / "run" / "generator")
    assert open_pair(str(tmp_path / "run"))[1] is None
    assert open_pair(str(tmp_path / "run" / "generator"))[1] is None
    D.save_pretrained(tmp_path / "run" / "discriminator")
    assert isinstance(open_pair(str(tmp_path / "run"))[1], Discriminator)
    with pytest.raises(ModelError, match="draws no faces"):
        open_pair(str(tmp_path / "run" / "discriminator"))
    (tmp_path / "run" / "discriminator" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match="safetensors"):
        open_pair(str(tmp_path / "run"))


def test_init_from_says_what_it_took(tmp_path):
    config = make_config(
        {"resolution": 32, "patch": 2, "channel_base": 256, "channel_max": 32, "z_dim": 12,
         "w_dim": 20}
    )  # fmt: skip
    G, D = kaogan_networks(config)
    small = make_config({**config.public(), "resolution": 16, "patch": 1})
    old_G, old_D = kaogan_networks(small)
    said = []
    old_G.save_pretrained(tmp_path / "generator")
    init_from(str(tmp_path), G, D, said.append)
    assert said.pop().endswith("D none.")
    old_D.save_pretrained(tmp_path / "discriminator")
    init_from(str(tmp_path), G, D, said.append)
    (line,) = said
    assert f"G {len(G.state_dict())} of {len(G.state_dict())}" in line
    assert f"D {len(D.state_dict())} of {len(D.state_dict())}" in line
    assert torch.equal(G.const, old_G.const)
    _, other = kaogan_networks(make_config({**config.public(), "critic": "projected"}))
    init_from(str(tmp_path), G, other, said.append)
    assert said[-1].endswith("D none.")


@pytest.mark.parametrize("name", ["projected", "aid"])
def test_heads_are_taken_where_a_folder_holds_them(tmp_path, name):
    said, P, old = [], *(ProjectedDiscriminator(64, width=8) for _ in range(2))
    init_heads(str(tmp_path), P, said.append)
    assert said.pop().endswith("holds none, so its heads learn afresh.")
    old.save_pretrained(tmp_path / name)
    init_heads(str(tmp_path), P, said.append)
    assert said.pop() == "Projected discriminator: tensors taken: {0} of {0}.".format(
        len(P.state_dict())
    )
    assert all(map(torch.equal, P.state_dict().values(), old.state_dict().values()))
    init_heads(str(tmp_path), ProjectedDiscriminator(128, width=8), said.append)
    assert "judges at 64 px, this run at 128 px" in said.pop()
    (tmp_path / name / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match="safetensors"):
        init_heads(str(tmp_path), P, said.append)


def test_levels_learn_to_do_what_a_patch_did(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "IMITATION_STEPS", 80)
    torch.manual_seed(0)  # over twelve seeds G is 0.34 to 0.46 off, so beyond 0.5 by chance
    old_G, old_D = make_generator(32, patch=2), Discriminator(32, WIDTHS, patch=2)
    old_G.blocks["16"].to_rgb.weight.normal_()  # so that the patch paints most of the picture
    old_G.save_pretrained(tmp_path / "generator")
    old_D.save_pretrained(tmp_path / "discriminator")
    G, D = Generator(32, (*WIDTHS, 16), z_dim=12, w_dim=20), Discriminator(32, (*WIDTHS, 16))
    said = []
    init_from(str(tmp_path), G, D, said.append)
    assert said[-1].startswith("The new levels imitate the patch; relative error left: G 0.")
    assert all(p.requires_grad and p.grad is None for n in (G, D) for p in n.parameters())
    for new, old in ((G, old_G), (D, old_D)):
        taken = {n for n, t in old.state_dict().items() if "_rgb." not in n or "4.to_rgb" in n}
        assert all(torch.equal(new.state_dict()[n], old.state_dict()[n]) for n in taken)
    with torch.no_grad():
        z = latents_from_seeds(range(10**6, 10**6 + 64), 12)  # faces it has not learned from
        faces = old_G(z)
        assert (G(z) - faces).std() < 0.5 * faces.std()
        seen, wanted = D.features(faces)[1], old_D.features(faces)[0]
        assert (seen - wanted).std() < 0.5 * wanted.std()


def test_networks_that_differ_otherwise_imitate_nothing(z):
    old = make_generator(32, patch=2)
    larger = Generator(64, (*WIDTHS, 16, 16), z_dim=12, w_dim=20)
    for other in (larger, make_generator(32, patch=2)):
        before = [p.clone() for p in other.parameters()]
        assert imitate(other, Discriminator(16, WIDTHS), old, None) == []
        assert all(map(torch.equal, before, other.parameters()))
