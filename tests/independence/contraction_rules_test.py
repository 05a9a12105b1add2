"""Products of examples with numbers that differ from row to row."""

import numpy as np
import pytest
import tensorflow as tf

from tests.independence import graphs

R = tf.raw_ops
X = graphs.X
THREE, EIGHT = tf.TensorSpec([3, 3]), tf.TensorSpec([8, 3])
# One row for each of eight examples.
ROWS = np.arange(24, dtype=np.float32).reshape(8, 3)
MATRIX = np.arange(9, dtype=np.float32).reshape(3, 3)


REFUSED = {
    "a factor for every row": (
        lambda x: tf.einsum("bi,bi->bi", x, ROWS),
        EIGHT,
        "Einsum",
    ),
    "the examples as the bias of numbers": (
        lambda x: x * tf.nn.bias_add(MATRIX, x[:, 0])[:1],
        THREE,
        "BiasAdd",
    ),
    "gradient of a bias": (
        lambda x: x * R.BiasAddGrad(out_backprop=x),
        X,
        "BiasAddGrad",
    ),
    "gradient of a kernel": (
        lambda x: R.Conv2DBackpropFilter(
            input=x[:, None, None],
            filter_sizes=[1, 1, 3, 3],
            out_backprop=x[:, None, None],
            strides=[1, 1, 1, 1],
            padding="SAME",
        )[0, 0],
        X,
        "Conv2DBackpropFilter",
    ),
    # Numbers of example 0 begin at 0, whoever else is there; of these, the
    # place of a number hangs on how many there are.
    "numbers drawn along the last axis": (
        lambda x: (
            x
            + tf.matmul(
                tf.random.stateless_uniform([3, graphs.size(x)], [1, 2]),
                MATRIX,
                transpose_a=True,
            )
        ),
        X,
        None,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_products_with_the_row_or_over_rows_are_refused(name):
    function, spec, operation = REFUSED[name]
    finding = graphs.refused(function, spec, may_be_free=True)
    if operation is not None:
        assert finding.operation == operation, str(finding)


SOUND = {
    "a factor for all": lambda x: tf.einsum("bi,i->bi", x, ROWS[0]),
    "a bias": lambda x: tf.nn.bias_add(x, MATRIX[0]),
    "numbers drawn along the first axis": lambda x: (
        x
        + tf.matmul(
            tf.random.stateless_uniform([graphs.size(x), 3], [1, 2]), MATRIX
        )
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_products_within_a_row_are_proved(name):
    graphs.proved(SOUND[name], X)
