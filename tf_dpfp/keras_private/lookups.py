"""Ids and labels out of range, in layers and losses of Keras.

TensorFlow's kernels stop a step for one of them, which tells everyone that its
example was drawn. Within `guarded` they give no number (NaN) in place of that,
as a GPU does for labels, so that the loss of the example is not finite.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend


class _Current(threading.local):
    """What this thread guards, and the lookups that it notes, if it does."""

    ids = False
    labels = False
    noted: list[tuple[Any, tf.Tensor]] | None = None


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


@contextlib.contextmanager
def noted() -> Iterator[list[tuple[Any, tf.Tensor]]]:
    """Notes what tables of Keras look up in this thread.

    Yields:
        A list that fills with ids and what was found for them, for each call of
        `keras.layers.Embedding.call`, by subclasses too.
    """
    before, _CURRENT.noted = _CURRENT.noted, []
    try:
        yield _CURRENT.noted
    finally:
        _CURRENT.noted = before


@contextlib.contextmanager
def _unguarded() -> Iterator[None]:
    """Leaves ids as they are, which are in range."""
    before, _CURRENT.ids = _CURRENT.ids, False
    try:
        yield
    finally:
        _CURRENT.ids = before


def rows_of(
    ids: tf.Tensor, size: int | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
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

    def guarded_call(self, inputs):
        if not _CURRENT.ids or not tf.is_tensor(inputs):
            return ordinary(self, inputs)
        if isinstance(inputs, (tf.SparseTensor, tf.RaggedTensor)):
            return ordinary(self, inputs)
        rows, is_valid = _clipped(inputs, self.input_dim)
        with _unguarded():
            found = ordinary(self, rows)
        return _nan_unless(is_valid[..., None], found)

    @functools.wraps(ordinary)
    def call(self, inputs):
        found = guarded_call(self, inputs)
        if _CURRENT.noted is not None:
            _CURRENT.noted.append((inputs, found))
        return found

    layers.call = call


def _guard_take() -> None:
    """Wraps `ops.take` along an axis.

    The gradient of an index out of range may land in another example.
    """
    ordinary = backend.numpy.take

    @functools.wraps(ordinary)
    def take(x, indices, axis=None):
        if not _is_guarded(indices) or axis is None:
            return ordinary(x, indices, axis)
        x = backend.convert_to_tensor(x)
        if isinstance(x, tf.SparseTensor) or x.shape.rank is None:
            return ordinary(x, indices, axis)
        behind = x.shape.rank - 1 - axis % x.shape.rank
        indices = tf.convert_to_tensor(indices)
        rows, is_valid = _clipped(indices, _size(x, axis))
        found = ordinary(x, rows, axis)
        is_valid = tf.reshape(
            is_valid, tf.concat([tf.shape(is_valid), [1] * behind], 0)
        )
        return (
            _nan_unless(is_valid, found) if found.dtype.is_floating else found
        )

    backend.numpy.take = take


def _guard_take_along_axis() -> None:
    """Wraps `ops.take_along_axis`, likewise."""
    ordinary = backend.numpy.take_along_axis

    @functools.wraps(ordinary)
    def take_along_axis(x, indices, axis=None):
        if not _is_guarded(indices) or axis is None:
            return ordinary(x, indices, axis)
        x = backend.convert_to_tensor(x)
        indices = tf.convert_to_tensor(indices)
        rows, is_valid = _clipped(indices, _size(x, axis))
        found = ordinary(x, rows, axis)
        return (
            _nan_unless(is_valid, found) if found.dtype.is_floating else found
        )

    backend.numpy.take_along_axis = take_along_axis


def _is_guarded(indices: Any) -> bool:
    """Tells indices that are data, not numbers in a program."""
    if not _CURRENT.ids or not tf.is_tensor(indices):
        return False
    return not isinstance(indices, (tf.SparseTensor, tf.RaggedTensor))


def _clipped(
    indices: tf.Tensor, size: tf.Tensor | int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `rows_of`, in a form of which a proof knows the bounds."""
    rows, is_valid = rows_of(indices, size)
    last = tf.cast(size, rows.dtype) - 1
    return tf.maximum(tf.minimum(rows, last), 0), is_valid


def _size(x: tf.Tensor, axis: int) -> tf.Tensor | int:
    return tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]


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
_guard_take()
_guard_take_along_axis()
_guard_labels()
