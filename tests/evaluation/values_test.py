"""Values of examples are those of Keras, and of one example alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp.evaluation import values as values_lib
from tf_dpfp.mechanisms import proved

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 5)).astype(np.float32)
BOUND = 1.5


def _model(loss, units=3, activation=None, shape=(5,), middle=()):
    model = keras.Sequential(
        [
            keras.Input(shape),
            *middle,
            layers.Dropout(0.5),
            layers.Dense(units, activation),
        ]
    )
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss)
    return model


def _values(model, x, y, weight=None, correct=None, bound=BOUND):
    batch = (x, y, weight)
    specs = proved.specs_of(batch)
    wanted = values_lib.Wanted(correct, bound)
    function = values_lib.function_of(model, wanted, specs)
    leaves = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
    return function(*map(tf.constant, leaves)).numpy()


SPARSE = RNG.integers(0, 3, 24)
CASES = {
    "sparse": (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.metrics.SparseCategoricalAccuracy(),
        SPARSE,
        3,
    ),
    "ignored": (
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=-1
        ),
        keras.metrics.SparseCategoricalAccuracy(),
        SPARSE,
        3,
    ),
    "one_hot": (
        keras.losses.CategoricalCrossentropy(from_logits=True),
        keras.metrics.CategoricalAccuracy(),
        np.eye(3, dtype=np.float32)[SPARSE],
        3,
    ),
    "binary": (
        keras.losses.BinaryCrossentropy(from_logits=True),
        keras.metrics.BinaryAccuracy(threshold=0.0),
        (SPARSE > 1).astype(np.float32),
        1,
    ),
    "several": (
        keras.losses.BinaryCrossentropy(from_logits=True),
        keras.metrics.BinaryAccuracy(threshold=0.0),
        RNG.integers(0, 2, (24, 4)).astype(np.float32),
        4,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_keras_on_single_examples(name):
    loss, metric, y, units = CASES[name]
    model = _model(loss, units)
    found = _values(model, X, y)
    outputs = model.predict(X, verbose=0)
    for i in range(len(X)):
        one = y[i : i + 1].reshape(1, -1), outputs[i : i + 1]
        metric.reset_state()
        metric.update_state(*one)
        share = min(float(loss(*one)), BOUND) / BOUND
        wanted = [1.0, float(metric.result()), share]
        np.testing.assert_allclose(found[i], wanted, rtol=1e-4)


def test_positions_count_by_their_mask_within_an_example():
    words = RNG.integers(1, 9, (24, 6))
    words[5, 2:] = 0
    tags = RNG.integers(0, 3, (24, 6))
    model = _model(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        shape=(6,),
        middle=[layers.Embedding(9, 4, mask_zero=True)],
    )
    found = _values(model, words, tags)
    right = model.predict(words, verbose=0).argmax(-1) == tags
    np.testing.assert_allclose(found[0, 1], right[0].mean(), rtol=1e-6)
    np.testing.assert_allclose(found[5, 1], right[5, :2].mean(), rtol=1e-6)


def test_what_is_not_finite_is_wrong_and_stays_alone():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = _model(loss)
    clean = _values(model, X, SPARSE)
    x, labels = X.copy(), SPARSE.copy()
    # The first class is the greatest of numbers that are none.
    x[3], x[4], labels[3:5] = np.nan, np.inf, 0
    found = _values(model, x, labels)
    np.testing.assert_array_equal(found[3:5], [[1.0, 0.0, 1.0]] * 2)
    np.testing.assert_array_equal(found[:3], clean[:3])
    np.testing.assert_array_equal(found[5:], clean[5:])
    # A label out of range, too.
    labels = SPARSE.copy()
    labels[7] = 99
    found = _values(model, X, labels)
    np.testing.assert_array_equal(found[7], [1.0, 0.0, 1.0])
    np.testing.assert_array_equal(found[:7], clean[:7])


def test_losses_are_clipped_from_below_too():
    model = _model("cosine_similarity")
    y = model.predict(X, verbose=0)
    y[:12] *= -1.0
    found = _values(model, X, y, correct=False, bound=0.5)[:, 1]
    np.testing.assert_array_equal(found, [1.0] * 12 + [0.0] * 12)


def test_words_out_of_range_stop_nothing_and_stay_alone():
    words = RNG.integers(1, 9, (24, 6))
    model = _model(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        shape=(6,),
        middle=[layers.Embedding(9, 4), layers.Flatten()],
    )
    clean = _values(model, words, SPARSE)
    words[3, 2] = 77
    found = _values(model, words, SPARSE)
    np.testing.assert_array_equal(found[3], [1.0, 0.0, 1.0])
    np.testing.assert_array_equal(found[4:], clean[4:])


def test_examples_of_weight_zero_take_no_part():
    model = _model(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    weight = np.ones(24, np.float32)
    weight[[2, 9]] = 0.0
    weight[3] = 2.0
    found, plain = _values(model, X, SPARSE, weight), _values(model, X, SPARSE)
    np.testing.assert_array_equal(found[:, 0], weight > 0.0)
    np.testing.assert_array_equal(found[3, 1], plain[3, 1])
    assert found[:, 1:].min() >= 0.0 and found[:, 1:].max() <= 1.0


def test_a_function_of_one_example_says_what_is_correct():
    model = _model("mse")
    y = RNG.normal(size=(24, 3)).astype(np.float32)

    def near(y_true, y_pred):
        assert y_true.shape[0] == 1
        return tf.abs(y_true - y_pred) < 0.5

    found = _values(model, X, y, correct=near, bound=None)
    by_hand = (np.abs(y - model.predict(X, verbose=0)) < 0.5).mean(axis=1)
    np.testing.assert_allclose(found[:, 1], by_hand, rtol=1e-6)
    # Clipped, whatever the function returns.
    found = _values(model, X, y, correct=lambda *_: 7.0, bound=None)
    np.testing.assert_array_equal(found[:, 1], 1.0)


@keras.saving.register_keras_serializable()
class MeetsInInference(layers.Layer):
    """Passes every trial of a training step."""

    def call(self, x, training=None):
        return x if training else x - keras.ops.mean(x, axis=0)


@keras.saving.register_keras_serializable()
class Keeps(layers.Layer):
    def build(self, shape):
        self.seen = self.add_weight(shape=(), trainable=False)

    def call(self, x, training=None):
        if not training:
            self.seen.assign(keras.ops.max(x))
        return x


@keras.saving.register_keras_serializable()
class CountsBatches(layers.Layer):
    """Gives an example what hangs on the number of those before it."""

    def build(self, shape):
        self.seen = self.add_weight(shape=(), trainable=False)

    def call(self, x, training=None):
        if not training:
            self.seen.assign_add(1.0)
        return x + self.seen


@keras.saving.register_keras_serializable()
class DrawsForBatches(layers.Layer):
    """Draws a number for the whole batch, from a seed that is known."""

    def call(self, x, training=None):
        return x if training else x * tf.random.uniform([], seed=3)


@pytest.mark.parametrize(
    "layer", [MeetsInInference, Keeps, CountsBatches, DrawsForBatches]
)
def test_layers_that_mix_or_keep_examples_in_inference_are_refused(layer):
    model = _model("sparse_categorical_crossentropy", middle=[layer()])
    with pytest.raises(ValueError, match="can't be evaluated privately"):
        _values(model, X, SPARSE)
    if layer is MeetsInInference:
        model = _model(
            "sparse_categorical_crossentropy",
            middle=[tf_dpfp.PerExample(layer())],
        )
        _values(model, X, SPARSE)


def test_what_a_metric_saw_of_earlier_examples_is_not_read():
    seen = keras.metrics.MeanSquaredError()

    class Reads(layers.Layer):
        def call(self, x, training=None):
            return x if training else x + seen.total

    model = _model("mse", middle=[Reads()])
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0)
    model.compile(optimizer, "mse", metrics=[seen])
    with pytest.raises(ValueError, match="reads a metric"):
        _values(model, X, X[:, :3], correct=False)


def test_draws_in_inference_are_secret_and_of_each_batch():
    @keras.saving.register_keras_serializable()
    class Drops(layers.Dropout):
        def call(self, x, training=None):
            return super().call(x, training=True)

    model = _model("mse", middle=[Drops(0.5)])
    first, second = (
        _values(model, X, X[:, :3], correct=False) for _ in range(2)
    )
    assert not np.array_equal(first, second)


def test_seeds_and_losses_of_outputs_may_be_kept_in_loops_and_branches():
    inputs = keras.Input((4, 3))
    inside = layers.LSTM(3, dropout=0.5, recurrent_dropout=0.5)(inputs)
    outputs = {n: layers.Dense(3, name=n)(inside) for n in ("a", "b")}
    model = tf_dpfp.make_private(keras.Model(inputs, outputs))
    loss = {"a": "mse", "b": "mae"}
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss)
    x = RNG.normal(size=(24, 4, 3)).astype(np.float32)
    y = {name: X[:, :3] for name in loss}
    found = _values(model, x, y, correct=False)
    assert 0.0 < found[:, 1].min() <= found[:, 1].max() <= 1.0


def test_what_was_proved_is_proved_anew_after_a_switch():
    class Switch(layers.Layer):
        mixes = False

        def call(self, x):
            if self.mixes:
                return x - keras.ops.mean(x, axis=0)
            return x

    switch = Switch()
    model = _model("sparse_categorical_crossentropy", middle=[switch])
    _values(model, X, SPARSE)
    switch.mixes = True
    with pytest.raises(ValueError, match="can't be evaluated privately"):
        _values(model, X, SPARSE)
