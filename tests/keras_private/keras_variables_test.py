"""The private names of Keras variables: these fail when Keras changes them."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

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
