"""What holds of both branches of a coin."""

import numpy as np
import pytest
import tensorflow as tf

from tests.independence import graphs

X = graphs.X
EIGHT = tf.TensorSpec([8, 3])
# One row for each of eight examples.
ROWS = np.arange(24, dtype=np.float32).reshape(8, 3)


def _either(one, other):
    return tf.cond(
        tf.random.stateless_uniform([], [1, 2]) < 0.5,
        lambda: one,
        lambda: other,
    )


def _as_number(x, number):
    return x * tf.cast(number, x.dtype)


REFUSED = {
    "as many ones as examples": (
        lambda x: (
            x * tf.reduce_sum(_either(tf.ones([graphs.size(x)]), tf.ones(3)))
        ),
        X,
        "If",
    ),
    "rows that are no examples": (lambda x: x + _either(x, ROWS), EIGHT, "If"),
    "the batch size everywhere": (
        lambda x: x + _either(x, _as_number(tf.ones_like(x), graphs.size(x))),
        X,
        "If",
    ),
    "the batch size": (
        lambda x: _as_number(x, _either(graphs.size(x), 3)),
        X,
        "Mul",
    ),
    "the number of the row": (
        lambda x: _as_number(
            x, _either(graphs.rows(x), graphs.rows(x) * 2)[:, None]
        ),
        X,
        "If",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_of_two_branches_tells_is_refused(name):
    function, spec, operation = REFUSED[name]
    finding = graphs.refused(function, spec)
    assert finding.operation.endswith(operation), str(finding)


SOUND = {
    "numbers": lambda x: x * _either(2.0, 3.0),
    "examples": lambda x: x + _either(x, tf.zeros_like(x)),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_both_branches_keep_apart_is_proved(name):
    graphs.proved(SOUND[name], X)
