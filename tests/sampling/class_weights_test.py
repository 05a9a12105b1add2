"""Class weights on data sets: as Keras's, and 1 for labels out of range."""

import numpy as np
import pytest
import tensorflow as tf
from keras.src.trainers.data_adapters import tf_dataset_adapter

from tf_dpfp import sampling

WEIGHTS = {0: 0.5, 2: 3.0}


def _batches(y):
    y = np.asarray(y)
    return tf.data.Dataset.from_tensor_slices((np.zeros((len(y), 1)), y)).batch(
        len(y)
    )


def _weights(batches):
    ((_, _, weights),) = list(batches)
    return weights.numpy()


@pytest.mark.parametrize(
    "y",
    [
        [0, 1, 2],
        [[0], [1], [2]],
        [0.0, 1.4, 1.6],
        np.eye(3)[[0, 1, 2]],
        np.array([0, 1, 2], np.uint8),
    ],
)
def test_weights_are_those_of_keras(y):
    batches = _batches(y)
    ours = _weights(sampling.weigh(batches, WEIGHTS))
    keras_map = tf_dataset_adapter.make_class_weight_map_fn(WEIGHTS)
    np.testing.assert_array_equal(ours, _weights(batches.map(keras_map)))
    np.testing.assert_array_equal(ours, np.float32([0.5, 1.0, 3.0]))


@pytest.mark.parametrize("y", [[3, -1, 2], [np.nan, np.inf, 2.0]])
def test_labels_out_of_range_have_the_weight_one(y):
    weights = _weights(sampling.weigh(_batches(y), WEIGHTS))
    np.testing.assert_array_equal(weights, [1.0, 1.0, 3.0])


def test_what_keras_refuses_is_left_to_keras():
    batches = _batches([0, 1])
    weighed = batches.map(lambda x, y: (x, y, tf.ones(2)))
    nested = batches.map(lambda x, y: (x, {"a": y}))
    for data, weights in (
        (weighed, WEIGHTS),
        (nested, WEIGHTS),
        (batches, {"a": 1.0}),
        (batches, {}),
    ):
        assert sampling.weigh(data, weights) is data
