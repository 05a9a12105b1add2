"""Private API behind values of call time, data sets and Keras's own loop."""

import sys
import threading

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tf_dpfp.keras_private import call_time
from tf_dpfp.keras_private import datasets
from tf_dpfp.keras_private import trainer

_HERE = threading.local()


def _value():
    return call_time.value(
        lambda: tf.constant(getattr(_HERE, "value", 0), tf.int64),
        tf.TensorSpec([], tf.int64),
        key="value",
    )


def _in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return int(found[0])


def test_a_function_asks_at_each_call_in_the_thread_of_the_call():
    plain, inner = tf.function(_value), tf.function(_value)
    xla = tf.function(_value, jit_compile=True)

    @tf.function
    def nested():
        total = tf.constant(0, tf.int64)
        for _ in tf.range(3):
            if total >= 0:
                total += inner()
        return total

    for value in (1, 5):
        _HERE.value = value
        assert int(_value()) == value
        assert int(plain()) == int(xla()) == value
        assert int(nested()) == 3 * value
        assert _in_thread(plain) == _in_thread(xla) == 0
    _HERE.value = 0


def test_replicas_of_an_eager_step_are_handed_a_value():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def passed():
        return strategy.run(lambda: tf.constant(call_time.passed() or 0)).values

    assert call_time.passed() is None
    with call_time.passed_to_replicas(7):
        assert [int(v) for v in passed()] == [7, 7]
        assert _in_thread(lambda: call_time.passed() or 0) == 0
    assert [int(v) for v in passed()] == [0, 0]


def test_a_data_set_knows_what_it_was_made_of():
    data = tf.data.Dataset.range(3)
    (found,) = datasets.made_of(data.map(lambda x: x))
    assert found is data
    assert datasets.made_of(data) == []
    assert len(datasets.made_of(data.concatenate(data.take(1)))) == 2
    far = data.map(lambda x: x).prefetch(1)
    assert datasets.is_derived_from(far, data)
    assert datasets.is_derived_from(data, data)
    assert not datasets.is_derived_from(data, far)
    assert not datasets.is_derived_from(iter([1]), data)


def test_the_training_function_is_called_by_the_loop_of_fit():
    seen = []

    class Noting(keras.Sequential):
        def make_train_function(self, force=False):
            before = None if force else self.train_function
            super().make_train_function(force)
            made = self.train_function
            if made is before:
                return

            def noting(iterator):
                frame = sys._getframe(1)
                if trainer.is_fit_loop(frame):
                    assert trainer.data_of_loop(frame) is x
                seen.append(
                    (trainer.is_fit_loop(frame), trainer.fit_loops(frame))
                )
                return made(iterator)

            self.train_function = noting

    class Nested(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if len(seen) == 1:
                keras.Model.fit(self.model, x, x, verbose=0)

    x = np.zeros((2, 1), np.float32)
    model = Noting([keras.Input((1,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(x, x, verbose=0, callbacks=[Nested()])
    model.train_function = None
    model.train_on_batch(x, x)
    assert seen == [(True, 1), (True, 2), (False, 0)]


def test_a_graph_runs_within_branches_and_in_nothing_else():
    found = {}

    @tf.function
    def inner(graph):
        found["function"] = call_time.runs_within(graph())
        return tf.constant(0)

    @tf.function
    def outer(x):
        graph = call_time.traced_graph()

        def look(name):
            found[name] = call_time.runs_within(graph)
            return x

        def in_two_branches():
            return tf.cond(x < 5, lambda: look("branches"), lambda: x)

        look("itself")
        tf.cond(x > 0, in_two_branches, lambda: x)
        tf.while_loop(lambda i: i < 2, lambda i: look("loop") + i, [x])
        return inner(lambda: graph)

    outer(tf.constant(1))
    assert found == {
        "itself": True,
        "branches": True,
        "loop": False,
        "function": False,
    }
    assert call_time.traced_graph() is None
    assert call_time.runs_within(None)
