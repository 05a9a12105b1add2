"""Checks that need a process of their own, such as those on logical CPUs."""

import json
import os
import pathlib
import subprocess
import sys

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
    process = subprocess.run(
        [sys.executable, "-m", worker.__name__, str(path)],
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(path.read_text())
