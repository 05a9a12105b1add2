"""How often a loop runs is no number to compute with."""

import pytest
import tensorflow as tf

from tests.independence import graphs

X = graphs.X


def _counted(x):
    """Behind a loop over the examples, its counter is their number."""
    rows = tf.TensorArray(tf.float32, graphs.size(x), element_shape=[3])
    count, rows = tf.while_loop(
        lambda i, _: i < graphs.size(x),
        lambda i, rows: (i + 1, rows.write(i, x[i])),
        (0, rows),
    )
    return rows.stack() * tf.cast(count, x.dtype)


def _while_any_are_left(x):
    """Runs while what its condition returns has elements."""
    specs = tf.TensorSpec([], tf.int32), tf.TensorSpec([]), X
    condition, body = (
        tf.function(f, autograph=False).get_concrete_function(*specs)
        for f in (
            lambda i, _, x: tf.ones([graphs.size(x) - i]),
            lambda i, a, x: (i + 1, a + 1.0, x),
        )
    )
    count = tf.raw_ops.While(input=[0, 0.0, x], cond=condition, body=body)[1]
    return x * tf.ensure_shape(count, [])


def _as_long_as_the_row(x):
    """Carries as many numbers as rows came before."""
    rows = tf.TensorArray(tf.float32, graphs.size(x), element_shape=[3])
    return tf.while_loop(
        lambda i, *_: i < graphs.size(x),
        lambda i, rows, ones: (
            i + 1,
            rows.write(i, x[i] * tf.reduce_sum(ones)),
            tf.ones([i]),
        ),
        (0, rows, tf.ones([0])),
        shape_invariants=(
            tf.TensorShape([]),
            None,
            tf.TensorShape([None]),
        ),
    )[1].stack()


REFUSED = {
    "its counter": _counted,
    "elements that are left": _while_any_are_left,
    "as many as rows before": _as_long_as_the_row,
}


@pytest.mark.parametrize("name", REFUSED)
def test_numbers_of_rounds_are_refused(name):
    assert graphs.refused(REFUSED[name], X).reason
