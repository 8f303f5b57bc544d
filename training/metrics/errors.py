"""What goes wrong with metrics."""

from __future__ import annotations

from pickle import UnpicklingError

# What urllib, the file system and a guarded torch.load raise
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, UnpicklingError)


class MetricsError(ValueError):
    """Features that cannot be had, or that cannot be compared."""
