"""What a run without a GPU is told of its length."""

import re

import pytest
import torch
from test_precision import TINY

from training import forecast as forecasting
from training import run as building
from training.config import PRESETS, make_config
from training.schedule import step_size


@pytest.fixture
def build(faces_dir, tmp_path, monkeypatch):
    """Build a small run with settings of its own, in which any network is a large one."""
    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(forecasting, "LARGE", 1)
    made = []

    def make(**settings):
        folder = {"data": (str(faces_dir),), "out": str(tmp_path / f"run{len(made)}")}
        made.append(building.build(make_config(TINY, folder, settings)))
        return made[-1]

    yield make
    for run in made:
        run.lock.close()


def test_a_run_is_told_how_long_it_takes_and_stays_as_it_is(build, capsys):
    run = build(projected_weight=1.0, total_kimg=2000.0)
    before = {n: [t.clone() for t in net.state_dict().values()] for n, net in run.networks.items()}
    printed = capsys.readouterr().out
    told = re.search(r"some ([\d.]+) images/s, so 2,000 kimg take about ([\d.]+) (\w+),", printed)
    assert told, printed
    hours = float(told[2]) * {"hours": 1, "days": 24}[told[3]]
    assert hours == pytest.approx(2e6 / float(told[1]) / 3600, rel=0.1)
    assert "--preset quick-64" in printed
    assert forecasting.forecast(run)
    for name, network in run.networks.items():
        assert all(map(torch.equal, before[name], network.state_dict().values())), name
        assert all(p.grad is None for p in network.parameters())
    assert run.D_raw.training and run.P_raw.training


def test_of_the_time_that_it_has(build, capsys):
    build(max_minutes=10.0)
    assert "--max-minutes 10 has time for about" in capsys.readouterr().out


def test_small_networks_are_told_nothing(build, monkeypatch, capsys):
    monkeypatch.setattr(forecasting, "LARGE", 10_000_000)
    build()
    assert "no GPU" not in capsys.readouterr().out


def test_the_gpus_preset_is_large_and_fits_its_time():
    config = make_config(PRESETS["kaogan-128"], {"max_minutes": 10})
    G, D = building.kaogan_networks(config)
    parameters = sum(p.numel() for n in (G, D) for p in n.parameters())
    assert parameters == 9_188_834 + 10_700_209 > forecasting.LARGE
    schedule = building.make_schedule(config)
    assert schedule.fitted and schedule.projected_from < 0
    schedule.end = 400_000
    assert step_size(config, schedule, 64 * 199) == 1
    assert step_size(config, schedule, 200_000) == 1
    assert step_size(config, schedule, 400_000) == pytest.approx(0.03)
