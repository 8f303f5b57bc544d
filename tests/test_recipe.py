"""Recipes: addresses, PNGs and JSON give them back; a face follows from its recipe alone."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from edits import SLIDERS, save_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model import SEED_MAX, ArticleGenerator, Discriminator, Generator, latents_from_seeds
from studio.directions import hex_to_lab
from studio.faces import Studio
from studio.latents import decode_ws, encode_ws, slerp
from studio.pictures import save_png, to_image
from studio.recipe import (
    DEFAULT_FINE,
    DEFAULT_PSI,
    GROUPS,
    Between,
    Edit,
    Mix,
    Recipe,
    RecipeError,
    Vary,
    recipe_from_png,
    recipe_from_query,
)
from tests.visitor import apart

RICH = Recipe(
    42,
    0.7,
    mix=(Mix(77, "middle"), Mix(9, "fine")),
    edits=(Edit("smile", 1.5), Edit("hair", "#3fa34d")),
    vary=Vary(5, 0.3),
    between=Between(77, 0.5),
)


def read_query(query: str) -> dict[str, str]:
    return dict(parse_qsl(query.removeprefix("?"), strict_parsing=True))


keys = st.sampled_from(["seed", "psi", "fine", "mix", "edit", "vary", "between", "w"])
seeds = st.integers(0, SEED_MAX)
layers = st.sampled_from(["", *GROUPS, "4", "8", "16", "32", "64"])
edits = st.one_of(
    st.builds(Edit, st.sampled_from(SLIDERS), st.floats(-2, 2.5)),
    st.builds(
        Edit, st.sampled_from(["hair", "eyes"]), st.from_regex("#[0-9a-fA-F]{6}", fullmatch=True)
    ),
)


@st.composite
def recipes(draw: st.DrawFn, studio: Studio | None = None) -> Recipe:
    """Make any recipe that the small generator draws."""
    w = ""
    if studio is not None and draw(st.booleans()):
        w = encode_ws(studio.G, studio.ws([Recipe(draw(seeds), 1.0)])[0])
    return Recipe(
        draw(seeds),
        draw(st.floats(0, 1)),
        mix=tuple(draw(st.lists(st.builds(Mix, seeds, st.sampled_from(GROUPS)), max_size=8))),
        edits=tuple(draw(st.lists(edits, max_size=8))),
        vary=draw(st.none() | st.builds(Vary, seeds, st.floats(0, 2))),
        between=draw(st.none() | st.builds(Between, seeds, st.floats(0, 1))),
        w=w,
        steps=tuple(draw(st.lists(st.builds(Vary, seeds, st.floats(0, 2), layers), max_size=3))),
    )


def many_edits(count: int, name: str = "slider") -> tuple[Edit, ...]:
    return tuple(Edit(f"{name}-{n}", -1.25) for n in range(count))


# Texts


def test_all_sliders_at_once_fit_into_an_address():
    recipe = Recipe(1, edits=(*many_edits(46), Edit("hair", "#3fa34d"), Edit("eyes", "#112233")))
    assert recipe_from_query(read_query(recipe.query()), 0) == (recipe, "")
    assert Recipe.from_json(json.dumps(recipe.to_json())) == recipe
    assert len(recipe.query()) < 1024


@given(st.lists(st.from_regex(r"[a-f]{1,20}:-?\.[0-9]{1,20}", fullmatch=True), max_size=60))
def test_edits_that_were_read_fit_into_an_address_again(entries: list[str]):
    recipe, _ = recipe_from_query({"seed": "1", "edit": ",".join(entries)[:1024]}, 0)
    assert recipe_from_query(read_query(recipe.query()), 0) == (recipe, "")


def test_the_address_of_a_rich_recipe_is_short():
    assert RICH.query("0123456789ab") == (
        "?seed=42&psi=0.7&mix=77@middle,9@fine&edit=hair:3fa34d,smile:1.5&vary=5:0.3"
        "&between=77:0.5&rev=0123456789ab"
    )
    assert Recipe(42).query() == "?seed=42&psi=0.55&fine=0.9"
    assert Recipe(42, 0.7).query() == "?seed=42&psi=0.7"  # as it was before there was a fine


def test_what_changes_nothing_is_left_out_and_order_does_not_matter():
    plain = Recipe(1, edits=(Edit("smile", 0.0),), vary=Vary(3, 0), between=Between(4, 0))
    assert plain == Recipe(1)
    assert hash(plain) == hash(Recipe(1))
    a = Recipe(1, edits=(Edit("b", 1), Edit("a", 2), Edit("b", 3)), mix=[Mix(1, "fine")])
    assert a == Recipe(1, edits=[Edit("a", 2.0), Edit("b", 3)], mix=(Mix(1.0, "fine"),))
    assert Recipe(1, mix=(Mix(1, "fine"), Mix(2, "fine"))).mix == (Mix(2, "fine"),)
    assert Edit("hair", "3FA34D") == Edit("hair", "#3fa34d")


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_recipes_come_back_from_addresses_pngs_and_json_to_the_same_pixels(studio, data):
    recipe = data.draw(recipes(studio))
    by_address, line = recipe_from_query(
        read_query(recipe.query(studio.revision)), 0, studio.revision
    )
    assert line == ""
    file = io.BytesIO()
    face = studio.draw_recipes([recipe])[0]
    info = PngInfo()
    for name, text in recipe.png_text(studio.revision).items():
        info.add_text(name, text)
    to_image(face).save(file, "PNG", pnginfo=info)
    by_png, line = recipe_from_png(file, studio.revision)
    assert line == ""
    by_json = Recipe.from_json(json.dumps(recipe.to_json()))
    assert recipe == by_address == by_png == by_json
    assert hash(recipe) == hash(by_address) == hash(by_png) == hash(by_json)
    for again in (by_address, by_png, by_json):
        assert (studio.draw_recipes([again])[0] == face).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Mix(1, "top"), "groups are coarse, middle, fine"),
        (lambda: Mix(-1, "fine"), "a seed is a whole number"),
        (lambda: Edit("Smile!", 1), "the name of an edit is written in a-z"),
        (lambda: Edit("smile", float("nan")), "smile takes a number from -10 to 10, not nan"),
        (lambda: Edit("smile", 11), "smile takes a number from -10 to 10, not 11"),
        (lambda: Edit("smile", None), "smile takes a number"),
        (lambda: Edit("hair", "green"), "a colour for hair is written like #3fa34d"),
        (lambda: Edit("hair", "#3fa34d00"), "a colour for hair is written like #3fa34d"),
        (lambda: Vary(1, 2.1), "the radius of a variation is a number from 0 to 2"),
        (lambda: Between(1, -0.1), "the share of a way is a number from 0 to 1"),
        (lambda: Recipe(1, mix=(Mix(1, "fine"),) * 9), "at most 8 mixes, not 9"),
        (lambda: Recipe(1, edits=(Edit("smile", 1),) * 49), "at most 48 edits, not 49"),
        (lambda: Recipe(1, edits=many_edits(48, "a-rather-long-name")), "at most 1,024 characters"),
        (lambda: Recipe(1, edits=("smile",)), "edits are a list of Edit"),
        (lambda: Recipe(1, vary=0.3), "vary is a Vary or None"),
        (lambda: Vary(1, 1, "top"), "layers are coarse, middle, fine, or the px of a block"),
        (lambda: Vary(1, 1, "016"), "layers are coarse, middle, fine, or the px of a block"),
        (lambda: Vary.parse("5:1@"), "a variation is SEED:RADIUS"),
        (lambda: Recipe(1, steps=(Vary(1, 1, "4"),) * 17), "at most 16 variations, not 17"),
        (lambda: Recipe(1, w="<script>"), "w is at most 4,096 letters"),
        (lambda: Recipe(1, w="a" * 4097), "w is at most 4,096 letters"),
    ],
)
def test_parts_that_cannot_be(make, says: str):
    with pytest.raises(RecipeError, match=says):
        make()


def test_usable_parts_of_a_broken_address_are_kept():
    query = {
        "seed": "7",
        "mix": "77@middle,<b>@fine,9@fine",
        "edit": "smile:1.5,hair:green,eyes:#112233,blush:nan,x:" + "9" * 400,
        "vary": "5",
        "between": "77:2",
        "w": "<script>alert(1)</script>",
    }
    recipe, line = recipe_from_query(query, 0)
    assert recipe == Recipe(
        7,
        mix=(Mix(77, "middle"), Mix(9, "fine")),
        edits=(Edit("smile", 1.5), Edit("eyes", "#112233")),
    )
    for name in ("mix", "edit", "vary", "between", "w"):
        assert line.count(f"The {name} in this address cannot all be used (") == 1
    for hostile in ("<", "script", "green", "999"):
        assert hostile not in line


def test_lists_and_addresses_are_bounded():
    mixes = ",".join(f"{n}@fine" for n in range(9))
    recipe, line = recipe_from_query({"seed": "1", "mix": mixes}, 0)
    assert recipe.mix == (Mix(7, "fine"),)
    assert "The mix in this address" in line
    start = time.perf_counter()
    for name in ("seed", "psi", "fine", "mix", "edit", "vary", "between", "w", "rev"):
        recipe, line = recipe_from_query({"seed": "1", name: "1@fine," * 1_000_000}, 0)
        assert line.count("address") == 1
        assert len(line) < 200
    assert time.perf_counter() - start < 2


@given(st.dictionaries(keys | st.just("rev"), st.text(max_size=80)))
def test_any_address_gives_a_recipe_and_repeats_nothing(query: dict[str, str]):
    recipe, line = recipe_from_query({k: f"\x00<{v}" for k, v in query.items()}, 5)
    assert recipe == Recipe(5)
    assert bool(line) == bool(query)
    assert "<" not in line
    assert "\n" not in line
    recipe_from_query(query, 5)


words = st.sampled_from(
    [
        "1",
        "77",
        "@",
        ":",
        ",",
        "=",
        "#",
        "fine",
        "middle",
        "smile",
        "3fa34d",
        "nan",
        "inf",
        "-",
        ".",
    ]
)


@given(st.sampled_from(["mix", "edit", "vary", "between"]), st.lists(words, max_size=12))
def test_what_an_address_nearly_says_round_trips(name: str, pieces: list[str]):
    recipe, _ = recipe_from_query({"seed": "1", name: "".join(pieces)}, 0)
    assert recipe_from_query(read_query(recipe.query()), 0) == (recipe, "")


def test_json_is_strict():
    assert Recipe.from_json(RICH.to_json()) == RICH
    assert RICH.to_json()["edit"] == "hair:3fa34d,smile:1.5"
    for value, says in (
        ("{", "this is not valid JSON"),
        ("[" * 5000, "this is not valid JSON"),
        ('"' + "a" * 9000 + '"', "at most 8,192 bytes"),
        ([1], "an object with at least a seed"),
        ({"psi": 1}, "an object with at least a seed"),
        ({"seed": 1, "<b>": 2}, "holds only seed, psi, fine, mix, edit"),
        ({"seed": 1, "mix": "<b>"}, "the mix of this recipe cannot be used: a mix is SEED@GROUP"),
        ({"seed": 1, "mix": ["1@fine"]}, "the mix of this recipe cannot be used"),
        ({"seed": "1"}, "seed, psi and fine of a recipe in JSON are numbers"),
        ({"seed": 1, "psi": float("nan")}, "its psi and fine from -2 to 2"),
        ({"seed": 2**32}, "a recipe's a seed is a whole number"),
        ({"seed": [1]}, "a recipe's a seed is a whole number"),
        ('{"seed": 1, "psi": 1e999}', "its psi and fine from -2 to 2"),
    ):
        with pytest.raises(RecipeError) as refused:
            Recipe.from_json(value)
        assert says in str(refused.value)
        assert "<" not in str(refused.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
)


@given(st.dictionaries(keys | st.just("x"), json_values))
def test_any_json_is_a_recipe_or_one_sentence(value: dict):
    for form in (value, json.dumps(value)):
        try:
            assert Recipe.from_json(form).to_json()
        except RecipeError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 200


# PNGs


def test_a_saved_png_gives_its_recipe_back(studio: Studio, tmp_path: Path):
    path = tmp_path / "face.png"
    save_png(Image.new("RGB", (64, 64)), path, RICH.png_text(studio.revision))
    assert recipe_from_png(path, studio.revision) == (RICH, "")
    assert recipe_from_png(path, "f" * 12) == (
        RICH,
        "This picture was made with other weights, so its face may differ here.",
    )
    with path.open("rb") as file:
        assert recipe_from_png(file, studio.revision) == (RICH, "")


def test_pngs_without_a_recipe(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    assert recipe_from_png(path)[0] is None
    assert recipe_from_png(path)[1].startswith("This picture carries no recipe")
    save_png(Image.new("RGB", (8, 8)), path, {"seed": "<b>", "mix": "1@fine"})
    recipe, line = recipe_from_png(path)
    assert recipe is None
    assert line.startswith("The seed in this picture cannot be used")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    for wrong in (tmp_path / "a.jpg", tmp_path / "missing.png", io.BytesIO(b"")):
        assert recipe_from_png(wrong) == (
            None,
            "This file is not a readable PNG, so it holds no recipe.",
        )
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(10_000_001)
    assert recipe_from_png(tmp_path / "large.png")[1] == (
        "A picture with a recipe has at most 10 MB."
    )


def test_a_png_of_nothing_but_texts_is_refused_soon():
    """Half a million text chunks took seconds of Pillow's time before the head was bounded."""
    body = b"k%06d\0v"
    chunks = (body % n for n in range(480_000))
    texts = b"".join(
        struct.pack(">I", len(c)) + b"tEXt" + c + struct.pack(">I", zlib.crc32(b"tEXt" + c))
        for c in chunks
    )
    data = b"\x89PNG\r\n\x1a\n" + texts
    start = time.process_time()
    assert recipe_from_png(io.BytesIO(data[:10_000_000]))[0] is None
    assert time.process_time() - start < 0.5


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 400))
def test_any_damaged_png_is_a_recipe_or_one_sentence(noise: bytes, start: int, cut: int):
    file = io.BytesIO()
    info = PngInfo()
    for name, text in RICH.png_text("0123456789ab").items():
        info.add_text(name, text)
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=info)
    data = file.getvalue()
    data = data[:start] + noise + data[start + cut :]
    recipe, line = recipe_from_png(io.BytesIO(data))
    assert (recipe is None) <= bool(line)
    assert "\n" not in line
    assert len(line) < 700


# Drawing


def test_a_plain_recipe_is_the_seeds_face(studio: Studio):
    drawn = studio.draw([1, 2, 3], 0.5)
    assert apart(studio.draw_recipes([Recipe(s, 0.5) for s in (1, 2, 3)]), drawn) == 0
    ws = studio.ws([Recipe(s, 0.5) for s in (1, 2, 3)])
    assert ws.shape == (3, 9, 12)
    assert apart(studio.draw_ws(ws), drawn) == 0
    assert studio.draw_recipes([]).shape == (0, 64, 64, 3)
    assert studio.ws([]).shape == (0, 9, 12)
    assert studio.draw_ws(ws[:0]).shape == (0, 64, 64, 3)


def test_ws_do_not_depend_on_their_neighbours_to_the_last_bit(studio: Studio):
    many = [RICH, Recipe(3), Recipe(4, -1.5), Recipe(5, vary=Vary(1, 2)), *map(Recipe, range(30))]
    together = studio.ws(many)
    for recipe, ws in zip(many, together, strict=True):
        assert torch.equal(studio.ws([recipe])[0], ws)


def test_mixing_takes_whole_layer_groups(studio: Studio):
    own, other = studio.ws([Recipe(1, 0.6), Recipe(2, 0.6)])
    for group, span in studio.G.layer_groups.items():
        ws = studio.ws([Recipe(1, 0.6, mix=(Mix(2, group),))])[0]
        assert torch.equal(ws[span], other[span])
        ws[span] = own[span]
        assert torch.equal(ws, own)
    every = Recipe(1, 0.6, mix=tuple(Mix(2, group) for group in GROUPS))
    assert torch.equal(studio.ws([every])[0], other)


def test_between_walks_on_the_sphere(studio: Studio):
    one, end = studio.ws([Recipe(1, between=Between(2, 1.0)), Recipe(2)])
    assert torch.equal(one, end)
    a, b = (x / x.norm() for x in torch.randn(2, 1, 50, generator=torch.manual_seed(0)))
    half = slerp(a, b, 0.5)
    assert torch.allclose(torch.cosine_similarity(half, a), torch.cosine_similarity(half, b))
    assert torch.allclose(slerp(a, b, 0.3).norm(), torch.tensor(1.0))
    assert torch.equal(slerp(a, a, 0.3), a)


def test_a_variation_is_as_far_as_its_radius_says(studio: Studio):
    plain, near, far = studio.ws([Recipe(1), *(Recipe(1, vary=Vary(5, r)) for r in (0.2, 0.4))])
    assert torch.allclose((far - plain), 2 * (near - plain), atol=1e-5)
    assert apart(*studio.draw_recipes([Recipe(1), Recipe(1, vary=Vary(5, 0.4))])) > 3


def test_a_variation_in_some_layers_leaves_the_others(studio: Studio):
    """And an address from before such ones were written still means all layers."""
    whole, plain = studio.ws([Recipe(1, vary=Vary(5, 0.4)), Recipe(1)])
    assert Recipe(1, 0.7, vary=Vary(5, 0.4)).query() == "?seed=1&psi=0.7&vary=5:0.4"
    for layers, moved in (
        ("coarse", slice(0, 3)), ("fine", slice(5, 9)), ("4", slice(0, 1)), ("16", slice(3, 5)),
    ):  # fmt: skip
        recipe = Recipe(1, vary=Vary(5, 0.4, layers))
        assert recipe_from_query(read_query(recipe.query()), 0) == (recipe, "")
        ws = studio.ws([recipe])[0]
        assert torch.equal(ws[moved], whole[moved])
        still = [at for at in range(len(ws)) if at not in range(len(ws))[moved]]
        assert torch.equal(ws[still], plain[still])
    both = "5:0.4,8:1@fine,9:0.5@16"
    recipe, line = recipe_from_query({"seed": "1", "vary": f"9:2@fine,{both}"}, 0)
    assert (recipe.texts()["vary"], line) == (both, "")
    assert Recipe.from_json(json.dumps(recipe.to_json())) == recipe


def test_edits_move_ws_by_their_directions(studio: Studio):
    plain, moved = studio.ws([Recipe(1), Recipe(1, edits=(Edit("principal-1", 1.5),))])
    unit = studio.directions.moves["principal-1"].unit
    assert torch.allclose(moved - plain, 1.5 * unit, atol=1e-6)
    for colour in ("#808080", "#a08070"):
        ws = studio.ws([Recipe(1, edits=(Edit("hair", colour), Edit("smile", 2)))])[0]
        predicted = studio.directions.colours["hair"].predict(ws)
        assert torch.allclose(predicted, hex_to_lab(colour), atol=1e-3)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (
            Recipe(1, edits=(Edit("smlie", 1),)),
            "no slider smlie here; there are principal-1, smile, long-hair",
        ),
        (Recipe(1, edits=(Edit("smile", 3),)), "smile takes a number from -2 to 2.5, not 3"),
        (
            Recipe(1, edits=(Edit("smile", "#112233"),)),
            "smile takes no colour here; there are hair",
        ),
        (Recipe(1, w="AAAA"), "this latent is cut off, or of another generator"),
        (Recipe(1, vary=Vary(5, 1, "128")), "this generator has no block of 128 px"),
    ],
)
def test_recipes_that_this_generator_cannot_draw(studio: Studio, recipe: Recipe, says: str):
    with pytest.raises(RecipeError, match=says):
        studio.draw_recipes([recipe])
    with pytest.raises(RecipeError, match=says):
        studio.ws([recipe])
    assert studio.usable(recipe)[0] == Recipe(1)
    assert says.lower() in studio.usable(recipe)[1].lower()


def test_the_usable_parts_of_a_recipe_are_kept(studio: Studio):
    assert studio.usable(RICH) == (RICH, "")
    edits = (Edit("smile", 1), Edit("nose", 1), Edit("long-hair", 9))
    recipe, line = studio.usable(Recipe(1, edits=edits, w="abc"))
    assert recipe == Recipe(1, edits=(Edit("smile", 1),))
    assert line.count(".") - line.count("2.5") == 3


def test_generators_without_w_and_without_directions(tmp_path: Path):
    studio = Studio(ArticleGenerator(z_dim=4).eval(), source="here", revision="0")
    halfway = Recipe(1, 0.5, between=Between(2, 1.0))
    assert apart(studio.draw_recipes([halfway]), studio.draw([2], 0.5)) <= 1
    for recipe, says in (
        (Recipe(1, mix=(Mix(2, "fine"),)), "has no w, so its faces cannot be mixed"),
        (Recipe(1, edits=(Edit("smile", 1),)), "has no w, so its faces cannot be edited"),
        (Recipe(1, vary=Vary(2, 0.5)), "has no w, so its faces cannot be varied"),
        (Recipe(1, w="abc"), "has no w, so it cannot draw a given one"),
    ):
        with pytest.raises(RecipeError, match=says):
            studio.draw_recipes([recipe])
        assert studio.usable(recipe)[0] == Recipe(1, DEFAULT_PSI)
    with pytest.raises(RecipeError, match="has no w"):
        studio.ws([Recipe(1)])
    small = Studio.open(save_small(tmp_path))
    with pytest.raises(RecipeError, match="These weights have no directions file"):
        small.draw_recipes([Recipe(1, edits=(Edit("smile", 1),))])
    with pytest.raises(RecipeError, match="too small to have middle layers"):
        small.draw_recipes([Recipe(1, mix=(Mix(2, "middle"),))])


def save_small(folder: Path) -> Path:
    save_generator(folder, resolution=8, channels=(8, 8))
    return folder


def test_wrong_ws_are_refused(studio: Studio):
    with pytest.raises(RecipeError, match=r"ws of one face are \[9, 12\] here, not \[9, 11\]"):
        studio.draw_ws(torch.zeros(1, 9, 11))


# Latents as text


def test_a_latent_comes_back_from_its_text(studio: Studio):
    wanted = studio.ws([Recipe(s, 1.0, mix=(Mix(s + 1, "fine"),)) for s in range(20)])
    texts = [encode_ws(studio.G, ws) for ws in wanted]
    assert {len(text) for text in texts} == {58}  # 1 + 3 * (2 + 12) bytes
    found = studio.ws([Recipe(0, 1.0, w=text) for text in texts])
    assert (found - wanted).abs().max() < 0.01 * (wanted - studio.G.w_avg).abs().max()
    assert apart(studio.draw_ws(found), studio.draw_ws(wanted)) <= 12
    again = [encode_ws(studio.G, ws) for ws in found]
    assert torch.allclose(studio.ws([Recipe(0, 1.0, w=t) for t in again]), found, atol=1e-3)


def test_a_given_latent_is_truncated_mixed_and_edited_as_any_other(studio: Studio):
    text = encode_ws(studio.G, studio.ws([Recipe(7, 1.0)])[0])
    at_half = studio.ws([Recipe(0, 0.5, w=text)])[0]
    full = decode_ws(studio.G, text)
    assert torch.allclose(at_half, (full + studio.G.w_avg) / 2, atol=1e-6)
    both = Recipe(0, 1.0, w=text, between=Between(3, 0.5), edits=(Edit("principal-1", 1),))
    unit = studio.directions.moves["principal-1"].unit
    halfway = (full + studio.ws([Recipe(3, 1.0)])[0]) / 2 + unit
    assert torch.allclose(studio.ws([both])[0], halfway, atol=1e-5)


def test_latents_that_cannot_be_written_or_read(studio: Studio):
    G = studio.G
    for ws in (torch.zeros(9, 11), torch.full((9, 12), float("nan")), torch.full((9, 12), 1e9)):
        with pytest.raises(RecipeError):
            encode_ws(G, ws)
    text = encode_ws(G, torch.zeros(9, 12))
    for wrong in (text[:-1], text + "A", "B" + text[1:], "A" * len(text), "AX_" + text[3:], ""):
        with pytest.raises(RecipeError, match="this latent is"):
            decode_ws(G, wrong)


@given(st.binary(min_size=42, max_size=42))
def test_any_bytes_are_a_finite_latent_or_refused(studio: Studio, data: bytes):
    import base64

    text = base64.urlsafe_b64encode(b"\x01" + data).decode().rstrip("=")
    try:
        ws = decode_ws(studio.G, text)
    except RecipeError:
        return
    assert torch.isfinite(ws).all()
    assert ws.abs().max() < 2100


# Layer groups, company, discriminator


@pytest.mark.parametrize(
    ("resolution", "levels", "ends"),
    [
        (4, 1, (1, 1, 1)),
        (8, 2, (3, 3, 3)),
        (16, 3, (3, 5, 5)),
        (64, 5, (3, 5, 9)),
        (96, 5, (1, 3, 9)),
        (128, 6, (3, 7, 11)),
        (256, 7, (3, 7, 13)),
    ],
)
def test_layer_groups_cover_all_layers(resolution: int, levels: int, ends: tuple[int, ...]):
    with torch.device("meta"):
        G = Generator(resolution, (8,) * levels)
    spans = G.layer_groups
    assert list(spans) == list(GROUPS)
    assert tuple(span.stop for span in spans.values()) == ends
    assert [span.start for span in spans.values()] == [0, *ends[:2]]
    assert ends[-1] == G.num_ws


def test_requests_that_wait_together_share_a_forward(generator_dir: Path):
    studio = Studio.open(generator_dir)
    wanted = studio.draw(range(40))
    gate = threading.Event()
    studio.drawing._thread.submit(gate.wait)  # the drawing thread is busy
    forwards = studio.drawing.forwards
    with ThreadPoolExecutor(41) as visitors:
        drawn = [visitors.submit(studio.draw_recipes, [Recipe(seed)]) for seed in range(40)]
        bad = Recipe(1, edits=(Edit("nose", 1),))
        refused = visitors.submit(studio.draw_recipes, [bad])
        deadline = time.monotonic() + 10
        while len(studio.drawing._waiting) < 40 and time.monotonic() < deadline:
            time.sleep(0.01)
        gate.set()
        faces = np.concatenate([future.result() for future in drawn])
        with pytest.raises(RecipeError, match="no slider nose"):
            refused.result()
    assert apart(faces, wanted) <= 1
    assert studio.drawing.forwards - forwards == 3  # 16 + 16 + 8


def test_a_fault_in_one_request_does_not_touch_its_company(generator_dir: Path):
    studio = Studio.open(generator_dir)
    gate = threading.Event()
    studio.drawing._thread.submit(gate.wait)
    good = studio.drawing.submit(1, lambda: studio._latents([Recipe(3)]))
    bad = studio.drawing.submit(1, lambda: 1 / 0)
    gate.set()
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    assert apart(good.result(10), studio.draw([3])) <= 1


def test_the_discriminator_beside_a_generator_is_opened(tmp_path: Path):
    save_generator(tmp_path / "generator")
    assert Studio.open(tmp_path / "generator").D is None
    D = Discriminator(64, (8,) * 5)
    D.save_pretrained(tmp_path / "discriminator")
    studio = Studio.open(tmp_path / "generator")
    images = torch.rand(4, 3, 64, 64)
    assert torch.equal(studio.D(images), D.eval()(images))
    Discriminator(32, (8,) * 4).save_pretrained(tmp_path / "discriminator")
    assert Studio.open(tmp_path / "generator").D is None
    (tmp_path / "discriminator" / "config.json").write_text("{")
    assert Studio.open(tmp_path / "generator").D is None


def test_psi_alone_means_what_it_always_meant():
    for text in ("?seed=42&psi=0.7", "?seed=42&psi=1&mix=77@fine"):
        query = dict(parse_qsl(text[1:]))
        recipe, line = recipe_from_query(query, 0)
        assert (recipe.fine, line) == (None, "")
        assert recipe.query() == text
    assert Recipe(42, 0.7).truncation == (0.7, 0.7)
    assert Recipe(42, 0.7, 0.7) == Recipe(42, 0.7)
    assert Recipe(42).truncation == (DEFAULT_PSI, DEFAULT_FINE)
    assert Recipe(42, fine=0.5).truncation == (DEFAULT_PSI, 0.5)
    assert Recipe.from_json({"seed": 1, "psi": 0.7}).truncation == (0.7, 0.7)
    assert recipe_from_query({"fine": "0.3"}, 5)[0] == Recipe(5, None, 0.3)
    found, line = recipe_from_query({"psi": "0.4", "fine": "2"}, 5)
    assert found == Recipe(5, 0.4)
    assert "The fine in this address cannot be used" in line


def test_fine_truncates_the_fine_layers_alone():
    torch.manual_seed(0)
    G = Generator(64, (16,) * 5, z_dim=8, w_dim=8).eval()
    G.update_w_avg()
    studio = Studio(G, source="here", revision="0")
    ws, other = studio.ws([Recipe(3, 0.5, 0.9), Recipe(3, 0.5)])
    layers = G.layer_groups["fine"]
    assert torch.equal(ws[: layers.start], other[: layers.start])
    (full,) = studio.ws([Recipe(3, 1.0)])
    torch.testing.assert_close(ws[layers], torch.lerp(G.w_avg.expand_as(ws), full, 0.9)[layers])
    torch.testing.assert_close(G.mapping(latents_from_seeds([3], G.z_dim), 0.5, 0.9)[0], ws)
    # A mix takes the other seed's fine layers at the fine layers' truncation.
    (mixed,) = studio.ws([Recipe(3, 0.5, 0.9, mix=(Mix(4, "fine"),))])
    (fourth,) = studio.ws([Recipe(4, 0.5, 0.9)])
    assert torch.equal(mixed[layers], fourth[layers])
