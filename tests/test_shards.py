"""Bulk drawing into tar shards: by launched processes, killed and taken up again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from children import Child, draw
from conftest import ROOT

from model import Generator
from studio.faces import Studio
from studio.recipe import Edit, Recipe
from studio.shards import SeedRanges, ShardsError, claimed, place, write_shards

RANGES = [range(100, 130), range(7, 12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    G = Generator(resolution=16, channels=(16, 16, 16), z_dim=16, w_dim=16)
    G.update_w_avg(256)
    made = tmp_path_factory.mktemp("generator")
    G.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def studio(folder) -> Studio:
    return Studio.open(folder)


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def flags(out: Path, folder: Path) -> list[str]:
    return ["--seeds", "100-599", "--shards", str(out), "--shard-size", "20",
            "--model", str(folder), "--batch-size", "4"]  # fmt: skip


def start(out: Path, folder: Path, processes: int) -> list[Child]:
    """Start processes that know their places from the environment, as a launcher tells them."""
    return [
        Child(
            draw, flags(out, folder), {"RANK": str(rank), "WORLD_SIZE": str(processes)},
            log=out.with_name(f"{out.name}-{rank}.log"),
        )
        for rank in range(processes)
    ]  # fmt: skip


def test_webdataset_reads_back_the_faces_of_the_list(studio: Studio, tmp_path: Path) -> None:
    assert list(write_shards(studio, Recipe(0, 0.5), RANGES, tmp_path, shard_size=16)) == [
        16,
        16,
        3,
    ]
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    seeds = [seed for part in RANGES for seed in part]
    assert [s["__key__"] for s in samples] == [f"seed{seed:010d}" for seed in seeds]
    drawn = studio.draw(seeds, 0.5)
    for seed, sample, face in zip(seeds, samples, drawn, strict=True):
        assert np.abs(sample["png"].astype(int) - face).max() <= 1
        assert sample["json"] == {"seed": seed, "psi": 0.5, "revision": studio.revision}
    assert list(write_shards(studio, Recipe(0, 0.5), RANGES, tmp_path, shard_size=16)) == []


def test_killed_processes_are_taken_up_by_others_to_the_same_bytes(
    folder: Path, tmp_path: Path
) -> None:
    killed = start(tmp_path / "killed", folder, 2)
    killed[0].wait_until(lambda: len(shards(tmp_path / "killed")) >= 3)
    for process in killed:
        process.kill()
    before = shards(tmp_path / "killed")
    assert 3 <= len(before) < 25, "it was killed too late to show anything"
    (whole,) = start(tmp_path / "whole", folder, 1)
    assert whole.wait() == 0, whole.printed()
    assert "process 1 of 1: 500 faces in" in whole.printed()
    again = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3",
         "-m", "studio", *flags(tmp_path / "killed", folder)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")
    assert len(shards(tmp_path / "whole")) == 25
    assert not list((tmp_path / "killed").glob("*.part"))


def test_ranges_are_cut_without_being_written_out() -> None:
    seeds = SeedRanges([range(10, 14), range(0, 3)])
    written = [10, 11, 12, 13, 0, 1, 2]
    for start_ in range(8):
        for stop in range(start_, 9):
            assert seeds.cut(start_, stop) == written[start_:stop]
    assert len(SeedRanges([range(2**32)])) == 2**32
    with pytest.raises(ShardsError, match="seed 12 is named twice"):
        SeedRanges([range(10, 14), range(12, 15)])


@pytest.mark.parametrize(
    "environment", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}, {"RANK": "-1"}]
)
def test_a_senseless_place_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ShardsError, match="RANK must be"):
        place(environment)


def test_faults_get_one_sentence(studio: Studio, tmp_path: Path, monkeypatch) -> None:
    def draw(**options):
        settings = {"shard_size": 10, **options}
        return list(write_shards(studio, Recipe(0), [range(10)], tmp_path / "out", **settings))

    with pytest.raises(ShardsError, match="--shard-size must give 1 to"):
        draw(shard_size=0)
    with pytest.raises(ValueError, match="no directions file"):
        list(write_shards(studio, Recipe(0, edits=(Edit("smile", 1.0),)), RANGES, tmp_path))
    (tmp_path / "out").mkdir()
    with (
        claimed(tmp_path / "out" / "faces-000000.tar.part"),
        pytest.raises(ShardsError, match="another command is writing"),
    ):
        draw()
    (tmp_path / "out" / "faces.json").write_text("[")
    with pytest.raises(ShardsError, match="is damaged"):
        draw()
    (tmp_path / "out" / "faces.json").unlink()
    draw()
    with pytest.raises(ShardsError, match="shards of other faces .shard_size differ."):
        draw(shard_size=5)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ShardsError, match="pip install"):
        draw()


def test_the_command_says_what_does_not_go_together(folder: Path, tmp_path: Path, capsys) -> None:
    from studio.__main__ import main

    flags = ["--seeds", "0-9", "--shards", str(tmp_path), "--model", str(folder)]
    assert main([*flags, "--grid", str(tmp_path / "g.png")]) == 2
    assert "--shards goes with --seeds, without" in capsys.readouterr().err
    assert main([*flags, "--shard-size", "4"]) == 0
    assert "process 1 of 1: 10 faces in" in capsys.readouterr().out
    assert len(shards(tmp_path)) == 3
