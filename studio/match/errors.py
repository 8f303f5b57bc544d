"""What goes wrong with a match."""


class MatchError(ValueError):
    """A picture that cannot be matched; the message is one sentence for people."""
