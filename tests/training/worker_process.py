"""Checks that need a process of their own, such as those on logical CPUs."""

import json
import pathlib

from tests import programs

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def results_of(worker, path: pathlib.Path, timeout: float) -> dict:
    """Runs a module as a program and reads what it found.

    Args:
        worker: The module; its program takes the path to write to.
        path: Where it is to write its results, as JSON.
        timeout: Seconds that it may take.

    Returns:
        By the name of the check, `None` or what went wrong.
    """
    process = programs.run(
        ["-m", worker.__name__, path], path.parent, cwd=_ROOT, timeout=timeout
    )
    assert process.returncode == 0, process.stderr
    return json.loads(path.read_text())
