"""Random numbers by no data, by no row, and known to be drawn."""

import numpy as np
import pytest
import tensorflow as tf

from tests.independence import graphs

R = tf.raw_ops
X = graphs.X
TWO, EIGHT = tf.TensorSpec([2, 3]), tf.TensorSpec([8, 3])
# One row for each of eight examples.
ROWS = np.arange(24, dtype=np.float32).reshape(8, 3)


def _own(x):
    """Two numbers of two examples, as many as a seed has."""
    return tf.argmax(x, -1, tf.int32)


REFUSED = {
    "a seed of two examples": (
        lambda x: x * tf.random.stateless_uniform([3], _own(x)),
        TWO,
        "StatelessRandomGetKeyCounter",
    ),
    "a seed of two examples, of old": (
        lambda x: x * R.StatelessRandomUniform(shape=[3], seed=_own(x)),
        TWO,
        "StatelessRandomUniform",
    ),
    "memory that is not set": (
        lambda x: x + R.Empty(shape=[3], dtype=tf.float32, init=False),
        X,
        "Empty",
    ),
    "another distribution for every row": (
        lambda x: (
            x + tf.random.stateless_gamma([8, 3], [1, 2], alpha=1.0 + ROWS)
        ),
        EIGHT,
        "StatelessRandomGammaV3",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_numbers_by_data_or_by_the_row_are_refused(name):
    function, spec, operation = REFUSED[name]
    finding = graphs.refused(function, spec, may_be_free=True)
    assert finding.operation == operation, str(finding)


DRAWN = {
    "uniform": lambda x: tf.random.stateless_uniform(tf.shape(x), [1, 2]),
    "gamma": lambda x: tf.random.stateless_gamma(tf.shape(x), [1, 2], 2.0),
    "classes": lambda x: tf.random.stateless_categorical(x, 2, [1, 2]),
    "zeros": lambda x: R.Empty(shape=[3], dtype=tf.float32, init=True),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_draw_by_rows_is_noted(name):
    """So that its seed is asked for: a known one would tell rows apart."""
    proof, _ = graphs.prove(
        lambda x: x[:, :2] * tf.cast(DRAWN[name](x)[..., :2], x.dtype), X
    )
    assert not proof.findings
    assert len(proof.draws) == (name != "zeros")
