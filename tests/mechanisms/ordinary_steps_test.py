"""Ordinary steps before `make_private` are seen, and told."""

import math
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tf_dpfp

pytestmark = pytest.mark.usefixtures("without_trial")

X = np.ones((8, 3), np.float32)
Y = np.ones((8, 1), np.float32)


def _ordinary(*inside):
    return keras.Sequential([keras.Input((3,)), *inside, layers.Dense(1)])


def _stepped(model, steps=1):
    model.compile("sgd", loss="mse")
    for _ in range(steps):
        model.train_on_batch(X, Y)
    return model


def _private(model):
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=8),
        loss="mse",
    )
    model.train_on_batch(X, Y)
    return model


def test_ordinary_steps_are_warned_of_and_in_the_statement():
    with pytest.warns(UserWarning, match="took 2 ordinary steps before"):
        model = _private(_stepped(_ordinary(), 2))
    statement = " ".join(tf_dpfp.privacy_statement(model, 1e-5).split())
    assert "TRAINED BEFORE: the model took 2 ordinary steps" in statement
    # Compiling anew forgets nothing.
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=8),
        loss="mse",
    )
    assert "TRAINED BEFORE" in tf_dpfp.privacy_statement(model, 1e-5)


def test_ordinary_steps_of_a_model_inside_are_told():
    base = _stepped(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))
    with pytest.warns(UserWarning, match="took 1 ordinary steps before"):
        tf_dpfp.make_private(_ordinary(base))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_that_was_never_trained_is_not_warned_of(compiled):
    model = _ordinary()
    if compiled:
        model.compile("sgd", loss="mse")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = _private(model)
    assert "TRAINED BEFORE" not in tf_dpfp.privacy_statement(model, 1e-5)


def test_private_steps_are_not_ordinary(tmp_path):
    _private(_ordinary()).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tf_dpfp.make_private(loaded)
    assert "TRAINED BEFORE" not in tf_dpfp.privacy_statement(loaded, 1e-5)


def test_steps_that_a_representation_layer_counted_are_not_told():
    clip = tf_dpfp.DPRepresentationClip(1.0, 2.0, labels="public")
    model = _ordinary(layers.Dense(2, trainable=False), clip)
    _stepped(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tf_dpfp.make_private(model)


def test_steps_that_accumulate_gradients_are_steps():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    ordinary = _ordinary()
    ordinary.compile(optimizer, loss="mse")
    ordinary.train_on_batch(X, Y)
    with pytest.warns(UserWarning, match="took 1 ordinary steps before"):
        tf_dpfp.make_private(ordinary)
    clip = tf_dpfp.DPRepresentationClip(1.0, 2.0, labels="public")
    model = tf_dpfp.make_private(_ordinary(clip))
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    model.compile(optimizer, loss="mse")
    model.fit(X, Y, batch_size=4, verbose=0)
    (entry,) = tf_dpfp.ledger(model)
    assert entry.steps == 2
    assert "without its noise" not in tf_dpfp.privacy_statement(model, 1e-5)
    # One that no layer counted, though no weight has moved.
    optimizer.apply([np.zeros(w.shape) for w in model.trainable_variables])
    statement = " ".join(tf_dpfp.privacy_statement(model, 1e-5).split())
    assert "took 3 steps and DPRepresentationClip counted 2" in statement
    assert math.isinf(tf_dpfp.compute_epsilon(model, 1e-5))
