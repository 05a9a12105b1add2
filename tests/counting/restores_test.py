"""What is written to a variable from outside is handed on, in its place."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp.counting import restores

OTHER = np.array([1.0, 2.0])


def _watched():
    variable = keras.Variable(np.zeros(2), dtype="float64")
    handed_on = []

    def hand_on(value):
        handed_on.append(np.array(value))

    def in_graph(value):
        tf.py_function(hand_on, [value], [])

    restores.watch(variable, hand_on, in_graph)
    return variable, handed_on


def _assign(variable, path):
    del path
    variable.assign(OTHER)


def _checkpoint(variable, path):
    saved = keras.Variable(OTHER, dtype="float64")
    written = tf.train.Checkpoint(v=saved).write(str(path / "c"))
    tf.train.Checkpoint(v=variable).restore(written)


@pytest.mark.parametrize("write", [_assign, _checkpoint])
def test_a_restore_is_handed_on_and_not_written(write, tmp_path):
    variable, handed_on = _watched()
    write(variable, tmp_path)
    np.testing.assert_array_equal(handed_on, [OTHER])
    np.testing.assert_array_equal(variable.numpy(), [0.0, 0.0])


@pytest.mark.parametrize("past_keras", [False, True])
def test_what_compiled_functions_write_is_handed_on_as_well(past_keras):
    variable, handed_on = _watched()

    @tf.function(autograph=False)
    def step(value):
        (variable.value if past_keras else variable).assign(value)

    step(tf.constant(OTHER))
    np.testing.assert_array_equal(handed_on, [OTHER])
    np.testing.assert_array_equal(variable.numpy(), [0.0, 0.0])
