"""The private names of optimizers: these fail when Keras changes them."""

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp.keras_private import optimizers


def test_the_variables_of_an_optimizer_are_those_it_was_built_for():
    optimizer = keras.optimizers.Adam()
    assert optimizers.updated_variables(optimizer) == []
    variables = [keras.Variable(np.ones(2)), keras.Variable(np.ones(3))]
    optimizer.build(variables)
    found = optimizers.updated_variables(optimizer)
    assert [id(v) for v in found] == [id(v) for v in variables]


def test_keras_adds_gradients_up_by_the_method_that_is_passed_over():
    calls = []

    class Noted(keras.optimizers.SGD):
        def _all_reduce_sum_gradients(self, grads_and_vars):
            calls.append(len(grads_and_vars))
            return super()._all_reduce_sum_gradients(grads_and_vars)

    class Without(optimizers.WithoutAllReduce, Noted):
        pass

    for cls, expected in ((Noted, [1]), (Without, [])):
        calls.clear()
        variable = keras.Variable(np.ones(2, np.float32))
        optimizer = cls(1.0)
        optimizer.build([variable])
        optimizer.apply([tf.ones([2])], [variable])
        assert calls == expected
        np.testing.assert_array_equal(variable, [0.0, 0.0])
