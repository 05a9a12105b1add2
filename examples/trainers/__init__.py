"""Commands that train, with flags: `python -m examples.trainers.train`."""
