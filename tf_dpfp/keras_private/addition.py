"""Sums of Keras, where the row of one example looks like a bias.

Keras adds a tensor of shape `(1, n)` as it adds a bias: without its axes of
size 1, so that a kernel may add it to a product. Where a function of one
example is vectorised, the row of that example has this shape, and of a batch of
one the axis of the examples is dropped with it. Within `as_rows` it is added as
it is, which gives the same numbers.
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
    """Whether this thread adds rows as they are."""

    as_rows = False


_CURRENT = _Current()


@contextlib.contextmanager
def as_rows() -> Iterator[None]:
    """Adds tensors of two axes or more as they are, in this thread."""
    before, _CURRENT.as_rows = _CURRENT.as_rows, True
    try:
        yield
    finally:
        _CURRENT.as_rows = before


def _value(x: Any) -> Any:
    """Reads a weight, which may be that of one example."""
    # TensorFlow takes one for a tensor, of another kind of shape and type.
    return tf.convert_to_tensor(x.value) if isinstance(x, keras.Variable) else x


def _has_axes(x: Any) -> bool:
    """Tells a dense tensor with axes that may be dropped."""
    if not tf.is_tensor(x) or isinstance(x, (tf.SparseTensor, tf.RaggedTensor)):
        return False
    return x.shape.rank is not None and x.shape.rank > 1


def _wrap_add() -> None:
    """Wraps `ops.add`, which `+` and `layers.Add` end in."""
    ordinary = backend.numpy.add

    @functools.wraps(ordinary)
    def add(x1, x2):
        if not _CURRENT.as_rows:
            return ordinary(x1, x2)
        x1, x2 = _value(x1), _value(x2)
        if not (_has_axes(x1) and _has_axes(x2)):
            return ordinary(x1, x2)
        dtype = keras.backend.result_type(x1.dtype.name, x2.dtype.name)
        return tf.add(tf.cast(x1, dtype), tf.cast(x2, dtype))

    backend.numpy.add = add


_wrap_add()
