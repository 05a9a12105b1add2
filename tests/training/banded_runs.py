"""Trainings with correlated noise, and what their releases must be."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy import linalg

import tf_dpfp
from tests import helpers
from tf_dpfp import auditing
from tf_dpfp.sampling import registry

X = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
CLIP, NOISE, SIZE = 0.3, 1.7, 10.0


def optimizer(bands=3, **kwargs):
    kwargs = {"noise_multiplier": NOISE, "l2_norm_clip": CLIP} | kwargs
    rate = kwargs.pop("learning_rate", 1.0)
    return tf_dpfp.DPSGD(
        rate,
        correlated_noise=None if bands is None else tf_dpfp.Banded(bands),
        **kwargs,
    )


def batches(x=X, y=Y, steps=5, **kwargs):
    return tf_dpfp.cyclic_poisson_batches(
        x, y, expected_batch_size=SIZE, steps_per_epoch=steps, **kwargs
    )


def fit(model, data=None, epochs=1, **kwargs):
    data = batches() if data is None else data
    return model.fit(data, epochs=epochs, verbose=0, **kwargs)


def only(model):
    (entry,) = tf_dpfp.ledger(model)
    return entry


def silent(optimizer, width=260, **kwargs):
    """A model without gradients: whatever moves is noise."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(width, kernel_initializer="zeros", name="first"),
            layers.Dense(width, kernel_initializer="zeros", name="second"),
            # For a loss that Keras knows: a function is called on each example,
            # which takes longer to trace.
            layers.Rescaling(0.0),
        ],
        name="silent",
    )
    tf_dpfp.make_private(model)
    model.compile(optimizer, loss="mse", **kwargs)
    return model


def releases(model, data=None, epochs=2, callbacks=()):
    recorder = auditing.ReleaseRecorder()
    fit(model, data, epochs, callbacks=[recorder, *callbacks])
    return recorder.releases


def assert_of_strategy(found, strategy, deviation):
    """C times the noise of steps is independent, and has the deviation."""
    column = np.zeros(len(found))
    column[: len(strategy)] = strategy[: len(found)]
    c = linalg.toeplitz(column, np.zeros(len(found)))
    normals = c @ found / deviation
    covariance = normals @ normals.T / normals.shape[1]
    off = 6.0 * np.sqrt(2.0 / normals.shape[1])
    np.testing.assert_allclose(covariance, np.eye(len(found)), atol=off)
    helpers.assert_normal(normals, 1.0, [0.93, 1.07])
    # Independent noise would not do.
    plain = found @ found.T / found.shape[1] / deviation**2
    assert np.max(np.abs(plain - np.eye(len(found)))) > 10 * off


def assert_one_part_over_and_over_is_refused(model):
    """Planted: the same part in each step, at the rate of one of three."""
    data = batches()
    cyclic = registry.sampling_of(data).cyclic
    ordinary = cyclic.batches_of

    def stuck(parts):
        return ordinary(parts).map(lambda b: b._replace(part=b.part * 0))

    object.__setattr__(cyclic, "batches_of", stuck)
    weights = []
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda *_, **__: weights.append(
            model.get_weights()[0]
        )
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="whose turn"):
        fit(model, data, callbacks=[keep])
    # Its weights stayed where they were, though it may have been counted.
    np.testing.assert_array_equal(weights[-1], model.get_weights()[0])
    assert only(model).steps in (1 + 2, 2 + 2)


class Deviations(keras.callbacks.Callback):
    """Deviations of the noise of both layers, of the steps that come."""

    def __init__(self, multiplier):
        super().__init__()
        self.found, self.multiplier = [], multiplier

    def on_train_batch_begin(self, batch, logs=None):
        norms = np.array(list(tf_dpfp.clip_norms(self.model).values()))
        # Equal budgets: each group is as well hidden as the other.
        self.found.append(self.multiplier * np.sqrt(len(norms)) * norms)


def adaptive(rescale=False, share=0.2):
    """Clips `silent` by two thresholds that move."""
    thresholds = tf_dpfp.clipping.Adaptive(
        initial={"silent/first": 0.1, "silent/second": 0.3},
        rescale=rescale,
        budget_share=share,
        learning_rate=2.0,
    )
    return tf_dpfp.PerLayer(
        thresholds=thresholds, noise_allocation="equal_budget"
    )


def adaptive_normals(model, width, share=0.2):
    """Releases of `silent`, over the deviations that steps draw with."""
    recorded = Deviations(NOISE / np.sqrt(1 - share))
    found = releases(model, callbacks=[recorded])
    deviations = np.stack(recorded.found)
    assert deviations.shape == (10, 2)
    # They adapt, so that one deviation for all steps would be seen.
    assert np.max(np.ptp(np.log(deviations), axis=0)) > 0.1
    sizes = [4 * width, (width + 1) * width]
    return found / np.repeat(deviations, sizes, axis=1)
