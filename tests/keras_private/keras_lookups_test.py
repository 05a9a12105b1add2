"""Ids and labels out of range stop no guarded step."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tf_dpfp.keras_private import lookups

TABLE = np.arange(12.0, dtype=np.float32).reshape(4, 3)


def _table(**kwargs):
    layer = layers.Embedding(4, 3, **kwargs)
    layer.build()
    layer.set_weights([TABLE])
    return layer


def test_keras_still_has_what_is_wrapped():
    call = inspect.signature(keras.layers.Embedding.call)
    assert list(call.parameters) == ["self", "inputs"]
    with pytest.raises(tf.errors.InvalidArgumentError):
        _table()(np.array([[4]]))
    labels, logits = np.array([3]), np.zeros((1, 3), np.float32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(tf.errors.InvalidArgumentError):
        loss(labels, logits)


@pytest.mark.parametrize("dtype", ["int32", "int64", "int8", "float32"])
def test_ids_out_of_range_have_no_number(dtype):
    ids = np.array([[0, 3], [-1, -4], [4, 1], [-5, 1]]).astype(dtype)
    with lookups.guarded():
        found = _table()(ids).numpy()
        traced = tf.function(_table(), jit_compile=True)(ids).numpy()
    np.testing.assert_array_equal(found, traced)
    np.testing.assert_array_equal(found[0], TABLE[[0, 3]])
    # As without the guard: from the end.
    np.testing.assert_array_equal(found[1], TABLE[[3, 0]])
    np.testing.assert_array_equal(found[1], _table()(ids[1:2])[0])
    assert np.all(np.isnan(found[2:, 0]))
    np.testing.assert_array_equal(found[2:, 1], TABLE[[1, 1]])


def test_ids_that_are_no_numbers_have_none():
    ids = np.array([[np.nan, np.inf, -np.inf, 1e20, 2.0]], np.float32)
    for jit_compile in (False, True):
        with lookups.guarded():
            layer = tf.function(_table(), jit_compile=jit_compile)
            found = layer(ids).numpy()[0]
        assert np.all(np.isnan(found[:4]))
        np.testing.assert_array_equal(found[4], TABLE[2])


LOSSES = {
    "class": keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="none"
    ),
    "function": lambda y, p: keras.losses.sparse_categorical_crossentropy(
        y, p, from_logits=True
    ),
    "operation": lambda y, p: keras.ops.sparse_categorical_crossentropy(
        y[:, 0], p, from_logits=True
    ),
    "class left out": keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="none", ignore_class=-7
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_labels_out_of_range_have_no_loss(name, jit_compile):
    labels = np.array([[0], [2], [3], [-1], [np.nan], [1e20], [np.inf]])
    logits = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    with lookups.guarded():
        loss = tf.function(LOSSES[name], jit_compile=jit_compile)
        found = loss(tf.constant(labels, tf.float32), logits).numpy()
        whole = loss(tf.constant(labels[:4], tf.int32), logits[:4]).numpy()
    expected = LOSSES[name](tf.constant(labels[:2]), logits[:2]).numpy()
    np.testing.assert_allclose(found[:2], expected, rtol=1e-6)
    np.testing.assert_allclose(whole[:2], expected, rtol=1e-6)
    assert np.all(np.isnan(found[2:])) and np.all(np.isnan(whole[2:]))


def test_a_class_that_is_left_out_is_no_bad_label():
    loss = LOSSES["class left out"]
    with lookups.guarded():
        found = loss(np.array([-7, 1]), np.zeros((2, 3), np.float32))
    assert np.all(np.isfinite(found))
    assert found[0] == 0.0


def test_guards_end_and_labels_can_be_left_out():
    labels, logits = np.array([3]), np.zeros((1, 3), np.float32)
    with lookups.guarded(labels=False):
        assert np.all(np.isnan(_table()(np.array([4]))))
        with pytest.raises(tf.errors.InvalidArgumentError):
            LOSSES["class"](labels, logits)
    with pytest.raises(tf.errors.InvalidArgumentError):
        _table()(np.array([4]))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_taken_indices_out_of_range_have_no_number(jit_compile):
    take = tf.function(
        lambda i: (
            keras.ops.take(TABLE, i, axis=0),
            keras.ops.take(TABLE, i[:3], axis=1),
            keras.ops.take_along_axis(TABLE, i[:, None], axis=1),
        ),
        jit_compile=jit_compile,
    )
    with lookups.guarded():
        rows, columns, along = map(
            np.asarray, take(tf.constant([1, -1, 9, -9]))
        )
    np.testing.assert_array_equal(rows[:2], TABLE[[1, 3]])
    assert np.all(np.isnan(rows[2:]))
    np.testing.assert_array_equal(columns[:, :2], TABLE[:, [1, 2]])
    assert np.all(np.isnan(columns[:, 2]))
    np.testing.assert_array_equal(along[:2, 0], [TABLE[0, 1], TABLE[1, 2]])
    assert np.all(np.isnan(along[2:]))


def test_whole_numbers_are_taken_from_some_row():
    with lookups.guarded():
        found = keras.ops.take(tf.constant([5, 6]), tf.constant([7]), axis=0)
    assert found.numpy()[0] in (5, 6)


def test_lookups_of_a_thread_are_noted_with_their_ids():
    table = _table()
    ids = tf.constant([[1, 2]])
    with lookups.guarded(), lookups.noted() as outer:
        with lookups.noted() as inner:
            found = table(ids)
        ((noted_ids, noted_rows),) = inner
        np.testing.assert_array_equal(noted_ids, ids)
        np.testing.assert_array_equal(noted_rows, found)
        assert outer == []
        table(ids)
        assert len(outer) == 1
    table(ids)
    assert len(outer) == 1
