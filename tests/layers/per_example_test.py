"""Layers that are called on one example after the other."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.per_example import oracle
from tf_dpfp import per_example

X = tf.constant(np.random.default_rng(0).normal(size=(4, 5)), tf.float32)
SEQUENCES = tf.constant(
    np.random.default_rng(0).normal(size=(4, 3, 5)), tf.float32
)


@keras.saving.register_keras_serializable("tf_dpfp_test")
class Centered(layers.Layer):
    """Mixes the examples of a batch; owns a weight if asked to."""

    def __init__(self, has_weight=False, **kwargs):
        super().__init__(**kwargs)
        self.has_weight = has_weight

    def build(self, input_shape):
        self.scale = None
        if self.has_weight:
            self.scale = self.add_weight(
                shape=(input_shape[-1],), initializer="ones"
            )

    def call(self, x):
        x = x - keras.ops.mean(x)
        return x if self.scale is None else x * self.scale

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "has_weight": self.has_weight}


def _model(wrap=tf_dpfp.PerExample, has_weight=False):
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(3, activation="tanh"),
            wrap(Centered(has_weight)),
            layers.Dense(2),
        ]
    )


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _private(model, noise_multiplier=1.0, **kwargs):
    model = tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(
        0.1, l2_norm_clip=1.0, noise_multiplier=noise_multiplier, **kwargs
    )
    model.compile(optimizer, _loss())
    return model


@pytest.mark.parametrize("graph", [False, True])
def test_an_example_sees_itself_only(graph):
    layer = tf_dpfp.PerExample(Centered())
    call = tf.function(layer, autograph=False) if graph else layer
    expected = X - tf.reduce_mean(X, axis=1, keepdims=True)
    np.testing.assert_allclose(call(X), expected, atol=1e-6)
    assert np.any(np.abs(Centered()(X) - expected) > 1e-3)


def test_gradients_are_exact():
    layer = tf_dpfp.PerExample(Centered(has_weight=True))
    layer(X)
    (unit,) = per_example.find_units(layer)
    assert unit.layer is layer
    # XLA compiles a whole step below.
    oracle.check(layer, X, modes=["eager", "graph"])


def test_gradients_reach_the_layers_below():
    model = keras.Sequential(
        [layers.Dense(3), tf_dpfp.PerExample(Centered()), layers.Dense(2)]
    )
    model(X)
    oracle.check(model, X, modes=["graph"])


def test_a_recurrent_layer_with_a_mask():
    layer = tf_dpfp.PerExample(layers.GRU(2))
    double = tf_dpfp.PerExample(layers.GRU(2, dtype="float64"))
    layer(SEQUENCES)
    double(oracle.as_double(SEQUENCES))
    double.set_weights(layer.get_weights())
    mask = tf.constant([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0]])

    def call(m, both):
        return m(both[0], mask=tf.cast(both[1], "bool"))

    np.testing.assert_allclose(
        call(layer, (SEQUENCES, mask)),
        call(layer.layer, (SEQUENCES, mask)),
        atol=1e-6,
    )
    oracle.check(layer, (SEQUENCES, mask), call=call, double=double)


def test_masks_travel_through():
    ids = tf.constant([[1, 2, 0], [3, 0, 0]])
    model = keras.Sequential(
        [
            layers.Embedding(5, 3, mask_zero=True),
            tf_dpfp.PerExample(layers.Dropout(0.1)),
            layers.LSTM(2),
        ]
    )
    plain = model.layers[2](model.layers[0](ids), mask=tf.not_equal(ids, 0))
    np.testing.assert_allclose(model(ids), plain, atol=1e-6)


def test_several_arguments():
    layer = tf_dpfp.PerExample(layers.MultiHeadAttention(2, 3))
    double = tf_dpfp.PerExample(
        layers.MultiHeadAttention(2, 3, dtype="float64")
    )
    values = SEQUENCES[:, :2] + 1.0
    seen = layer(SEQUENCES, values)
    double(oracle.as_double(SEQUENCES), oracle.as_double(values))
    double.set_weights(layer.get_weights())
    np.testing.assert_allclose(seen, layer.layer(SEQUENCES, values), atol=1e-5)
    oracle.check(
        layer, (SEQUENCES, values), call=lambda m, xs: m(*xs), double=double
    )


def test_dropout_is_drawn_once_and_for_each_example():
    layer = tf_dpfp.PerExample(layers.Dropout(0.5, seed=1))
    ones = tf.ones([6, 20])
    with tf.GradientTape() as tape:
        tape.watch(ones)
        outputs = layer(ones, training=True)
    # The gradient is the very mask that the forward pass used.
    np.testing.assert_array_equal(tape.gradient(outputs, ones), outputs)
    masks = outputs.numpy()
    assert set(np.unique(masks)) == {0.0, 2.0}
    assert len({m.tobytes() for m in masks}) == len(masks)
    assert np.any(layer(ones, training=True).numpy() != masks)
    np.testing.assert_array_equal(layer(ones, training=False), ones)


def test_ordinary_training_takes_the_same_step_as_a_loop():
    model = _model(has_weight=True)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model(X) ** 2)
    variables = [v.value for v in model.trainable_variables]
    found = tape.gradient(total, variables)
    with tf.GradientTape() as tape:
        total = tf.add_n(
            [tf.reduce_sum(model(X[i : i + 1]) ** 2) for i in range(4)]
        )
    for a, b in zip(found, tape.gradient(total, variables), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_shapes():
    layer = tf_dpfp.PerExample(layers.Conv1D(4, 2))
    assert layer.compute_output_shape((None, 3, 5)) == (None, 2, 4)
    inputs = keras.Input((3, 5))
    outputs = layer(inputs)
    assert outputs.shape == (None, 2, 4)
    assert keras.Model(inputs, outputs)(SEQUENCES).shape == (4, 2, 4)
    assert tf.function(layer)(SEQUENCES).shape == (4, 2, 4)


def test_no_examples():
    layer = tf_dpfp.PerExample(Centered(has_weight=True))
    layer(X)
    call = tf.function(
        layer, input_signature=[tf.TensorSpec([None, 5])], autograph=False
    )
    assert call(X[:0]).shape == (0, 5)
    np.testing.assert_allclose(call(X[:2]), layer(X[:2]), atol=1e-6)


def test_saved_and_loaded(tmp_path):
    model = _model(has_weight=True)
    model.layers[1].layer.scale.assign([1.0, 2.0, 3.0])
    expected = model(X)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.layers[1], tf_dpfp.PerExample)
    np.testing.assert_allclose(loaded(X), expected, atol=1e-6)


def test_half_precision_is_the_layers():
    layer = tf_dpfp.PerExample(layers.Dense(2, dtype="mixed_bfloat16"))
    assert layer(X).dtype == tf.bfloat16
    copy = tf_dpfp.PerExample.from_config(layer.get_config())
    assert copy.compute_dtype == "bfloat16"


def test_weights_that_do_not_train_are_read():
    layer = tf_dpfp.PerExample(layers.Dense(3))
    layer(X)
    layer.layer.bias.trainable = False
    kernel = layer.layer.kernel.value
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(X) ** 2)
    found = tape.gradient(loss, kernel)
    expected = 2 * tf.matmul(X, layer(X), transpose_a=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_weight_of_another_layer_is_refused():
    other = tf.Variable(2.0)
    layer = tf_dpfp.PerExample(layers.Lambda(lambda x: x * other))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(X))
        with pytest.raises(ValueError, match="belongs to no layer"):
            tape.gradient(loss, other)


def test_statistics_are_refused():
    layer = tf_dpfp.PerExample(layers.BatchNormalization())
    with pytest.raises(ValueError, match="statistics"):
        layer(X, training=True)
    assert layer(X, training=False).shape == X.shape


def test_losses_are_means_over_the_examples():
    layer = tf_dpfp.PerExample(layers.ActivityRegularization(l2=0.1))
    layer(X)
    (found,) = layer.losses
    expected = 0.1 * np.mean(np.sum(np.square(X), axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_loss_of_its_own_is_recorded_for_its_gradient():
    layer = tf_dpfp.PerExample(layers.Dense(2, activity_regularizer="l2"))
    layer(X)
    (unit,) = per_example.find_units(layer)
    with per_example.record_calls([unit]) as calls:
        outputs = layer(X)
    np.testing.assert_allclose(
        calls[0].added, 0.01 * np.sum(np.square(outputs), axis=1), rtol=1e-5
    )


def test_what_is_the_same_for_all_examples_is_refused():
    layer = tf_dpfp.PerExample(layers.Add())
    with pytest.raises(ValueError, match="must be the batch"):
        layer([X, tf.ones([1, 5])])


def test_a_layer_that_mixes_is_refused_without_it():
    model = _private(_model(wrap=lambda layer: layer))
    with pytest.raises(ValueError, match="mixes|depends on the other"):
        model.train_on_batch(X, np.zeros(4, int))


@pytest.mark.parametrize("has_weight", [False, True])
def test_private_training_is_proved(has_weight):
    model = _private(_model(has_weight=has_weight), microbatch_size=2)
    with warnings.catch_warnings():
        # It would be a warning if it were not proved.
        warnings.simplefilter("error")
        model.train_on_batch(X, np.zeros(4, int))
    assert tf_dpfp.ledger(model)[0].steps == 1


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_private_step_clips_each_example(jit_compile, without_trial):
    """Against a loop over examples, with the gradients of batches of one."""
    model = _model(has_weight=True)
    y = np.arange(4) % 2
    expected = [np.zeros(v.shape) for v in model.trainable_variables]
    for i in range(4):
        with tf.GradientTape() as tape:
            loss = _loss()(y[i : i + 1], model(X[i : i + 1]))
        one = tape.gradient(loss, [v.value for v in model.trainable_variables])
        norm = float(tf.linalg.global_norm(one))
        for total, gradient in zip(expected, one, strict=True):
            total += gradient.numpy() * min(1.0, 0.1 / norm)
    before = [v.numpy() for v in model.trainable_variables]
    private = tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(1.0, l2_norm_clip=0.1, noise_multiplier=1e-9)
    private.compile(optimizer, _loss(), jit_compile=jit_compile)
    private.train_on_batch(X, y)
    for start, variable, total in zip(
        before, model.trainable_variables, expected, strict=True
    ):
        np.testing.assert_allclose(
            start - variable.numpy(), total / 4, atol=1e-6
        )
