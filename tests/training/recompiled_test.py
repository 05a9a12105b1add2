"""Releases stay counted when an optimizer or a layer is exchanged."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp

pytestmark = pytest.mark.usefixtures("without_trial")

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = np.arange(64) % 2
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DELTA = 1e-3


def _optimizer(noise_multiplier):
    return tf_dpfp.DPSGD(0.1, noise_multiplier=noise_multiplier)


@pytest.mark.parametrize("compiled_first", [False, True])
def test_an_optimizer_that_was_replaced_stays_counted(compiled_first):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    if compiled_first:
        model.compile(_optimizer(1.0), LOSS)
    tf_dpfp.make_private(model)
    if not compiled_first:
        model.compile(_optimizer(1.0), LOSS)
    model.train_on_batch(X[:8], Y[:8])
    spent = tf_dpfp.compute_epsilon(model, DELTA)
    other = _optimizer(50.0)
    model.optimizer = other
    with pytest.raises(tf_dpfp.errors.NotPrivateError, match="was replaced"):
        model.train_on_batch(X[:8], Y[:8])
    model.compile(other, LOSS)
    assert tf_dpfp.compute_epsilon(model, DELTA) == spent
    model.train_on_batch(X[:8], Y[:8])
    entries = tf_dpfp.ledger(model)
    assert [e.steps for e in entries] == [1, 1]
    of_person = tf_dpfp.compute_epsilon(model, DELTA, examples_per_user=3)
    assert of_person == tf_dpfp.accounting.compute_epsilon(
        entries, DELTA, examples_per_user=3
    )
    assert of_person > tf_dpfp.compute_epsilon(model, DELTA)
    assert "Epsilon of a person with up to 3 examples" in (
        tf_dpfp.privacy_statement(model, DELTA, examples_per_user=3)
    )


def _compiled_step(model):
    optimizer = model.optimizer

    @tf.function
    def step():
        optimizer.apply(tf_dpfp.loops.clipped_gradients(model, X[:8], Y[:8]))

    step()
    return step


def test_steps_that_were_compiled_with_another_optimizer_are_refused():
    """They update the same weights, and count in a ledger of the past."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    tf_dpfp.make_private(model)
    first, second = (
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=8)
        for _ in range(2)
    )
    model.compile(first, LOSS)
    step = _compiled_step(model)
    clipped = tf_dpfp.loops.clipped_gradients(model, X[:8], Y[:8])
    # Of a `compile` that fails nothing stays.
    with pytest.raises(ValueError, match="jit_compile"):
        model.compile(
            tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, secure=True),
            LOSS,
            jit_compile=True,
        )
    step()
    model.compile(second, LOSS)
    before = model.get_weights()
    for stale in (step, lambda: first.apply(clipped)):
        with pytest.raises(RuntimeError, match="compiled with another"):
            stale()
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    _compiled_step(model)
    assert [e.steps for e in tf_dpfp.ledger(model)] == [3]
    # Compiled again it counts on; what both counted is counted twice.
    model.compile(first, LOSS)
    step()
    assert [e.steps for e in tf_dpfp.ledger(model)] == [2 + 3 + 1]


def test_an_optimizer_that_took_no_step_may_go_to_another_model():
    optimizer = _optimizer(1.0)
    models = []
    for _ in range(2):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        models.append(tf_dpfp.make_private(model))
        model.compile(optimizer, LOSS)
    models[0].compile(_optimizer(1.0), LOSS)
    for model in models:
        model.train_on_batch(X[:8], Y[:8])
        assert [e.steps for e in tf_dpfp.ledger(model)] == [1]


def _clip():
    return tf_dpfp.DPRepresentationClip(1.0, 2.0, labels="public")


def test_a_layer_that_was_taken_out_stays_counted():
    model = keras.Sequential([keras.Input((4,)), _clip()])
    head = keras.layers.Dense(2)
    model.add(head)
    tf_dpfp.make_private(model)
    model.compile("sgd", LOSS)
    model.fit(X, Y, batch_size=16, verbose=0)
    spent = tf_dpfp.compute_epsilon(model, DELTA)
    model.pop()
    model.pop()
    model.add(head)
    model.compile(_optimizer(1.0), LOSS)
    assert tf_dpfp.compute_epsilon(model, DELTA) == spent > 0.0


class _TakesAnother(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        self.model.train_on_batch(X[:8], Y[:8])


def test_a_step_that_a_callback_takes_is_no_draw():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(_clip()(inputs)))
    tf_dpfp.make_private(model)
    model.compile("sgd", LOSS)
    batches = tf_dpfp.representations.stratified_batches(
        X, Y, draw_size=8, labels="public", steps_per_epoch=3
    )
    model.fit(batches, callbacks=[_TakesAnother()], verbose=0)
    amplified = [
        e.steps
        for e in tf_dpfp.ledger(model)
        if isinstance(e.sampling, tf_dpfp.accounting.WithoutReplacement)
    ]
    # Those of `fit`; a step of the callback after each claims nothing.
    assert amplified == [3]
    assert sum(e.steps for e in tf_dpfp.ledger(model)) == 6
