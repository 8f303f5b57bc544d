"""What goes wrong with a repository."""

from __future__ import annotations


class PublishError(RuntimeError):
    """A repository that cannot be written, or a run that cannot be published."""
