"""The directions file: read strictly, each fault one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from edits import (
    FIRST_FORMAT,
    SLIDERS,
    digest_of,
    list_entries,
    list_tensors,
    save_directions,
    save_generator,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.directions import (
    FARTHEST,
    FARTHEST_AIM,
    LEAST_WAY,
    DirectionsError,
    hex_to_lab,
    largest_file,
    read_directions,
)
from studio.faces import Studio
from studio.recipe import Edit, Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    save_directions(folder, save_generator(folder))
    return folder


@pytest.fixture(scope="module")
def G(folder: Path):
    return Studio.open(folder).G


def test_a_directions_file_is_read(folder: Path):
    studio = Studio.open(folder)
    assert studio.directions_notice == ""
    assert tuple(studio.directions.sliders) == SLIDERS
    assert tuple(studio.directions.colours) == ("hair", "eyes")
    smile = studio.directions.sliders["smile"]
    assert (smile.kind, smile.low, smile.high, smile.step) == ("attribute", -2, 2.5, 0.1)
    assert smile.groups == ("middle", "fine")


def test_the_page_is_told_why_there_are_none(tmp_path: Path):
    G = save_generator(tmp_path)
    studio = Studio.open(tmp_path)
    assert studio.directions is None
    assert studio.directions_notice.startswith("These weights have no directions file")
    path = save_directions(tmp_path, G, generator="0" * 64)
    assert Studio.open(tmp_path).directions_notice == (
        "There are no sliders by name: the directions file belongs to another generator; make a "
        "new one with python -m fitting.directions."
    )
    path.write_bytes(b"\x80\x04pickle")
    studio = Studio.open(tmp_path)
    assert studio.directions is None
    assert "not readable as safetensors" in studio.directions_notice
    assert studio.draw([1]).shape == (1, 64, 64, 3)


def entries(**changes) -> str:
    return json.dumps([list_entries()[0] | changes, *list_entries()[1:]])


NAN = torch.full((3,), float("nan"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "kaogan-directions-9"}, "is not of the format kaogan-directions-3"),
        ({"generator": "f" * 64}, "belongs to another generator"),
        ({"entries": "{"}, "are no JSON"),
        ({"entries": "[" * 3000}, "are no JSON"),
        ({"entries": "{}"}, "must list at most 64 entries"),
        ({"entries": json.dumps(list_entries() * 30)}, "must list at most 64 entries"),
        ({"entries": json.dumps(list_entries()[:1] * 3)}, "names two entries alike"),
        ({"entries": "[1, 2, 3]"}, "entry 0 of the directions file must have"),
        ({"entries": entries(name="<b>")}, "entry 0 of the directions file has no usable name"),
        ({"entries": entries(name="hair")}, "hair is both a slider and a colour"),
        ({"entries": entries(kind="magic")}, "principal-1 in the .* is of an unknown kind"),
        ({"entries": entries(kind=["x"])}, "principal-1 in the .* is of an unknown kind"),
        ({"entries": entries(groups=["top"])}, "unknown layer groups"),
        ({"entries": entries(groups=[[]])}, "unknown layer groups"),
        ({"entries": entries(low=float("nan"))}, "a range that is no numbers"),
        ({"entries": entries(low="x")}, "a range that is no numbers"),
        ({"entries": entries(high=11)}, "an impossible range"),
        ({"entries": entries(low=1)}, "an impossible range"),
        ({"entries": entries(step=0)}, "an impossible range"),
        ({"entries": json.dumps(list_entries()[:2])}, "lacks a family, or has an unknown one"),
        ({"entries": json.dumps(list_entries()[::-1])}, "without a family must come first"),
        ({"entries": entries(family="<b>")}, "has no usable family"),
        ({"entries": entries(family=1)}, "has no usable family"),
        ({"entries": entries(family="nose")}, "lacks a family, or has an unknown one"),
        ({"entries": json.dumps(list_entries(first=True))}, "entry 0 .* must have family, groups"),
        ({"tensors": {"directions": torch.zeros(2, 9, 12)}}, r"directions .* is not \[1, 9, 12\]"),
        ({"tensors": {"target.smile": None}}, "lacks a tensor, or has an unknown one"),
        ({"tensors": {"target.smile": torch.zeros(2, 2)}}, r"target.smile .* is not \[2, 1\]"),
        ({"tensors": {"family_bias.smile": torch.zeros(0)}}, "a family in .* has 1 to 32 tags"),
        ({"tensors": {"family_bias.smile": torch.zeros(33)}}, "a family in .* has 1 to 32 tags"),
        ({"tensors": {"family_bias.smile": torch.zeros(1, 1)}}, "a family in .* has 1 to 32 tags"),
        ({"tensors": {"colour_bias.hair": None}}, "lacks a tensor, or has an unknown one"),
        ({"tensors": {"extra": torch.zeros(1)}}, "lacks a tensor, or has an unknown one"),
        ({"tensors": {"colour_map.<b>": torch.zeros(1)}}, "colours parts that cannot be"),
        ({"tensors": {"colour_bias.hair": torch.zeros(4)}}, r"colour_bias.hair .* is not \[3\]"),
        ({"tensors": {"colour_bias.hair": torch.zeros(3).half()}}, r"is not \[3\] float32"),
        ({"tensors": {"colour_bias.hair": NAN}}, "colour_bias.hair .* holds no finite numbers"),
        ({"tensors": {"extra": torch.zeros(100_000)}}, "larger than it can rightly be"),
    ],
)
def test_faulty_directions_files(folder: Path, G, tmp_path: Path, changes: dict, says: str):
    save_generator(tmp_path)
    assert digest_of(tmp_path) == digest_of(folder)
    path = save_directions(tmp_path, G, **changes)
    with pytest.raises(DirectionsError, match=says) as refused:
        read_directions(path, G, digest_of(folder))
    assert "<" not in str(refused.value)
    assert len(str(refused.value)) < 200


@given(st.integers(0, 3000), st.binary(min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_damaged_directions_file_is_refused_or_draws(
    folder: Path, G, tmp_path_factory, at, noise
):
    data = bytearray((folder / "directions.safetensors").read_bytes())
    data[at : at + len(noise)] = noise
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(data)
    try:
        directions = read_directions(path, G, digest_of(folder))
    except DirectionsError as error:
        assert "\n" not in str(error)
        return
    ws = directions.apply(torch.zeros(G.num_ws, G.w_dim), (Edit("hair", "#ffffff"),))
    assert ws.shape == (G.num_ws, G.w_dim)


def test_the_size_is_asked_before_anything_is_read(folder: Path, G, tmp_path: Path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(largest_file(G) + 1)
    with pytest.raises(DirectionsError, match="larger than it can rightly be"):
        read_directions(path, G, digest_of(folder))


def test_colours_are_cie_lab():
    for colour, lab in (
        ("#ffffff", (100, 0, 0)),
        ("#000000", (0, 0, 0)),
        ("#ff0000", (53.24, 80.09, 67.20)),
        ("#0000ff", (32.30, 79.19, -107.86)),
    ):
        assert torch.allclose(hex_to_lab(colour) * 100, torch.tensor(lab).float(), atol=0.02)


def test_a_colour_that_no_face_has_is_drawn_at_the_bounds(folder: Path):
    studio = Studio.open(folder)
    hair = studio.directions.colours["hair"]
    (blue,) = studio.ws([Recipe(1, edits=(Edit("hair", "#0000ff"),))])
    offset = hair.predict(blue) - hair.mean
    assert (hair.bounds @ offset).norm() == pytest.approx(FARTHEST, abs=1e-3)
    wanted = hex_to_lab("#0000ff") - hair.mean
    assert torch.cosine_similarity(offset, wanted, dim=0) > 0.999


def test_a_slider_leads_its_family_to_a_target_from_wherever_a_face_stands(folder: Path, G):
    directions = read_directions(folder / "directions.safetensors", G, digest_of(folder))
    hair = directions.moves["long-hair"]
    for seed in range(3):
        ws = torch.randn(G.num_ws, G.w_dim, generator=torch.Generator().manual_seed(seed))
        start = hair.weight @ ws.flatten()
        for value, end in ((2.5, 0.4), (-2.0, -0.4), (1.25, (start + 0.4) / 2)):
            moved = directions.apply(ws, (Edit("long-hair", value),))
            found = hair.weight @ moved.flatten()
            assert torch.allclose(found, torch.as_tensor(end).expand(2), atol=1e-4), value


def test_a_slider_of_format_2_leads_to_its_end(folder: Path, G, tmp_path: Path):
    save_generator(tmp_path)
    step = torch.randn(G.num_ws * G.w_dim, generator=torch.Generator().manual_seed(2))
    tensors = {
        "directions": (step / 2).view(1, G.num_ws, G.w_dim).repeat(3, 1, 1),
        "place_map": (step / step.square().sum()).repeat(3, 1),  # the step leads from 0 to 1
    }
    save_directions(tmp_path, G, tensors=tensors, format=FIRST_FORMAT)
    directions = read_directions(tmp_path / "directions.safetensors", G, digest_of(tmp_path))
    for place in (-1.0, 0.0, 0.4):
        ws = place * step.view(G.num_ws, G.w_dim)
        for value, end in ((2.0, 1.0), (-2.0, -1.0), (1.0, (1 + place) / 2)):
            moved = directions.apply(ws, (Edit("smile", value),))
            there = directions.moves["smile"].place_map @ moved.flatten()
            if abs(end - place) > LEAST_WAY:
                assert there == pytest.approx(end, abs=1e-4), (place, value)
    beyond = 1.5 * step.view(G.num_ws, G.w_dim)
    moved = directions.apply(beyond, (Edit("smile", 2.0),)) - beyond
    assert torch.allclose(moved.flatten(), LEAST_WAY * step, atol=1e-4)


def test_an_aim_leads_beyond_the_picked_colour_within_bounds(G, tmp_path: Path):
    save_generator(tmp_path)
    aim = torch.zeros(3, 10)
    aim[:, 0] = torch.tensor([0.02, 0.0, 0.0])
    aim[:, 1:4] = 2.0 * torch.eye(3)
    aim[1, 8] = 2.0  # a times b
    save_directions(tmp_path, G, tensors={"colour_aim.hair": aim})
    hair = Studio.open(tmp_path).directions.colours["hair"]
    ws, way = torch.zeros(G.num_ws, G.w_dim), torch.tensor([0.1, 0.2, -0.3])
    there = hair.predict(hair.move(ws, hair.mean + way)) - hair.mean
    assert torch.allclose(there, 2 * way + torch.tensor([0.02, -0.12, 0.0]), atol=1e-3)
    far = hair.predict(hair.move(ws, hair.mean + 100 * way)) - hair.mean
    assert (hair.bounds @ far).norm() == pytest.approx(FARTHEST_AIM, abs=1e-3)


def test_sliders_come_before_colours(folder: Path, G):
    directions = Studio.open(folder).directions
    ws = torch.zeros(G.num_ws, G.w_dim)
    edits = (Edit("hair", "#909090"), Edit("smile", 2))
    moved = directions.apply(ws, edits)
    assert torch.allclose(
        directions.colours["hair"].predict(moved), hex_to_lab("#909090"), atol=1e-3
    )
    assert torch.equal(directions.apply(ws, edits[::-1]), moved)
    assert torch.equal(ws, torch.zeros(G.num_ws, G.w_dim))
    assert torch.equal(list_tensors(G)["directions"][0], directions.moves["principal-1"].unit)
