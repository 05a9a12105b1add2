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


def _killed(folder, how):
    """Runs a training in which worker 1 is killed."""
    (first, _), (second, output) = cluster.run(
        _MODULE, folder, "train", str(folder), how
    )
    assert second == -signal.SIGKILL, output[-5000:]
    # The other one can't go on, nor write a model that nobody counted.
    assert first != 0
    assert not list(folder.glob("results*.json"))


def test_killed_workers_resume_and_lose_no_released_step(tmp_path):
    steps, epochs = workers_program.STEPS, workers_program.EPOCHS
    _killed(tmp_path, "middle")
    # It resumes, takes the second epoch, and is saved by one of the two.
    _killed(tmp_path, "between")
    output = cluster.run(_MODULE, tmp_path, "train", str(tmp_path), "mend")
    for code, text in output:
        assert code == 0, text[-5000:]
    results = _results(tmp_path)
    assert results[0] == results[1]
    # Of both epochs, although one worker knew of the first only.
    assert results[0]["steps before"] == 2 * steps
    assert results[0]["steps"] == [epochs * steps]
    assert results[0]["epsilon"] > 0.0
