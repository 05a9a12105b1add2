"""Fake quantisation, roots of matrices and dilations: each example alone."""

import numpy as np
import pytest
import tensorflow as tf

from tests.independence import graphs

LOW, HIGH = [-1.0, -0.5, -2.0], [1.0, 0.5, 2.0]
FILTER = tf.constant(np.random.default_rng(1).normal(size=(2, 2, 2)), "float32")


def _args(x):
    return tf.quantization.fake_quant_with_min_max_args(x, -1.0, 1.0)


def _vars(x):
    return tf.quantization.fake_quant_with_min_max_vars(x, -1.0, 1.0)


def _channels(x):
    return tf.quantization.fake_quant_with_min_max_vars_per_channel(
        x, LOW, HIGH
    )


def _dilated(x):
    ones = [1, 1, 1, 1]
    return tf.nn.dilation2d(x, FILTER, ones, "SAME", "NHWC", ones)


def _root(x):
    return tf.linalg.sqrtm(tf.matmul(x, x, transpose_b=True) + 9 * tf.eye(3))


def _of_bounds(function, count):
    """Gradients of learned bounds, which add up over the batch."""

    def gradient(x):
        bounds = [tf.constant(LOW[:count]), tf.constant(HIGH[:count])]
        bounds = bounds if count > 1 else [b[0] for b in bounds]
        with tf.GradientTape() as tape:
            tape.watch(bounds)
            y = function(x, *bounds)
        low, _ = tape.gradient(y, bounds)
        return x * low

    return gradient


FORWARD = {
    "args": (_args, graphs.X),
    "vars": (_vars, graphs.X),
    "channels": (_channels, graphs.X),
    "dilated": (_dilated, graphs.IMAGE),
    "root": (_root, graphs.MATRIX),
}
SOUND = FORWARD | {
    f"gradient of {name}": (graphs.differentiated(f), spec)
    for name, (f, spec) in FORWARD.items()
}
_V = tf.quantization.fake_quant_with_min_max_vars
_C = tf.quantization.fake_quant_with_min_max_vars_per_channel
REFUSED = {
    "bounds of data": (lambda x: _V(x, x[0, 0], x[1, 1]), graphs.X),
    "bounds of others": (
        lambda x: tf.transpose(
            _C(tf.transpose(x), -(x[::-1, 0] ** 2), x[:, 0])
        ),
        graphs.X,
    ),
    "bounds of rows": (
        lambda x: tf.transpose(
            _C(
                tf.transpose(x),
                -tf.cast(graphs.rows(x), "float32"),
                tf.cast(graphs.rows(x), "float32"),
            )
        ),
        graphs.X,
    ),
    "gradient of the bounds": (_of_bounds(_V, 1), graphs.X),
    "gradient of channels' bounds": (_of_bounds(_C, 3), graphs.X),
    "dilated by data": (
        lambda x: tf.nn.dilation2d(
            x, x[0, :2, :2], [1] * 4, "SAME", "NHWC", [1] * 4
        ),
        graphs.IMAGE,
    ),
    "dilated over the batch": (
        lambda x: tf.transpose(
            _dilated(tf.transpose(x, [1, 0, 2, 3])), [1, 0, 2, 3]
        ),
        graphs.IMAGE,
    ),
    "gradient of a filter": (
        lambda x: (
            x
            * tf.raw_ops.Dilation2DBackpropFilter(
                input=x,
                filter=FILTER,
                out_backprop=x,
                strides=[1] * 4,
                rates=[1] * 4,
                padding="SAME",
            )[0, 0, 0]
        ),
        graphs.IMAGE,
    ),
    "root over the batch": (
        lambda x: tf.transpose(
            tf.linalg.sqrtm(
                tf.transpose(tf.matmul(x, x, transpose_b=True), [1, 0, 2])
            ),
            [1, 0, 2],
        ),
        graphs.MATRIX,
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_function_is_proved_and_keeps_examples_apart(name):
    function, spec = SOUND[name]
    graphs.proved(function, spec)
    x = np.random.default_rng(0).normal(size=(4, *spec.shape[1:]))
    x = x.astype("float32")
    other = np.array(x)
    other[1] = 0.25 * x[2] + 0.1
    one, two, fewer = (function(tf.constant(a)) for a in (x, other, x[[0, 2]]))
    np.testing.assert_allclose(one[0], two[0], rtol=1e-6)
    np.testing.assert_allclose(tf.gather(one, [0, 2]), fewer, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_violating_function_is_refused(name):
    graphs.refused(*REFUSED[name])
