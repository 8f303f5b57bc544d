"""Combining two generators by layer: given shares, the search, its referee, and what is refused."""

import copy
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model import Discriminator, Generator
from training import combine
from training.metrics import Scores
from training.projected import ProjectedDiscriminator
from training.release import draw
from training.shares import (
    LADDER,
    CombineError,
    Trial,
    combined,
    correlation,
    groups,
    read_shares,
    search,
    shares_text,
)

WIDTHS = (16, 16, 16)


def make(seed, **sizes):
    torch.manual_seed(seed)
    sizes = {"resolution": 16, "channels": WIDTHS, "z_dim": 8, "w_dim": 8} | sizes
    G = Generator(**sizes)
    G.update_w_avg(64)
    return G


def moved(G, seed, size=0.1):
    """Return a generator whose weights went some way from G's."""
    torch.manual_seed(seed)
    other = copy.deepcopy(G)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(size * parameter.std() * torch.randn_like(parameter) + 0.01)
    other.update_w_avg(64)
    return other


def test_each_group_goes_its_share():
    A, B = make(0), make(1)
    assert groups(A) == ["const", "mapping", "4", "8", "16"]
    shares = read_shares(["8=0.6", "mapping=0", "16=1.05"], groups(A))
    mixed = combined(A, B, shares, copy.deepcopy(A))
    a, b = A.state_dict(), B.state_dict()
    for name, tensor in mixed.state_dict().items():
        if name != "w_avg":
            place = name.split(".")[:2]
            share = shares[place[1] if place[0] == "blocks" else place[0].split("_")[0]]
            torch.testing.assert_close(tensor, a[name] + share * (b[name] - a[name]))
            assert share != 1 or torch.equal(tensor, b[name])
    A.update_w_avg()
    torch.testing.assert_close(mixed.w_avg, A.w_avg)  # its mapping is A's
    assert shares_text(shares) == "all=1 mapping=0 8=0.6 16=1.05"
    assert read_shares(shares_text(shares).split(), groups(A)) == shares
    critics = [Discriminator(16, WIDTHS) for _ in range(3)]
    halves = combined(*critics[:2], dict.fromkeys(groups(critics[0]), 0.5), critics[2])
    weights = [critic.state_dict()["out.weight"] for critic in critics]
    torch.testing.assert_close(halves.state_dict()["out.weight"], (weights[0] + weights[1]) / 2)


@pytest.mark.parametrize("words", [["7=1"], ["8=1", "8=1"], ["8=x"], ["8"], ["8=nan"], ["8=9"]])
def test_shares_that_are_none_are_refused(words):
    with pytest.raises(CombineError, match="8"):
        read_shares(words, ["4", "8"])


def test_strangers_and_relatives_are_told_apart():
    A = make(0)
    assert correlation(A, moved(A, 1)) > 0.9
    assert abs(correlation(A, make(1))) < 0.15


def scores(name, frechet):
    return Scores(name, 10, 10, frechet, 0.0, 0.0, 0.5, 0.5, 10, 0.0, 0.0)


def attempt_of(distances):
    """Return an attempt whose ratios are a function of the shares, and the list of its calls."""
    calls = []

    def attempt(shares):
        calls.append(shares)
        found = distances(shares)
        return Trial(shares, {f"f{i}": scores(f"f{i}", d) for i, d in enumerate(found)}, found)

    return attempt, calls


def test_the_search_finds_the_shares_of_a_bowl():
    known = ["4", "8", "16"]
    wanted = {"4": 1.0, "8": 0.4, "16": 1.1}

    def bowl(shares):
        away = sum((LADDER.index(shares[k]) - LADDER.index(wanted[k])) ** 2 for k in known
                   if shares[k] in LADDER)  # fmt: skip
        away += sum(9 for k in known if shares[k] not in LADDER)
        return (0.7 + 0.03 * away, 0.8 + 0.01 * away)

    attempt, calls = attempt_of(bowl)
    best = search(known, dict.fromkeys(known, 1.0), attempt, limit=30)
    assert best.shares == wanted
    assert best.mean == pytest.approx((0.7 * 0.8) ** 0.5)
    assert len(calls) <= 30 and len({tuple(c.values()) for c in calls}) == len(calls)
    attempt, calls = attempt_of(bowl)
    search(known, dict.fromkeys(known, 1.0), attempt, limit=5)
    assert len(calls) == 5


def test_what_one_set_calls_much_worse_is_not_chosen():
    known = ["4", "8"]

    def split(shares):  # the further from the start the better by one set and the worse by another
        away = sum(abs(1 - share) for share in shares.values())
        return (1 - 0.3 * away, 1 + 0.2 * away)

    attempt, calls = attempt_of(split)
    best = search(known, dict.fromkeys(known, 1.0), attempt)
    assert best.ratios[1] <= 1.1
    assert any(split(c)[1] > 1.1 and Trial(c, {}, split(c)).mean < best.mean for c in calls)
    attempt, _ = attempt_of(lambda shares: (1.0, 1.0 + sum(abs(1 - s) for s in shares.values())))
    assert search(known, dict.fromkeys(known, 1.0), attempt) is None


@pytest.fixture
def parents(tmp_path, monkeypatch):
    """Save two generators of which one is near the other, the second as a run; return both."""
    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    A = make(0)
    A.save_pretrained(tmp_path / "a")
    moved(A, 1).save_pretrained(tmp_path / "run" / "generator")
    Discriminator(16, WIDTHS).save_pretrained(tmp_path / "run" / "discriminator")
    ProjectedDiscriminator(64).save_pretrained(tmp_path / "run" / "projected")
    return tmp_path / "a", tmp_path / "run"


def command(*words):
    return combine.main([str(word) for word in words])


def test_given_shares_are_written_whole(parents, faces_dir, tmp_path, capsys):
    a, b = parents
    out = tmp_path / "new" / "out"
    flags = ["--data", faces_dir, "8=0.6", "--samples", "24", "--features", "hog"]
    assert command(a, b, "--out", out, *flags) == 0
    printed = capsys.readouterr().out
    assert "The weights of the two correlate by 0.9" in printed
    assert "on the seeds 24 to 47" in printed and "all=1 8=0.6" in printed
    mixed, ours, theirs = (
        load_file(path / "model.safetensors") for path in (out / "generator", a, b / "generator")
    )
    key = "blocks.8.conv1.weight"
    torch.testing.assert_close(mixed[key], ours[key] + 0.6 * (theirs[key] - ours[key]))
    assert torch.equal(mixed["const"], theirs["const"])
    card = (out / "generator" / "README.md").read_text()
    assert f"`{tmp_path.name}/a` and `{tmp_path.name}/run`" in card and "8 0.6" in card
    assert str(tmp_path) not in card + (out / "combine.json").read_text()
    assert (
        json.loads((out / "combine.json").read_text())["check"]["scores"]["hog"]["num_fake"] == 24
    )
    Generator.from_pretrained(out / "generator")
    Discriminator.from_pretrained(out / "discriminator")
    ProjectedDiscriminator.from_pretrained(out / "projected")
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]
    assert command(a, b, "--out", out, "8=0.6") == 2
    assert "exists already" in capsys.readouterr().err
    make(1).save_pretrained(tmp_path / "stranger")
    assert command(a, tmp_path / "stranger", "--out", tmp_path / "noise", "all=0.5") == 0
    assert "So they are strangers to each other" in capsys.readouterr().out


def test_the_search_finds_what_lies_between_and_is_checked(tmp_path, monkeypatch, capsys):
    """The real faces are those of the mean of both: it is best, whatever the seeds."""
    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    A, B = make(0), moved(make(0), 1, size=0.7)
    mean = combined(A, B, dict.fromkeys(groups(A), 0.5), copy.deepcopy(A))
    for name, G in {"a": A, "b": B}.items():
        G.save_pretrained(tmp_path / name)
    for name, G in {"means": mean, "own": B}.items():
        save_faces(G, tmp_path / name)
    flags = ["--features", "hog", "--samples", "64", "--trials", "2", "--data"]
    pair = (tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert command(*pair, *flags, tmp_path / "own") == 1  # the second cannot be beaten
    printed = capsys.readouterr().out
    assert "No combination is better than the better of the two: nothing is written." in printed
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out.*"))
    assert command(*pair, *flags, tmp_path / "means") == 0
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("the first", "the second", "all=0.5", "all=0.8"))
    assert "Again, on the seeds 64 to 127" in printed and "figures of hog choose here" in printed
    record = json.loads((tmp_path / "out" / "combine.json").read_text())
    assert len(record["trials"]) == 2
    assert set(record["shares"].values()) == {0.5}
    assert record["check"]["mean_ratio"] < 0.9 and record["check"]["allowed"]


def save_faces(G, folder):
    """Write faces of seeds that nothing else draws."""
    folder.mkdir()
    for seed, pixels in enumerate(draw(G, range(5000, 5096), 1.0)):
        Image.fromarray(pixels).save(folder / f"{seed}.png")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w_dim": 12}, "the two have other sizes: w_dim"),
        ({}, "the two have the same weights"),
        (None, "not a Generator"),
    ],
)
def test_pairs_that_cannot_be_combined(parents, tmp_path, capsys, change, words):
    a, b = parents
    other = b / "discriminator" if change is None else tmp_path / "other"
    if change is not None:
        make(0, **change).save_pretrained(other)
    assert command(a, other, "--out", tmp_path / "out", "all=0.5") == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_faults_get_one_sentence(parents, faces_dir, tmp_path, capsys):
    a, b = parents
    for flags, words in (
        ([], "give --data to search the shares"),
        (["--data", faces_dir, "--trials", "99"], "--trials takes 1 to 30"),
        (["--data", faces_dir, "--samples", "2"], "--samples takes 8 to"),
        (["8=0.6", "8=0.7"], "at most once"),
        (["--data", tmp_path / "none", "all=0.5"], "none"),
    ):
        assert command(a, b, "--out", tmp_path / "out", *flags) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    broken = load_file(a / "model.safetensors")
    broken["const"][0] = float("nan")
    save_file(broken, a / "model.safetensors", metadata={"format": "pt"})
    assert command(a, b, "--out", tmp_path / "out", "all=0.5") == 2
    assert "const" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
