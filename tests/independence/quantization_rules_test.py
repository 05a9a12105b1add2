"""Quantisation, functions of matrices and of images: each example alone."""

import keras
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
    return tf.linalg.sqrtm(_symmetric(x))


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


def _rounded(x, **arguments):
    return tf.quantization.quantize_and_dequantize_v2(
        x,
        **{"input_min": -1.0, "input_max": 1.0, "range_given": True}
        | arguments,
    )


def _symmetric(x):
    return tf.matmul(x, x, transpose_b=True) + 9 * tf.eye(3)


def _bands(x):
    """Three bands of a matrix of each example, times a matrix."""
    bands = x + [[0.0], [9.0], [0.0]]
    solved = tf.linalg.tridiagonal_solve(bands, x)
    return tf.linalg.tridiagonal_matmul(bands, solved)


def _real(x):
    return tf.math.real(tf.linalg.eigvals(_symmetric(x)))


def _logarithm(x):
    matrices = tf.cast(_symmetric(x), tf.complex64)
    lu, order = tf.linalg.lu(_symmetric(x))
    return (
        tf.math.real(tf.linalg.logm(matrices))
        + lu
        + tf.cast(order, tf.float32)[:, None]
    )


def _dotted(function):
    """Works on matrices that have the examples in their rows."""
    return lambda x: tf.transpose(function(tf.transpose(x, [1, 0, 2])))


FORWARD = {
    "rounded": (_rounded, graphs.X),
    "bands": (_bands, graphs.MATRIX),
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
SOUND |= {
    "eigenvalues": (_real, graphs.MATRIX),
    "logarithm and decomposition": (_logarithm, graphs.MATRIX),
    "median": (lambda x: keras.ops.median(x, axis=1), graphs.MATRIX),
    "blurred": (keras.ops.image.gaussian_blur, graphs.IMAGE),
    "gradient of a Cholesky decomposition": (
        graphs.differentiated(lambda x: tf.linalg.logdet(_symmetric(x))),
        graphs.MATRIX,
    ),
}
_V = tf.quantization.fake_quant_with_min_max_vars
_C = tf.quantization.fake_quant_with_min_max_vars_per_channel
REFUSED = {
    "rounded by the range of the batch": (
        lambda x: _rounded(x, range_given=False),
        graphs.X,
    ),
    "rounded by data": (lambda x: _rounded(x, input_max=x[0, 0]), graphs.X),
    "rounded by rows": (
        lambda x: _rounded(
            tf.ensure_shape(x, [3, 3]), input_min=LOW, input_max=HIGH, axis=0
        ),
        tf.TensorSpec([3, 3]),
    ),
    "gradient rounded by data": (
        lambda x: tf.raw_ops.QuantizeAndDequantizeV4Grad(
            gradients=x, input=x, input_min=x[0, 0], input_max=1.0
        )[0],
        graphs.X,
    ),
    "gradient of a range": (
        lambda x: (
            x
            * tf.raw_ops.QuantizeAndDequantizeV4Grad(
                gradients=x, input=x, input_min=-1.0, input_max=1.0
            )[1]
        ),
        graphs.X,
    ),
    "bands of others": (_dotted(_bands), graphs.MATRIX),
    "eigenvalues of others": (_dotted(_real), graphs.MATRIX),
    "logarithm of others": (_dotted(_logarithm), graphs.MATRIX),
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
