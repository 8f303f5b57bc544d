"""A run's metrics: as many faces as fit a tenth of the time, and none without a step."""

import json
import re
from types import SimpleNamespace

import pytest
from children import Bench

from training.config import make_config
from training.measuring import LADDER, LEAST, Costs, fit_counts
from training.run import training_minutes

CPU = Costs(draw=0.005, look=0.013, fixed=2.0)  # one core, 64 px, efficientnet-lite0


@pytest.fixture
def bench(tmp_path):
    """Runs in forked processes."""
    made = Bench(tmp_path)
    yield made
    made.close()


def spent(costs, drawn, seen, averages=1):
    """Return the seconds of measuring so many faces against so many real pictures."""
    return averages * (costs.fixed + drawn * (costs.draw + costs.look)) + seen * costs.look


@pytest.mark.parametrize("averages", [1, 3])
@pytest.mark.parametrize("known", [True, False])
def test_counts_fit_the_time(known, averages):
    before = (0, 0)
    for seconds in (0.1, 5, 20, 30, 60, 120, 600, 3600):
        drawn, seen = fit_counts(
            seconds, CPU, samples=5000, reals=29_000, known=known, averages=averages
        )
        assert drawn in (0, *LADDER)
        if drawn:
            seen = seen or 29_000
            assert LEAST <= drawn <= 5000 and seen >= LEAST
            assert spent(CPU, drawn, 0 if known else seen, averages) <= seconds
            assert (drawn, seen) >= before
            before = (drawn, seen)
    assert before == (5000, 29_000)
    assert fit_counts(5, CPU, samples=5000, reals=29_000, known=known, averages=averages)[0] == 0


def test_few_faces_that_were_asked_for_are_measured():
    assert fit_counts(10, CPU, samples=32, reals=24, known=False) == (32, None)


def test_measuring_at_marks_comes_out_of_the_metrics_tenth():
    run = SimpleNamespace(config=make_config({"max_minutes": 10}), samples=500, measured=0.0)
    assert training_minutes(run) == pytest.approx(9)
    run.measured = 0.5
    assert training_minutes(run) == pytest.approx(9.5)
    run.measured = 3.0  # more than it may take: the launch ends all the same
    assert training_minutes(run) == 10
    run.samples, run.measured = 0, 0.0
    assert training_minutes(run) == 10


def test_a_run_without_a_step_measures_nothing(bench, tmp_path):
    """The first grid takes the time; with 5,000 faces the figures took five minutes more."""
    status, printed = bench.run("run", "--max-minutes", "0.0001", "--metric-samples", "5000")
    assert status == 0, printed
    assert "max-minutes reached: 0 kimg" in printed
    assert "Nothing will be measured: even 500 faces take more than 10% of --max-minutes" in printed
    assert not (tmp_path / "run/metrics.json").exists()
    more = ["--resume", "latest", "--metric-features", "hog", "--metric-samples", "32"]
    status, printed = bench.run("run", *more, "--total-kimg", "0.016")
    assert status == 0, printed
    first = (tmp_path / "run/metrics.jsonl").read_text()
    assert json.loads(first)["num_fake"] == 32
    status, printed = bench.run("run", *more, "--total-kimg", "0.016")
    assert status == 0, printed
    assert "No step was made, so nothing is measured." in printed
    assert (tmp_path / "run/metrics.jsonl").read_text() == first


def test_faces_are_reduced_to_what_fits(bench, tmp_path):
    flags = ["--total-kimg", "0.016", "--max-minutes", "1", "--metric-features", "hog"]
    status, printed = bench.run("run", *flags, "--metric-samples", "1000000")
    assert status == 0, printed
    count = int(re.search(r"([\d,]+) faces will be measured", printed)[1].replace(",", ""))
    assert count in LADDER
    assert "instead of 1,000,000 against 24, to fit 10% of --max-minutes 1 (6 s)" in printed
    assert json.loads((tmp_path / "run/metrics.json").read_text())["num_fake"] == count


def test_two_processes_agree_on_what_is_measured_and_published(bench, tmp_path):
    flags = ["--total-kimg", "0.032", "--max-minutes", "5", "--metric-features", "hog"]
    flags += ["--metric-samples", "64", "--ema-kimg", "0.1", "0.4", "--augment-target", "0.5"]
    status, printed = bench.run_ranks("two", 2, *flags, "--batch-size", "8", "--tick-kimg", "0.016")
    assert status == 0, printed
    assert printed.count("Published is the average of") == 1
    lines = (tmp_path / "two/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["ema_kimg"] for line in lines] == [0.1, 0.4]
    last = json.loads((tmp_path / "two/stats.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["augment_strength"] <= 1
