"""The real training run, launched as a trainer launches it, on a few drawn faces."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors import safe_open

from model import Discriminator, Generator, latents_from_seeds
from training.checkpoint import list_checkpoints

SMALL = [
    "--resolution", "16", "--channel-base", "256", "--channel-max", "16", "--z-dim", "16",
    "--w-dim", "16", "--batch-size", "16", "--tick-kimg", "0.064", "--snapshot-ticks", "1",
    "--penalty-interval", "2", "--augment", "translation,colour", "--metric-samples", "0",
]  # fmt: skip
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1",
          "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
            "--master_addr", "127.0.0.1", "--master_port", "0", "--rdzv_backend", "c10d",
            "--rdzv_endpoint", "127.0.0.1:0"]  # fmt: skip


@pytest.fixture
def start(faces_dir, tmp_path):
    """Start train.py on the drawn faces; returns a running process."""
    started = []

    def launch(out, *flags, launcher=(sys.executable,)):
        env = os.environ | {
            "KAOGAN_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "PYTHONUNBUFFERED": "1",
        }
        command = [*launcher, "train.py", "--data", str(faces_dir), "--out", str(tmp_path / out)]
        process = subprocess.Popen(
            [*command, *SMALL, *flags],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def run(start):
    """Run train.py to its end; returns its status and what it printed."""

    def complete(out, *flags, **options):
        process = start(out, *flags, **options)
        printed, _ = process.communicate(timeout=240)
        return process.returncode, printed

    return complete


def tensors(path):
    with safe_open(path, framework="pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def wait_for_checkpoints(process, folder, count):
    """Wait until a run has written so many checkpoints."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob("kimg-*.safetensors"))) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_launched_run_leaves_what_it_promises(run, tmp_path):
    flags = ["--total-kimg", "0.128", "--metric-samples", "32", "--log-with", "tensorboard"]
    status, printed = run("run", *flags, launcher=LAUNCH)
    assert status == 0, printed
    folder = tmp_path / "run"
    assert "efficientnet-lite0 features of 24 real and 32 fake images" in printed
    assert json.loads((folder / "metrics.json").read_text())["num_fake"] == 32
    assert list(folder.rglob("events.out.tfevents.*"))
    assert "24 pictures at 16 px" in printed
    assert "0.128 kimg" in printed
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [0, 0.064, 0.128]
    assert {"d_loss", "g_loss", "r1", "diversity", "images_per_s", "minutes"} <= lines[-1].keys()
    assert json.loads((folder / "config.json").read_text())["resolution"] == 16
    assert Image.open(folder / "grids" / "kimg-00000.128.png").size == (128, 128)
    assert Image.open(folder / "grid-psi0.7.png").size == (128, 128)
    G = Generator.from_pretrained(folder / "generator")
    D = Discriminator.from_pretrained(folder / "discriminator")
    with torch.no_grad():
        faces = G(latents_from_seeds(range(4), G.z_dim), 0.7)
        assert torch.isfinite(D(faces)).all()
    assert G.w_avg.abs().max() > 0
    averaged = tensors(list_checkpoints(folder / "checkpoints")[-1])["G_ema/const"]
    assert torch.equal(G.const, averaged)

    status, printed = run("run", "--total-kimg", "0.128")
    assert status == 2
    assert "already holds a run; give --resume latest" in printed
    assert "Traceback" not in printed


def test_killed_and_resumed_equals_undisturbed(run, start, tmp_path):
    """SIGKILL at any moment, then --resume latest: bit for bit the same networks."""
    status, printed = run("whole", "--total-kimg", "0.64", "--keep", "99")
    assert status == 0, printed
    process = start("killed", "--total-kimg", "0.64", "--keep", "99")
    checkpoints = tmp_path / "killed" / "checkpoints"
    wait_for_checkpoints(process, checkpoints, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list_checkpoints(checkpoints)) < 10
    status, printed = run("killed", "--total-kimg", "0.64", "--resume", "latest", "--keep", "99")
    assert status == 0, printed
    assert "Going on from" in printed
    last = [list_checkpoints(tmp_path / k / "checkpoints")[-1] for k in ("whole", "killed")]
    assert last[0].name == last[1].name == "kimg-000000.640.safetensors"
    a, b = (tensors(path) for path in last)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert (tmp_path / "whole/grid-psi1.png").read_bytes() == (
        tmp_path / "killed/grid-psi1.png"
    ).read_bytes()


def test_two_processes_give_the_gradients_of_one(run, tmp_path):
    """With beta1 = 0 Adam's first moment is the gradient itself, of D and of G."""
    step = ["--total-kimg", "0.016", "--tick-kimg", "0.016", "--d-lr", "1e-12", "--g-lr", "1e-12"]
    found = []
    for name, options in {
        "one": {},
        "two": {"launcher": TORCHRUN},
    }.items():
        status, printed = run(name, *step, **options)
        assert status == 0, printed
        assert f"{len(found) + 1} x cpu" in printed
        found.append(tensors(list_checkpoints(tmp_path / name / "checkpoints")[-1]))
    status, printed = run("parts", *step, "--gradient-accumulation", "4")
    assert status == 0, printed
    found.append(tensors(list_checkpoints(tmp_path / "parts" / "checkpoints")[-1]))
    one, *others = found
    gradients = [k for k in one if k.endswith("exp_avg")]
    assert len(gradients) > 40
    for other in others:
        for key in gradients:
            scale = one[key].abs().max()
            assert scale > 0
            assert (one[key] - other[key]).abs().max() < 1e-4 * scale, key


def test_sigterm_saves_and_says_so(run, start, tmp_path):
    process = start("run", "--total-kimg", "1000", "--snapshot-ticks", "100000")
    deadline = time.monotonic() + 120
    stats = tmp_path / "run" / "stats.jsonl"
    while not stats.exists() or len(stats.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert "stopped by SIGTERM" in printed
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1
    status, printed = run("run", "--resume", "latest", "--max-minutes", "0.001")
    assert status == 0, printed
    assert "max-minutes reached" in printed


def test_a_loss_that_is_no_number_stops_the_run(run, tmp_path):
    status, printed = run("run", "--total-kimg", "0.064")
    assert status == 0, printed
    saved = list_checkpoints(tmp_path / "run" / "checkpoints")
    status, printed = run("run", "--resume", "latest", "--total-kimg", "1", "--g-lr", "1e18")
    assert status == 2
    assert "stopped being a finite number" in printed
    assert "lower --g-lr" in printed
    assert "Traceback" not in printed
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == saved


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch-size", "6"], "must be a multiple of 4"),
        (["--resolution", "20"], "resolution must be 3, 4 or 6 times"),
        (["--resume", "latest"], "holds no checkpoint"),
        (["--networks", "article"], "draws 96 px RGB only"),
    ],
)
def test_faults_get_one_sentence(run, flags, words):
    status, printed = run("run", "--total-kimg", "1", *flags)
    assert status == 2
    assert words in printed
    assert "Traceback" not in printed
