"""The parts of train.py, and commands around a run: measure, release, publish, fit directions."""
