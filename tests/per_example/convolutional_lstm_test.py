"""ConvLSTM against a float64 loop over examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.per_example import oracle
from tf_dpfp import per_example
from tf_dpfp.per_example import convolutional_lstm

L = keras.layers
FLAT, DEEP = (3, 4, 5, 2), (3, 2, 2, 3, 2, 1)
PLANE = (3, 2, 3, 4, 2)


def _inputs(shape, dtype="float64"):
    return tf.constant(np.random.default_rng(1).normal(size=shape), dtype)


def _randomize(layer):
    rng = np.random.default_rng(2)
    for v in layer.trainable_variables:
        v.assign(v + tf.cast(0.3 * rng.normal(size=v.shape), v.dtype))


def _pair(layer_type, args, kwargs, shape, dtype="float64"):
    """A layer, the same in float64, and inputs."""
    layer = layer_type(*args, dtype=dtype, **kwargs)
    double = layer_type(*args, dtype="float64", **kwargs)
    inputs = _inputs(shape, layer.compute_dtype)
    layer(inputs)
    double(oracle.as_double(inputs))
    _randomize(layer)
    double.set_weights([w.astype("float64") for w in layer.get_weights()])
    (unit,) = per_example.find_units(layer)
    assert isinstance(unit.rule, convolutional_lstm.ConvLSTMRule)
    return layer, double, inputs


@pytest.mark.parametrize(
    ("layer_type", "args", "kwargs", "shape"),
    [
        pytest.param(L.ConvLSTM1D, (2, 3), {}, FLAT, id="1d"),
        pytest.param(
            L.ConvLSTM1D,
            (2, 3),
            {"padding": "same", "return_sequences": True, "strides": 2},
            FLAT,
            id="1d-strides",
        ),
        pytest.param(
            L.ConvLSTM1D,
            (2, 2),
            {"dilation_rate": 2, "use_bias": False, "go_backwards": True},
            FLAT,
            id="1d-dilated-backwards",
        ),
        pytest.param(
            L.ConvLSTM2D,
            (2, (2, 3)),
            {"return_state": True, "unroll": True},
            PLANE,
            id="2d-states",
        ),
        pytest.param(L.ConvLSTM3D, (1, 2), {"padding": "same"}, DEEP, id="3d"),
    ],
)
def test_exact_in_double_precision(layer_type, args, kwargs, shape):
    layer, double, inputs = _pair(layer_type, args, kwargs, shape)
    oracle.check(layer, inputs, policy="float64", double=double)
    plain = layer(inputs)
    with per_example.record_calls(per_example.find_units(layer)):
        seen = layer(inputs)
    tf.nest.assert_same_structure(plain, seen)
    for one, other in zip(
        tf.nest.flatten(plain), tf.nest.flatten(seen), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_masks():
    layer, double, inputs = _pair(
        L.ConvLSTM1D, (2, 3), {"return_sequences": True}, FLAT
    )
    mask = [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]

    def call(m, both):
        return m(both[0], mask=tf.cast(both[1], "bool"))

    oracle.check(
        layer,
        (inputs, tf.constant(mask)),
        policy="float64",
        call=call,
        double=double,
    )


@pytest.mark.parametrize(
    "kwargs",
    [{"dropout": 0.5}, {"dropout": 0.4, "recurrent_dropout": 0.4}],
)
def test_dropout(kwargs):
    layer, _, inputs = _pair(L.ConvLSTM1D, (2, 3), kwargs, FLAT)
    oracle.check_dropout(layer, inputs)


def test_half_precision_and_unknown_length():
    layer, double, inputs = _pair(
        L.ConvLSTM1D, (2, 3), {}, FLAT, "mixed_bfloat16"
    )
    weights = oracle.weights_like(layer(inputs))

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, *FLAT[2:]])],
        autograph=False,
    )
    def run(x):
        found = oracle.recorded(layer, x, weights)
        return [found[i].squared_norms() for i in sorted(found)]

    norms = run(tf.cast(inputs, "float32"))
    truth = oracle.loop(double, oracle.as_double(inputs), weights)
    for norm, one in zip(norms, truth, strict=True):
        own = np.sum(one**2, axis=tuple(range(1, one.ndim)))
        np.testing.assert_allclose(norm, own, rtol=0.1)


def test_channels_first_takes_the_generic_rule():
    layer = L.ConvLSTM1D(2, 3, data_format="channels_first")
    layer.build((None, 4, 2, 5))
    (unit,) = per_example.find_units(layer)
    assert isinstance(unit.rule, per_example.GenericRule)


def test_a_private_model_trains():
    model = keras.Sequential(
        [
            keras.Input((2, 6, 6, 1)),
            L.ConvLSTM2D(2, 3, dropout=0.2),
            L.Flatten(),
            L.Dense(2),
        ]
    )
    oracle.assert_trains(model, (16, 2, 6, 6, 1))
