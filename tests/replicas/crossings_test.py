"""Sums leave a replica, and nothing of single examples."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.replicas import common
from tests.training import crossings


def _sent(count, **kwargs):
    model = common.private(count, noise_multiplier=1.0, **kwargs)
    step = crossings.of_step(
        lambda: common.fit(model, common.batches(steps_per_epoch=1), epochs=1)
    )
    return model, [c for c in step.crossings if c.source != c.to]


def _numbers(sent, source):
    """How many numbers of float32 leave a replica, logs and keys left out."""
    shapes = [
        c.shape for c in sent if c.source == source and c.dtype == tf.float32
    ]
    return sum(math.prod(shape) for shape in shapes if shape)


@pytest.mark.filterwarnings("ignore:The fractions that adaptive")
# By collective operations, and from device to device.
@pytest.mark.parametrize("count", [2, 4])
def test_nothing_of_single_examples_leaves_a_replica(count):
    model, sent = _sent(count, clipping=common.adaptive())
    assert sent
    for crossing in sent:
        assert crossing.shape is not None, crossing
        assert None not in crossing.shape, crossing
        assert "examples" not in crossing.carries, crossing
    assert any("sum" in crossing.carries for crossing in sent)
    weights = sum(w.size for w in model.get_weights())
    counts = len(tf_dpfp.clip_norms(model))
    # The last replica receives and adds up nothing.
    assert _numbers(sent, f"CPU:{count - 1}") == weights + counts


def test_only_carriers_leave_a_replica():
    def wide():
        return keras.Sequential(
            [keras.Input((40,)), layers.Dense(30, use_bias=False)]
        )

    model = common.private(
        2, make=wide, marks={"rank": 2}, noise_multiplier=1.0
    )
    x = np.ones((12, 40), np.float32)
    data = tf.data.Dataset.from_tensors((x, np.zeros(12, np.int64)))
    step = crossings.of_step(lambda: common.fit(model, data, epochs=1))
    assert _numbers(step.crossings, "CPU:1") == 2 * (40 + 30)
