"""Lookups in tables of rows, by the row, and in batches of a known size."""

import numpy as np
import pytest
import tensorflow as tf

from tests.independence import graphs

R = tf.raw_ops
X = graphs.X
TWO, THREE, EIGHT = (tf.TensorSpec([n, 3]) for n in (2, 3, 8))
# One row for each of eight examples.
ROWS = np.arange(24, dtype=np.float32).reshape(8, 3)


def _own(x):
    """Index of the example, in range."""
    return tf.argmax(x, -1, tf.int32)


def _as_numbers(x, rows):
    return x * tf.cast(rows, x.dtype)


REFUSED = {
    "number of the own row": (
        lambda x: graphs.by_rows(
            x, lambda i: x[i] * tf.cast(tf.gather(graphs.rows(x), i), x.dtype)
        ),
        X,
    ),
    "table of the batch size": (
        lambda x: (
            x
            * tf.gather(
                tf.constant([1.0, 2.0, 3.0])
                * tf.cast(graphs.size(x), tf.float32),
                _own(x),
            )[:, None]
        ),
        X,
    ),
    "table of row numbers": (
        lambda x: _as_numbers(
            x,
            tf.gather(
                graphs.rows(x)[:, None],
                tf.minimum(_own(x), 0)[:, None],
                batch_dims=1,
            ),
        ),
        X,
    ),
    "row numbers at several places": (
        lambda x: _as_numbers(
            x,
            tf.gather_nd(
                graphs.rows(x)[:, None],
                tf.minimum(_own(x), 0)[:, None],
                batch_dims=1,
            )[:, None],
        ),
        X,
    ),
    "flat positions of another width": (
        lambda x: tf.gather(
            tf.reshape(x, [-1]),
            graphs.rows(x)[:, None] * 2 + tf.minimum(_own(x), 1)[:, None],
        ),
        X,
    ),
    "two rows exchanged": (lambda x: tf.gather(x, [1, 0]), TWO),
    "positions in all examples": (
        lambda x: tf.transpose(tf.gather(tf.transpose(x), _own(x))),
        THREE,
    ),
    "another position for every row": (
        lambda x: tf.gather(x, np.arange(8)[:, None] % 3, batch_dims=1),
        EIGHT,
    ),
    "a table that differs from row to row": (
        lambda x: x * tf.gather(ROWS, _own(x)[:, None], batch_dims=1),
        EIGHT,
    ),
    "counts over all examples": (
        lambda x: (
            x * R.DenseBincount(input=_own(x), size=3, weights=tf.zeros([0]))
        ),
        THREE,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_lookups_by_the_row_or_in_other_rows_are_refused(name):
    function, spec = REFUSED[name]
    assert graphs.refused(function, spec).reason


SOUND = {
    "own row": (lambda x: graphs.by_rows(x, lambda i: tf.gather(x, i)), X),
    "the same position for all": (
        lambda x: tf.gather(x, [[2]] * 8, batch_dims=1),
        EIGHT,
    ),
    "the same table for all": (
        lambda x: x * tf.gather(ROWS[:1], _own(x)[:, None], axis=1)[0],
        EIGHT,
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_lookups_in_the_own_row_are_proved(name):
    function, spec = SOUND[name]
    graphs.proved(function, spec, allowed=[graphs.Category.ABORT])
