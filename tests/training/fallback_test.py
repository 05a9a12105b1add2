"""Models that XLA can't compile: no traceback, no step lost or twice."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp import compilation

pytestmark = pytest.mark.usefixtures("without_trial")

STEPS = 3
X = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
Y = np.arange(24) % 2


@keras.saving.register_keras_serializable("tests")
class Spelled(layers.Layer):
    """Goes by way of strings, which XLA does not know."""

    def build(self, _):
        # A variable, for constants are folded before XLA sees them.
        self.one = self.add_weight((), "ones", trainable=False)

    def call(self, x):
        return x * tf.strings.to_number(tf.strings.as_string(self.one.value))


def _compiled(jit_compile, layer=None, noise_multiplier=0.0):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), layer or Spelled(name="spelled"), layers.Dense(2)]
    )
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.5, l2_norm_clip=0.3, noise_multiplier=noise_multiplier),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **({} if jit_compile is None else {"jit_compile": jit_compile}),
    )
    return model


def _batches():
    return tf_dpfp.poisson_batches(
        X, Y, expected_batch_size=8, steps_per_epoch=STEPS, seed=2
    )


@pytest.fixture
def accelerator(monkeypatch):
    """XLA is the default, as where an accelerator is."""
    monkeypatch.setattr(compilation, "has_accelerator", lambda: True)
    monkeypatch.setattr(
        keras.Model, "_resolve_auto_jit_compile", lambda _: True
    )


def test_by_default_every_step_is_taken_without_xla(accelerator):
    model = _compiled(None)
    assert model.jit_compile
    with pytest.warns(UserWarning, match="XLA can't compile") as caught:
        history = model.fit(_batches(), verbose=0)
    said = [str(w.message) for w in caught if "XLA" in str(w.message)]
    assert said == [
        f"XLA can't compile layer 'spelled' of model '{model.name}'. It trains "
        "without XLA, as with jit_compile=False."
    ]
    assert not model.jit_compile
    plain = _compiled(False)
    expected = plain.fit(_batches(), verbose=0)
    for mine, other in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    assert history.history.keys() == expected.history.keys()
    (entry,) = model.optimizer.ledger_entries
    assert entry == plain.optimizer.ledger_entries[0]
    assert entry.steps == STEPS == int(model.optimizer.iterations)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="XLA")
        model.train_on_batch(X[:8], Y[:8])


def test_a_single_batch_falls_back_too(accelerator):
    model = _compiled(None)
    with pytest.warns(UserWarning, match="layer 'spelled'"):
        model.train_on_batch(X[:8], Y[:8])
    (entry,) = model.optimizer.ledger_entries
    assert entry.steps == 1 == int(model.optimizer.iterations)


def test_xla_that_was_asked_for_is_refused_by_name():
    model = _compiled(True)
    with pytest.raises(ValueError, match="layer 'spelled'.*jit_compile=False"):
        model.fit(_batches(), verbose=0)
    assert sum(e.steps for e in model.optimizer.ledger_entries) == 0


def test_other_errors_of_a_first_step_are_passed_on(accelerator, monkeypatch):
    model = _compiled(None, layers.Identity())

    def fail(iterator):
        raise tf.errors.InvalidArgumentError(None, None, "of the data")

    ordinary = keras.Model.make_train_function

    def make(self, force=False):
        ordinary(self, force)
        self.train_function = fail

    monkeypatch.setattr(keras.Model, "make_train_function", make)
    with pytest.raises(tf.errors.InvalidArgumentError, match="of the data"):
        model.train_on_batch(X[:8], Y[:8])
    assert model.jit_compile
