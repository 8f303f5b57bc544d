"""Fitting directions: coordinates, steps, colours; and a whole fit that is read by the studio."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from model import FAINT, NETWORKS, Generator, latents_from_seeds
from studio import directions as reading
from studio.faces import Studio
from studio.recipe import Edit, Recipe
from training.attributes import TagReader, resize
from training.colours import find_regions, to_lab
from training.directions import (
    FARTHEST,
    FILE_NAME,
    FORMAT,
    FULL,
    LEAST_WAY,
    LONGEST,
    MOST_WAY,
    ROOM,
    Coordinates,
    Direction,
    Fitted,
    Probe,
    change,
    draw,
    drop_unseen,
    explore,
    families,
    family,
    find_fault,
    fit_aim,
    fit_linear,
    lengthen,
    main,
    quadratic_terms,
    sample_ws,
    slider_name,
    solve_steps,
)


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
    sizes = ["--samples", "768", "--quick", "24", "--careful", "48"]
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
    assert torch.allclose(wanted @ steps.T, torch.eye(2), atol=1e-3)
    assert (others @ steps.T).abs().max() < 0.02
    assert not steps[:, 40:].any()
    free = solve_steps(wanted, others[:0], torch.ones(60, dtype=torch.bool))
    assert torch.allclose(free.T, torch.linalg.pinv(wanted), atol=1e-3)


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
    assert tensors["directions"].shape == (len(entries), G.num_ws, G.w_dim)
    kinds = [entry["kind"] for entry in entries]
    assert kinds.count("principal") == kinds.count("closed-form") == 6
    for part in ("hair", "eyes"):
        assert tensors[f"colour_map.{part}"].shape == (3, G.num_ws * G.w_dim)
        assert tensors[f"colour_step.{part}"].shape == (3, G.num_ws, G.w_dim)
        assert tensors[f"colour_aim.{part}"].shape == (3, 10)
    for entry, step in zip(entries, tensors["directions"], strict=True):
        moved = {name for name, part in G.layer_groups.items() if step[part].any()}
        assert moved == set(entry["groups"]), entry


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


def test_what_is_hardly_seen_has_no_slider(G, monkeypatch):
    monkeypatch.setattr("training.directions.MOST_CHANGED", 1e3)  # the next test's
    judge = SumReader()
    index = SumReader.TAGS.index("bright")
    judge.threshold[:index], judge.threshold[index + 1 :] = 1e3, 1e3  # it sees no other tag
    probe = Probe(G, judge, 48)
    ws = G.mapping(latents_from_seeds(range(400), G.z_dim))
    brightest = ws[judge(draw(G, ws, 64))[:, index].argmax()] - G.w_avg
    nowhere = torch.zeros(G.num_ws * G.w_dim), torch.zeros(())
    step = 2 * brightest / FULL
    share = (probe.move(FULL * step)[1][:, index] > 0).float().mean()
    assert share > 0.6  # or this test shows nothing

    def kept(judge: SumReader, step: Tensor) -> list[str]:
        slider = Direction("bright", "attribute", ("middle",), step, *nowhere)
        fitted = Fitted([slider], [], {}, None)
        drop_unseen(fitted, G, judge, 48)
        assert len(fitted.directions) + len(fitted.weak) == 1
        assert all(d.fault for d in fitted.weak) and not any(d.fault for d in fitted.directions)
        return [d.name for d in fitted.directions]

    judge.typical[1, index] = 1e-3
    assert kept(judge, step) == ["bright"]
    assert kept(judge, -step) == []  # the judge does not see it
    judge.typical[1, index] = 1e3
    assert kept(judge, step) == []  # it does, but in no face as in those that have the tag


def test_a_slider_that_draws_another_face_is_left_out(G):
    judge = SumReader()
    judge.threshold[:] = -1e3  # it sees every tag everywhere, and none flip
    probe = Probe(G, judge, 48)
    far = probe.ws.mean(0) + 3 * (probe.ws[0] - probe.ws[1])
    nowhere = torch.zeros(G.num_ws * G.w_dim), torch.zeros(())
    near, away = (
        Direction("bright", "attribute", ("middle",), step, *nowhere)
        for step in (torch.zeros_like(far), far)
    )
    assert find_fault(near, probe, 0) == ""
    assert "of another" in find_fault(away, probe, 0)


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
    assert (LEAST_WAY, MOST_WAY) == (reading.LEAST_WAY, reading.MOST_WAY)


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
    assert (after - target).norm(dim=1).mean() < 0.75 * (before - target).norm(dim=1).mean()


def small(faces) -> Tensor:
    """Turn what a studio draws into floats [N, 3, 64, 64]."""
    return resize(torch.from_numpy(faces).permute(0, 3, 1, 2) / 127.5 - 1, 64)


def test_no_reader_is_one_sentence(fitted, tmp_path, capsys):
    assert main(["--model", str(fitted), "--reader", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_slider_that_leaves_room_goes_farther(G):
    probe = Probe(G, SumReader(), 48)
    nowhere = torch.zeros(G.num_ws * G.w_dim), torch.zeros(())
    way = 0.1 * (probe.ws[0] - probe.ws[1])

    def lengthened(step: Tensor) -> float:
        slider = Direction("bright", "attribute", ("middle",), step.clone(), *nowhere)
        lengthen(slider, probe)
        return (slider.step.norm() / step.norm()).item()

    far = 100 * way
    assert lengthened(1e-3 * way) == pytest.approx(LONGEST, rel=0.03)  # nowhere near the room's end
    assert change(probe, probe.move(FULL * far)[0]) > ROOM
    assert lengthened(far) == pytest.approx(1)


def test_an_unnamed_slider_goes_no_farther_than_seeds_do(G, monkeypatch):
    at, probe = Coordinates.of(G), Probe(G, SumReader(), 16)
    step = torch.zeros(1, len(at.groups), G.w_dim)
    step[0, 0, -1] = 1  # along which w varies least, and pictures with it

    def length() -> float:
        (found,) = explore(probe, at, "closed-form", [(("coarse",), step.flatten(1))], 16)
        return at.whiten(FULL * found.step).norm(dim=1).max().item()

    assert length() == pytest.approx(FARTHEST, rel=1e-3)
    monkeypatch.setattr("training.directions.FARTHEST", 1e3)
    assert length() > 1.2 * FARTHEST  # or the first says nothing
