"""The real training run: as a trainer launches it, and in forked processes, on drawn faces."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from children import SMALL, Bench
from conftest import ROOT
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from model import Discriminator, Generator, latents_from_seeds
from training.checkpoint import list_checkpoints
from training.projected import ProjectedDiscriminator

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1",
          "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
# What `accelerate config` writes for one machine with two GPUs; on CPU by `use_cpu`.
TWO_PROCESSES = {
    "compute_environment": "LOCAL_MACHINE", "debug": False, "distributed_type": "MULTI_GPU",
    "downcast_bf16": "no", "enable_cpu_affinity": False, "gpu_ids": "all", "machine_rank": 0,
    "main_training_function": "main", "mixed_precision": "bf16", "num_machines": 1,
    "num_processes": 2, "rdzv_backend": "static", "same_network": True, "tpu_env": [],
    "tpu_use_cluster": False, "tpu_use_sudo": False, "use_cpu": True, "main_process_port": 0,
}  # fmt: skip


@pytest.fixture
def bench(tmp_path):
    """Runs in forked processes."""
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Return the last checkpoint of a short run that nothing but its flags told what to do."""
    made = Bench(tmp_path_factory.mktemp("bare"))
    status, printed = made.run("bare", "--total-kimg", "0.032")
    made.close()
    assert status == 0, printed
    return checkpoints(made.folder / "bare")[-1]


@pytest.fixture
def start(faces_dir, tmp_path):
    """Start train.py on the drawn faces in a fresh interpreter; returns a running process."""
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
            start_new_session=True,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
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


def checkpoints(folder):
    """Return the tensors of each checkpoint of a run, oldest first."""
    return [tensors(path) for path in list_checkpoints(folder / "checkpoints")]


def wait_for_checkpoints(process, folder, count):
    """Wait until a run has written so many checkpoints."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob("kimg-*.safetensors"))) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_launched_run_leaves_what_it_promises(run, bench, tmp_path):
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
    averaged = checkpoints(folder)[-1]["G_ema/const"]
    assert torch.equal(G.const, averaged)

    status, printed = bench.run("run", "--total-kimg", "0.128")
    assert status == 2
    assert "already holds a run; give --resume latest" in printed
    assert "Traceback" not in printed


def test_killed_and_resumed_equals_undisturbed(bench, start, tmp_path):
    """SIGKILL at any moment, then --resume latest: bit for bit the same networks."""
    more = ["--keep", "99", "--data", str(tmp_path / "faces")]
    status, printed = bench.run("whole", "--total-kimg", "0.64", *more)
    assert status == 0, printed
    process = start("killed", "--total-kimg", "0.64", "--keep", "99")
    saved = tmp_path / "killed" / "checkpoints"
    wait_for_checkpoints(process, saved, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list_checkpoints(saved)) < 10
    status, printed = bench.run("killed", "--total-kimg", "0.64", "--resume", "latest", *more)
    assert status == 0, printed
    assert "Resuming from" in printed
    last = [list_checkpoints(tmp_path / k / "checkpoints")[-1] for k in ("whole", "killed")]
    assert last[0].name == last[1].name == "kimg-000000.640.safetensors"
    a, b = (tensors(path) for path in last)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert (tmp_path / "whole/grid-psi1.png").read_bytes() == (
        tmp_path / "killed/grid-psi1.png"
    ).read_bytes()


def test_a_projected_discriminator_takes_part_and_is_resumed_exactly(bench, tmp_path):
    both = ["--total-kimg", "0.128", "--keep", "9", "--projected-weight"]
    for name, flags in {
        "alone": [*both, "0"],
        "whole": [*both, "1"],
        "parts": [*both, "1", "--total-kimg", "0.064"],
    }.items():
        status, printed = bench.run(name, *flags)
        assert status == 0, printed
    rename_as_of_old(list_checkpoints(tmp_path / "parts" / "checkpoints")[-1])
    status, printed = bench.run("parts", *both, "1", "--resume", "latest")
    assert status == 0, printed
    alone, whole, parts = (checkpoints(tmp_path / name)[-1] for name in ("alone", "whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [k for k in whole if not torch.equal(whole[k], parts[k])] == []
    more = {k for k in whole if k not in alone}
    assert more == {k for k in whole if k.startswith(("projected/", "projected_opt/"))} != set()
    moved = [k for k in alone if k.startswith("G/") and not torch.equal(alone[k], whole[k])]
    assert moved, "G did not heed it"
    line = json.loads((tmp_path / "whole/stats.jsonl").read_text().splitlines()[-1])
    assert line["projected_d_loss"] > 0
    # Another run starts with its heads, which are saved beside generator/ and discriminator/.
    heads = ProjectedDiscriminator.from_pretrained(tmp_path / "whole" / "projected").state_dict()
    assert all(torch.equal(heads[k], whole[f"projected/{k}"]) for k in heads)
    flags = [
        "--init-from",
        str(tmp_path / "whole"),
        "--total-kimg",
        "0.016",
        "--tick-kimg",
        "0.016",
    ]
    status, printed = bench.run(
        "next", *flags, "--projected-weight", "1", "--projected-lr", "1e-12"
    )
    assert status == 0, printed
    assert f"Projected discriminator: tensors taken: {len(heads)} of {len(heads)}." in printed
    (begun,) = checkpoints(tmp_path / "next")
    for key in (k for k in heads if k.endswith("original")):
        torch.testing.assert_close(begun[f"projected/{key}"], heads[key])


def rename_as_of_old(path):
    """Give a checkpoint the names that a projected discriminator's tensors had once."""
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), "format": "kaogan-checkpoint-1"}
    metadata.pop("sha256")
    names = {"projected": "A", "projected_opt": "A_opt"}
    stored = {}
    for key, tensor in tensors(path).items():
        of, _, rest = key.partition("/")
        stored[f"{names.get(of, of)}/{rest}"] = tensor
    assert any(k.startswith("A_opt/") for k in stored)
    save_file(stored, path, metadata=metadata)


def test_a_projected_discriminator_learns_alike_on_two_processes(bench, tmp_path):
    both = [*STILL, "--projected-weight", "1", "--projected-lr", "1e-12", "--total-kimg", "0.032"]
    for status, printed in (bench.run("one", *both), bench.run_ranks("two", 2, *both)):
        assert status == 0, printed
    one, two = (checkpoints(tmp_path / name)[0] for name in ("one", "two"))
    assert any(k.startswith("projected_opt") for k in gradients(one))
    assert_same_gradients(one, two)


# ------------------------------------------------------------------------------------------
# Several processes


def gradients(checkpoint):
    """With beta1 = 0 Adam's first moment is the gradient itself, of D and of G."""
    found = {k: v for k, v in checkpoint.items() if k.endswith("exp_avg")}
    assert len(found) > 40
    return found


def assert_same_gradients(ours, others, tolerance=1e-4):
    for key, gradient in gradients(ours).items():
        scale = gradient.abs().max()
        assert scale > 0, key
        assert (gradient - others[key]).abs().max() < tolerance * scale, key


# Steps of (nearly) no size leave the weights as they are, so each step's gradient is a function of
# its pictures, latents and augmentation alone: equal gradients at step k mean equal draws there.
STILL = ["--batch-size", "32", "--tick-kimg", "0.032", "--keep", "9",
         "--d-lr", "1e-12", "--g-lr", "1e-12"]  # fmt: skip


def test_two_processes_give_the_gradients_of_one(bench, tmp_path):
    """2 × 16 and 4 parts of 8 see, at each of four steps, what 1 × 32 sees."""
    long = ["--total-kimg", "0.128"]
    for name, (status, printed) in {
        "one": bench.run("one", *STILL, *long),
        "two": bench.run_ranks("two", 2, *STILL, *long),
        "parts": bench.run("parts", *STILL, *long, "--gradient-accumulation", "4"),
    }.items():
        assert status == 0, printed
        assert f"{2 if name == 'two' else 1} x cpu" in printed
        assert len(checkpoints(tmp_path / name)) == 4
    one, two, parts = (checkpoints(tmp_path / name) for name in ("one", "two", "parts"))
    for step in range(4):
        assert_same_gradients(one[step], two[step])
        assert_same_gradients(one[step], parts[step])
    for step in range(3):  # the test would notice another order of the data
        with pytest.raises(AssertionError):
            assert_same_gradients(one[step], one[step + 1], tolerance=0.1)


def test_a_run_goes_on_with_another_number_of_processes(bench, tmp_path):
    status, printed = bench.run("one", *STILL, "--total-kimg", "0.192")
    assert status == 0, printed
    status, printed = bench.run_ranks("changing", 2, *STILL, "--total-kimg", "0.064")
    assert status == 0, printed
    more = ["--resume", "latest", "--total-kimg"]
    status, printed = bench.run("changing", *STILL, *more, "0.128")
    assert status == 0, printed
    assert "at 0.064 kimg" in printed
    status, printed = bench.run_ranks("changing", 2, *STILL, *more, "0.192")
    assert status == 0, printed
    one, changing = checkpoints(tmp_path / "one"), checkpoints(tmp_path / "changing")
    assert len(one) == len(changing) == 6
    for a, b in zip(one, changing, strict=True):
        assert_same_gradients(a, b)


def test_the_average_of_two_processes_is_that_of_one(bench, tmp_path):
    """Each step moves G_ema towards G by a share of images, not of steps or processes."""
    flags = ["--batch-size", "32", "--tick-kimg", "0.032", "--keep", "9", "--total-kimg", "0.192"]
    flags += ["--ema-kimg", "0.1", "--ema-rampup", "100"]
    decay = 0.5 ** (32 / 100)
    for status, printed in (
        bench.run("one", *flags),
        bench.run_ranks("two", 2, *flags),
    ):
        assert status == 0, printed
    one, two = checkpoints(tmp_path / "one"), checkpoints(tmp_path / "two")
    averaged = [k for k in one[0] if k.startswith("G_ema/") and k != "G_ema/w_avg"]
    assert len(averaged) > 20
    for steps in (one, two):
        for before, after in zip(steps, steps[1:], strict=False):
            for key in averaged:
                current = after[key.replace("G_ema/", "G/")]
                expected = decay * before[key] + (1 - decay) * current
                torch.testing.assert_close(after[key], expected, rtol=1e-5, atol=1e-6)
                assert not torch.equal(after[key], before[key])
    # Adam's steps depend on the sign of gradients that rounding may turn: most weights agree.
    moved = torch.cat([(one[-1][k] - one[0][k]).flatten() for k in averaged])
    apart = torch.cat([(one[-1][k] - two[-1][k]).flatten() for k in averaged])
    assert apart.norm() < 0.05 * moved.norm()


def test_a_dead_process_takes_the_launched_run_down_and_one_goes_on(start, bench, tmp_path):
    """`accelerate launch` with its own kind of file; SIGKILL of rank 1; --resume with one."""
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(TWO_PROCESSES))
    launcher = [*LAUNCH[:3], "--config_file", str(tmp_path / "two.yaml")]
    launched = start("run", "--total-kimg", "1000", launcher=launcher)
    wait_for_checkpoints(launched, tmp_path / "run" / "checkpoints", 2)
    ranks = {}
    for process in Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split():
        environment = Path(f"/proc/{process}/environ").read_text().split("\0")
        ranks |= {v.removeprefix("RANK="): process for v in environment if v.startswith("RANK=")}
    assert ranks.keys() == {"0", "1"}
    os.kill(int(ranks["1"]), signal.SIGKILL)
    printed, _ = launched.communicate(timeout=60)
    assert launched.returncode != 0
    assert "2 x cpu:0, precision no" in printed
    assert "train.py: process 0 of 2 lost another one, which died (" in printed
    assert "--resume latest resumes from the last checkpoint" in printed
    saved = list_checkpoints(tmp_path / "run" / "checkpoints")
    reached = float(saved[-1].stem.removeprefix("kimg-"))
    flags = ["--resume", "latest", "--total-kimg", str(round(reached + 0.064, 3))]
    status, printed = bench.run("run", *flags)
    assert status == 0, printed
    assert f"Resuming from {saved[-1]}" in printed
    assert "1 x cpu" in printed


def test_sigterm_to_any_process_ends_all_in_good_order(bench, tmp_path):
    ranks = bench.start_ranks("run", 2, "--total-kimg", "1000", "--snapshot-ticks", "100000")
    stats = tmp_path / "run" / "stats.jsonl"
    ranks[0].wait_until(lambda: stats.exists() and len(stats.read_text().splitlines()) >= 3)
    os.kill(ranks[1].process.pid, signal.SIGTERM)
    assert [child.wait() for child in ranks] == [0, 0], ranks[0].printed() + ranks[1].printed()
    assert "stopped by SIGTERM" in ranks[0].printed()
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1


# What `accelerate config` asks, and what this run makes of the answers.
SINGLE = {"distributed_type": "NO", "num_processes": 1, "use_cpu": True}


@pytest.mark.parametrize(
    ("answers", "environment"),
    [
        ({**SINGLE, "mixed_precision": "no"}, {}),
        ({**SINGLE, "mixed_precision": "bf16"}, {}),
        ({**SINGLE, "mixed_precision": "fp16"}, {}),
        ({**SINGLE, "dynamo_config": {"dynamo_backend": "INDUCTOR"}}, {}),
        (SINGLE, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}),
    ],
    ids=["plain", "bf16", "fp16", "compiled", "accumulating"],
)
def test_what_the_launcher_is_told_does_not_change_a_cpu_run(
    bench, bare, tmp_path, answers, environment
):
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(TWO_PROCESSES | answers))
    config = str(tmp_path / "file.yaml")
    status, printed = bench.run("run", "--total-kimg", "0.032", launch=config, **environment)
    assert status == 0, printed
    assert "1 x cpu, precision no" in printed
    told = checkpoints(tmp_path / "run")[-1]
    assert [k for k in bare if not torch.equal(bare[k], told[k])] == []


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_kinds_of_parallelism_that_a_gan_cannot_use(bench, kind):
    status, printed = bench.run("run", **{f"ACCELERATE_USE_{kind}": "true"})
    assert status == 2
    assert f"the launcher asks for {kind}" in printed
    assert "choose multi-GPU without it in accelerate config" in printed
    assert "Traceback" not in printed


# ------------------------------------------------------------------------------------------
# Stopping, and what cannot start


def test_sigterm_saves_and_says_so(bench, tmp_path):
    flags = ["--snapshot-ticks", "100000", "--metric-samples", "1000000"]
    child = bench.start("run", "--total-kimg", "1000", *flags)
    stats = tmp_path / "run" / "stats.jsonl"
    child.wait_until(lambda: stats.exists() and len(stats.read_text().splitlines()) >= 3)
    os.kill(child.process.pid, signal.SIGTERM)
    assert child.wait() == 0, child.printed()
    assert "stopped by SIGTERM" in child.printed()
    assert not (tmp_path / "run" / "metrics.json").exists()  # nobody is kept waiting for it
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1
    status, printed = bench.run("run", "--resume", "latest", "--max-minutes", "0.001")
    assert status == 0, printed
    assert "max-minutes reached" in printed


def test_a_run_starts_from_another_runs_networks(bench, tmp_path):
    status, printed = bench.run("small", "--total-kimg", "0.064")
    assert status == 0, printed
    source = str(tmp_path / "small")
    larger = ["--resolution", "32", "--patch", "2", "--init-from", source]
    status, printed = bench.run("large", "--total-kimg", "0.064", *larger)
    assert status == 0, printed
    taken = re.search(r"tensors taken: G (\d+) of (\d+), D (\d+) of (\d+)\.", printed)
    assert taken, printed
    assert taken[1] == taken[2]
    assert taken[3] == taken[4]
    learned, start, old = (
        Generator.from_pretrained(tmp_path / name)
        for name in ("large/generator", "large/start", "small/generator")
    )
    assert learned.config == start.config != old.config
    assert torch.equal(start.const, old.const) and not torch.equal(learned.const, old.const)
    # A checkpoint wins over --init-from: going on is not starting again.
    status, printed = bench.run("large", "--total-kimg", "0.128", *larger, "--resume", "latest")
    assert status == 0, printed
    assert "Starting from" not in printed


def test_a_loss_that_is_no_number_stops_the_run(bench, tmp_path):
    status, printed = bench.run("run", "--total-kimg", "0.064")
    assert status == 0, printed
    saved = list_checkpoints(tmp_path / "run" / "checkpoints")
    status, printed = bench.run("run", "--resume", "latest", "--total-kimg", "1", "--g-lr", "1e18")
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
        (["--patch", "4", "--resolution", "18"], "multiple of patch 4"),
        (["--init-from", "nowhere/at all"], "neither a folder nor a Hub repository"),
        (["--augment", "flip"], "--augment: no augmentation is called 'flip'; choose from colour"),
        (["--log-with", "wandb"], "--log-with wandb needs its package: pip install wandb"),
        (["--aid-weight", "1"], "--aid-weight is now called --projected-weight; give that"),
    ],
)
def test_faults_get_one_sentence(bench, flags, words):
    if "wandb" in flags and importlib.util.find_spec("wandb"):
        flags, words = ["--log-with", "trackio"], "needs its package: pip install trackio"
    status, printed = bench.run("run", "--total-kimg", "1", *flags)
    assert status == 2
    assert words in printed
    assert "Traceback" not in printed
