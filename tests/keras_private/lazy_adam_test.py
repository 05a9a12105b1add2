import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp.keras_private import lazy_adam

_RNG = np.random.default_rng(0)
_START = _RNG.normal(size=(6, 3)).astype(np.float32)


def _after(optimizer, gradients):
    variable = keras.Variable(_START)
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([gradient])
    return variable.numpy()


def _slices(rows):
    values = _RNG.normal(size=(len(rows), 3)).astype(np.float32)
    return tf.IndexedSlices(
        tf.constant(values), tf.constant(rows, tf.int64), tf.constant([6, 3])
    )


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_row_moves_as_by_adam_on_the_steps_in_which_it_is_named(amsgrad):
    arguments = {"learning_rate": 0.1, "beta_1": 0.8, "amsgrad": amsgrad}
    named = [[0, 2, 5], [2], [5, 2], [0, 1]]
    steps = [_slices(rows) for rows in named]
    found = _after(lazy_adam.LazyAdam(**arguments), steps)
    for row in range(6):
        own = [
            np.zeros((6, 3), np.float32) + step.values[rows.index(row)]
            for step, rows in zip(steps, named, strict=True)
            if row in rows
        ]
        expected = _START[row]
        if own:
            ordinary = keras.optimizers.Adam(**arguments)
            expected = _after(ordinary, map(tf.constant, own))[row]
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[[3, 4]], _START[[3, 4]])


def test_a_dense_gradient_moves_as_by_adam():
    gradient = tf.constant(_RNG.normal(size=(6, 3)).astype(np.float32))
    found = _after(lazy_adam.LazyAdam(0.1), [gradient] * 3)
    expected = _after(keras.optimizers.Adam(0.1), [gradient] * 3)
    np.testing.assert_array_equal(found, expected)
