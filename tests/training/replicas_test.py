"""Replicas on logical CPUs, in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.training import replicas_worker

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("replicas") / "results.json"
    process = subprocess.run(
        [sys.executable, "-m", "tests.training.replicas_worker", str(path)],
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", replicas_worker.CHECKS)
def test_replicas(results, name):
    assert results[name] is None, results[name]
