"""Runnable examples: `python -m examples.train` from the repository."""
