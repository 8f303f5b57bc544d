"""The bench of sliders: its ranking follows the aims."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.directions import Row, merit

GOOD = Row("smile", "fine", 0.1, 0.9, 0.05, "blush 9%", 0.4, 0.3, 1.1)


def test_a_slider_meets_all_aims_or_is_told_which_not():
    assert not GOOD.missed
    missed = replace(GOOD, success=0.8, identity=0.6)
    assert missed.missed == ["success", "identity"]
    assert merit(missed) < merit(GOOD)
