"""XLA compiles what each replica computes of its piece of a batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.replicas import common
from tf_dpfp import compilation
from tf_dpfp import sampling
from tf_dpfp.mechanisms import eager_passes

COMPILED = {"jit_compile": True}
SETTINGS = {
    "whole": {},
    "micro-batches": {
        "microbatch_size": 3,
        "clipping": common.adaptive(rescale=False),
    },
}


@pytest.fixture
def seen(monkeypatch):
    """What is compiled: functions, and sizes that each is compiled for."""
    seen = {"sizes": (), "functions": 0}
    bucket_sizes = sampling.buckets.bucket_sizes
    concrete = eager_passes._concrete

    def sizes(*args):
        seen["sizes"] = bucket_sizes(*args)
        return seen["sizes"]

    def counted(function, like, compiles=False):
        found = concrete(function, like, compiles)
        definition = found.function_def
        assert definition.attr["_XlaMustCompile"].b == compiles
        seen["functions"] += compiles
        return found

    monkeypatch.setattr(sampling.buckets, "bucket_sizes", sizes)
    monkeypatch.setattr(eager_passes, "_concrete", counted)
    return seen


@pytest.mark.parametrize("way", SETTINGS)
def test_compiled_pieces_train_as_one_device_without_xla(way, seen):
    settings = SETTINGS[way]
    one = common.private(1, **settings)
    two = common.private(2, compiled=COMPILED, **settings)
    for model in (one, two):
        common.fit(model, common.batches(expected=8.0))
    common.assert_moved(two)
    common.assert_equal_weights(one, two)
    assert tf_dpfp.ledger(one) == tf_dpfp.ledger(two)
    common.assert_equal_thresholds(one, two)
    # Of each replica one function, for the few sizes that pieces have.
    assert seen["functions"] == 2
    multiple = 2 * settings.get("microbatch_size", 1)
    assert 1 <= len(seen["sizes"]) <= 4
    assert all(size % multiple == 0 for size in seen["sizes"])


class _Spelled(layers.Layer):
    """Goes by way of strings, which XLA does not know."""

    def build(self, _):
        # A variable, for constants are folded before XLA sees them.
        self.one = self.add_weight((), "ones", trainable=False)

    def call(self, x):
        return x * tf.strings.to_number(tf.strings.as_string(self.one.value))


def test_a_layer_that_xla_can_not_compile_is_named():
    def make():
        spelled = _Spelled(name="spelled")
        return keras.Sequential(
            [keras.Input((common.FEATURES,)), spelled, layers.Dense(3)]
        )

    model = common.private(2, make=make, compiled=COMPILED)
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(ValueError, match="layer 'spelled'.*jit_compile=False"):
        common.fit(model)
    for mine, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_by_default_replicas_do_without(monkeypatch):
    monkeypatch.setattr(compilation, "has_accelerator", lambda: True)
    monkeypatch.setattr(
        keras.Model, "_resolve_auto_jit_compile", lambda _: True
    )
    # On one device it is the default there.
    assert common.private(1).jit_compile
    assert not common.private(2).jit_compile
