"""Ids and labels out of range, in layers and losses of Keras.

TensorFlow's kernels stop a step for one of them, which tells everyone that its
example was drawn. Within `guarded` they give no number (NaN) in place of that,
as a GPU does for labels, so that the loss of the example is not finite.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator

import keras
import tensorflow as tf
from keras.src import backend


class _Current(threading.local):
    """What this thread guards."""

    ids = False
    labels = False


_CURRENT = _Current()


@contextlib.contextmanager
def guarded(labels: bool = True) -> Iterator[None]:
    """Computes NaN for ids out of range, and for labels, in this thread.

    Args:
        labels: Guard losses, too. A mean over a batch would be NaN.
    """
    before = _CURRENT.ids, _CURRENT.labels
    _CURRENT.ids, _CURRENT.labels = True, labels
    try:
        yield
    finally:
        _CURRENT.ids, _CURRENT.labels = before


def rows_of(ids: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the rows of a table that Keras looks up.

    Args:
        ids: Numbers of any type. Those below zero count from the end.
        size: Number of rows.

    Returns:
        Rows, from 0 to `size - 1`, and for each whether its id has one.
    """
    is_valid = tf.constant(True)
    if ids.dtype.is_floating:
        # Before the cast, of which the result is anything for NaN.
        is_valid = tf.abs(ids) < tf.cast(2.0**31, ids.dtype)
    if ids.dtype not in (tf.int32, tf.int64):
        ids = tf.cast(ids, tf.int32)
    ids = tf.where(ids < 0, ids + size, ids)
    is_valid &= (ids >= 0) & (ids < size)
    return tf.where(is_valid, ids, tf.zeros_like(ids)), is_valid


def _nan_unless(is_valid: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.where(is_valid, values, tf.constant(float("nan"), values.dtype))


def _guard_ids(layers: type[keras.layers.Embedding]) -> None:
    """Wraps `call` of a class of tables."""
    ordinary = layers.call

    @functools.wraps(ordinary)
    def call(self, inputs):
        if not _CURRENT.ids or not tf.is_tensor(inputs):
            return ordinary(self, inputs)
        if isinstance(inputs, (tf.SparseTensor, tf.RaggedTensor)):
            return ordinary(self, inputs)
        rows, is_valid = rows_of(inputs, self.input_dim)
        return _nan_unless(is_valid[..., None], ordinary(self, rows))

    layers.call = call


def _guard_labels() -> None:
    """Wraps the crossentropy that all losses of Keras with labels end in."""
    ordinary = backend.nn.sparse_categorical_crossentropy

    @functools.wraps(ordinary)
    def sparse_categorical_crossentropy(
        target, output, from_logits=False, axis=-1
    ):
        if not _CURRENT.labels:
            return ordinary(target, output, from_logits, axis)
        target = tf.convert_to_tensor(target)
        classes = tf.shape(output)[-1]
        if target.dtype.is_floating:
            # The fraction is cut off: from above -1 on it is class 0.
            is_valid = (target > -1) & (target < tf.cast(classes, target.dtype))
        else:
            is_valid = target < tf.cast(classes, target.dtype)
            if not target.dtype.is_unsigned:
                is_valid &= target >= 0
        target = tf.where(is_valid, target, tf.zeros_like(target))
        losses = ordinary(target, output, from_logits, axis)
        return _nan_unless(tf.reshape(is_valid, tf.shape(losses)), losses)

    backend.nn.sparse_categorical_crossentropy = sparse_categorical_crossentropy


_guard_ids(keras.layers.Embedding)
_guard_labels()
