"""From a run to the Hub and back, with the real client against a small Hub on loopback."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import ROOT
from edits import SLIDERS, save_directions
from hub_server import Hub, card_errors
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import _http
from PIL import Image
from safetensors.torch import load_file, save

import studio.faces
import studio.revisions
from model import Discriminator, Encoder, Enlarger, Generator, ModelError, load_network
from studio.enlarging import BUNDLED, load_enlarging
from studio.faces import Studio
from studio.recipe import Edit, Recipe
from training.checkpoint import checkpoint_path
from training.config import ConfigError, TrainConfig, make_config
from training.hub.card import make_card
from training.hub.contents import take_snapshot
from training.hub.errors import PublishError
from training.hub.publisher import Publisher
from training.projected import ProjectedDiscriminator
from training.publish import find_kimg, main

REPO = "owner/faces"
TOKEN = "hf_owner"
FAST = {"token": TOKEN, "pauses": (0.01, 0.02), "silence": 20.0}
SMALL = [
    "--resolution", "16", "--channel-base", "256", "--channel-max", "16", "--z-dim", "16",
    "--w-dim", "16", "--batch-size", "16", "--tick-kimg", "0.064", "--snapshot-ticks", "1",
]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
            "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]  # fmt: skip
SIZE = {"resolution": 16, "z_dim": 8, "w_dim": 8, "channels": [8, 8, 8]}


@pytest.fixture
def hub():
    with Hub() as server:
        yield server


@pytest.fixture(autouse=True)
def client(hub, monkeypatch, tmp_path):
    """Point huggingface_hub, which read its environment when imported, at our server."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    # The client's own pauses between its own tries, cut short; ours are a parameter.
    hasty = SimpleNamespace(**(vars(time) | {"sleep": lambda _seconds: None}))
    monkeypatch.setattr(_http, "time", hasty)
    monkeypatch.setattr(huggingface_hub.file_download, "time", hasty)
    yield
    hub.stop()
    for thread in threading.enumerate():
        if thread.name == "push":
            thread.join(10)
            assert not thread.is_alive()
    huggingface_hub.close_session()


def environment(hub, tmp_path, token=TOKEN):
    """Return what a fresh process needs to use our server."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "KAOGAN_CACHE": str(tmp_path / "packs"),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }


@pytest.fixture
def run_folder(tmp_path):
    """Return what a short run leaves on the disk, 64 kimg old."""
    folder = tmp_path / "secret place" / "run"
    (folder / "grids").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    write_networks(folder, seed=0)
    config().save(folder / "config.json")
    lines = [{"kimg": 0, "minutes": 0.0}, {"kimg": 64.0, "minutes": 12.5, "d_loss": 1.0}]
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Image.new("RGB", (8, 8)).save(folder / "grids" / "kimg-00064.000.png")
    checkpoint_path(folder / "checkpoints", 64_000).write_bytes(b"")
    return folder


def write_networks(folder, seed):
    torch.manual_seed(seed)
    Generator(**SIZE).save_pretrained(folder / "generator")
    Discriminator(resolution=16, channels=[8, 8, 8]).save_pretrained(folder / "discriminator")


def config(**settings):
    return make_config({"data": ["/home/somebody/private faces.zip"], **settings})


def snapshot(folder, kimg=64.0, **more):
    return take_snapshot(folder, config(), kimg=kimg, repo=REPO, **more)


def test_a_snapshot_holds_the_heads_that_taught_beside_d(run_folder):
    assert not [name for name in snapshot(run_folder).files if name.startswith("projected/")]
    ProjectedDiscriminator(64, width=8).save_pretrained(run_folder / "projected")
    files = snapshot(run_folder).files
    for name in ("config.json", "model.safetensors"):
        assert files[f"projected/{name}"] == (run_folder / "projected" / name).read_bytes()


# ------------------------------------------------------------------------------------------
# The loop: train, push, pull, draw

DRAW = """
import sys
import numpy as np
from studio.faces import Studio
repo, out, *revisions = sys.argv[1:]
studios = [Studio.open(repo, revision, fallback=False) for revision in revisions]
np.save(out, [studio.draw(range(64), 0.7) for studio in studios])
"""


def test_what_the_trainer_drew_is_what_the_page_draws(hub, faces_dir, tmp_path):
    """Two processes train, one pushes; a fresh one pulls by tag and by commit, and draws."""
    out = tmp_path / "run"
    command = [*TORCHRUN, "train.py", "--data", str(faces_dir), "--out", str(out), *SMALL]
    flags = ["--total-kimg", "0.128", "--metric-samples", "32", "--metric-features", "hog"]
    publishing = ["--push-to-hub", REPO, "--private", "--hub-token", TOKEN, "--data-name", "x/y"]
    env = environment(hub, tmp_path, token="")
    trained = subprocess.run(
        [*command, *flags, *publishing, "--log-with", "tensorboard"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    printed = trained.stdout + trained.stderr
    assert trained.returncode == 0, printed
    assert len(hub.requests("POST /api/repos/create")) == 1
    repo = hub.repos[REPO]
    assert repo.private
    messages = [commit.message for commit in repo.commits]
    assert messages[-1] == "0.128 kimg, kimg-0.128"
    assert set(messages[1:-1]) <= {"0.064 kimg", "0.128 kimg"}
    last = repo.commits[-1]
    assert repo.tags == {"kimg-0.128": last.oid}
    assert last.files["model.safetensors"] == (out / "generator/model.safetensors").read_bytes()
    assert {
        "config.json", "discriminator/config.json", "discriminator/model.safetensors", "README.md",
        "grid-psi1.png", "grid-psi0.7.png", "grids/kimg-00000.128.png", "stats.jsonl",
        "train_config.json", "metrics.json",
    } <= last.files.keys()  # fmt: skip
    assert last.lfs == {"model.safetensors", "discriminator/model.safetensors"}
    assert hub.tokens_on_cdn == []

    card = ModelCard(last.files["README.md"].decode())
    assert card.data.datasets == ["x/y"]
    assert {r.metric_type for r in card.data.eval_results} >= {"frechet-distance", "kid"}
    assert "| hardware | 2 × cpu |" in card.text
    assert (out / "generator/README.md").read_text().count("hog features") > 0
    told = [str(path) for path in out.rglob("*") if path.is_file()]
    assert len(told) > 10
    for path in told:
        assert TOKEN.encode() not in Path(path).read_bytes(), path
    assert TOKEN not in printed
    for name, content in last.files.items():
        assert str(tmp_path).encode() not in content, name

    hub.log.clear()
    target = tmp_path / "drawn.npy"
    pulled = subprocess.run(
        [sys.executable, "-c", DRAW, REPO, str(target), "kimg-0.128", last.oid],
        cwd=ROOT, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert pulled.returncode == 0, pulled.stderr
    asked = {line.split("/")[-1] for line in hub.requests("GET .*/resolve/")}
    assert asked <= {"config.json", "model.safetensors", "directions.safetensors"}
    by_tag, by_commit = np.load(target)
    np.testing.assert_array_equal(by_tag, by_commit)
    np.testing.assert_array_equal(by_tag, Studio.open(out / "generator").draw(range(64), 0.7))
    # The trainer keeps its pictures channels-last, which adds up in another order.
    grid = np.array(Image.open(out / "grid-psi0.7.png")).astype(int)
    sheet = by_tag.reshape(8, 8, 16, 16, 3).transpose(0, 2, 1, 3, 4).reshape(128, 128, 3)
    assert abs(sheet - grid).max() <= 1
    assert (sheet == grid).mean() > 0.999


def test_every_process_stops_where_the_repository_cannot_be_made(hub, faces_dir, tmp_path):
    """Two processes, a name that belongs to somebody else: no hang, one sentence, no data read."""
    patient = [*TORCHRUN, "--monitor_interval", "3"]  # else it ends the slower process itself
    command = [*patient, "train.py", "--data", str(faces_dir), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *SMALL, "--push-to-hub", "somebody/else"],
        cwd=ROOT, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode != 0
    said = re.findall(r"train.py: (.*)", done.stderr)
    assert said == ["cannot push to somebody/else: this token may not write there"] * 2
    assert not (tmp_path / "packs").exists()
    assert hub.repos == {}


# ------------------------------------------------------------------------------------------
# Before training starts


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ("faces", TOKEN, "write owner/name"),
        ("a/b/c", TOKEN, "names no repository: write owner/name, each of letters, digits"),
        ("owner/bad name", TOKEN, "names no repository: write owner/name, each of letters"),
        (REPO, "", "set HF_TOKEN"),
        (REPO, "hf_wrong", "the Hub refused the token"),
        (REPO, "hf_secret\nline", "holds blanks"),
        (REPO, "hf_reader", "may not write"),
        ("other/faces", TOKEN, "may not write"),
        ("other/theirs", TOKEN, "may not write"),
    ],
)
def test_a_wrong_name_or_token_is_refused_at_once(hub, repo, token, words):
    hub.create("other/theirs")
    started = time.monotonic()
    with pytest.raises(PublishError, match=re.escape(words)) as caught:
        Publisher(repo, **FAST | {"token": token})
    assert time.monotonic() - started < 1
    assert "hf_" not in str(caught.value).replace("HF_TOKEN", "")


def test_a_token_is_found_in_the_environment(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert Publisher(REPO).close()
    assert REPO in hub.repos


def test_private_is_kept_as_a_promise(hub, run_folder):
    """A public repository of that name must not get what was meant to be private."""
    hub.create(REPO)
    with pytest.raises(PublishError, match="exists and is public"):
        Publisher(REPO, private=True, **FAST)
    Publisher("owner/hidden", private=True, **FAST)
    assert hub.repos["owner/hidden"].private
    Publisher("owner/hidden", private=True, **FAST)
    Publisher("owner/hidden", **FAST)


def test_writers_of_a_repository_may_push_where_they_may_not_create(hub):
    hub.create("other/shared", writers=("owner",))
    Publisher("other/shared", **FAST)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"nonsense": True},
        {"lose": True},
    ],
)
def test_a_hub_that_stumbles_at_the_start_is_asked_again(hub, fault):
    hub.fail("POST /api/repos/create", times=1, **fault)
    Publisher(REPO, **FAST)
    assert REPO in hub.repos


@pytest.mark.parametrize("fault", [{"status": 503}, {"nonsense": True}, {"stall": True}])
def test_a_hub_that_stays_down_at_the_start_is_named(hub, fault):
    hub.fail(".", **fault)
    with pytest.raises(PublishError, match="cannot push to owner/faces: .*; try later, or train"):
        Publisher(REPO, **FAST | {"silence": 0.1})
    hub.stop()
    with pytest.raises(PublishError, match="cannot push to owner/faces: ConnectError"):
        Publisher(REPO, **FAST)


# ------------------------------------------------------------------------------------------
# While it trains


class Said(list):
    """Collects what a publisher says."""

    def __call__(self, line):
        self.append(line)


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("POST .*/commit/", {"status": 500}),
        ("POST .*/commit/", {"status": 409}),
        ("POST .*/commit/", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("POST .*/commit/", {"status": 401}),
        ("POST .*/commit/", {"status": 403}),
        ("POST .*/commit/", {"status": 404}),
        ("POST .*/commit/", {"lose": True}),
        ("POST .*/commit/", {"nonsense": True}),
        ("POST .*/commit/", {"cut": 7}),
        ("POST .*/commit/", {"stall": True}),
        ("POST /api/validate-yaml", {"nonsense": True}),
        ("POST .*/preupload/", {"nonsense": True}),
        ("POST .*/preupload/", {"status": 403}),
        ("POST .*/batch", {"nonsense": True}),
        ("POST .*/batch", {"stall": True}),
        ("POST .*/verify", {"status": 404}),
        ("PUT /cdn/", {"status": 400}),
        ("PUT /cdn/", {"lose": True}),
        ("POST .*/tag/", {"status": 500}),
        ("POST .*/tag/", {"status": 409}),
        ("POST .*/tag/", {"lose": True}),
    ],
)
def test_a_failing_hub_gets_the_snapshot_all_the_same(hub, run_folder, pattern, fault):
    """Twice a fault, then one commit with everything, its tag, and no more than one complaint."""
    said = Said()
    publisher = Publisher(REPO, say=said, **FAST | {"silence": 0.3})
    hub.fail(pattern, times=2, **fault)
    wanted = snapshot(run_folder, tag="first")
    publisher.submit(wanted)
    wait_for(lambda: said and "is at owner/faces" in said[-1])
    assert publisher.close()
    repo = hub.repos[REPO]
    assert [commit.message for commit in repo.commits] == ["initial commit", "64 kimg, first"]
    assert {k: v for k, v in repo.commits[-1].files.items() if k in wanted.files} == wanted.files
    assert repo.tags == {"first": repo.commits[-1].oid}
    assert len(said) <= 2, said
    assert not [line for line in said if TOKEN in line]
    assert hub.requests(pattern)


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_hub_that_repeats_the_token_does_not_get_it_printed(hub, run_folder):
    said = Said()
    publisher = Publisher(REPO, say=said, **FAST)
    hub.fail("POST .*/commit/", status=500, headers={"X-Error-Message": f"{TOKEN} is unlucky"})
    publisher.submit(snapshot(run_folder))
    assert not publisher.close()
    assert "*** is unlucky" in said[-1]
    assert TOKEN not in "".join(said)


def test_the_hub_may_ask_for_patience(hub, run_folder):
    publisher = Publisher(REPO, **FAST)
    hub.fail("POST .*/commit/", status=429, headers={"Retry-After": "1"}, times=1)
    started = time.monotonic()
    publisher.submit(snapshot(run_folder))
    wait_for(lambda: len(hub.repos[REPO].commits) == 2)
    assert time.monotonic() - started > 1
    assert publisher.close()


def test_pauses_grow_and_an_outage_is_reported_once(hub, run_folder):
    said, times = Said(), []
    publisher = Publisher(REPO, say=said, **FAST | {"pauses": (0.02, 0.1, 0.3)})
    hub.fail("POST .*/commit/", status=500)
    publisher.submit(snapshot(run_folder))
    while len(times) < 4:
        count = len(times)
        wait_for(lambda count=count: len(hub.requests("POST .*/commit/")) > count)
        times.append(time.monotonic())
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert gaps[0] < gaps[1] < gaps[2]
    assert len(said) == 1
    assert "64 kimg could not be pushed to owner/faces" in said[0]
    assert str(run_folder) in said[0]
    hub.heal()
    wait_for(lambda: len(hub.repos[REPO].commits) == 2)
    wait_for(lambda: len(said) == 2)
    assert publisher.close()


@pytest.mark.parametrize(
    ("hangs", "pushed"),
    [("PUT /cdn/", ["1 kimg", "5 kimg"]), ("POST .*/commit/", ["5 kimg"])],
)
def test_training_does_not_wait_and_the_newest_snapshot_wins(hub, run_folder, hangs, pushed):
    """While the first hangs, four more come: only the last goes up, the first if it still can."""
    publisher = Publisher(REPO, **FAST | {"silence": 1.0})
    hub.fail(hangs, stall=True, times=1)
    snapshots, seconds = [], []
    for kimg in (1.0, 2.0, 3.0, 4.0, 5.0):
        write_networks(run_folder, seed=int(kimg))
        snapshots.append(snapshot(run_folder, kimg))
    for taken in snapshots:  # made before, so that all five come within the second of the stall
        started = time.perf_counter()
        publisher.submit(taken)
        seconds.append(time.perf_counter() - started)
        if len(seconds) == 1:
            wait_for(lambda: hub.requests(hangs))
    assert max(seconds) < 0.1
    assert publisher.close()
    assert [commit.message for commit in hub.repos[REPO].commits[1:]] == pushed
    held = hub.repos[REPO].commits[-1].files["model.safetensors"]
    assert held == (run_folder / "generator" / "model.safetensors").read_bytes()


def test_a_snapshot_does_not_change_with_its_files(hub, run_folder):
    """The trainer overwrites its files while they are being pushed."""
    publisher = Publisher(REPO, **FAST)
    taken = snapshot(run_folder)
    write_networks(run_folder, seed=9)
    publisher.submit(taken)
    assert publisher.close()
    held = hub.repos[REPO].commits[-1].files["model.safetensors"]
    assert held == taken.files["model.safetensors"]
    assert held != (run_folder / "generator" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 401}, {"stall": True}])
def test_a_run_ends_in_bounded_time_and_is_pushed_later(hub, run_folder, fault, monkeypatch):
    """The Hub fails to the end: one line with the command, which then works."""
    said = Said()
    publisher = Publisher(REPO, say=said, **FAST | {"silence": 5.0})
    hub.fail("POST .*/commit/", **fault)
    publisher.submit(snapshot(run_folder))
    started = time.monotonic()
    assert not publisher.close(wait=0.5)
    assert time.monotonic() - started < 2
    assert said[-1].startswith("64 kimg could not be pushed to owner/faces (")
    command = f"python -m training.publish {run_folder} --repo owner/faces"
    assert said[-1].endswith(command)
    assert len(hub.repos[REPO].commits) == 1
    hub.heal()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main([str(run_folder), "--repo", REPO, "--license", "cc0-1.0"]) == 0
    repo = hub.repos[REPO]
    assert b"\nlicense: cc0-1.0\n" in repo.commits[-1].files["README.md"]
    assert repo.commits[-1].message == "64 kimg, kimg-64"
    assert repo.tags == {"kimg-64": repo.commits[-1].oid}


def test_a_process_ends_though_the_hub_is_silent(hub, run_folder, tmp_path):
    """No thread of the client keeps Python alive after the waiting has ended."""
    script = """
import sys
from pathlib import Path
from training.config import TrainConfig
from training.hub.contents import take_snapshot
from training.hub.publisher import Publisher
publisher = Publisher("owner/faces", silence=60.0)
publisher.submit(take_snapshot(Path(sys.argv[1]), TrainConfig(), kimg=1.0))
print(publisher.close(wait=1.0))
"""
    hub.fail("PUT /cdn/", stall=True)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, str(run_folder)],
        cwd=ROOT, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert time.monotonic() - started < 30


def test_a_tag_that_exists_keeps_its_place(hub, run_folder):
    said = Said()
    publisher = Publisher(REPO, say=said, **FAST)
    old = hub.repos[REPO].commits[0].oid
    hub.repos[REPO].tags["kimg-64"] = old
    publisher.submit(snapshot(run_folder, tag="kimg-64"))
    assert publisher.close()
    assert hub.repos[REPO].tags == {"kimg-64": old}
    assert f"the tag kimg-64 stays at an older commit, {old[:12]}" in said[-1]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "No such file"),
        (lambda f: (f / "generator" / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda f: (f / "generator" / "model.safetensors").write_bytes(b"x"), "not a readable"),
    ],
)
def test_a_run_that_cannot_be_published_is_named(hub, run_folder, spoil, words, capsys):
    spoil(run_folder)
    assert main([str(run_folder), "--repo", REPO, "--hub-token", TOKEN]) == 2
    error = capsys.readouterr().err
    assert error.startswith("publish: ")
    assert words in error
    assert hub.log == []


# ------------------------------------------------------------------------------------------
# The card and the configuration


def test_the_card_tells_and_does_not_tell(run_folder):
    """Every figure of the run, metadata that the Hub accepts, and no path of this machine."""
    metrics = {
        "kimg": 64.0, "psi": 1.0, "features": "inception", "num_real": 31000, "num_fake": 10000,
        "frechet": 12.345, "kid": 0.0123, "precision": 0.5, "recall": 0.25,
    }  # fmt: skip
    (run_folder / "metrics.json").write_text(json.dumps(metrics))
    (run_folder / "facts.json").write_text(json.dumps({"hardware": "1 × H200", "pictures": "31"}))
    settings = config(license="cc-by-4.0", gradient_accumulation=2, hub_token="hf_secret")
    text = make_card(run_folder, settings, kimg=64.0, repo=REPO, tag="kimg-64", picture="g.png")
    assert card_errors(text) == []
    card = ModelCard(text)
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("kaogan", "unconditional-image-generation")
    assert (data.license, data.model_name, data.datasets) == ("cc-by-4.0", "faces", None)
    results = {r.metric_type: r.metric_value for r in data.eval_results}
    assert results == {"fid": 12.345, "kid": 0.0123, "precision": 0.5, "recall": 0.25}
    assert data.eval_results[0].dataset_name == "a private collection of pictures"
    for words in (
        'load_network("owner/faces", revision="kimg-64")', "--model owner/faces --revision kimg-64",
        "| minutes | 12.5 |", "| hardware | 1 × H200 |", "| gradient accumulation | 2 |", "12.35",
        "31000 real", "![Faces of the seeds 0 to 63, unselected](g.png)",
    ):  # fmt: skip
        assert words in card.text, words
    for secret in ("somebody", "private faces", "secret place", str(run_folder), "hf_secret"):
        assert secret not in text


def test_figures_of_an_earlier_generator_do_not_count(run_folder):
    (run_folder / "metrics.json").write_text(json.dumps({"kimg": 32.0, "frechet": 1.0}))
    text = make_card(run_folder, config(), kimg=64.0)
    assert "model-index" not in text
    assert "Figures" not in text
    assert "metrics.json" not in snapshot(run_folder).files
    (run_folder / "metrics.json").write_text("[")
    assert make_card(run_folder, config(), kimg=64.0) == text


@pytest.mark.parametrize(
    ("settings", "datasets", "words"),
    [
        ({"data_name": "My sketches"}, None, "trained from scratch on My sketches for"),
        ({"data_name": "x/y"}, ["x/y"], "trained from scratch on x/y for"),
        ({"data": ["hf://x/y@main"]}, ["x/y"], "trained from scratch on x/y for"),
        ({"data": ["hf://x/y", "more"]}, None, "on a private collection of pictures for"),
        ({"data": list(TrainConfig().data)}, None, "on the faces that come with Kaogan for"),
    ],
)
def test_data_is_named_only_by_a_name(run_folder, settings, datasets, words):
    card = ModelCard(make_card(run_folder, config(**settings), kimg=64.0))
    assert card.data.datasets == datasets
    assert words in " ".join(card.text.split())


def test_settings_go_up_without_paths_and_come_back(run_folder):
    taken = snapshot(run_folder)
    text = taken.files["train_config.json"].decode()
    assert "somebody" not in text
    assert str(run_folder) not in text
    again = make_config(json.loads(text), {"data": ["mine"]})
    assert again == make_config(config().public(), {"data": ["mine"]})
    public = take_snapshot(run_folder, config(data=["hf://x/y"]), kimg=1.0)
    assert json.loads(public.files["train_config.json"])["data"] == ["hf://x/y"]


def test_the_token_is_neither_saved_nor_shown(tmp_path):
    settings = config(hub_token="hf_secret")
    settings.save(tmp_path / "config.json")
    for text in ((tmp_path / "config.json").read_text(), repr(settings), str(settings)):
        assert "hf_secret" not in text
        assert "resolution" in text
    with pytest.raises(ConfigError) as caught:
        config(hub_token=["hf_secret"])
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["license", "data_name"])
def test_a_card_takes_one_line(name):
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        config(**{name: "a\nb: c"})


def test_grids_of_an_earlier_end_do_not_go_up(run_folder):
    """A resumed run still holds grid-psi1.png of its first end."""
    for psi in ("1", "0.7"):
        Image.new("RGB", (8, 8)).save(run_folder / f"grid-psi{psi}.png")
        os.utime(run_folder / f"grid-psi{psi}.png", (1, 1))
    assert {k for k in snapshot(run_folder).files if k.endswith(".png")} == {
        "grids/kimg-00064.000.png"
    }
    os.utime(run_folder / "grid-psi0.7.png")
    files = snapshot(run_folder).files
    assert "grid-psi0.7.png" in files
    assert b"](grid-psi0.7.png)" in files["README.md"]


def test_the_age_of_a_run(run_folder):
    assert find_kimg(run_folder) == 64.0
    for path in (run_folder / "checkpoints").iterdir():
        path.unlink()
    (run_folder / "stats.jsonl").write_text('{"kimg": 3.5}\n{"kimg": 7.25}\n{"ki')
    assert find_kimg(run_folder) == 7.25


# ------------------------------------------------------------------------------------------
# Pulling


@pytest.fixture
def published(hub, run_folder):
    """Return a public repository that holds a run, with more beside it."""
    repo = hub.create(REPO)
    files = snapshot(run_folder).files | {"pytorch_model.bin": b"pickle", "x.py": b"import os"}
    hub.commit(repo, "64 kimg", files, ("model.safetensors", "pytorch_model.bin"))
    repo.tags["v1"] = repo.commits[-1].oid
    return repo


def weights(seed, **changes):
    """Return a generator's safetensors file of other weights."""
    torch.manual_seed(seed)
    state = Generator(**SIZE).state_dict() | changes
    return save({k: v.contiguous() for k, v in state.items()}, metadata={"format": "pt"})


def test_only_two_files_are_pulled_by_commit_tag_or_branch(hub, published, run_folder):
    commit = published.commits[-1].oid
    wanted = load_file(run_folder / "generator" / "model.safetensors")
    for revision in (commit, "v1", "main", None, commit[:8]):
        G = load_network(REPO, revision=revision)
        assert all(torch.equal(v, wanted[k]) for k, v in G.state_dict().items())
    assert {line.split("/")[-1] for line in hub.requests("(GET|HEAD) .*/resolve/")} == {
        "config.json",
        "model.safetensors",
    }
    assert len(hub.requests("GET /cdn/")) == 1
    D = load_network(REPO, revision="v1", subfolder="discriminator")
    assert type(D).__name__ == "Discriminator"


def test_both_files_are_of_one_commit(hub, published):
    """The branch moves on between config.json and model.safetensors."""
    hub.after["GET .*config.json"] = lambda: hub.commit(
        published, "other", {"model.safetensors": b"of another config"}, ("model.safetensors",)
    )
    load_network(REPO)
    assert len(published.commits) == 3
    with pytest.raises(ModelError, match="not a readable safetensors"):
        load_network(REPO)


def test_a_fixed_commit_needs_no_network_and_a_tag_none_either(hub, published):
    commit = published.commits[-1].oid
    load_network(REPO, revision="v1")
    hub.log.clear()
    load_network(REPO, revision=commit)
    assert hub.log == []
    hub.fail(".", status=500)
    load_network(REPO, revision="v1")
    hub.stop()
    for revision in (commit, "v1"):
        load_network(REPO, revision=revision)
    with pytest.raises(ModelError, match="could not fetch config.json of owner/faces from the Hub"):
        load_network(REPO)


def test_the_page_falls_back_visibly_and_soon(hub, published, run_folder, monkeypatch):
    """No Hub and nothing in the cache: the bundled weights, and a line that says so."""
    monkeypatch.setattr(studio.faces, "BUNDLED", run_folder / "generator")
    commit = published.commits[-1].oid
    opened = Studio.open(REPO, commit)
    assert opened.notice == ""
    hub.stop()
    assert Studio.open(REPO, commit).notice == ""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(run_folder / "empty"))
    started = time.monotonic()
    alone = Studio.open(REPO, commit)
    assert time.monotonic() - started < 5
    assert "owner/faces" in alone.notice
    assert "bundled" in alone.notice
    np.testing.assert_array_equal(alone.draw([1]), opened.draw([1]))


def test_a_cut_download_is_taken_up_where_it_ended(hub, published, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.fail("GET /cdn/", cut=5000, times=1)
    load_network(REPO)
    assert [status for line, status in hub.log if "GET /cdn/" in line] == [200, 206]


@pytest.mark.parametrize(
    "fault", [{"cut": 5000}, {"stall": True}, {"status": 500}, {"flip": True}, {"nonsense": True}]
)
def test_half_or_wrong_files_are_never_used(hub, published, fault, monkeypatch):
    """Refused with a sentence; nothing of it stays, so the next try gets the right one."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.fail("GET /cdn/", **fault)
    with pytest.raises(ModelError) as caught:
        load_network(REPO)
    assert "model.safetensors" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    cache = Path(constants.HF_HUB_CACHE)
    assert [p.name for p in cache.rglob("*") if p.name in ("model.safetensors",)] == []
    assert [p.name for p in cache.rglob("*.incomplete")] == []
    hub.heal()
    load_network(REPO)


def test_a_cached_file_that_changed_on_the_disk_is_refused(hub, published):
    load_network(REPO)
    blob = max(Path(constants.HF_HUB_CACHE).rglob("blobs/*"), key=lambda p: p.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(ModelError, match="was damaged"):
        load_network(REPO)
    load_network(REPO)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.safetensors": b"\x80\x04pickle"}, "not a readable safetensors file"),
        ({"model.safetensors": b"x" * 10_000_000}, "it is not downloaded"),
        ({"model.safetensors": lambda: weights(1, extra=torch.zeros(1))}, "has unknown tensors"),
        (
            {"model.safetensors": lambda: weights(1, const=torch.zeros(8, 4, 3))},
            "has misshapen tensors",
        ),
        (
            {"model.safetensors": lambda: weights(1, const=torch.full((8, 4, 4), np.nan))},
            "no finite numbers",
        ),
        ({"config.json": b'{"architecture": "Generator", "resolution": 1000000}'}, "resolution"),
        ({"config.json": b"{" * 70_000}, "it is not downloaded"),
        ({"config.json": b"[1]"}, "not a configuration of ours"),
    ],
)
def test_hostile_weights_are_refused_with_a_sentence(hub, published, files, words):
    made = {k: v() if callable(v) else v for k, v in files.items()}
    hub.commit(published, "hostile", made, tuple(k for k in made if k.endswith(".safetensors")))
    with pytest.raises(ModelError, match=words):
        load_network(REPO)
    if "not downloaded" in words:
        assert not hub.requests(f"GET .*{'cdn' if 'model.safetensors' in files else 'config'}")


@pytest.mark.parametrize(
    ("repo", "revision", "words"),
    [
        ("owner/nothing", None, "could not fetch config.json of owner/nothing"),
        (REPO, "v9", "the repository has no such revision"),
        ("owner/pickled", None, "pickled weights are not loaded"),
        ("owner/../../etc", None, "neither a folder nor a Hub repository"),
    ],
)
def test_what_is_not_there_is_named(hub, published, repo, revision, words):
    pickled = hub.create("owner/pickled")
    config_file = published.commits[-1].files["config.json"]
    hub.commit(pickled, "x", {"config.json": config_file, "pytorch_model.bin": b"x"})
    with pytest.raises(ModelError, match=words):
        load_network(repo, revision=revision)


# Files of repositories as other libraries lay them out; weights stand for any bytes.
JUNK = b"\x80\x04weights"
FOREIGN = {
    "a pipeline of diffusers": {
        "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
        "unet/config.json": b'{"_class_name": "UNet2DConditionModel"}',
        "unet/diffusion_pytorch_model.safetensors": JUNK,
        "vae/diffusion_pytorch_model.bin": JUNK,
    },
    "a model of diffusers ('UNet2DModel')": {
        "config.json": b'{"_class_name": "UNet2DModel", "_diffusers_version": "0.1"}',
        "diffusion_pytorch_model.safetensors": JUNK,
    },
    "a model of timm ('resnet18')": {
        "config.json": b'{"architecture": "resnet18", "num_classes": 1000}',
        "model.safetensors": JUNK,
        "pytorch_model.bin": JUNK,
    },
    "a model of transformers (['ViTModel'])": {
        "config.json": b'{"architectures": ["ViTModel"], "model_type": "vit"}',
        "model.safetensors": JUNK,
        "preprocessor_config.json": b"{}",
    },
    "a pickle, as StyleGAN's trainers write it and as is never loaded (stylegan2-ffhq.pkl)": {
        "stylegan2-ffhq.pkl": JUNK,
        "samples/0.png": JUNK,
    },
    "a LoRA, which only changes another model (adapter_config.json)": {
        "adapter_config.json": b'{"peft_type": "LORA"}',
        "adapter_model.safetensors": JUNK,
    },
    "a LoRA, which only changes another model (pytorch_lora_weights.safetensors)": {
        "pytorch_lora_weights.safetensors": JUNK,
    },
    "pickled weights, which are never loaded (pytorch_model.bin)": {
        "config.json": b'{"ngf": 64, "im_size": 256}',
        "pytorch_model.bin": JUNK,
    },
    "weights without their sizes (model.safetensors)": {"model.safetensors": JUNK},
    "no network": {"README.md": b"# Nothing yet"},
}


@pytest.mark.parametrize("found", FOREIGN)
def test_what_another_library_left_is_named(hub, tmp_path, found, caplog, monkeypatch):
    """On the Hub and in a folder: one sentence says what is there and what would work."""
    files = {**FOREIGN[found], "README.md": b"# Model"}
    hub.commit(hub.create("else/where"), "x", files)
    for name, content in files.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    mend = "give a folder or Hub repository with the config.json and model.safetensors"
    for place in ("else/where", str(tmp_path / "folder")):
        with pytest.raises(ModelError) as refused:
            load_network(place)
        assert f"holds {found}" in str(refused.value)
        assert mend in str(refused.value)
        assert "\n" not in str(refused.value)
    opened = Studio.open("else/where")  # the page is served all the same
    assert "else/where" in opened.notice
    assert f"holds {found}" in caplog.text


def test_a_run_and_a_single_file_are_named(run_folder, tmp_path):
    with pytest.raises(ModelError, match="it is a training run; give its .*run/generator$"):
        Studio.open(run_folder)
    (tmp_path / "network.pkl").write_bytes(JUNK)
    with pytest.raises(ModelError, match=r"is one file, a pickle.*network\.pkl\); give a folder"):
        Studio.open(tmp_path / "network.pkl", fallback=False)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 403}, "the token may not read it"),
        ({"status": 429}, "the Hub asks for fewer requests; try later"),
        ({"status": 503}, "the Hub answers 503; try later"),
    ],
)
def test_the_hubs_refusals_are_put_in_words(hub, published, fault, words):
    hub.fail(".*", **fault)
    with pytest.raises(ModelError, match=f"from the Hub: {words}"):
        load_network(REPO)


def test_several_pages_may_pull_at_once(hub, published):
    found, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: found.append(load_network(REPO))))
        threads[-1].start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4


# ------------------------------------------------------------------------------------------
# Directions travel with the weights

EDITED = """
import sys
import numpy as np
from studio.faces import Studio
from studio.recipe import recipe_from_query
from urllib.parse import parse_qsl
repo, revision, out, query = sys.argv[1:]
studio = Studio.open(repo, revision, fallback=False)
recipe, line = recipe_from_query(dict(parse_qsl(query)), 0, studio.revision)
assert not line, line
np.save(out, studio.draw_recipes([recipe]))
"""


@pytest.fixture
def directed(run_folder):
    """Return the folder of a run's generator that has directions."""
    folder = run_folder / "generator"
    save_directions(folder, Generator.from_pretrained(folder))
    return folder


def test_an_edited_face_is_the_same_after_push_and_pull(hub, run_folder, directed, tmp_path):
    assert main([str(run_folder), "--repo", REPO, "--hub-token", TOKEN]) == 0
    at_home = Studio.open(directed)
    recipe = Recipe(3, edits=(Edit(SLIDERS[0], 2), Edit("hair", "#3fa34d")))
    face = at_home.draw_recipes([recipe])
    assert (face != at_home.draw([3])).any()
    target = tmp_path / "drawn.npy"
    query = recipe.query(at_home.revision)[1:]
    pulled = subprocess.run(
        [sys.executable, "-c", EDITED, REPO, "kimg-64", str(target), query],
        cwd=ROOT, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert pulled.returncode == 0, pulled.stderr
    np.testing.assert_array_equal(np.load(target), face)
    asked = {line.split("/")[-1] for line in hub.requests("(GET|HEAD) .*/resolve/")}
    assert asked == {"config.json", "model.safetensors", "directions.safetensors"}


def test_directions_of_other_weights_are_not_pushed(run_folder, directed):
    assert "directions.safetensors" in snapshot(run_folder).files
    write_networks(run_folder, seed=1)
    assert "directions.safetensors" not in snapshot(run_folder).files
    (directed / "directions.safetensors").write_bytes(b"x")
    assert "directions.safetensors" not in snapshot(run_folder).files


def test_a_repository_without_directions_is_no_fault(hub, published, caplog):
    studio = Studio.open(REPO)
    assert studio.directions_notice.startswith("These weights have no directions file")
    assert caplog.text == ""
    assert studio.repo == REPO


def push_directions(hub, published, content):
    hub.commit(published, "d", {"directions.safetensors": content}, ("directions.safetensors",))


def test_directions_come_from_the_commit_of_the_weights_and_from_the_cache(
    hub, published, directed
):
    push_directions(hub, published, (directed / "directions.safetensors").read_bytes())
    commit = published.commits[-1].oid
    hub.after["GET .*config.json"] = lambda: push_directions(hub, published, b"of later")
    recipe = Recipe(3, edits=(Edit(SLIDERS[0], 2),))
    face = Studio.open(directed).draw_recipes([recipe])
    np.testing.assert_array_equal(Studio.open(REPO).draw_recipes([recipe]), face)
    hub.stop()
    for revision in (commit, None):
        np.testing.assert_array_equal(Studio.open(REPO, revision).draw_recipes([recipe]), face)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x80\x04pickle", "the directions file is not readable as safetensors"),
        (b"x" * 1_000_000, "the directions file could not be fetched"),
    ],
)
def test_hostile_directions_cost_only_the_sliders(hub, published, content, says):
    push_directions(hub, published, content)
    studio = Studio.open(REPO)
    assert studio.directions is None
    assert studio.directions_notice == f"There are no sliders by name: {says}."
    assert studio.draw([1]).shape == (1, 16, 16, 3)
    assert len(hub.requests("GET /cdn/")) == (1 if len(content) > 100 else 2)


# ------------------------------------------------------------------------------------------
# Revisions that an address names


@pytest.fixture
def older(hub, published):
    """Return (revision, face of seed 1) of weights 0, 1 and 2, of which 2 are the newest."""
    revisions = []
    for seed in (1, 2):
        hub.commit(
            published, f"{seed}", {"model.safetensors": weights(seed)}, ("model.safetensors",)
        )
        hub.commit(published, "card", {"README.md": b"%d" % seed})
    for commit in (published.commits[1], published.commits[2], published.commits[4]):
        studio = Studio.open(REPO, commit.oid)
        revisions.append((studio.revision, studio.draw([1])))
    return revisions


def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))


def test_an_older_revision_of_the_repository_is_found_and_kept(
    hub, published, older, tmp_path, monkeypatch
):
    empty_cache(tmp_path, monkeypatch)
    studio = Studio.open(REPO)
    assert studio.revision == older[2][0]
    assert studio.open_revision(studio.revision) is studio
    for revision, face in older[:2]:  # the first one is tagged, the second one is not
        other = studio.open_revision(revision)
        assert other.revision == revision
        np.testing.assert_array_equal(other.draw([1]), face)
        hub.log.clear()
        assert studio.open_revision(revision) is other
        assert hub.log == []
    assert not hub.requests("README.md")


def test_what_is_not_of_this_repository_is_never_opened(hub, published, older, run_folder):
    stranger = hub.create("other/faces")
    files = {**published.commits[-1].files, "model.safetensors": weights(9)}
    hub.commit(stranger, "x", files, ("model.safetensors",))
    foreign = Studio.open("other/faces").revision
    studio = Studio.open(REPO)
    hub.log.clear()
    assert studio.open_revision(foreign) is None
    asked = len(hub.log)
    assert 0 < asked <= 2 + len(published.commits)
    assert not hub.requests("GET .*/resolve/")
    for rev in (foreign, "f" * 12, "e" * 12):
        assert studio.open_revision(rev) is None
    assert len(hub.log) == asked  # the Hub is left alone for a while
    for hostile in ("", "F" * 12, "f" * 64, "../" * 4, "<script>", "0" * 11):
        assert studio.open_revision(hostile) is None
    at_home = Studio.open(run_folder / "generator")
    assert at_home.open_revision(older[1][0]) is None
    assert len(hub.log) == asked


def test_no_more_commits_are_asked_for_than_the_bound(hub, published, older, monkeypatch):
    monkeypatch.setattr(studio.revisions, "MAX_COMMITS", 3)
    opened = Studio.open(REPO)
    hub.log.clear()
    assert opened.open_revision("f" * 12) is None
    assert len(hub.requests("HEAD ")) == 3


def test_two_other_revisions_are_kept_open(hub, published, older, monkeypatch):
    monkeypatch.setattr(studio.revisions, "KEPT", 1)
    opened = Studio.open(REPO)
    first = opened.open_revision(older[0][0])
    assert opened.open_revision(older[0][0]) is first
    assert opened.open_revision(older[1][0]).revision == older[1][0]
    again = opened.open_revision(older[0][0])
    assert again is not first
    assert again.revision == first.revision


def test_downloaded_revisions_open_without_the_hub(hub, published, older):
    opened = Studio.open(REPO)
    hub.stop()
    assert opened.open_revision(older[0][0]).revision == older[0][0]
    assert opened.open_revision("f" * 12) is None


@pytest.mark.parametrize(
    "fault", [{"status": 500}, {"nonsense": True}, {"stall": True}, {"status": 404}]
)
@pytest.mark.parametrize("where", ["GET .*/refs", "GET .*/commits", "HEAD ", "GET /cdn"])
def test_a_failing_hub_costs_a_visitor_no_more_than_patience(
    hub, published, older, fault, where, tmp_path, monkeypatch
):
    opened = Studio.open(REPO)
    empty_cache(tmp_path, monkeypatch)
    monkeypatch.setattr(studio.revisions, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fail(where, **fault)
    started = time.monotonic()
    found = opened._revisions.open(REPO, older[1][0], patience=2)
    assert time.monotonic() - started < 4
    assert found is None
    np.testing.assert_array_equal(opened.draw([1]), older[2][1])


def test_many_visitors_of_one_revision_wait_for_one_search(
    hub, published, older, tmp_path, monkeypatch
):
    opened = Studio.open(REPO)
    empty_cache(tmp_path, monkeypatch)
    hub.log.clear()
    found, threads = [], []
    for _ in range(6):
        visit = threading.Thread(target=lambda: found.append(opened.open_revision(older[1][0])))
        threads.append(visit)
        visit.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 6
    assert all(one is found[0] for one in found)
    assert found[0].revision == older[1][0]
    assert len(hub.requests("/refs")) == 1


def test_a_runs_enlarger_goes_up_and_draws_from_there(hub, run_folder):
    torch.manual_seed(0)
    Enlarger(8, 1).save_pretrained(run_folder / "enlarger")
    (run_folder / "enlarger" / "README.md").write_text("The teacher's name.\n")
    files = snapshot(run_folder).files
    names = {f"enlarger/{name}" for name in ("config.json", "model.safetensors", "README.md")}
    assert names <= files.keys()
    repo = hub.create(REPO)
    weights = [name for name in files if name.endswith(".safetensors")]
    hub.commit(repo, "with", files, weights)
    opened = Studio.open(REPO, fallback=False)
    own = hashlib.sha256(files["enlarger/model.safetensors"]).hexdigest()[:12]
    assert opened.enlarging.name == own
    without = hub.create("owner/without")
    plain = {name: data for name, data in files.items() if name not in names}
    hub.commit(without, "x", plain, [name for name in weights if name in plain])
    other = Studio.open("owner/without", fallback=False)
    assert other.enlarging.name == load_enlarging(BUNDLED).name
    assert other.encoder is None


def test_a_runs_encoder_goes_up_and_is_found_there(hub, run_folder):
    weights = (run_folder / "generator" / "model.safetensors").read_bytes()
    G = load_network(run_folder / "generator")
    E = Encoder(G.num_ws, G.w_dim, (4, 4, 4, 4), 4, 4, hashlib.sha256(weights).hexdigest())
    E.save_pretrained(run_folder / "encoder")
    files = snapshot(run_folder).files
    assert {"encoder/config.json", "encoder/model.safetensors"} <= files.keys()
    repo = hub.create(REPO)
    hub.commit(repo, "with", files, [name for name in files if name.endswith(".safetensors")])
    encoder = Studio.open(REPO, fallback=False).encoder
    assert encoder is not None
    assert encoder.generator == E.generator
    (run_folder / "generator" / "model.safetensors").write_bytes(weights + b" ")
    assert not [name for name in snapshot(run_folder).files if name.startswith("encoder/")]
