"""The private names of Keras variables: these fail when Keras changes them."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tf_dpfp.keras_private import variables


def test_a_checkpoint_restores_by_the_wrapped_method(tmp_path):
    variable = keras.Variable(np.ones(3), dtype="float32")
    checkpoint = tf.train.Checkpoint(mine=variable)
    path = checkpoint.save(str(tmp_path / "c"))
    calls = []

    def wrap(restore):
        def noted(*args, **kwargs):
            calls.append(variable.numpy().tolist())
            result = restore(*args, **kwargs)
            calls.append(variable.numpy().tolist())
            return result

        return noted

    variables.wrap_restores(variable, wrap)
    variable.assign(np.full(3, 2.0))
    assert calls == []
    checkpoint.restore(path).assert_consumed()
    # Once, before and after the value is there.
    assert calls == [[2.0] * 3, [1.0] * 3]


def test_variables_that_restore_in_another_way_are_refused(monkeypatch):
    variable = keras.Variable(np.ones(3))
    monkeypatch.setattr(variables, "_RESTORE", "_restore_by_some_other_name")
    with pytest.raises(RuntimeError, match=f"Keras {keras.__version__}"):
        variables.wrap_restores(variable, lambda restore: restore)


def test_additions_of_threads_are_all_there():
    variable = keras.Variable(np.zeros(3), dtype="float64")

    def add():
        for _ in range(500):
            variables.add_atomically(variable, np.ones(3))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert variable.numpy().tolist() == [2000.0] * 3


@pytest.mark.parametrize("clipping", ["flat", "adaptive"])
def test_a_first_step_that_makes_variables_is_traced_once(clipping):
    traced = []

    class Traced(keras.layers.Layer):
        def call(self, inputs):
            traced.append(inputs.shape)
            return inputs

    model = keras.Sequential(
        [keras.Input((2,)), Traced(), keras.layers.Dense(1)]
    )
    tf_dpfp.make_private(model)
    thresholds = tf_dpfp.clipping.Adaptive() if clipping != "flat" else "equal"
    optimizer = tf_dpfp.DPAdam(
        expected_batch_size=1e4,
        noise_multiplier=1.0,
        clipping=tf_dpfp.PerLayer(thresholds=thresholds),
    )
    model.compile(optimizer, loss="mse", metrics=["mae"])
    traced.clear()
    model.train_on_batch(np.ones((4, 2)), np.ones(4))
    assert traced.count((None, 2)) == 1
    assert optimizer.built and optimizer.iterations == 1
