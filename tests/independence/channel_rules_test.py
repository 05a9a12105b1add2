"""Depthwise convolutions whose examples lie among the channels."""

import numpy as np
import pytest
import tensorflow as tf

from tests.independence import graphs

IMAGES = tf.TensorSpec([None, 5, 6, 2], tf.float32)
KERNELS = tf.TensorSpec([None, 3, 2, 2, 3], tf.float32)


def _of_one(x, w):
    return tf.nn.depthwise_conv2d(x[None], w, [1, 2, 2, 1], "SAME")[0]


def _vectorized(x, w):
    return tf.vectorized_map(lambda e: _of_one(*e), (x, w))


def _gradients(x, w):
    with tf.GradientTape() as tape:
        tape.watch([x, w])
        y = tf.tanh(_vectorized(x, w))
    # What was looked up makes slices of its gradient.
    return [tf.convert_to_tensor(g) for g in tape.gradient(y, [x, w])]


def _first(x):
    """Examples among the channels, in front of an example's own."""
    x = tf.transpose(x, [1, 2, 0, 3])
    return tf.reshape(x, [5, 6, -1])[None]


def _last(x):
    """Examples among the channels, behind an example's own."""
    x = tf.transpose(x, [1, 2, 3, 0])
    return tf.reshape(x, [5, 6, -1])[None]


def _weights(w, turned):
    w = tf.transpose(w, [1, 2, *((3, 0) if turned else (0, 3)), 4])
    return tf.reshape(w, [3, 2, -1, 3])


def _apart(y, turned=False):
    """Takes examples out of the channels of a result."""
    size = tf.shape(y)[-1] // 6
    if turned:
        y = tf.reshape(y[0], [5, 6, 2, size, 3])
        return tf.transpose(y, [3, 0, 1, 2, 4])
    return tf.transpose(tf.reshape(y[0], [5, 6, size, 6]), [2, 0, 1, 3])


def _depthwise(x, w):
    return tf.nn.depthwise_conv2d(x, w, [1, 1, 1, 1], "SAME")


def _weight_gradient(x, g):
    found = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=x,
        filter_sizes=tf.stack([3, 2, tf.shape(x)[-1], 3]),
        out_backprop=g,
        strides=[1, 1, 1, 1],
        padding="SAME",
    )
    return tf.transpose(tf.reshape(found, [3, 2, -1, 2, 3]), [2, 0, 1, 3, 4])


def _input_gradient(w, g):
    found = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
        input_sizes=tf.stack([1, 5, 6, tf.shape(w)[2]]),
        filter=w,
        out_backprop=g,
        strides=[1, 1, 1, 1],
        padding="SAME",
    )
    return tf.transpose(tf.reshape(found[0], [5, 6, -1, 2]), [2, 0, 1, 3])


def _of_outputs(x, times):
    """A gradient of outputs, examples in front of `times` channels each."""
    return tf.repeat(_first(x), times, axis=-1)


SOUND = {
    "vectorised": _vectorized,
    "gradients": _gradients,
    "in front": lambda x, w: _apart(_depthwise(_first(x), _weights(w, False))),
    "behind": lambda x, w: _apart(
        _depthwise(_last(x), _weights(w, True)), turned=True
    ),
    "of the weights": lambda x, w: _weight_gradient(
        _first(x), _of_outputs(x, 3)
    ),
    "of the inputs": lambda x, w: _input_gradient(
        _weights(w, False), _of_outputs(x, 3)
    ),
}
REFUSED = {
    "weights of others": lambda x, w: _apart(
        _depthwise(_first(x), _weights(w, True))
    ),
    "images of others": lambda x, w: _apart(
        _depthwise(_last(x), _weights(w, False))
    ),
    "weights of the next": lambda x, w: _apart(
        _depthwise(_first(x), _weights(tf.roll(w, 1, 0), False))
    ),
    "weights of rows": lambda x, w: _apart(
        _depthwise(
            _first(x),
            tf.ones([3, 2, 1, 3])
            * tf.cast(tf.range(2 * tf.shape(x)[0]), "float32")[:, None],
        )
    ),
    "images in their axis": lambda x, w: _depthwise(
        x, _weights(w, False)[..., :2, :]
    ),
    "gradient of others": lambda x, w: _weight_gradient(
        _first(x), tf.repeat(_last(x), 3, axis=-1)
    ),
    "gradient cut otherwise": lambda x, w: _weight_gradient(
        _first(x), tf.tile(_first(x), [1, 1, 1, 3])
    ),
    "inputs of others": lambda x, w: _input_gradient(
        _weights(w, True), _of_outputs(x, 3)
    ),
    "gradient in its axis": lambda x, w: (
        tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=x,
            filter_sizes=[3, 2, 2, 3],
            out_backprop=tf.repeat(x, 3, axis=-1),
            strides=[1, 1, 1, 1],
            padding="SAME",
        )
        * tf.ones([tf.shape(x)[0], 1, 1, 1, 1])
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_examples_among_channels_are_proved_and_stay_apart(name):
    types = graphs.proved(SOUND[name], IMAGES, KERNELS)
    assert any(t.startswith("DepthwiseConv2dNative") for t in types)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5, 6, 2)).astype("float32")
    w = rng.normal(size=(4, 3, 2, 2, 3)).astype("float32")
    others = [np.array(a) for a in (x, w)]
    for a in others:
        a[1] = 7.0
    keep = [0, 2, 3]
    run = tf.function(SOUND[name])
    for one, two, fewer in zip(
        *map(tf.nest.flatten, (run(x, w), run(*others), run(x[keep], w[keep]))),
        strict=True,
    ):
        np.testing.assert_allclose(one[0], two[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            tf.gather(one, keep), fewer, rtol=1e-5, atol=1e-5
        )
        assert np.abs(one[1] - two[1]).max() > 1e-3


@pytest.mark.parametrize("name", REFUSED)
def test_channels_of_other_examples_are_refused(name):
    graphs.refused(REFUSED[name], IMAGES, KERNELS)
