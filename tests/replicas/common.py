"""Models and data of the tests on replicas, the same for every number."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers
from tf_dpfp import step as step_lib

EXAMPLES, FEATURES, CLASSES = 61, 7, 3
CLIP, EXPECTED = 0.3, 9.0


@functools.cache
def strategy(count):
    """One strategy for each number of replicas, which adds up in its own way.

    Two that both do it by collective operations would take each other's.
    """
    if count == 1:
        return tf.distribute.get_strategy()
    way = None if count == 2 else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(count)], cross_device_ops=way
    )


def data(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    return x, rng.integers(0, CLASSES, EXAMPLES)


def mlp():
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(19, "tanh", kernel_regularizer="l2"),
            layers.Dense(CLASSES),
        ]
    )


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def adaptive(**kwargs):
    return tf_dpfp.PerLayer(thresholds=tf_dpfp.clipping.Adaptive(**kwargs))


def private(
    count, cls=tf_dpfp.DPAdam, make=mlp, marks=None, compiled=None, **kwargs
):
    """A private model on `count` replicas, with the same weights for each."""
    keras.utils.set_random_seed(5)
    arguments = {"noise_multiplier": 0.0, "l2_norm_clip": CLIP} | kwargs
    with strategy(count).scope():
        model = make()
        tf_dpfp.make_private(model)
        if marks:
            tf_dpfp.reparametrize(model, **marks)
        model.compile(
            cls(0.05, **arguments), **({"loss": loss()} | (compiled or {}))
        )
    return model


def batches(expected=EXPECTED, **kwargs):
    return tf_dpfp.poisson_batches(
        *data(), expected_batch_size=expected, seed=4, **kwargs
    )


def fit(model, x=None, **kwargs):
    return model.fit(
        batches() if x is None else x,
        **({"epochs": 2, "verbose": 0} | kwargs),
    )


def refuses(model, message, *args, kind=ValueError, **kwargs):
    before = model.get_weights()
    with pytest.raises(kind, match=message):
        fit(model, *args, **kwargs)
    for mine, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert tf_dpfp.ledger(model) == []


def owned(model):
    return step_lib.owned_variables(model)


def assert_equal_weights(a, b, atol=1e-5):
    for mine, theirs in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=atol, rtol=1e-5)


def assert_equal_thresholds(*models):
    found = [list(tf_dpfp.clip_norms(m).values()) for m in models]
    np.testing.assert_allclose(*found, rtol=1e-5)


def assert_moved(model):
    fresh = private(1).get_weights()
    assert all(
        np.abs(a - b).max() > 1e-2
        for a, b in zip(model.get_weights(), fresh, strict=True)
    )


def local_results(count, value):
    """What each replica holds of a value."""
    return strategy(count).experimental_local_results(value)


def assert_same_bits(model, count):
    for variable in [*model.variables, *model.optimizer.variables]:
        copies = local_results(count, variable.value)
        assert len({copy.numpy().tobytes() for copy in copies}) == 1
        assert len(copies) == count


def assert_scale_one(sample, replica_count):
    root = math.sqrt(replica_count)
    wrong = (0.97, 1.03, root, 1 / root, replica_count, 1 / replica_count)
    helpers.assert_normal(sample, 1.0, wrong)
