"""Rows of one example are added as rows, not as a bias."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp.keras_private import addition


def _operations(x, y):
    """Types of the operations of a sum."""
    traced = tf.function(keras.ops.add, autograph=False)
    graph = traced.get_concrete_function(tf.constant(x), tf.constant(y)).graph
    return {op.type for op in graph.get_operations()}


ROWS = np.arange(4.0, dtype="float32")[None], np.ones((1, 4), "float32")


def test_keras_still_adds_a_row_like_a_bias():
    assert "Squeeze" in _operations(*ROWS)
    with addition.as_rows():
        assert _operations(*ROWS).isdisjoint(("Squeeze", "BiasAdd"))
        weight = keras.Variable(ROWS[1])
        add_weight = tf.function(lambda x: keras.ops.add(x, weight))
        graph = add_weight.get_concrete_function(tf.constant(ROWS[0])).graph
        assert "Squeeze" not in {op.type for op in graph.get_operations()}
    assert "Squeeze" in _operations(*ROWS)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_sums_are_those_of_keras(dtype):
    x = np.arange(12).reshape(3, 4).astype(dtype)
    for y in (x, x[:1], x[:, :1], x[0], np.float32(2.5), x.astype("float64")):
        plain = keras.ops.add(tf.constant(x), tf.constant(y))
        with addition.as_rows():
            found = keras.ops.add(tf.constant(x), tf.constant(y))
        assert found.dtype == plain.dtype
        np.testing.assert_array_equal(found, plain)


class _Penalised(keras.Model):
    """A loss of its own, of a sum of rows."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        del x, sample_weight, training
        return keras.ops.mean(keras.ops.add(y_pred, keras.ops.negative(y)) ** 2)


def test_sums_of_rows_are_proved_where_examples_are_called_one_by_one():
    inputs = keras.Input((4,))
    dense = layers.Dense(4)
    added = layers.Add()([dense(inputs), inputs])
    added = layers.ActivityRegularization(l2=0.1)(added)
    model = _Penalised(inputs, layers.Dense(2)(added), name="penalised")
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, l2_norm_clip=0.1, noise_multiplier=1.0))
    x, y = np.ones((3, 4), "float32"), np.zeros((3, 2), "float32")
    found = tf_dpfp.loops.clipped_gradients(model, x, y)
    length = np.sqrt(sum(np.sum(np.square(s)) for s in found.sums))
    # Three examples that are equal.
    np.testing.assert_allclose(length, 0.3, rtol=1e-3)
