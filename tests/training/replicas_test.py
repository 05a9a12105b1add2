"""Replicas on logical CPUs, in a process of its own."""

import pytest

from tests.training import replicas_worker
from tests.training import worker_process


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("replicas") / "results.json"
    return worker_process.results_of(replicas_worker, path, timeout=900)


@pytest.mark.parametrize("name", replicas_worker.CHECKS)
def test_replicas(results, name):
    assert results[name] is None, results[name]
