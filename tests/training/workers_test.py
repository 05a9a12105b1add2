"""Two processes that train together over loopback."""

import json
import pathlib
import signal

import pytest

from tests.training import cluster
from tests.training import workers_program

_MODULE = "tests.training.workers_program"


def _results(folder):
    return [
        json.loads(pathlib.Path(folder, f"results{i}.json").read_text())
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    for code, output in cluster.run(_MODULE, folder, "checks", str(folder)):
        assert code == 0, output[-5000:]
    return _results(folder)


@pytest.mark.parametrize("name", workers_program.CHECKS)
def test_workers(results, name):
    for index, of_worker in enumerate(results):
        assert of_worker[name] is None, f"worker {index}: {of_worker[name]}"


def test_a_killed_worker_resumes_and_loses_no_released_step(tmp_path):
    steps, epochs = workers_program.STEPS, workers_program.EPOCHS
    (first, _), (second, output) = cluster.run(
        _MODULE, tmp_path, "train", str(tmp_path), "kill"
    )
    assert second == -signal.SIGKILL, output[-5000:]
    # The other one can't go on, nor write a model that nobody counted.
    assert first != 0
    assert not list(tmp_path.glob("results*.json"))
    for code, output in cluster.run(_MODULE, tmp_path, "train", str(tmp_path)):
        assert code == 0, output[-5000:]
    results = _results(tmp_path)
    assert results[0] == results[1]
    # What was saved after the first epoch, with the steps it took.
    assert results[0]["steps before"] == steps
    assert results[0]["steps"] == [epochs * steps]
    assert results[0]["epsilon"] > 0.0
