"""A run on the Hub: its card, the files of a commit, and their way there."""
