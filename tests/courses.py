"""Courses of learning that are stopped on the way, for tests of resuming."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fitting.course import Course


@contextmanager
def interrupted_after(steps: int, kind: type[Course]) -> Iterator[None]:
    """Let a kind of course take so many steps, then stop it as Ctrl-C does; it must be stopped."""
    whole, left = kind.step, [None] * steps

    def step(course: Course) -> dict[str, float]:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return whole(course)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kind, "step", step)
        yield
