"""A run survives what happens to it: kills, full disks, damage, a second run, odd clocks, NaN."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from children import SMALL, Bench, Child, train
from conftest import draw_face
from faults import pack_as_nobody
from safetensors import safe_open

from model import Discriminator, Generator
from training.checkpoint import is_whole, list_checkpoints

WHOLE_KIMG = 0.96  # of the undisturbed run: 15 ticks of 64 images, each with a checkpoint
# Places inside a tick: the k-th time that Python is about to do this to a path of that name.
EXACT = [
    ("open", "kimg-000000.064.part", 1),  # written, not yet sealed
    ("os.rename", "kimg-000000.128.part", 1),  # sealed, not yet renamed
    ("os.rename", "generator.part/model", 1),  # config.json is new, the weights are not
    ("os.remove", "checkpoints/kimg", 1),  # renamed, older ones not yet dropped
    ("open", "stats.jsonl", 2),
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The undisturbed run, all of whose checkpoints are kept, and how long it took."""
    bench = Bench(tmp_path_factory.mktemp("whole"))
    status, printed = bench.run("warm", "--total-kimg", "0.016")  # starts the server, packs
    assert status == 0, printed
    started = time.monotonic()
    status, printed = bench.run("whole", "--total-kimg", str(WHOLE_KIMG), "--keep", "99")
    assert status == 0, printed
    return bench.folder / "whole", time.monotonic() - started


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


def tensors(path):
    with safe_open(path, framework="pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


OWN = ("minutes", "images_per_s", "total_kimg")  # of each run: its times, and its length


def assert_equals_undisturbed(folder: Path, whole: Path, kimg: float = WHOLE_KIMG) -> None:
    """Compare the newest checkpoint, the log and the grids with those of the undisturbed run."""
    name = f"kimg-{kimg:010.3f}.safetensors"
    assert list_checkpoints(folder / "checkpoints")[-1].name == name
    a, b = (tensors(f / "checkpoints" / name) for f in (folder, whole))
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    lines = [
        [
            {k: v for k, v in json.loads(line).items() if k not in OWN}
            for line in (f / "stats.jsonl").read_text().splitlines()
        ]
        for f in (folder, whole)
    ]
    assert lines[0] == [line for line in lines[1] if line["kimg"] <= kimg]
    for grid in (folder / "grids").iterdir():
        assert grid.read_bytes() == (whole / "grids" / grid.name).read_bytes()


def assert_intact(folder: Path) -> list[Path]:
    """Check that whatever a dead run left can be used, and return its checkpoints."""
    saved = list_checkpoints(folder / "checkpoints")
    assert all(is_whole(path) for path in saved)
    for kind, name in ((Generator, "generator"), (Discriminator, "discriminator")):
        if (folder / name / "config.json").exists():
            if not (folder / name / "model.safetensors").exists():
                assert len(saved) == 1, "only the very first save may be caught between two files"
                continue
            kind.from_pretrained(folder / name)
    return saved


def resume(folder: Path) -> list[str]:
    return ["--resume", "latest"] if list_checkpoints(folder / "checkpoints") else []


def test_killed_at_random_and_inside_every_write(bench, kept):
    """Ten kills at random moments, five at exact ones inside a tick; then all is as if none."""
    whole, seconds = kept
    folder = bench.folder / "run"
    seed = random.randrange(10**6)
    print(f"moments drawn with seed {seed}")  # shown where the test fails
    moments = [random.Random(seed).uniform(0, 0.12) * seconds for _ in range(10)]
    before: list[Path] = []
    killed = 0
    for place in [*EXACT, *moments]:
        exact = isinstance(place, tuple)
        flags = ["--total-kimg", str(WHOLE_KIMG), *resume(folder)]
        child = bench.start("run", *flags, tweak=("die_at", *place) if exact else ("",))
        if not exact:
            child.wait_until(lambda c=child: "parameters;" in c.printed())
            time.sleep(place)
            child.kill()
        status = child.wait()
        assert status in ((-9,) if exact else (-9, 0)), child.printed()
        killed += status == -9
        saved = assert_intact(folder)
        assert saved >= before, "a checkpoint went back or away"
        assert len(saved) >= min(len(before), 2)
        before = saved
    assert killed >= 10
    status, printed = bench.run("run", "--total-kimg", str(WHOLE_KIMG), *resume(folder))
    assert status == 0, printed
    assert_equals_undisturbed(folder, whole)
    assert_intact(folder)
    assert not list(folder.rglob("*.part"))
    assert len(list_checkpoints(folder / "checkpoints")) == 2


@contextmanager
def small_disk(folder: Path):
    """Give a folder a disk of 4 MiB of its own; yields False where that needs other rights."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("room", [0, 20_000, 60_000, 300_000], ids="{} bytes left".format)
def test_full_disk_is_named_and_keeps_what_is_saved(bench, room):
    """Where no disk can be mounted, a limit on the size of a file stands in for a full one."""
    with small_disk(bench.folder / "disk") as mounted:
        folder = bench.folder / "disk" / "run"
        status, printed = bench.run(folder, "--total-kimg", "0.128")
        assert status == 0, printed
        saved = {p.name: p.read_bytes() for p in assert_intact(folder)}
        ballast = bench.folder / "disk" / "ballast"
        if mounted:
            free = shutil.disk_usage(folder).free - room
            ballast.write_bytes(bytes(max(0, free // 4096 * 4096)))
        tweak = ("",) if mounted else ("limit_files", max(room, 4000))  # the log needs some
        flags = ["--total-kimg", "0.256", "--resume", "latest"]
        status, printed = bench.run(folder, *flags, tweak=tweak)
        assert status == 2, printed
        assert "Traceback" not in printed
        assert "No space left" in printed or "too large" in printed
        sentence = next(line for line in printed.splitlines() if line.startswith("train.py: "))
        assert sentence.count("free space") == 1, sentence  # once: two handlers see it
        assert sentence.count("--resume latest") <= 1, sentence  # before the first step: not at all
        assert {p.name: p.read_bytes() for p in assert_intact(folder)} == saved
        ballast.unlink(missing_ok=True)
        status, printed = bench.run(folder, *flags)
        assert status == 0, printed
        assert not list(folder.rglob("*.part"))


def test_damaged_checkpoint_is_refused_and_the_one_before_offered(bench, kept):
    whole, _ = kept
    folder = bench.folder / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("kimg-000000.064", "kimg-000000.128", "kimg-000000.192"):
        shutil.copy(whole / "checkpoints" / f"{name}.safetensors", folder / "checkpoints")
    shutil.copy(whole / "stats.jsonl", folder)
    one, two, three = list_checkpoints(folder / "checkpoints")
    data = bytearray(three.read_bytes())
    data[len(data) // 2] ^= 1
    three.write_bytes(data)
    os.truncate(two, two.stat().st_size - 1)
    status, printed = bench.run("run", "--total-kimg", "0.256", "--resume", "latest")
    assert status == 2
    assert f"{three} is damaged" in printed
    assert f"resume from the one before with --resume {one}" in printed  # the second is cut
    assert "Traceback" not in printed
    flags = ["--total-kimg", "0.128", "--resume", str(one), "--snapshot-ticks", "1"]
    status, printed = bench.run("run", *flags)
    assert status == 0, printed
    assert_equals_undisturbed(folder, whole, 0.128)  # "latest" is no longer the damaged one
    assert three.with_name(f"{three.name}.aside").exists()


def test_the_data_change_and_vanish_under_a_run(bench, kept):
    whole, _ = kept
    folder = bench.folder / "run"
    child = bench.start("run", "--total-kimg", "0.64")
    child.wait_until((folder / "checkpoints" / "kimg-000000.064.safetensors").exists)
    for index in range(12):
        draw_face(99, 24, 24).save(bench.data / f"{index:02d}.png")
    shutil.rmtree(bench.data)
    shutil.rmtree(bench.folder / "cache")
    assert child.wait() == 0, child.printed()
    assert_equals_undisturbed(folder, whole, 0.64)

    status, printed = bench.run("run", "--total-kimg", "1", "--resume", "latest")
    assert status == 2
    assert f"{bench.data} does not exist: check the path" in printed
    bench.data.mkdir()
    for index in range(5):
        draw_face(index, 24, 24).save(bench.data / f"{index:02d}.png")
    status, printed = bench.run("run", "--total-kimg", "0.704", "--resume", "latest")
    assert status == 0, printed
    assert "The pictures changed since then" in printed


def test_a_clock_that_runs_backwards(bench, kept):
    whole, _ = kept
    backwards = {"tweak": ("turn_clock_back",)}
    status, printed = bench.run("run", "--total-kimg", "0.192", "--keep", "9", **backwards)
    assert status == 0, printed
    saved = list_checkpoints(bench.folder / "run" / "checkpoints")
    for age, path in enumerate(saved):  # as if each were older than the one before
        os.utime(path, (10**9 - age, 10**9 - age))
    flags = ["--total-kimg", "0.256", "--resume", "latest", "--keep", "2"]
    status, printed = bench.run("run", *flags, **backwards)
    assert status == 0, printed
    assert f"Resuming from {saved[-1]}" in printed
    assert_equals_undisturbed(bench.folder / "run", whole, 0.256)
    names = [p.name for p in list_checkpoints(bench.folder / "run" / "checkpoints")]
    assert names == ["kimg-000000.192.safetensors", "kimg-000000.256.safetensors"]


def test_a_second_run_in_the_same_folder_is_refused(bench):
    folder = bench.folder / "run"
    first = bench.start("run", "--total-kimg", "1000", "--snapshot-ticks", "1000")
    first.wait_until((folder / "grids" / "kimg-00000.000.png").exists)
    for flags in ([], ["--resume", "latest"]):
        status, printed = bench.run("run", "--total-kimg", "0.064", *flags)
        assert status == 2
        assert "run belongs to a run that is still going (process " in printed
        assert f"(process {first.process.pid} on " in printed
        assert "Traceback" not in printed
    assert first.process.is_alive()
    first.kill()
    status, printed = bench.run("run", "--total-kimg", "0.064")  # a dead run holds nothing
    assert status == 0, printed


def test_files_that_may_not_be_read():
    """Root may read everything, so the child gives that up."""
    with tempfile.TemporaryDirectory(prefix="kaogan-test-") as made:
        top = Path(made)
        top.chmod(0o755)
        (top / "data").mkdir()
        (top / "cache").mkdir(mode=0o777)
        (top / "cache").chmod(0o777)
        for index in range(3):
            draw_face(index, 24, 24).save(top / "data" / f"{index}.png")
        (top / "data" / "1.png").chmod(0)
        child = Child(pack_as_nobody, str(top / "data"), str(top / "cache"), log=top / "log")
        assert child.wait() == 0, child.printed()
        assert "2 {'unreadable': 1}" in child.printed()

        flags = [*SMALL, "--data", str(top / "data"), "--out", str(top / "locked" / "run")]
        (top / "locked").mkdir()
        (top / "locked").chmod(0o555)
        env = {"KAOGAN_CACHE": str(top / "cache")}
        child = Child(train, flags, env, "", "become_nobody", log=top / "log2")
        assert child.wait() == 2, child.printed()
        assert f"{top / 'locked' / 'run'}: Permission denied" in child.printed()
        assert "Traceback" not in child.printed()


@pytest.mark.parametrize(
    ("tweak", "words"),
    [
        (("spoil_batch", 144), "d_loss, d_real"),  # inside a tick
        (("spoil_batch", 176), "d_loss, d_real"),  # just before a checkpoint
        (("spoil_weights", 192), "a weight of D stopped"),  # whose losses were finite
    ],
)
def test_nan_stops_the_run_with_the_last_good_state_kept(bench, kept, tweak, words):
    whole, _ = kept
    folder = bench.folder / "run"
    status, printed = bench.run("run", "--total-kimg", "0.64", tweak=tweak)
    assert status == 2, printed
    assert words in printed
    assert "stopped being a finite number before 0.192 kimg" in printed
    assert "Traceback" not in printed
    saved = assert_intact(folder)
    assert [p.name for p in saved] == [f"kimg-000000.{k}.safetensors" for k in ("064", "128")]
    assert all(t.isfinite().all() for t in tensors(saved[-1]).values())
    status, printed = bench.run("run", "--total-kimg", "0.192", "--resume", "latest")
    assert status == 0, printed
    assert_equals_undisturbed(folder, whole, 0.192)


def test_nan_at_the_very_end_is_not_saved(bench):
    """A run that ends between two ticks looks at its losses once more."""
    flags = ["--total-kimg", "0.032", "--tick-kimg", "1"]
    status, printed = bench.run("run", *flags, tweak=("spoil_batch", 16))
    assert status == 2, printed
    assert "d_loss, d_real, g_loss" in printed
    assert "stopped being a finite number before 0.032 kimg" in printed
    assert list_checkpoints(bench.folder / "run" / "checkpoints") == []
