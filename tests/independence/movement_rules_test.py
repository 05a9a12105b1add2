"""Examples are not moved to each other's places by joining and cutting."""

import numpy as np
import pytest
import tensorflow as tf

from tests.independence import graphs

X = graphs.X
TABLE = np.arange(81.0, dtype=np.float32).reshape(9, 9)


def _thrice(x):
    """Six rows of each example, in three blocks of other lengths."""
    blocks = tf.concat([tf.repeat(x, 2, 0), x, tf.repeat(x, 3, 0)], 0)
    return tf.reduce_sum(tf.reshape(blocks, [3, graphs.size(x), 6]), 0)


def _number(x, rows):
    return x * tf.cast(rows, x.dtype)[:, None]


def _second(x, first):
    """First number of the second part of a table."""
    parts = tf.split(TABLE, tf.stack([first, 9 - first]), 0, num=2)
    return x * parts[1][0, 0]


REFUSED = {
    "blocks with other numbers of rows of each": (_thrice, X, "ConcatV2"),
    "row numbers joined in front": (
        lambda x: _number(x, tf.stack([graphs.rows(x), graphs.rows(x)])[0]),
        X,
        "Pack",
    ),
    "row numbers joined to others": (
        lambda x: _number(
            x,
            tf.concat(
                [graphs.rows(x)[None], tf.zeros_like(graphs.rows(x))[None]], 0
            )[0],
        ),
        X,
        "ConcatV2",
    ),
    "padded as two examples say": (
        lambda x: (
            tf.cast(x, tf.float32)
            * tf.reduce_sum(tf.ones_like(tf.pad(TABLE, x)))
        ),
        tf.TensorSpec([2, 2], tf.int32),
        "Pad",
    ),
    "cut where the batch ends": (
        lambda x: _second(x, graphs.size(x)),
        X,
        "SplitV",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_of_others_and_their_number_are_refused(name):
    function, spec, operation = REFUSED[name]
    finding = graphs.refused(function, spec, may_be_free=True)
    assert finding.operation == operation, str(finding)


SOUND = {
    "blocks of as many rows of each": lambda x: tf.reduce_sum(
        tf.reshape(
            tf.concat([tf.repeat(x, 2, 0), tf.repeat(-x, 2, 0)], 0),
            [2, graphs.size(x), 6],
        ),
        0,
    ),
    "cut at a place": lambda x: _second(x, 4),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_keeps_rows_in_their_places_is_proved(name):
    graphs.proved(SOUND[name], X)
