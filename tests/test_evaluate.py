"""Measuring a generator by command, with and without a choice among candidates."""

import json
import sys

import pytest
import torch

from model import Discriminator, Generator
from training import evaluate

WIDTHS = (16, 16, 16)


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """Save a small pair; return its folder."""
    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    G = Generator(16, WIDTHS, z_dim=8, w_dim=8)
    G.update_w_avg(64)
    G.save_pretrained(tmp_path / "generator")
    Discriminator(16, WIDTHS).save_pretrained(tmp_path / "discriminator")
    Discriminator(8, WIDTHS[:2]).save_pretrained(tmp_path / "smaller")
    return tmp_path


def run(networks, faces_dir, monkeypatch, *flags):
    command = ["evaluate", "--model", networks / "generator", "--data", faces_dir, "--samples"]
    command += [24, "--features", "hog", "--json", networks / "figures.json", *flags]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    return evaluate.main()


def test_figures_are_printed_and_written(networks, faces_dir, monkeypatch, capsys):
    assert run(networks, faces_dir, monkeypatch, "--psi", 1, 0.5) == 0
    printed = capsys.readouterr().out
    assert "psi 1: Fréchet" in printed
    assert "psi 0.5: Fréchet" in printed
    figures = json.loads((networks / "figures.json").read_text())
    assert [f["psi"] for f in figures] == [1, 0.5]
    assert {f["num_fake"] for f in figures} == {24}


def test_a_choice_among_candidates_changes_what_is_measured(
    networks, faces_dir, monkeypatch, capsys
):
    assert run(networks, faces_dir, monkeypatch) == 0
    plain = json.loads((networks / "figures.json").read_text())
    critic = networks / "discriminator"
    assert run(networks, faces_dir, monkeypatch, "--best-of", 2, "--critic", critic) == 0
    assert "psi 1, best of 2: Fréchet" in capsys.readouterr().out
    chosen = json.loads((networks / "figures.json").read_text())
    assert chosen[0]["num_fake"] == 24
    assert chosen[0]["frechet"] != plain[0]["frechet"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--best-of", 0), "--best-of takes a number over 1, together with --critic"),
        (("--best-of", 4), "--best-of takes a number over 1, together with --critic"),
        (("--best-of", 4, "--critic", "smaller"), "judges other pictures"),
        (("--best-of", 4, "--critic", "generator"), "not a Discriminator"),
    ],
)
def test_faults_get_one_sentence(networks, faces_dir, monkeypatch, capsys, flags, says):
    flags = [networks / f if f in ("smaller", "generator") else f for f in flags]
    assert run(networks, faces_dir, monkeypatch, *flags) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
