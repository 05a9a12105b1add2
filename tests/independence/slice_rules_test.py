"""What is cut out must not hang on the data, the batch size or the row."""

import numpy as np
import pytest
import tensorflow as tf

from tests.independence import graphs
from tf_dpfp.independence import proof

R = tf.raw_ops
X = graphs.X
TWO, FOUR = tf.TensorSpec([2, 3]), tf.TensorSpec([4, 3])
TABLE = np.arange(81.0, dtype=np.float32).reshape(9, 9)


def _own(x):
    """Places that two examples name: one for each axis of a table."""
    return tf.argmax(x, -1, tf.int32)


def _cut(x, begin, end):
    return R.StridedSlice(input=x, begin=begin, end=end, strides=[1, 1])


def _placed(x, column):
    """Columns of zeros with those of a batch among them."""
    return R.StridedSliceGrad(
        shape=tf.stack([graphs.size(x), 9]),
        begin=tf.stack([0, column]),
        end=tf.stack([graphs.size(x), column + 3]),
        strides=[1, 1],
        dy=x,
    )


def _columns_from(x, count):
    """Counts columns that begin at a place of which nothing is known."""
    begin = tf.size(tf.unique(tf.constant([1, 1])).y) - 1
    part = tf.slice(x, tf.stack([0, begin, 0]), tf.stack([-1, count, -1]))
    return tf.reduce_sum(tf.ones_like(part), [1, 2])


REFUSED = {
    "begins at what two examples say": (
        lambda x: x + tf.reduce_sum(_cut(TABLE, _own(x), [9, 9])),
        TWO,
        "StridedSlice",
    ),
    "ends at what two examples say": (
        lambda x: x + tf.reduce_sum(_cut(TABLE, [0, 0], _own(x))),
        TWO,
        "StridedSlice",
    ),
    "a slice that begins at what two examples say": (
        lambda x: x + tf.reduce_sum(tf.slice(TABLE, _own(x), [1, 1])),
        TWO,
        "Slice",
    ),
    "a slice as long as two examples say": (
        lambda x: x + tf.reduce_sum(tf.slice(TABLE, [0, 0], _own(x))),
        TWO,
        "Slice",
    ),
    "number of the own row": (
        lambda x: graphs.by_rows(
            x, lambda i: x[i] * tf.cast(tf.range(graphs.size(x))[i], x.dtype)
        ),
        X,
        None,
    ),
    "as many columns of the own row as there are examples": (
        lambda x: graphs.by_rows(
            x, lambda i: x[i] + tf.reduce_sum(x[i, : graphs.size(x)])
        ),
        X,
        "StridedSlice",
    ),
    "a slice of the own row by the batch size": (
        lambda x: graphs.by_rows(
            x,
            lambda i: (
                x[i]
                + tf.reduce_sum(
                    tf.slice(x, [i, 0], tf.stack([1, graphs.size(x)]))
                )
            ),
        ),
        X,
        "Slice",
    ),
    "half of one copy and half of the next": (
        lambda x: tf.concat([x, -x], 0)[2:6],
        FOUR,
        "StridedSlice",
    ),
    "a slice over two copies": (
        lambda x: tf.slice(tf.concat([x, -x], 0), [2, 0], [4, 3]),
        FOUR,
        "Slice",
    ),
    "column by the batch size": (
        lambda x: x * x[:, graphs.size(x) - 1][:, None],
        X,
        "StridedSlice",
    ),
    "column by the lesser of the batch size": (
        lambda x: x * x[:, tf.minimum(graphs.size(x), 2)][:, None],
        X,
        "StridedSlice",
    ),
    "as many columns as examples, from one that is not known on": (
        lambda x: _columns_from(x, graphs.size(x)),
        graphs.XT,
        "Slice",
    ),
    "two less than examples, from one that is not known on": (
        lambda x: _columns_from(x, graphs.size(x) - 2),
        graphs.XT,
        "Slice",
    ),
    "place of a table by the batch size": (
        lambda x: x * tf.constant(TABLE)[graphs.size(x) % 9, 0],
        X,
        None,
    ),
    "put at the place of the batch size": (
        lambda x: _placed(x, graphs.size(x)),
        X,
        "StridedSliceGrad",
    ),
    "put at the lesser of the batch size": (
        lambda x: _placed(x, tf.minimum(graphs.size(x), 2)),
        X,
        "StridedSliceGrad",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_cut_out_hangs_on_nothing_else(name):
    function, spec, operation = REFUSED[name]
    finding = graphs.refused(function, spec, may_be_free=True)
    if operation is not None:
        assert finding.operation == operation, str(finding)


SOUND = {
    "own row": (lambda x: graphs.by_rows(x, lambda i: x[i] * 2.0), X),
    "columns of the own row": (
        lambda x: graphs.by_rows(x, lambda i: x[i] + tf.reduce_sum(x[i, :2])),
        X,
    ),
    "one of two copies": (lambda x: tf.concat([x, -x], 0)[4:8], FOUR),
    "put at a place": (lambda x: _placed(x, 2), X),
    "place of a table": (lambda x: x * tf.constant(TABLE)[2, 0], X),
}


def test_slices_are_as_long_as_another_batch_says():
    """The kernel of `tf.slice` checks it; that of `x[:, :n]` cuts less."""
    long, wide = (tf.TensorSpec([None, None, 3]) for _ in range(2))

    def other(x, y):
        part = tf.slice(x, [0, 0, 0], [-1, tf.shape(y)[1], -1])
        return tf.reduce_sum(part * y, [1, 2])

    def gradient(x, y):
        with tf.GradientTape() as tape:
            tape.watch(x)
            part = tf.slice(x, [0, 0, 0], [-1, tf.shape(y)[1], -1])
            squares = part**2
        return tape.gradient(squares, x)

    abort = [graphs.Category.ABORT]
    graphs.proved(other, long, wide, allowed=abort)
    graphs.proved(gradient, long, wide, allowed=abort)
    # It is the rest if it is -1, so its length is not known.
    with tf.Graph().as_default() as graph:
        x, y = (
            tf.compat.v1.placeholder(tf.float32, s.shape) for s in (long, wide)
        )
        part = tf.slice(x, [0, 0, 0], [-1, tf.shape(y)[1] - 2, -1])
        assert proof.walk_of(graph, [x, y]).value(part).shape[1] is None
    # As many columns as examples, or all but as many.
    for length in (graphs.size, lambda y: tf.shape(y)[1] - graphs.size(y)):
        graphs.refused(
            lambda x, y, f=length: tf.reduce_sum(
                tf.slice(x, [0, 0, 0], [-1, f(y), -1]), [1, 2]
            ),
            long,
            wide,
        )


@pytest.mark.parametrize("name", SOUND)
def test_what_is_the_same_for_all_may_be_cut_out(name):
    function, spec = SOUND[name]
    graphs.proved(function, spec, allowed=[graphs.Category.ABORT])
