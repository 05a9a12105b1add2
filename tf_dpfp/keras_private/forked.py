"""Processes that were forked, where TensorFlow has no threads.

They would wait forever for a function; single operations run.
"""

import os


class _Process:
    is_forked = False


def _note() -> None:
    _Process.is_forked = True


os.register_at_fork(after_in_child=_note)


def is_forked() -> bool:
    """Tells a process that was forked since this package was imported."""
    return _Process.is_forked
