import json
import pathlib

import pytest
import tensorflow as tf

from tests import programs
from tf_dpfp import distribute

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _config(cluster, **task):
    return json.dumps({"cluster": cluster, "task": task})


WORKERS = {"worker": ["localhost:1", "localhost:2"]}


def test_one_device_is_no_strategy():
    assert distribute.make_strategy() is tf.distribute.get_strategy()
    assert not tf.distribute.has_strategy()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "parameter_server"}, "one of one_device"),
        ({"num_logical_cpus": 2}, "Only the strategy 'mirrored'"),
        ({"name": "multi_worker", "num_logical_cpus": 2}, "Leave"),
        ({"name": "mirrored", "tpu": "local"}, "is for the strategy 'tpu'"),
        ({"name": "mirrored", "num_logical_cpus": 0}, "positive integer"),
        ({"name": "tpu", "tpu": "no.such.invalid"}, "no TPU at tpu="),
        ({"name": "tpu", "tpu": ""}, "no TPU at tpu=''"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        distribute.make_strategy(**arguments)


def test_a_machine_without_gpus_says_so():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="sees no GPU"):
        distribute.make_strategy("mirrored")


@pytest.mark.parametrize(
    "config, message",
    [
        ("", "needs the environment variable TF_CONFIG"),
        ("{", "is not JSON"),
        ("[]", "needs the environment variable TF_CONFIG"),
        (json.dumps({"cluster": WORKERS}), "with an index of its own"),
        (_config(WORKERS, type="worker", index=2), "number 2, which its"),
        (_config(WORKERS, type="chief", index=0), "chief number 0"),
        (
            _config(WORKERS | {"ps": ["localhost:3"]}, type="worker", index=0),
            "no parameter servers",
        ),
    ],
)
def test_a_cluster_that_can_not_train_is_refused(monkeypatch, config, message):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match=message):
        distribute.make_strategy("multi_worker")


def test_every_worker_has_an_index_of_its_own(monkeypatch):
    cluster = WORKERS | {"chief": ["localhost:3"]}
    found = []
    for task in ({"type": "chief", "index": 0}, {"type": "worker", "index": 1}):
        monkeypatch.setenv("TF_CONFIG", _config(cluster, **task))
        found.append(distribute.worker_index())
    assert found == [0, 2]


def test_logical_cpus_are_made_once_and_first(tmp_path):
    program = (
        "import tensorflow as tf\n"
        "from tf_dpfp import distribute\n"
        "s = distribute.make_strategy('mirrored', num_logical_cpus=3)\n"
        "assert s.num_replicas_in_sync == 3\n"
        "tf.zeros([])\n"
        "try:\n"
        "    distribute.make_strategy('mirrored', num_logical_cpus=2)\n"
        "except RuntimeError as error:\n"
        "    assert 'has started already' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('not refused')\n"
    )
    programs.run(["-c", program], tmp_path, cwd=_ROOT, check=True)
