"""Per-device clipping on logical CPUs, in a process of its own."""

import pytest

from tests.training import per_device_worker
from tests.training import worker_process


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("per_device") / "results.json"
    return worker_process.results_of(per_device_worker, path, timeout=600)


@pytest.mark.parametrize("name", per_device_worker.CHECKS)
def test_per_device(results, name):
    assert results[name] is None, results[name]
