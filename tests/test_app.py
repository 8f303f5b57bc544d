"""The page without a browser: its API, its start, its words, its front matter."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import socket
import string
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from urllib.parse import urlencode

import anyio
import gradio as gr
import httpx
import numpy as np
import pytest
from gradio.state_holder import SessionState
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

import app
from model import SEED_MAX, ArticleGenerator
from studio.faces import Studio
from studio.page.context import PageContext, fault, read_place
from studio.page.i18n import LANGUAGES, TEXTS, language, nearest
from studio.page.mix import SHEET, cross
from studio.page.wall import Place, WallTab
from studio.ports import check_address
from studio.recipe import MAX_W_TEXT, Edit, Mix, Recipe, recipe_from_png
from tests.visitor import apart, free_port, large

ROOT = Path(__file__).resolve().parents[1]
CALLS = {
    "/generate": ["seed", "psi", "recipe", "size"],
    "/wall": ["first_seed", "psi", "fine"],
    "/mix": ["seed_a", "seed_b", "psi", "fine"],
    "/morph": ["seeds", "psi", "seconds", "loop", "kind", "fine"],
    "/match": ["image", "seconds"],
}


# The API


def test_the_api_has_named_and_documented_calls(client: Client):
    calls = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {name: [p["label"] for p in call["parameters"]] for name, call in calls.items()} == CALLS
    for name, call in calls.items():
        assert "Args:" not in call["description"] or len(call["description"]) > 40, name
        assert all(p["type"]["type"] for p in call["parameters"]), name


def test_a_film_may_name_eight_faces_of_matches():
    latent = "A" * MAX_W_TEXT
    place = urlencode({"faces": ";".join(f"?seed={seed}&psi=1&w={latent}" for seed in range(8))})
    assert read_place(place)["faces"].count(latent) == 8


@pytest.mark.parametrize(("kind", "mark"), [("mp4", b"ftyp"), ("webp", b"WEBP")])
def test_morph_answers_with_a_film(client: Client, kind: str, mark: bytes):
    path = client.predict("7,42", 0.7, 0.5, False, kind, api_name="/morph")
    assert mark in Path(path).read_bytes()[:64]
    assert Path(path).suffix == f".{kind}"


def test_match_answers_with_a_face_and_its_recipe(client: Client, studio: Studio, tmp_path: Path):
    Image.fromarray(studio.draw([7])[0]).save(tmp_path / "face.png")
    path, address = client.predict(handle_file(tmp_path / "face.png"), 3, api_name="/match")
    recipe, line = recipe_from_png(path, studio.revision)
    assert line == ""
    assert recipe.w
    assert recipe.query(studio.revision) == address


def test_films_and_matches_refuse_in_one_sentence(client: Client, tmp_path: Path):
    (tmp_path / "face.png").write_bytes(b"no picture at all")
    upload = handle_file(tmp_path / "face.png")
    for call, arguments, says in (
        ("/morph", ("7", 0.7, 2, True, "mp4"), "2 to 8 faces"),
        ("/morph", ("7,8", 0.7, 60, True, "mp4"), "seconds is a number from 0.5 to 5"),
        ("/morph", ("7,8", 0.7, 2, True, "gif"), "kind is mp4 or webp"),
        ("/match", (upload, 600), "seconds is a number from 2 to 30"),
        ("/match", (upload, 5), "picture"),
    ):
        with pytest.raises(AppError, match=says) as refused:
            client.predict(*arguments, api_name=call)
        assert "Traceback" not in str(refused.value)


def test_generate_draws_a_face_with_its_recipe(client: Client, studio: Studio):
    recipe = Recipe(SEED_MAX, 0.5, mix=(Mix(7, "fine"),), edits=(Edit("smile", 1.5),))
    path = client.predict(SEED_MAX, 0.5, "mix=7@fine&edit=smile:1.5", api_name="/generate")
    assert Path(path).name == f"kaogan-{SEED_MAX}.png"
    assert apart(np.array(Image.open(path)), large(studio, recipe)) <= 2
    assert recipe_from_png(Path(path), studio.revision) == (recipe, "")


def test_wall_draws_24_faces(client: Client, studio: Studio):
    wall = client.predict(100, 0.9, api_name="/wall")
    assert [face["caption"] for face in wall] == [str(seed) for seed in range(100, 124)]
    drawn = np.stack([np.array(Image.open(face["image"])) for face in wall])
    assert apart(drawn, studio.draw(range(100, 124), 0.9)) <= 1
    assert len(client.predict(SEED_MAX - 2, 0.7, api_name="/wall")) == 3


def test_mix_draws_nine_crossings(client: Client, studio: Studio):
    sheet = client.predict(5, 6, api_name="/mix")
    drawn = np.stack([np.array(Image.open(face["image"])) for face in sheet])
    assert apart(drawn, studio.draw_recipes(cross(Recipe(5), 6))) <= 1
    assert apart(drawn[0], studio.draw([5])[0]) <= 1
    assert apart(drawn[8], studio.draw([6])[0]) <= 1


def test_many_visitors_get_their_own_faces(client: Client, studio: Studio):
    with ThreadPoolExecutor(6) as visitors:
        paths = visitors.map(
            lambda seed: client.predict(seed, api_name="/generate"), range(200, 218)
        )
        for seed, path in zip(range(200, 218), paths, strict=True):
            assert apart(np.array(Image.open(path)), large(studio, Recipe(seed))) <= 2


@pytest.mark.parametrize(
    ("seed", "psi", "says"),
    [
        ("banana", 0.7, "a seed is a whole number from 0 to 4294967295, not 'banana'"),
        (-1, 0.7, "a seed is a whole number from 0 to 4294967295, not -1"),
        (1.5, 0.7, "a seed is a whole number from 0 to 4294967295, not 1.5"),
        (2**32, 0.7, "a seed is a whole number from 0 to 4294967295, not 4294967296"),
        (1, 9, "psi is a number from -2 to 2, not 9"),
        (1, "much", "psi is a number from -2 to 2, not 'much'"),
    ],
)
def test_the_api_refuses_in_one_sentence(client: Client, seed: object, psi: object, says: str):
    for call, rest in (("/generate", ("",)), ("/wall", ())):
        with pytest.raises(AppError) as refused:
            client.predict(seed, psi, *rest, api_name=call)
        assert str(refused.value) == says


@pytest.mark.parametrize("text", ["mix=5@nose", "edit=smile:99", "colour=red", "w=!!", "vary=5"])
def test_generate_is_strict_with_the_rest_of_a_recipe(client: Client, text: str):
    with pytest.raises(AppError, match="^[a-z].{10,}$"):
        client.predict(1, 0.7, text, api_name="/generate")


async def use_tools(url: str) -> tuple[dict[str, dict], list, str]:
    """Return the tools that a client of MCP sees, what /generate answers it, and a refusal."""
    async with (
        streamable_http_client(f"{url}/gradio_api/mcp/") as (answers, questions, _),
        ClientSession(answers, questions) as session,
    ):
        await session.initialize()
        tools = {t.name: t.inputSchema["properties"] for t in (await session.list_tools()).tools}
        drawn = await session.call_tool("generate", {"seed": 42, "recipe": "mix=7@fine"})
        refused = await session.call_tool("generate", {"seed": -1})
        assert (drawn.isError, refused.isError) == (False, True)
        return tools, drawn.content, refused.content[0].text


def test_the_same_calls_are_tools_for_mcp(url: str, studio: Studio):
    with ThreadPoolExecutor(1) as pool:  # in this thread a browser's loop may run already
        tools, content, refusal = pool.submit(anyio.run, use_tools, url).result()
    assert {f"/{name}": list(properties) for name, properties in tools.items()} == CALLS
    assert all(p["description"] and p["type"] for tool in tools.values() for p in tool.values())
    recipe = Recipe(42, mix=(Mix(7, "fine"),))
    image = next(part for part in content if part.type == "image")
    drawn = Image.open(io.BytesIO(base64.b64decode(image.data))).convert("RGB")
    assert apart(np.array(drawn), large(studio, recipe)) <= 2
    assert refusal == "a seed is a whole number from 0 to 4294967295, not -1"


# The door


def test_the_page_names_itself_to_link_previews(url: str):
    page = httpx.get(f"{url}/?seed=42").text
    assert 'property="og:title" content="Kaogan · 42"' in page
    assert "Gradio" not in re.findall(r'<meta property="og:[^>]*>', page).__str__()
    assert page.count("og:description") == 1
    assert TEXTS["intro.line"]["ja"] in httpx.get(url, headers={"Accept-Language": "ja-JP"}).text
    hostile = httpx.get(f'{url}/?seed="><script>alert(1)</script>').text
    assert "alert(1)</script>" not in hostile
    strange = httpx.get(url, headers={"Host": 'x"><b>'}).text
    assert "og:image" not in strange
    assert "<b>" not in strange


def test_a_link_preview_shows_the_face_of_the_address(url: str, studio: Studio):
    def picture(address: str, **headers: str) -> str:
        page = httpx.get(address, headers=headers).text
        return html.unescape(re.search('"og:image" content="([^"]*)"', page)[1])

    recipe = Recipe(42, 0.5, mix=(Mix(7, "fine"),), edits=(Edit("smile", 1.5),))
    answer = httpx.get(picture(url + "/" + recipe.query(studio.revision))).raise_for_status()
    assert answer.headers["content-type"] == "image/png"
    drawn = Image.open(io.BytesIO(answer.content))
    assert apart(np.array(drawn), large(studio, recipe)) <= 2
    assert httpx.get(picture(url)).content == httpx.get(f"{url}/preview.png").content
    for broken in ("seed=banana", "seed=1&mix=%3Cb%3E", "w=" + "A" * 9000):
        assert httpx.get(f"{url}/preview.png?{broken}").headers["content-type"] == "image/png"
    behind = picture(url, **{"X-Forwarded-Proto": "https", "Host": "owner-kaogan.hf.space"})
    assert behind == "https://owner-kaogan.hf.space/preview.png?seed=9"


def test_nothing_on_the_page_is_public_but_the_named_calls(url: str):
    config = httpx.get(f"{url}/config").json()
    public = [d for d in config["dependencies"] if d["api_visibility"] != "private"]
    assert sorted(d["api_name"] for d in public) == sorted(name[1:] for name in CALLS)


# Words


def test_every_sentence_stands_in_every_language():
    used = set()
    for file in [ROOT / "app.py", *(ROOT / "studio").rglob("*.py")]:
        text = file.read_text()
        used |= set(re.findall(r'(?:label|say)\(\s*(?:request,\s*)?"([a-z.-]+)"', text))
        used |= set(re.findall(r'"(fault\.[a-z]+)"', text))
    assert len(used) > 60
    assert used <= set(TEXTS)
    for key, sentences in TEXTS.items():
        assert list(sentences) == list(LANGUAGES), key
        assert all(sentences.values()), key
        fields = [
            sorted(name for _, name, _, _ in string.Formatter().parse(s) if name)
            for s in sentences.values()
        ]
        assert fields[0] == fields[1] == fields[2], key


def test_the_language_is_the_browsers_or_the_chosen_one():
    assert [nearest(t) for t in ("zh-TW", "ja", "en-GB", "de")] == ["zh-CN", "ja", "en", ""]

    def ask(cookies: dict, wished: str) -> str:
        headers = {"accept-language": wished}
        return language(gr.Request(headers=headers, cookies=cookies))

    assert ask({}, "ja,en;q=0.5") == "ja"
    assert ask({}, "de-DE,ja;q=0.5") == "en"
    assert ask({"kaogan-language": "zh-CN"}, "ja") == "zh-CN"
    assert ask({"kaogan-language": "../x"}, "ja") == "ja"
    assert language(None) == "en"


# The parts of the page that need no server


def test_places_on_the_wall_round_trip():
    for place in (
        Place(),
        Place(240, 0.5),
        Place(7, like="?seed=42&psi=0.7&edit=smile:1", radius=0.5),
        Place(96, best=True),
    ):
        assert Place.parse(place.text()) == place
    for text in (None, "", "first=-1", "first=99999999999", "wpsi=nan&radius=nan", "first=²"):
        assert Place.parse(text) == Place(), text


def test_who_chooses_a_face_of_a_wall_that_is_still_drawn_is_not_called_back(studio: Studio):
    with gr.Blocks():
        context = PageContext(studio)
        with gr.Tabs() as context.tabs, gr.Tab("wall"):
            wall = WallTab(context)
    turns = [values[0] for values in wall.more_like(None, "?seed=42", "")]  # type: ignore[arg-type]
    assert turns[0].selected == "wall"
    assert len(turns) == 4 and turns[1:] == [gr.skip()] * 3


def test_opposite_crossings_complete_each_other():
    for place, groups in enumerate(SHEET):
        if groups is None:
            assert place == 4
            continue
        assert sorted([*groups, *SHEET[8 - place]]) == ["coarse", "fine", "middle"]


def test_the_front_matter_is_what_a_space_takes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1].splitlines()
    values = dict(line.split(": ", 1) for line in lines if ": " in line)
    assert values["sdk"] == "gradio"
    pins = (ROOT / "requirements.txt").read_text()
    assert f"gradio=={values['sdk_version']}\n" in pins
    assert values["python_version"] == '"3.11"'
    assert (ROOT / values["app_file"]).is_file()
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {values["colorFrom"], values["colorTo"]} <= colours
    assert len(values["short_description"]) <= 60
    assert values["license"] == "mit"


def test_sessions_share_what_gradio_would_describe_anew(studio: Studio, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    demo, _ = app.build(studio)
    described = SessionState(demo).config_values
    plain = copy(demo.default_config).__class__.__mro__[1].config_for_block
    assert len(described) > 100
    for key, block in demo.blocks.items():
        assert described[key] == plain(key, [], block)
    one, other = SessionState(demo), SessionState(demo)
    slider = next(key for key, block in demo.blocks.items() if isinstance(block, gr.Slider))
    one._update_value_in_config(slider, 0.123)
    one[slider] = gr.Slider(0, 9, 5)
    assert one.config_values[slider]["props"]["value"] != 0.123
    assert other.config_values == described == SessionState(demo).config_values
    start = time.perf_counter()
    for _ in range(20):
        SessionState(demo)
    assert (time.perf_counter() - start) / 20 < 0.02  # Gradio's own take 0.03 to 0.2


def test_on_a_space_the_link_is_the_spaces_own(studio: Studio, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("studio.page.meet.HOME", "https://huggingface.co/spaces/owner/kaogan")
    _, context = app.build(studio)
    address, *_ = context.meet(Recipe(42))
    query = Recipe(42).query(studio.revision)
    assert address == f"https://huggingface.co/spaces/owner/kaogan{query}"
    assert context.read(address) == Recipe(42)


# Starting


@pytest.mark.parametrize("notice", ["", "The weights of owner/gone could not be loaded."])
def test_a_notice_stands_on_the_page(generator_dir: Path, tmp_path: Path, monkeypatch, notice: str):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    studio = Studio.open(generator_dir)
    studio.notice = notice
    shown = [c["props"] for c in app.build(studio)[0].config["components"]]
    values = [str(p["value"]) for p in shown if p.get("elem_id") == "notice"]
    assert len(values) == bool(notice)
    assert all("notice.bundled" in value for value in values)


def test_weights_without_sliders_say_why(generator_dir: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    studio = Studio.open(generator_dir)
    studio.directions, studio.directions_notice = None, "There are no sliders, because."
    config = app.build(studio)[0].config
    assert studio.directions_notice in json.dumps(config, default=str)
    ids = [c.get("props", {}).get("elem_id") or "" for c in config["components"]]
    assert not [name for name in ids if name.startswith("edit-")]


def test_weights_without_w_show_no_tab_that_needs_it(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    demo, context = app.build(Studio(ArticleGenerator(z_dim=4).eval(), source="x", revision="0"))
    props = [c.get("props", {}) for c in demo.config["components"]]
    ids = {p.get("elem_id"): p.get("visible", True) for p in props}
    assert context.names == ("meet", "wall", "morph", "keep", "about")
    assert not {"tab-mix", "tab-match", "mix-roll", "match-go"} & set(ids)
    assert (ids["like"], ids["to-mix"], ids["to-morph"]) == (False, False, True)
    assert "meet.no-w" in json.dumps(demo.config, default=str)
    request = gr.Request(headers={}, cookies={}, query_params={"seed": "5", "tab": "mix"})
    tabs, *_ = context.open(request)
    assert tabs.selected == "meet"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "{folder}"), "has no config.json"),
        (("--revision", "abc"), "a revision is only for a Hub repository"),
        (("--port", "{busy}"), "in use already; choose another with --port, or leave --port out"),
        (("--port", "{busy}", "--host", "0.0.0.0"), "port {busy} is in use already; choose"),
        (("--host", "203.0.113.7"), "cannot listen on 203.0.113.7 (Cannot assign"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], says: str, capsys, monkeypatch
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        arguments = tuple(a.format(folder=tmp_path, busy=busy) for a in arguments)
        monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
        assert app.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("app.py: ")
    assert says.format(busy=busy) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("port", ["0", "65536", "9" * 5000, "-1", "x", ""])
def test_a_port_is_checked_with_the_flags(port: str, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py", f"--port={port}"])
    with pytest.raises(SystemExit, match="2"):
        app.main()
    assert "a port is a number from 1 to 65535" in capsys.readouterr().err


def test_the_first_free_port_is_left_to_gradio_and_ipv6_gets_its_brackets(monkeypatch):
    free = free_port()
    assert check_address(None, free) is None
    assert check_address("0.0.0.0", None) == "0.0.0.0"
    assert check_address("::1", free) == check_address("[::1]", free) == "[::1]"
    with socket.create_server(("127.0.0.1", 65535)):
        monkeypatch.setenv("GRADIO_SERVER_PORT", "65535")  # where Gradio would begin
        with pytest.raises(OSError, match="ports 65535 to 65535 are all in use; name another"):
            check_address(None, None)


def test_a_visitor_sees_no_path_of_this_machine(caplog):
    """What the system says of a file goes to the operator."""
    full = OSError(28, "No space left on device", "/srv/kaogan/cache/film.mp4")
    for tag, spoken in (("en-GB", "en"), ("ja", "ja")):
        request = gr.Request(headers={"accept-language": tag}, cookies={})
        assert fault(request, full, "fault.film") == TEXTS["fault.film"][spoken]
    assert "/srv/kaogan/cache" in caplog.text
