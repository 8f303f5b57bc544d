"""Several averages of G: each of its own length, in every checkpoint, measured, one published."""

import json
import math
import shutil

import pytest
import torch
from children import Bench
from safetensors.torch import load_file
from test_train import checkpoints

from training.averages import names_of, nearest, stored_averages
from training.config import ConfigError, make_config
from training.measuring import RULE, choose, table
from training.metrics import Scores

LENGTHS = (0.1, 0.4, 0.8)
FLAGS = ["--keep", "9", "--ema-rampup", "0.2"]
SEVERAL = [*FLAGS, "--ema-kimg", *map(str, LENGTHS)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Runs in forked processes."""
    made = Bench(tmp_path_factory.mktemp("bench"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(bench):
    """Return the folder of a run with three averages, a checkpoint at every step of 16 images."""
    status, printed = bench.run("whole", *SEVERAL, "--total-kimg", "0.128", "--tick-kimg", "0.016")
    assert status == 0, printed
    return bench.folder / "whole"


def test_each_average_has_its_own_half_life(whole):
    """The first at most a fifth of the images seen here, the others longer in proportion."""
    steps = checkpoints(whole)
    names = dict(zip(LENGTHS, ("G_ema", "G_ema_0.4", "G_ema_0.8"), strict=True))
    assert names_of(LENGTHS) == names
    kept = [k.removeprefix("G/") for k in steps[0] if k.startswith("G/") and "w_avg" not in k]
    for seen, (before, after) in enumerate(zip(steps, steps[1:], strict=False), start=2):
        for length, name in names.items():
            half_life = min(1000 * length, 0.2 * 16 * seen * length / LENGTHS[0])
            decay = 0.5 ** (16 / half_life)
            for key in kept:
                expected = decay * before[f"{name}/{key}"] + (1 - decay) * after[f"G/{key}"]
                torch.testing.assert_close(after[f"{name}/{key}"], expected, rtol=1e-5, atol=1e-6)


def test_the_first_is_what_it_is_alone_and_the_folder_names_each(bench, whole):
    alone = [*FLAGS, "--ema-kimg", "0.1", "--total-kimg", "0.128", "--tick-kimg", "0.016"]
    status, printed = bench.run("alone", *alone)
    assert status == 0, printed
    one, three = checkpoints(bench.folder / "alone")[-1], checkpoints(whole)[-1]
    assert [k for k in one if not torch.equal(one[k], three[k])] == []
    assert {k.partition("/")[0] for k in three if k not in one} == {"G_ema_0.4", "G_ema_0.8"}
    assert not (bench.folder / "alone" / "averages").exists()
    folders = sorted(path.name for path in (whole / "averages").iterdir())
    assert folders == ["0.1-kimg", "0.4-kimg", "0.8-kimg"]
    for folder, name in zip(folders, ("G_ema", "G_ema_0.4", "G_ema_0.8"), strict=True):
        weights = load_file(whole / "averages" / folder / "model.safetensors")
        assert torch.equal(weights["const"], three[f"{name}/const"])
        assert weights["w_avg"].abs().max() > 0
    published = load_file(whole / "generator" / "model.safetensors")
    assert torch.equal(published["const"], three["G_ema/const"])
    grids = [(bench.folder / name / "grid-psi1.png").read_bytes() for name in ("alone", "whole")]
    assert grids[0] == grids[1]


def test_going_on_is_exact_with_several(bench, whole):
    flags = [*SEVERAL, "--tick-kimg", "0.016"]
    status, printed = bench.run("parts", *flags, "--total-kimg", "0.08")
    assert status == 0, printed
    status, printed = bench.run("parts", *flags, "--total-kimg", "0.128", "--resume", "latest")
    assert status == 0, printed
    a, b = checkpoints(whole)[-1], checkpoints(bench.folder / "parts")[-1]
    assert a.keys() == b.keys() and [k for k in a if not torch.equal(a[k], b[k])] == []
    assert "begins as" not in printed


def test_a_run_goes_on_with_other_lengths(bench, whole):
    shutil.copytree(whole, bench.folder / "other")
    lengths = ["--ema-kimg", "0.4", "0.5", "0.1"]
    flags = [*FLAGS, *lengths, "--total-kimg", "0.128", "--resume", "latest"]
    status, printed = bench.run("other", *flags)
    assert status == 0, printed
    assert "The average of 0.5 kimg begins as the one of 0.4 kimg in the checkpoint." in printed
    assert printed.count("begins as") == 1
    before, after = checkpoints(whole)[-1], checkpoints(bench.folder / "other")[-1]
    for now, then in {"G_ema": "G_ema_0.4", "G_ema_0.5": "G_ema_0.4", "G_ema_0.1": "G_ema"}.items():
        assert torch.equal(after[f"{now}/const"], before[f"{then}/const"])
    status, printed = bench.run("other", *FLAGS, "--ema-kimg", "0.8", *flags[-4:])
    assert status == 0, printed


def test_averages_of_older_checkpoints():
    assert stored_averages({}, {"G", "D", "G_ema"}).popitem()[1] == "G_ema"
    assert stored_averages({"ema_kimg": "15 60"}, {"G_ema"}) == {15: "G_ema"}
    assert stored_averages({"ema_kimg": "0"}, {"G", "D"}) == {}
    assert list(stored_averages({"ema_kimg": "x"}, {"G_ema"}).values()) == ["G_ema"]
    stored = {15.0: "G_ema", 240.0: "G_ema_240"}
    assert [nearest(length, stored) for length in (1, 50, 70, 240, 900)] == [15, 15, 240, 240, 240]
    assert math.isnan(nearest(20, {math.nan: "G_ema"}))


def scores(frechet, recall):
    return Scores("hog", 10, 10, frechet, 0.1, 0.01, 0.5, recall, 10, 1.0, 1.0)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([(90, 0.30), (80, 0.29)], 240),  # a fifth nearer for a thirtieth of the recall
        ([(90, 0.30), (80, 0.20)], 60),  # the nearest loses on recall more than it gains
        ([(101, 0.90), (100, 0.40)], 15),  # none is nearer
        ([(95, 0.0), (99, 0.1)], 15),
        ([(95, 0.4), (94, 0.5)], 240),
    ],
)
def test_the_rule_of_choice(others, chosen):
    figures = {15: scores(100, 0.30)}
    figures |= {length: scores(*pair) for length, pair in zip((60, 240), others, strict=True)}
    assert choose(figures) == chosen
    text = table(figures, chosen)
    assert f"Published is the average of {chosen} kimg: {RULE}." in text
    assert text.count(" kimg ") == 3  # a row for each


def test_without_recall_only_the_distance_counts():
    assert choose({15: scores(100, 0.0), 60: scores(90, 0.0)}) == 60


def test_the_published_one_is_the_runs_generator(bench):
    """With steps far too large, G itself is worse than the weights that it started from."""
    flags = ["--ema-kimg", "0.001", "1000", "--ema-rampup", "1000", "--g-lr", "0.05"]
    flags += ["--metric-samples", "64", "--metric-features", "hog", "--total-kimg", "0.256"]
    status, printed = bench.run("measured", *flags)
    assert status == 0, printed
    folder = bench.folder / "measured"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["ema_kimg"] for line in lines] == [0.001, 1000]
    found = {line["ema_kimg"]: line["frechet"] for line in lines}
    assert found[1000] < found[0.001]
    assert "Published is the average of 1000 kimg" in printed
    assert json.loads((folder / "metrics.json").read_text()) == lines[1]
    last = checkpoints(folder)[-1]
    generator = load_file(folder / "generator" / "model.safetensors")
    assert torch.equal(generator["const"], last["G_ema_1000/const"])
    assert not torch.equal(generator["const"], last["G_ema/const"])
    assert (
        "half-life of 1000 thousand images, chosen among"
        in (folder / "generator" / "README.md").read_text()
    )
    status, printed = bench.run("measured", *flags, "--metric-samples", "0", "--resume", "latest")
    assert status == 0, printed  # the choice stays until it is measured again
    generator = load_file(folder / "generator" / "model.safetensors")
    assert torch.equal(generator["const"], last["G_ema_1000/const"])


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ([], "takes 1 to 8 lengths"),
        ([15, 15], "each once"),
        ([15, 0], "takes no other length"),
        ([-1], "takes numbers from 0 on"),
        (["15"], "takes numbers from 0 on"),
        ([True], "takes numbers from 0 on"),
        ([math.nan], "takes numbers from 0 on"),
        (list(range(1, 10)), "takes 1 to 8 lengths"),
    ],
)
def test_lengths_that_make_no_averages(lengths, words):
    with pytest.raises(ConfigError, match=f"--ema-kimg.*{words}"):
        make_config({"ema_kimg": lengths})


def test_one_length_need_not_be_a_list():
    assert make_config({"ema_kimg": 5}).ema_kimg == (5,) == make_config({"ema_kimg": [5]}).ema_kimg
    assert not make_config({"ema_kimg": 0.0}).averaged
