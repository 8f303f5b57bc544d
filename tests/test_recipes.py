"""The bench of recipes: every variant can be trained, and one really is."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import recipes
from benchmarks.common import BenchError
from training.config import make_config


def interrupt(command: list[str], **_: object) -> None:
    """Leave half a run behind, as a bench does that was stopped."""
    run = Path(json.loads(Path(command[-1]).read_text())["out"])
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    raise KeyboardInterrupt


@pytest.fixture
def options(faces_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("KAOGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return argparse.Namespace(
        data=[str(faces_dir)], resolution=16, kimg=0.064, cpu_minutes=0.0, samples=16, seed=0,
        out=tmp_path / "recipes",
    )  # fmt: skip


@pytest.mark.parametrize("name", recipes.VARIANTS)
def test_every_variant_is_a_configuration_that_differs(name, options):
    config = make_config(recipes.settings(name, options, 2.0))
    base = make_config(recipes.settings("base", options, 2.0))
    assert (config == base) == (name == "base")
    assert (config.seed == base.seed) == (name != "another-seed")


def test_a_variant_is_trained_measured_and_kept(options, monkeypatch, tmp_path):
    monkeypatch.setattr(recipes, "SPEED_KIMG", (0.032, 0.32))  # well above a start's noise
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(recipes.subprocess, "run", interrupt)
        recipes.run_variant("narrow", options)
    row = recipes.run_variant("narrow", options)  # what was begun is no hindrance
    assert row["kimg"] == 0.064
    assert row["images_per_cpu_s"] > 0
    assert row["frechet"] > 0
    assert row["frechet_hog"] > 0
    assert row["reals"] == 24
    monkeypatch.setattr(recipes, "launch", None)  # a second call trains nothing
    assert recipes.run_variant("narrow", options) == row
    assert recipes.strips([row, row], options).shape == (2, recipes.STRIP, 16, 16, 3)
    options.docs = tmp_path / "recipes.md"
    text = recipes.report([row, row], options)
    assert "| narrow | 0.064 |" in text
    assert "0.064 kimg a variant" in text
    assert text.endswith("(recipes/variants.webp)")
    assert (tmp_path / "recipes" / "variants.webp").exists()


def test_a_speed_that_noise_hides_is_refused(options, monkeypatch):
    monkeypatch.setattr(recipes, "launch", lambda values, folder: 9.0)
    folder = options.out / "base"
    folder.mkdir(parents=True)
    with pytest.raises(BenchError, match="base: .* so its speed is unknown; start"):
        recipes.images_per_second("base", options, folder)
    assert not (folder / "speed.json").exists()


def test_a_run_that_fails_says_why(options):
    values = recipes.settings("base", options, 1.0) | {"data": [str(options.out / "nowhere")]}
    with pytest.raises(BenchError, match="the run failed: .*nowhere"):
        recipes.launch(json.loads(json.dumps(values)), options.out / "failed")
