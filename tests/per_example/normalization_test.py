"""The gradient that normalisation layers pass on while they are recorded."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.per_example import oracle
from tf_dpfp import per_example

L = keras.layers
CASES = {
    "layer": (lambda **k: L.LayerNormalization(**k), (3, 5, 6)),
    "layer_axes": (
        lambda **k: L.LayerNormalization(axis=[1, 2], **k),
        (3, 5, 6),
    ),
    "layer_inner_axis": (
        lambda **k: L.LayerNormalization(axis=1, **k),
        (3, 5, 6),
    ),
    "layer_large_epsilon": (
        lambda **k: L.LayerNormalization(epsilon=0.5, **k),
        (3, 6),
    ),
    "group": (lambda **k: L.GroupNormalization(2, **k), (3, 5, 4, 6)),
    "group_axis": (lambda **k: L.GroupNormalization(2, axis=1, **k), (3, 4, 5)),
    "instance": (lambda **k: L.GroupNormalization(-1, **k), (3, 5, 6)),
}
if hasattr(L, "RMSNormalization"):
    CASES["rms"] = (
        lambda **k: L.RMSNormalization(epsilon=0.1, **k),
        (3, 5, 6),
    )


def _built(make, inputs, **arguments):
    layer = make(**arguments)
    layer(inputs)
    rng = np.random.default_rng(2)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return layer


def _input_gradient(layer, inputs, units):
    weights = oracle.weights_like(layer(inputs))
    with tf.GradientTape() as tape, per_example.record_calls(units):
        tape.watch(inputs)
        loss = tf.reduce_sum(oracle.losses_of(layer(inputs), weights))
    return tape.gradient(loss, inputs)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_what_goes_on_is_the_gradient_of_keras(name, compiled):
    make, shape = CASES[name]
    # Far from zero, where a formula that forgets the mean goes wrong.
    inputs = tf.constant(
        np.random.default_rng(1).normal(size=shape) + 2.0, tf.float32
    )
    layer = _built(make, inputs)
    double = oracle.in_double(layer, inputs)
    truth = _input_gradient(double, oracle.as_double(inputs), [])
    run = tf.function(
        lambda x: _input_gradient(layer, x, per_example.find_units(layer)),
        jit_compile=compiled,
        autograph=False,
    )
    found = run(inputs)
    scale = np.max(np.abs(truth))
    np.testing.assert_allclose(found / scale, truth / scale, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float64", "mixed_float16"])
def test_other_precisions(dtype):
    inputs = np.random.default_rng(1).normal(size=(3, 5, 6))
    inputs = tf.cast(inputs, keras.DTypePolicy(dtype).compute_dtype)
    layer = _built(lambda **k: L.LayerNormalization(**k), inputs, dtype=dtype)
    double = oracle.in_double(layer, inputs)
    truth = _input_gradient(double, oracle.as_double(inputs), [])
    found = _input_gradient(layer, inputs, per_example.find_units(layer))
    assert found.dtype == inputs.dtype
    tolerance = 1e-12 if dtype == "float64" else 5e-3
    scale = np.max(np.abs(truth))
    np.testing.assert_allclose(found / scale, truth / scale, atol=tolerance)
