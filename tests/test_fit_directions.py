"""Fitting directions: coordinates, steps, colours; and a whole fit that is read by the studio."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fitting import unnamed
from fitting.colours import find_regions, to_lab
from fitting.directions import (
    FILE_NAME,
    FORMAT,
    FULL,
    LEAST_SEEN,
    FamilyFit,
    Fitter,
    SliderFit,
    families,
    family,
    find_fault,
    main,
    slider_name,
)
from fitting.latent import ALIKE, Coordinates, Probe, draw, fit_linear, sample_ws, solve_steps
from fitting.readers import TagReader, resize
from fitting.recolour import fit_aim, quadratic_terms
from model import FAINT, NETWORKS, Generator, latents_from_seeds
from studio import directions as reading
from studio.faces import Studio
from studio.recipe import Edit, Recipe


class SumReader(TagReader):
    """Sees tags that are sums of a picture's own values, so that the truth is known."""

    TAGS = ("red_hair", "blue_hair", "green_eyes", "blue_eyes", "bright", "tall")

    def __init__(self, tags=TAGS) -> None:
        super().__init__(tags)
        self.typical.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, len(tags)))

    def prepare(self, images: Tensor) -> Tensor:
        return images

    def score(self, inputs: Tensor) -> Tensor:
        top, eyes = inputs[:, :, :16].mean((2, 3)), inputs[:, :, 30:40, 14:50].mean((2, 3))
        return 8 * torch.stack(
            [
                top[:, 0] - top[:, 1],
                top[:, 2] - top[:, 1],
                eyes[:, 1] - eyes[:, 0],
                eyes[:, 2] - eyes[:, 0],
                inputs[:, :, 48:].mean((1, 2, 3)),
                inputs[:, :, :, :12].mean((1, 2, 3)) - inputs[:, :, :, 52:].mean((1, 2, 3)),
            ],
            1,
        )


@pytest.fixture(scope="module")
def G() -> Generator:
    torch.manual_seed(3)
    G = Generator(32, (32, 32, 24, 16), z_dim=24, w_dim=24).eval().requires_grad_(False)
    for block in G.blocks.values():
        block.to_rgb.weight.mul_(FAINT)  # as much contrast as a trained one has
    G.update_w_avg()
    return G


@pytest.fixture(scope="module")
def fitted(G, tmp_path_factory) -> Path:
    """Return a generator's folder with its directions, made by the command."""
    NETWORKS["SumReader"] = SumReader
    folder = tmp_path_factory.mktemp("fitted")
    G.save_pretrained(folder / "generator")
    SumReader().save_pretrained(folder / "reader")
    options = ["--model", folder / "generator", "--reader", folder / "reader"]
    options += ["--judge", folder / "reader"]
    sizes = ["--samples", "768", "--probe", "48"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of several threads are rounded otherwise: another fit
    try:
        assert main([*map(str, options), *sizes]) == 0
    finally:
        torch.set_num_threads(threads)
        del NETWORKS["SumReader"]
    return folder / "generator"


def test_lab_of_known_colours():
    srgb = torch.tensor([[255, 255, 255], [255, 0, 0], [0, 0, 255], [119, 119, 119]])
    lab = to_lab((srgb.float() / 127.5 - 1).view(4, 3, 1, 1)).view(4, 3) * 100
    expected = [[100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [50.03, 0, 0]]
    assert torch.allclose(lab, torch.tensor(expected), atol=0.05)


def test_whitened_coordinates_are_standard_normal_and_invertible(G):
    at = Coordinates.of(G)
    ws = G.mapping(latents_from_seeds(range(4000), G.z_dim))
    u = at.encode(ws)
    assert u.shape == (4000, 3 * G.w_dim)
    assert u.mean(0).abs().max() < 0.1 and (u.std(0) - 1).abs().max() < 0.1
    steps = torch.randn(5, u.shape[1])
    moved = at.encode(ws[:5] + at.decode(steps)) - u[:5]
    assert torch.allclose(moved, steps, atol=1e-3)
    weight = torch.randn(2, u.shape[1])
    flat = at.encode_map(weight)
    there = (ws[:5] - at.mean).flatten(1) @ flat.T
    assert torch.allclose(there, u[:5] @ weight.T, atol=1e-2)


def test_steps_stay_in_their_layers(G):
    at = Coordinates.of(G)
    steps = torch.randn(2, 3 * G.w_dim) * at.mask(("middle",))
    ws = at.decode(steps)
    layers = G.layer_groups["middle"]
    assert ws[:, layers].abs().min(2).values.max() > 0
    ws[:, layers] = 0
    assert not ws.any()


def test_a_step_raises_its_own_value_alone():
    rng = torch.Generator().manual_seed(0)
    wanted, others = torch.randn(2, 60, generator=rng), torch.randn(8, 60, generator=rng)
    allowed = torch.arange(60) < 40
    steps = solve_steps(wanted, others, allowed)
    assert torch.allclose(wanted @ steps.T, torch.eye(2), atol=2 * ALIKE)
    assert (others @ steps.T).abs().max() < 0.02
    assert not steps[:, 40:].any()
    free = solve_steps(wanted, others[:0], torch.ones(60, dtype=torch.bool))
    assert torch.allclose(free.T, torch.linalg.pinv(wanted), atol=ALIKE)


def test_the_linear_fit_finds_a_linear_truth():
    rng = torch.Generator().manual_seed(0)
    u, truth = torch.randn(4000, 30, generator=rng), torch.randn(3, 30, generator=rng)
    weight, bias = fit_linear(u, u @ truth.T + 2)
    assert torch.allclose(weight, truth, atol=0.1) and torch.allclose(
        bias, torch.full((3,), 2.0), atol=0.02
    )


def test_half_of_the_samples_mix_layers(G):
    plain = [
        bool((ws := sample_ws(G, start, 32))[:, :1].eq(ws).all()) for start in range(0, 128, 32)
    ]
    assert plain == [True, True, False, False]


def test_names_of_sliders_and_families():
    tags = ("blonde_hair", "long_hair", "short_hair", "pink_eyes", "open_mouth", "smile")
    names = ["hair-blonde", "long-hair", "short-hair", "eyes-pink", "open-mouth", "smile"]
    assert [slider_name(tag) for tag in tags] == names
    assert families(tags)["length"] == [1, 2] and families(tags)["hair"] == [0]


def test_regions_are_found_where_the_colour_is():
    rng = torch.Generator().manual_seed(0)
    images = torch.full((400, 3, 64, 64), 0.9)
    hair, eyes = (torch.rand(400, 3, 1, 1, generator=rng) * 1.6 - 1 for _ in range(2))
    images[:, :, 4:16, 10:54] = hair
    images[:, :, 28:34, 18:46] = eyes
    images += 0.02 * torch.randn(images.shape, generator=rng)
    logits = torch.cat([(hair[:, :2] - hair[:, 2:]).flatten(1), eyes[:, :2].flatten(1)], 1)
    palette = find_regions(images, logits, {"hair": [0, 1], "eyes": [2, 3]})
    for part, rows, columns in (
        ("hair", slice(4, 16), slice(10, 54)),
        ("eyes", slice(28, 34), slice(18, 46)),
    ):
        inside = palette.masks[part][rows, columns]
        assert inside.sum() > 0.85 * palette.masks[part].sum() and inside.mean() > 0.6
    clear = (to_lab(hair)[:, 0].flatten() > 0.35) & (to_lab(hair)[:, 0].flatten() < 0.8)
    found = palette.measure(images)["hair"] - to_lab(hair).flatten(1)
    assert found[clear].norm(dim=1).median() < 0.03


def test_the_file_is_as_agreed(fitted, G):
    path = fitted / FILE_NAME
    assert path.stat().st_size < 1e6
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    entries = json.loads(metadata["entries"])
    assert metadata["format"] == FORMAT
    plain = [entry for entry in entries if not entry["family"]]
    assert entries[: len(plain)] == plain
    assert [entry["kind"] for entry in plain] == ["principal"] * 6 + ["closed-form"] * 6
    steps = {e["name"]: step for e, step in zip(plain, tensors["directions"], strict=True)}
    for entry in entries:
        if name := entry["family"]:
            assert tensors[f"target.{entry['name']}"].shape == (
                2,
                len(tensors[f"family_bias.{name}"]),
            )
            steps[entry["name"]] = tensors[f"family_step.{name}"].abs().sum(0)
    for part in ("hair", "eyes"):
        assert tensors[f"colour_map.{part}"].shape == (3, G.num_ws * G.w_dim)
        assert tensors[f"colour_step.{part}"].shape == (3, G.num_ws, G.w_dim)
        assert tensors[f"colour_aim.{part}"].shape == (3, 10)
    for entry in entries:
        step = steps[entry["name"]]
        moved = {name for name, part in G.layer_groups.items() if step[part].any()}
        assert moved == set(entry["groups"]), entry


def test_the_left_end_leads_to_what_excludes_the_right_one(G):
    reader = SumReader()
    at, probe = Coordinates.of(G), Probe(G, reader, 16)
    rng = torch.Generator().manual_seed(0)
    places, weight = torch.randn(200, 6, generator=rng), torch.randn(6, 3 * G.w_dim, generator=rng)
    fitter = Fitter(at, places, weight, torch.zeros(6), probe)
    (alone,) = fitter.fit("bright", [4])
    assert alone.left < alone.right  # without the tag, and with it
    red, blue = fitter.fit("hair", [0, 1])
    assert (red.right - blue.right)[0] > 0 > (red.right - blue.right)[1]
    assert (red.left - red.right)[1] > 0  # less red is more blue
    three = fitter.fit("hair", [0, 1, 2])
    assert all(slider.left is None and slider.entry()["low"] == 0 for slider in three)


def test_the_studio_reads_the_file_and_sliders_do_what_they_say(fitted):
    studio = Studio.open(fitted)
    assert studio.directions is not None, studio.directions_notice
    reader = SumReader()
    plain = [Recipe(seed) for seed in range(40)]
    before = reader(small(studio.draw_recipes(plain)))
    tags = [tag for tag in SumReader.TAGS if slider_name(tag) in studio.directions.sliders]
    assert len(tags) >= 4
    leaks = []
    for tag in tags:
        edit = (Edit(slider_name(tag), 2.0),)
        after = reader(small(studio.draw_recipes([replace(r, edits=edit) for r in plain])))
        moved = (after - before).mean(0)
        own = moved[SumReader.TAGS.index(tag)]
        held = [k for k, other in enumerate(SumReader.TAGS) if family(other) != family(tag)]
        before_own, after_own = (x[:, SumReader.TAGS.index(tag)] for x in (before, after))
        assert (after_own > 0).float().mean() > 0.4, tag
        lacking = before_own < 0  # the others are at the end of the slider, or near it
        if lacking.any():
            assert (after_own - before_own)[lacking].mean() > 0.5, tag
        leaks.append((moved[held].abs().mean() / own).item())
    # An untrained generator is not linear enough for every single one of them.
    assert sorted(leaks)[len(leaks) // 2] < 0.35, leaks


def test_what_the_judge_does_not_see_has_no_slider(G):
    judge = SumReader()
    index = SumReader.TAGS.index("bright")
    at, probe = Coordinates.of(G), Probe(G, judge, 48)
    ws = G.mapping(latents_from_seeds(range(400), G.z_dim))
    brightest = ws[judge(draw(G, ws, 64))[:, index].argmax()] - G.w_avg
    step = 2 * at.encode((brightest + at.mean)[None])
    seen = (probe.move(at.decode(step))[1][:, index] > 0).float().mean()
    assert seen > LEAST_SEEN  # or this test shows nothing

    def fault(step: Tensor, judged: Probe) -> str:
        nowhere = torch.zeros(1, step.shape[1])
        fit = FamilyFit("bright", [index], tuple(at.groups), nowhere, torch.zeros(1), step)
        slider = SliderFit(index, "bright", fit, torch.ones(1), None)
        found = find_fault(slider, at, judged)
        assert 0 <= slider.seen <= 1
        return found

    calm = SumReader()
    calm.threshold[:index], calm.threshold[index + 1 :] = 1e3, 1e3  # it sees no other tag
    assert fault(step, Probe(G, calm, 48)) == ""
    assert "the judge sees it in" in fault(-step, Probe(G, calm, 48))
    nervous = SumReader()
    shift = (probe.move(at.decode(step))[1] - probe.logits).mean(0)
    other = SumReader.TAGS.index("tall")
    nervous.threshold[other] = probe.logits[:, other].mean() + shift[other] / 2
    flips = fault(10 * step, Probe(G, nervous, 48))
    assert flips == "" or "flips in" in flips


def test_strong_colours_are_asked_for_beyond_themselves():
    rng = torch.Generator().manual_seed(0)
    asked = torch.rand(400, 3, generator=rng) * 0.8 - 0.4
    got = asked - 0.8 * asked.square() * asked.sign()  # what saturates
    got[:, 1] = 0.6 * asked[:, 1] + 0.5 * asked[:, 0] * asked[:, 2] + 0.05
    aim = fit_aim(asked, got)
    assert aim.shape == (3, 10)
    plain, aimed = got - asked, quadratic_terms(got) @ aim.T - asked
    assert aimed[:, 1].norm() < 0.3 * plain[:, 1].norm()
    assert aimed[:, ::2].norm() < 0.6 * plain[:, ::2].norm()


def test_reader_and_writer_agree():
    ways = torch.randn(7, 3)
    assert torch.equal(reading.terms(ways), quadratic_terms(ways))
    assert FORMAT == reading.FORMAT
    assert FULL == unnamed.FULL


def test_a_picked_colour_is_approached(fitted, G):
    studio = Studio.open(fitted)
    recipes = [Recipe(seed) for seed in range(40)]
    faces = small(studio.draw_recipes(recipes))
    named = {"hair": [0, 1], "eyes": [2, 3]}
    palette = find_regions(faces, SumReader()(faces), named)
    before = palette.measure(faces)["hair"]
    target = before.mean(0) + torch.tensor([0.1, 0.08, -0.08])
    ws = studio.ws(recipes)
    colour = studio.directions.colours["hair"]
    moved = torch.stack([colour.move(w, target) for w in ws])
    after = palette.measure(small(studio.draw_ws(moved)))["hair"]
    # Far from all the way: an untrained generator's colours are no linear function of ws.
    assert (after - target).norm(dim=1).mean() < 0.9 * (before - target).norm(dim=1).mean()


def small(faces) -> Tensor:
    """Turn what a studio draws into floats [N, 3, 64, 64]."""
    return resize(torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1, 64)


def test_no_reader_is_one_sentence(fitted, tmp_path, capsys):
    assert main(["--model", str(fitted), "--reader", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unnamed_slider_goes_no_farther_than_seeds_do(G, monkeypatch):
    at, probe = Coordinates.of(G), Probe(G, SumReader(), 16)
    step = torch.zeros(1, len(at.groups), G.w_dim)
    step[0, 0, -1] = 1  # along which w varies least, and pictures with it

    def length() -> float:
        (found,) = unnamed.explore(probe, at, "closed-form", [(("coarse",), step.flatten(1))])
        return at.whiten(FULL * found.step).norm(dim=1).max().item()

    assert length() == pytest.approx(unnamed.FARTHEST, rel=1e-3)
    monkeypatch.setattr(unnamed, "FARTHEST", 1e3)
    assert length() > 1.2 * 5.0  # or the first says nothing
