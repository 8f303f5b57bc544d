"""What goes wrong with data."""

from __future__ import annotations


class DataError(ValueError):
    """The data cannot be used; the sentence says what is wrong and how to mend it."""
