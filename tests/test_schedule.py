"""Where a run ends and how step sizes change, by the settings or by the time that it has."""

import json
import re
import shutil

import pytest
import torch
from children import Bench
from test_train import checkpoints, tensors

from training import schedule
from training.checkpoint import list_checkpoints
from training.config import ConfigError, make_config
from training.schedule import Schedule, fit, make_schedule, step_size


@pytest.fixture
def bench(tmp_path):
    """Runs in forked processes."""
    made = Bench(tmp_path)
    yield made
    made.close()


def sizes(images, **settings):
    """Return step sizes after so many of 1,000 images."""
    config = make_config({"total_kimg": 1.0, "batch_size": 8, **settings})
    plan = make_schedule(config)
    return [round(step_size(config, plan, n), 4) for n in images]


def test_step_sizes_by_hand():
    assert sizes([0, 500, 999, 5000]) == [1, 1, 1, 1]
    assert sizes([0, 500, 750, 1000, 5000], anneal_from=0.5) == [1, 1, 0.515, 0.03, 0.03]
    assert sizes([0, 250, 500, 900], anneal_kimg=0.5, anneal_to=0.1) == [1, 0.55, 0.1, 0.1]
    assert sizes([0, 72, 92, 500], warmup_kimg=0.1) == [0.08, 0.8, 1, 1]
    assert sizes([900, 1000], anneal_from=1.0) == [1, 1]


def test_the_end_is_given_or_a_thousand_or_what_time_allows():
    assert make_schedule(make_config()).end == 1_000_000
    given = make_schedule(make_config({"total_kimg": 2.0, "max_minutes": 3, "projected_from": 0.2}))
    assert (given.end, given.projected_from, given.fitted) == (2000, 400, False)
    unknown = make_schedule(make_config({"max_minutes": 3, "projected_from": 0.2}))
    assert (unknown.end, unknown.projected_from, unknown.fitted) == (0, -1, True)


def test_what_fits_is_measured_after_a_cycle_and_with_the_projected_discriminator(monkeypatch):
    """100 images/s at first, of which compiling takes 10 s; then 50 with another discriminator."""
    config = make_config({"max_minutes": 10, "projected_from": 0.1, "batch_size": 10})
    plan, now, nimg, said = make_schedule(config), 0.0, 0, []
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now)
    while not plan.end:
        nimg += 10
        now += (10 if nimg == 10 else 0) + (0.1 if plan.projected_from < 0 else 0.2)
        said.append(fit(plan, config, nimg, now, 600))
    assert plan.projected_from == 5000  # 60 s, of which 10 went by without images
    assert 115 < now < 130  # a cycle of 160 images, then a minute
    assert plan.end == pytest.approx(nimg + 0.97 * (600 - now) * 50, abs=10)
    assert [text for text in said if text] == [
        "The projected discriminator begins, at 5 kimg.",
        f"50 images/s: {plan.end / 1000:g} kimg fit into --max-minutes; step sizes fall from "
        f"{plan.end / 2000:.4g} kimg on.",
    ]
    assert step_size(config, plan, plan.end) == pytest.approx(0.03)


def test_a_slow_machine_measures_the_steps_that_it_can_take(monkeypatch):
    config = make_config({"max_minutes": 10, "batch_size": 10})
    plan, now = make_schedule(config), 0.0
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now)
    for step in range(1, 9):
        now += 40.0
        fit(plan, config, 10 * step, now, 600)
    assert plan.end == 150  # warm after three steps, measured two; 97 of 100 more, in whole steps


def test_what_a_checkpoint_knows():
    fitted = Schedule(0, -1, fitted=True)
    assert fitted.state == {}
    fitted.restore({"projected_from": 64})
    assert (fitted.end, fitted.state) == (0, {"projected_from": 64})
    later = make_schedule(make_config())
    later.restore({"end": 640, "projected_from": 64})
    assert later.fitted and later.state == {"end": 640, "projected_from": 64}
    given = make_schedule(make_config({"total_kimg": 2.0}))
    given.restore({"end": 640})
    assert (given.end, given.state) == (2000, {})


@pytest.mark.parametrize(
    "settings",
    [{"anneal_kimg": 1.0, "anneal_from": 0.5}, {"max_minutes": 1, "projected_from": 0.4},
     {"max_minutes": 1, "projected_from": 0.2, "anneal_from": 0.3}, {"anneal_from": 1.5}],
)  # fmt: skip
def test_schedules_that_cannot_be(settings):
    with pytest.raises(ConfigError, match="anneal-from"):
        make_config(settings)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_fits_its_time_and_resumes_exactly(bench, tmp_path, ranks):
    flags = ["--tick-kimg", "0.16", "--keep", "999", "--max-minutes"]
    status, printed = bench.run_ranks("run", ranks, *flags, "0.1")
    assert status == 0, printed
    (kimg,) = re.findall(r"images/s: ([\d.]+) kimg fit into --max-minutes", printed)
    lines = [json.loads(line) for line in (tmp_path / "run/stats.jsonl").read_text().splitlines()]
    assert lines[0].get("total_kimg") is None
    assert lines[-1]["total_kimg"] == float(kimg) >= lines[-1]["kimg"] > 0.4 * float(kimg)
    if ranks > 1:
        return
    # Resumed from a checkpoint behind the measuring, it takes the same steps to the same end.
    *_, start, later, _ = list_checkpoints(tmp_path / "run" / "checkpoints")
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    shutil.copy(start, tmp_path / "again" / "checkpoints")
    status, printed = bench.run("again", *flags, "10", "--resume", "latest")
    assert status == 0, printed
    assert "fit into" not in printed
    assert f"all images of its time seen (--total-kimg adds some): {kimg} kimg" in printed
    one, two = (tensors(tmp_path / run / "checkpoints" / later.name) for run in ("run", "again"))
    assert [k for k in one if not torch.equal(one[k], two[k])] == []


def test_a_projected_discriminator_begins_at_a_share_of_the_run(bench, tmp_path):
    flags = ["--total-kimg", "0.128", "--tick-kimg", "0.032", "--keep", "9"]
    status, printed = bench.run("run", *flags, "--projected-weight", "1", "--projected-from", "0.5")
    assert status == 0, printed
    lines = [json.loads(line) for line in (tmp_path / "run/stats.jsonl").read_text().splitlines()]
    assert ["projected_d_loss" in line for line in lines] == [False] * 3 + [True] * 2
    before, at, after, _ = checkpoints(tmp_path / "run")
    heads = [k for k in before if k.startswith("projected/") and k.endswith("original")]
    assert all(torch.equal(before[k], at[k]) for k in heads)
    assert not any(torch.equal(at[k], after[k]) for k in heads)
