"""What else a `fit` is asked to do: every step of it is taken and counted."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp

pytestmark = pytest.mark.usefixtures("without_trial")

STEPS = 30
BATCH = 4


def _dense(units, seed, **kwargs):
    return layers.Dense(
        units,
        kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
        **kwargs,
    )


def _sequential(outputs=3):
    return keras.Sequential(
        [keras.Input((5,)), _dense(6, 1, activation="tanh"), _dense(outputs, 2)]
    )


class Unbuilt(keras.Model):
    """The same, with shapes that only a batch tells."""

    def __init__(self):
        super().__init__()
        self.hidden = _dense(6, 1, activation="tanh")
        self.head = _dense(3, 2)

    def call(self, inputs):
        return self.head(self.hidden(inputs))


def _private(model=None, loss=None, learning_rate=0.5, **arguments):
    model = tf_dpfp.make_private(model or _sequential())
    model.compile(
        optimizer=tf_dpfp.DPSGD(
            learning_rate, l2_norm_clip=0.5, noise_multiplier=0.0
        ),
        loss=loss
        or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **arguments,
    )
    return model


def _data(count=20):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 5)).astype("float32")
    return x, rng.integers(0, 3, count)


def _batches(*data, steps=7):
    """Anew for every run: the iterations over one data set differ."""
    return tf_dpfp.poisson_batches(
        *data, sampling_rate=0.1, steps_per_epoch=steps, seed=5
    )


def _assert_same_weights(a, b):
    for v, w in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(v, w, atol=1e-6)


class _Weights(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append([w.copy() for w in self.model.get_weights()])


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_overflowing_example_costs_a_float16_run_no_step(where):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * BATCH, 5)).astype("float32")
    y = rng.normal(size=(STEPS * BATCH, 2)).astype("float32")
    # One example of every batch.
    if where == "forward":
        x[::BATCH] = 7e4
    else:
        # The loss is finite, but its gradient, scaled, is not in float16.
        y[::BATCH] = 1e5
    weights = np.ones(STEPS * BATCH, "float32")
    weights[::BATCH] = 0.0
    keras.config.set_dtype_policy("mixed_float16")

    def train(sample_weight=None):
        model = _private(_sequential(2), "mse", learning_rate=0.05)
        recorder = _Weights()
        model.fit(
            x,
            y,
            sample_weight=sample_weight,
            batch_size=BATCH,
            shuffle=False,
            verbose=0,
            callbacks=[recorder],
        )
        return model, recorder.seen

    model, seen = train()
    without, _ = train(weights)
    assert int(model.optimizer.iterations.numpy()) == STEPS
    assert [e.steps for e in tf_dpfp.ledger(model)] == [STEPS]
    assert len(seen) == STEPS
    for before, after in zip(seen[:-1], seen[1:], strict=True):
        for a, b in zip(before, after, strict=True):
            assert np.all(np.isfinite(b)) and np.any(a != b)
    _assert_same_weights(model, without)


def test_an_unbuilt_subclassed_model_is_built_by_fit():
    model, built = _private(Unbuilt()), _private()
    assert not model.built
    for m in (model, built):
        m.fit(_batches(*_data()), epochs=2, verbose=0)
    _assert_same_weights(model, built)
    (entry,) = tf_dpfp.ledger(model)
    assert (entry.sampling.sampling_rate, entry.steps) == (0.1, 14)


class MixingUnbuilt(keras.Model):
    """Makes its layers in `build`, and lets examples see each other."""

    def build(self, input_shape):
        self.dense = layers.Dense(3)
        self.dense.build(input_shape)
        self.built = True

    def call(self, x):
        return self.dense(x - keras.ops.mean(x, axis=0, keepdims=True))


@pytest.mark.usefixtures("with_trial")
def test_a_model_that_fit_builds_is_tried_before_it_sees_data():
    with pytest.raises(ValueError, match="depends on the other examples"):
        _private(MixingUnbuilt()).fit(_batches(*_data()), verbose=0)


class PickyUnbuilt(Unbuilt):
    """Rejects the inputs that the trial makes up, and takes rows of zeros."""

    def call(self, inputs):
        made_up = (inputs > 0.0) & (inputs < 1.0)
        check = tf.debugging.Assert(~tf.reduce_any(made_up), [inputs])
        with tf.control_dependencies([check] if check is not None else []):
            return super().call(tf.identity(inputs))


@pytest.mark.usefixtures("with_trial")
def test_a_model_that_rejects_made_up_inputs_is_built_on_the_batch():
    x, y = _data()
    with pytest.warns(UserWarning, match="could not be tried"):
        model = _private(PickyUnbuilt())
        model.fit(_batches(x + 20.0, y), verbose=0)
    assert [e.steps for e in tf_dpfp.ledger(model)] == [7]


class _Reading(layers.Layer):
    """Reads a table that it does not own, past the table's rule."""

    def __init__(self, table):
        super().__init__()
        self._of_others = [lambda: table.embeddings]

    def call(self, x):
        return x @ keras.ops.transpose(self._of_others[0]())


@pytest.mark.usefixtures("with_trial")
@pytest.mark.parametrize("reads", [False, True])
def test_a_model_of_words_is_tried_too(reads, recwarn):
    _, y = _data()
    table = layers.Embedding(3, 4)
    words = keras.Input((), dtype="string")
    x = table(layers.StringLookup(vocabulary=["0", "1"])(words))
    x = _Reading(table)(x) if reads else layers.Dense(3)(x)
    model = _private(keras.Model(words, x))
    if reads:
        with pytest.raises(ValueError, match="do not add up"):
            model.fit(_batches(y.astype(str), y), verbose=0)
    else:
        model.fit(_batches(y.astype(str), y), verbose=0)
    assert not [each for each in recwarn if each.category is UserWarning]


def test_labels_in_words_are_refused_at_once(recwarn):
    x, y = _data()
    with pytest.raises(ValueError, match="needs targets that are numbers"):
        _private().fit(_batches(x, np.array(list("abc"))[y]), verbose=0)
    told = [str(each.message) for each in recwarn]
    assert not any("could not be tried" in each for each in told)


def test_class_weight_and_validation_on_poisson_batches():
    x, y = _data()
    class_weight = {0: 0.2, 1: 1.0, 2: 3.0}
    by_class, by_example = _private(), _private()
    history = by_class.fit(
        _batches(x, y),
        epochs=2,
        class_weight=class_weight,
        validation_data=(x, y),
        verbose=0,
    ).history
    weights = np.array([class_weight[label] for label in y], "float32")
    by_example.fit(_batches(x, y, weights), epochs=2, verbose=0)
    _assert_same_weights(by_class, by_example)
    np.testing.assert_allclose(
        history["val_loss"][-1],
        by_class.evaluate(x, y, verbose=0),
        rtol=1e-5,
    )
    # Validation releases nothing.
    assert tf_dpfp.ledger(by_class) == tf_dpfp.ledger(by_example)
    assert tf_dpfp.ledger(by_class)[0].steps == 14


@pytest.mark.parametrize("steps", [6, 7])
def test_steps_per_execution_on_poisson_batches(steps):
    found = []
    for steps_per_execution in (1, 3):
        model = _private(steps_per_execution=steps_per_execution)
        model.fit(_batches(*_data(), steps=steps), epochs=2, verbose=0)
        assert [e.steps for e in tf_dpfp.ledger(model)] == [2 * steps]
        found.append(model)
    _assert_same_weights(*found)


def test_a_compile_that_fails_loses_no_step():
    model = _private()
    x, y = _data()
    model.fit(x, y, batch_size=8, verbose=0)
    counted = tf_dpfp.ledger(model)
    assert counted
    with pytest.raises(ValueError):
        model.compile(
            tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss="mse", metrics="mae"
        )
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss="mse")
    assert tf_dpfp.ledger(model) == counted


def test_an_optimizer_that_compile_did_not_see_is_refused():
    model = _private()
    x, y = _data()
    model.fit(x, y, batch_size=8, verbose=0)
    counted = tf_dpfp.ledger(model)
    first = model.optimizer
    model.optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0)
    for use in (
        tf_dpfp.ledger,
        lambda m: tf_dpfp.compute_epsilon(m, 1e-5),
        lambda m: m.fit(x, y, verbose=0),
        lambda m: m.train_on_batch(x, y),
        lambda m: tf_dpfp.loops.clipped_gradients(m, x, y),
    ):
        with pytest.raises(
            tf_dpfp.errors.NotPrivateError, match="was replaced after"
        ):
            use(model)
    model.optimizer = first
    assert tf_dpfp.ledger(model) == counted


def test_gradients_of_a_model_are_for_the_optimizer_that_counts_them():
    model = _private()
    x, y = _data()
    clipped = tf_dpfp.loops.clipped_gradients(model, x, y)
    before = model.get_weights()
    other = tf_dpfp.DPSGD(0.5, noise_multiplier=0.0, expected_batch_size=len(x))
    with pytest.raises(tf_dpfp.errors.NotPrivateError, match="whose ledger"):
        other.apply(clipped)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    model.optimizer.set_expected_batch_size(len(x), "the test")
    model.optimizer.apply(clipped)
    assert [e.steps for e in tf_dpfp.ledger(model)] == [1]
