"""Rows that are added where indices say stay those of their examples."""

import pytest
import tensorflow as tf

from tests.independence import graphs

X = graphs.X
TWO = tf.TensorSpec([2, 3])


def _copies_beside(x, make):
    """Adds to every second row of two copies of the batch."""
    table = make(x)
    index = (graphs.rows(x) * 2)[:, None]
    both = tf.tensor_scatter_nd_add(table, index, x)
    return tf.reshape(both, [graphs.size(x), 6])


REFUSED = {
    "row numbers added up": (
        lambda x: (
            x
            * tf.cast(
                tf.math.unsorted_segment_sum(
                    graphs.rows(x), graphs.rows(x), graphs.size(x)
                ),
                x.dtype,
            )[:, None]
        ),
        X,
        "UnsortedSegmentSum",
    ),
    "rows added up at known places": (
        lambda x: tf.math.unsorted_segment_sum(x, [1, 1], 2),
        TWO,
        "UnsortedSegmentSum",
    ),
    "rows at known places": (
        lambda x: tf.scatter_nd([[1], [1]], x, [2, 3]),
        TWO,
        "ScatterNd",
    ),
    "rows of sorted places": (
        lambda x: tf.math.segment_sum(x, [0, 1]),
        TWO,
        "SegmentSum",
    ),
    "rows at sorted places of the data": (
        lambda x: tf.math.segment_max(x, tf.cast(x[:, 0], tf.int32)),
        X,
        "SegmentMax",
    ),
    "as many sorted places as examples": (
        lambda x: tf.math.segment_sum(
            tf.transpose(x), tf.zeros([graphs.size(x)], tf.int32)
        ),
        X,
        "SegmentSum",
    ),
    "rows between those of two blocks": (
        lambda x: _copies_beside(x, lambda x: tf.concat([x, -x], 0)),
        X,
        "TensorScatterAdd",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_of_others_are_refused(name):
    function, spec, operation = REFUSED[name]
    finding = graphs.refused(function, spec)
    assert finding.operation == operation, str(finding)


SOUND = {
    "rows of each added up": lambda x: tf.math.unsorted_segment_sum(
        x, graphs.rows(x), graphs.size(x)
    ),
    "rows between the own ones": lambda x: _copies_beside(
        x, lambda x: tf.repeat(x, 2, 0)
    ),
    "sorted places of each": graphs.differentiated(
        lambda x: tf.transpose(tf.math.segment_sum(tf.transpose(x), [0, 0, 1]))
    ),
    "sorted places without a number for all": lambda x: tf.transpose(
        tf.math.segment_mean(tf.transpose(x), [0, 2, 2])
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_own_rows_are_proved(name):
    allowed = [graphs.Category.ABORT]
    graphs.proved(SOUND[name], X, allowed=allowed)
