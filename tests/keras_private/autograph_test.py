"""Functions of users are converted; those of the library are not."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.autograph.impl import api

import tf_dpfp
from tf_dpfp.keras_private import autograph
from tf_dpfp.sampling import buckets
from tf_dpfp.sampling import class_weights
from tf_dpfp.sampling import dealing
from tf_dpfp.sampling import registry

X = np.float32([[1.0], [-2.0], [3.0], [-4.0]])
Y = np.arange(4)


def _positive(x):
    if x[0] < 0.0:
        x = -x
    while tf.reduce_sum(x) > 3.5:
        x -= 1.0
    return x


def _batches(**kwargs):
    given = {"sampling_rate": 1.0, "steps_per_epoch": 1, "seed": 0}
    return tf_dpfp.poisson_batches(X, Y, **(given | kwargs))


@pytest.mark.parametrize(
    "augment",
    [_positive, functools.partial(_positive), tf.function(_positive)],
)
def test_an_augmentation_may_branch_on_tensors(augment):
    batches = _batches(augment=augment, padded="static")
    ((x, *_),) = batches
    assert sorted(x[:4, 0].numpy()) == [1.0, 2.0, 3.0, 3.0]


def test_a_layer_that_augments_may_branch_in_a_map():
    class Positive(keras.layers.Layer):
        def call(self, x):
            return tf.map_fn(_positive, x)

    ((x, _),) = _batches(augment=Positive())
    assert sorted(x[:, 0].numpy()) == [1.0, 2.0, 3.0, 3.0]


def test_a_map_of_batches_may_branch_on_tensors():
    def map_fn(x, y):
        if tf.reduce_min(x) < -3.0:
            return _positive(x), y
        return x, y

    ((x, _),) = _batches(map_fn=map_fn)
    assert tf.reduce_sum(x) <= 3.5


def test_what_a_user_marked_is_not_converted():
    @tf.autograph.experimental.do_not_convert
    def map_fn(x, y):
        return (x, y) if tf.reduce_min(x) < -3.0 else (x, y)

    with pytest.raises(Exception, match="symbolic"):
        _batches(map_fn=map_fn)
    with pytest.raises(Exception, match="symbolic"):
        tf.autograph.experimental.do_not_convert(_batches)(
            map_fn=lambda x, y: (_positive(x), y)
        )


def test_a_function_is_converted_as_where_it_was_handed_over():
    given = autograph.of_user(_positive)
    marked = tf.autograph.experimental.do_not_convert(
        lambda: autograph.of_user(_positive)
    )()
    spec = tf.TensorSpec([1], tf.float32)

    def of(function):
        return tf.function(lambda x: function(x), autograph=False)

    np.testing.assert_array_equal(
        of(given).get_concrete_function(spec)(tf.constant([-1.0])), [1.0]
    )
    with pytest.raises(Exception, match="symbolic"):
        of(marked).get_concrete_function(spec)


def test_functions_of_the_library_are_not_converted(monkeypatch):
    found = []

    def convert(entity, *args):
        found.append(entity.__module__)
        return ordinary(entity, *args)

    ordinary = api._convert_actual
    monkeypatch.setattr(api, "_convert_actual", convert)

    def map_fn(x, y):
        return 2.0 * x, y

    dynamic = _batches(map_fn=map_fn)
    for batches in (
        dynamic,
        _batches(padded="static", augment=_positive, multiplicity=2),
        _batches(users=Y // 2, max_examples_per_user=2),
        buckets.in_buckets(dynamic, registry.sampling_of(dynamic)),
        class_weights.weigh(dynamic, {0: 2.0}),
        dealing.deal(dynamic, 2),
    ):
        assert len(list(batches.take(1))) == 1
    assert map_fn.__module__ in found
    assert not [name for name in found if name.startswith("tf_dpfp")]
