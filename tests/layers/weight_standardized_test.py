"""Weight standardisation: the layer, and its exact per-example gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.per_example import oracle
from tf_dpfp import per_example

RNG = np.random.default_rng(0)


def _layer(shape, policy="float32", **kwargs):
    keras.utils.set_random_seed(0)
    given = {"filters": 4, "kernel_size": 3, "dtype": policy} | kwargs
    layer = tf_dpfp.recipes.WSConv2D(**given)
    inputs = tf.constant(RNG.normal(size=shape), layer.compute_dtype)
    layer(inputs)
    for variable in layer.trainable_variables:
        variable.assign(RNG.normal(size=variable.shape) + 0.5)
    return layer, inputs


@pytest.mark.parametrize(
    "kwargs, modes",
    [
        ({"activation": "relu", "strides": 2}, ["eager", "graph", "xla"]),
        ({"groups": 2, "padding": "same", "use_bias": False}, ["graph"]),
        # Factored, and written out only for the map.
        ({"filters": 64, "kernel_size": 2, "padding": "same"}, ["graph"]),
        ({"epsilon": 30.0, "dilation_rate": 2}, ["graph"]),
    ],
)
def test_gradients_are_exact(kwargs, modes):
    layer, inputs = _layer((3, 6, 7, 2), **kwargs)
    (unit,) = per_example.find_units(layer)
    assert not isinstance(unit.rule, per_example.GenericRule)
    oracle.check(layer, inputs, modes=modes)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"activation": "relu", "strides": 2, "dtype": "mixed_float16"},
        {"groups": 2, "padding": "same", "use_bias": False},
    ],
)
def test_an_ordinary_convolution_computes_the_same(kwargs):
    layer, inputs = _layer((3, 6, 7, 2), **kwargs)
    ordinary = layer.to_conv2d()
    assert type(ordinary) is layers.Conv2D and ordinary.name == layer.name
    tolerance = 1e-2 if "dtype" in kwargs else 1e-6
    np.testing.assert_allclose(ordinary(inputs), layer(inputs), atol=tolerance)


def test_a_layer_without_a_kernel_is_no_ordinary_one():
    with pytest.raises(ValueError, match="Received: 'new'"):
        tf_dpfp.recipes.WSConv2D(2, 3, name="new").to_conv2d()


@pytest.mark.parametrize("policy", ["float64", "mixed_float16"])
def test_other_precisions(policy):
    layer, inputs = _layer((3, 6, 7, 2), policy)
    oracle.check(layer, inputs, policy=policy)


def test_gradients_of_a_layer_that_is_called_twice():
    shared = tf_dpfp.recipes.WSConv2D(2, 3, padding="same", activation="tanh")
    inputs = keras.Input((5, 5, 2))
    model = keras.Model(inputs, shared(shared(inputs)))
    oracle.check(model, tf.constant(RNG.normal(size=(3, 5, 5, 2)), tf.float32))


def test_what_is_summed_is_what_was_measured():
    # Gradients of the filters of which the standardisation takes nearly all
    # away: in a sum of them, what is left would drown in rounding.
    layer, _ = _layer((3, 6, 6, 1), kernel_size=6, filters=1, use_bias=False)
    inputs = 1e6 + tf.constant(RNG.normal(size=(3, 6, 6, 1)), tf.float32)
    units = per_example.find_units(layer)
    with tf.GradientTape() as tape, per_example.record_calls(units) as calls:
        total = tf.reduce_sum(layer(inputs))
    (call,) = calls
    found = tape.gradient(total, call.sources)
    ((_, gradient),) = call.rule.gradients(call, tuple(found))
    each = np.float64(gradient.materialize())
    norms = np.sqrt(np.sum(each**2, (1, 2, 3, 4)))
    np.testing.assert_allclose(gradient.squared_norms(), norms**2, rtol=1e-4)
    factors = np.array([0.3, 0.71, 0.13])
    found = gradient.weighted_sum(tf.constant(factors, tf.float32))
    error = found - np.tensordot(factors, each, 1)
    assert np.linalg.norm(error) < 1e-4 * np.sum(factors * norms)


def test_joined_rows_are_added_before_the_map():
    layer, inputs = _layer((4, 6, 6, 2))
    found = oracle.recorded(layer, inputs, oracle.weights_like(layer(inputs)))
    present = tf.constant([True, True, False, True])
    joined = per_example.add_consecutive(found[0], 2, present)
    each = found[0].materialize().numpy()
    expected = np.stack([each[0] + each[1], each[3]])
    np.testing.assert_allclose(joined.materialize(), expected, atol=1e-3)
    np.testing.assert_allclose(
        joined.squared_norms(), np.sum(expected**2, (1, 2, 3, 4)), rtol=1e-4
    )


def test_filters_have_zero_mean_and_unit_norm():
    layer, inputs = _layer((2, 5, 5, 2), epsilon=1e-12)
    kernel = layer.kernel.numpy()
    axes = (0, 1, 2)
    centred = kernel - kernel.mean(axes)
    plain = layers.Conv2D(4, 3)
    plain.build(inputs.shape)
    norms = np.sqrt(np.sum(centred**2, axes))
    plain.set_weights([centred / norms, layer.bias.numpy()])
    expected = plain(inputs)
    np.testing.assert_allclose(layer(inputs), expected, atol=1e-5)
    # Neither the mean nor the length of a filter matters.
    layer.kernel.assign(3.0 * kernel + np.arange(4.0))
    np.testing.assert_allclose(layer(inputs), expected, atol=1e-4)


def test_it_trains_privately_and_comes_back_from_a_file(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            tf_dpfp.recipes.WSConv2D(4, 3, use_bias=False),
            layers.GroupNormalization(2),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.5, noise_multiplier=0.5, l2_norm_clip=0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = RNG.normal(size=(16, 8, 8, 1)).astype(np.float32)
    batches = tf_dpfp.poisson_batches(
        x, np.arange(16) % 3, expected_batch_size=8, multiplicity=2
    )
    before = model.get_weights()
    model.fit(batches, verbose=0)
    assert not np.array_equal(before[0], model.get_weights()[0])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].epsilon == 1e-4
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-6)


def test_an_epsilon_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="epsilon=0"):
        tf_dpfp.recipes.WSConv2D(2, 3, epsilon=0.0)
