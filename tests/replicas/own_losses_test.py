"""A loss of one's own has the same gradient on one replica and on several."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras import ops

import tf_dpfp
from tests.replicas import common

COUNT = 6


class OwnLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_pred - y_true), axis=-1)


class OwnModel(keras.Sequential):
    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return keras.losses.MeanSquaredError()(y, y_pred)


def _update(replicas, cls, loss):
    """Returns how far a step of the rate 1 moves the weights."""
    scope = contextlib.nullcontext()
    if replicas > 1:
        scope = common.strategy(replicas).scope()
    with scope:
        ones = keras.initializers.Ones()
        model = cls(
            [keras.Input((3,)), layers.Dense(1, kernel_initializer=ones)]
        )
        tf_dpfp.make_private(model)
        optimizer = tf_dpfp.DPSGD(1.0, l2_norm_clip=1e3, noise_multiplier=0.0)
        model.compile(optimizer, loss=loss)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices(
        (x, np.ones((COUNT, 1), "float32"))
    )
    model.fit(data.batch(COUNT), verbose=0)
    expected = np.mean(
        2 * (x.sum(1, keepdims=True) - 1.0) * x, axis=0, keepdims=True
    ).T
    return 1.0 - model.get_weights()[0], expected


@pytest.mark.parametrize(
    ("cls", "loss"),
    [(keras.Sequential, OwnLoss()), (OwnModel, None)],
    ids=["loss", "compute_loss"],
)
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_loss_is_not_divided_by_the_replicas(
    replicas, cls, loss, without_trial
):
    found, expected = _update(replicas, cls, loss)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
