import keras
import numpy as np
import pytest

from examples.trainers import feature_cache


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_DPFP_CACHE", str(tmp_path))


class _Doubles:
    """A network that notes what it was given."""

    def __init__(self, by=2.0):
        self.by, self.seen = by, []

    def get_weights(self):
        return [np.zeros(1)]

    def __call__(self, inputs):
        self.seen.append(len(inputs["x"]))
        return inputs["x"] * self.by


def _inputs(count=20, seed=0):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(count, 3)).astype("float32")}


def _features(network, inputs, dtype="float32"):
    return feature_cache.features("doubles", network, inputs, network, dtype)


def test_all_are_computed_once_and_a_few_again():
    network = _Doubles()
    first = _features(network, _inputs(), "float16")
    again = _features(network, _inputs(), "float16")
    assert network.seen == [20, 8]
    assert first.dtype == again.dtype == np.float16
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first, 2 * _inputs()["x"], rtol=1e-3)


@pytest.mark.parametrize("change", ["network", "inputs", "dtype", "file"])
def test_features_of_others_are_not_taken(change, tmp_path):
    _features(_Doubles(), _inputs())
    network = _Doubles(by=2.01 if change == "network" else 2.0)
    inputs = _inputs(seed=1) if change == "inputs" else _inputs()
    dtype = "float16" if change == "dtype" else "float32"
    if change == "file":
        (kept,) = (tmp_path / "features").iterdir()
        kept.write_bytes(kept.read_bytes()[:-1])
    found = _features(network, inputs, dtype)
    assert network.seen[-1] == 20
    np.testing.assert_allclose(found, network.by * inputs["x"], rtol=1e-3)


def test_a_weight_that_moved_a_little_is_seen():
    dense = keras.layers.Dense(1)
    network = keras.Sequential([keras.Input((3,)), dense])
    x = _inputs()["x"]
    calls = []

    def compute(inputs):
        calls.append(len(inputs))
        return network.predict(inputs, verbose=0)

    feature_cache.features("dense", network, x, compute)
    dense.bias.assign_add([1e-6])
    feature_cache.features("dense", network, x, compute)
    assert calls == [20, 20]
