"""The bench of sliders: its Fréchet distance is the metric's, its ranking follows the aims."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.directions import RealFaces, Row, faults, merit
from training.metrics import frechet_distance

GOOD = Row("smile", "fine", 0.1, 0.9, 0.05, "blush 9%", 0.4, 0.3, 1.1)


@pytest.mark.parametrize("count", [20, 150])
def test_the_frechet_distance_is_that_of_the_metrics(count):
    rng = np.random.default_rng(0)
    real = (rng.normal(size=(400, 60)) @ rng.normal(size=(60, 60))).astype(np.float32)
    faces = (rng.normal(size=(count, 60)) + 0.3).astype(np.float32)
    expected = frechet_distance(real, faces)
    assert RealFaces(real).distance(faces) == pytest.approx(expected, rel=1e-6)


def test_a_slider_meets_all_aims_or_is_told_which_not():
    assert GOOD.meets
    missed = replace(GOOD, success=0.8, identity=0.6)
    assert not missed.meets
    assert faults(missed) == "not success, identity"
    assert merit(missed) < merit(GOOD)
