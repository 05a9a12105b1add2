"""Masks of random layers on replicas: none is drawn twice."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.replicas import common

pytestmark = pytest.mark.usefixtures("without_trial")

PLACES, EXAMPLES = 24, 4
X = np.kron(np.eye(EXAMPLES), np.ones(PLACES)).astype(np.float32)
X = X.reshape(EXAMPLES, EXAMPLES, PLACES)
# One mask for each example, the same wherever its ones are.
NOISE_SHAPE = (None, 1, PLACES)
Y = np.full((EXAMPLES, 1), 1e4, np.float32)


def _masks(seed, way):
    """Returns the mask of each example, two steps long."""
    keras.utils.set_random_seed(0)
    with common.strategy(2).scope():
        inputs = keras.Input((EXAMPLES, PLACES))
        dropped = layers.Dropout(0.5, NOISE_SHAPE, seed=7)(inputs)
        outputs = layers.Dense(1, use_bias=False)(layers.Flatten()(dropped))
        model = tf_dpfp.make_private(keras.Model(inputs, outputs))
        optimizer = tf_dpfp.DPSGD(
            1.0,
            l2_norm_clip=1e8,
            noise_multiplier=0.0,
            expected_batch_size=1,
            microbatch_size=1,
            seed=seed,
        )
        model.compile(optimizer, "mse", jit_compile=False)
    step = tf.function(lambda: tf_dpfp.loops.distributed_step(model, X, Y))
    data = tf.data.Dataset.from_tensors((X, Y))
    found = []
    for _ in range(2):
        model.layers[-1].kernel.assign(tf.zeros((EXAMPLES * PLACES, 1)))
        if way == "fit":
            model.fit(data, verbose=0)
        else:
            step()
        change = np.abs(model.layers[-1].kernel.numpy())
        found.append(np.reshape(change > 1.0, (EXAMPLES, PLACES)))
    return np.concatenate(found)


@pytest.mark.parametrize("way", ["fit", "loop"])
def test_replicas_and_their_pieces_draw_masks_of_their_own(way):
    rows = np.concatenate([_masks(None, way), _masks(None, way)])
    assert 0.25 < np.mean(rows) < 0.75
    assert len({row.tobytes() for row in rows}) == len(rows)


def test_with_a_seed_masks_repeat_from_run_to_run_alone():
    rows = _masks(3, "fit")
    np.testing.assert_array_equal(_masks(3, "fit"), rows)
    assert len({row.tobytes() for row in rows}) == len(rows)
