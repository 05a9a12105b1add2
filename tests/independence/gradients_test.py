"""Trials on made-up inputs: what they warn of."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import tf_dpfp

X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")


def _contrastive(labels, features):
    features = ops.normalize(features, axis=1)
    scores = ops.matmul(features, ops.transpose(features))
    same = ops.cast(ops.equal(labels, ops.transpose(labels)), "float32")
    return ops.mean(ops.sum(-same * ops.log_softmax(scores, axis=1), axis=1))


def _score_over_the_batch(labels, predictions):
    error = ops.sum(ops.square(labels - predictions))
    return error / ops.sum(ops.square(labels - ops.mean(labels)))


def _fit(loss):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, l2_norm_clip=1.0)
    model.compile(optimizer, loss)
    model.fit(X, X[:, :1], batch_size=3, verbose=0)


@pytest.mark.filterwarnings("ignore:.*retracing")
@pytest.mark.parametrize("loss", [_contrastive, _score_over_the_batch])
def test_a_loss_that_compares_examples_is_named(loss):
    with pytest.warns(UserWarning, match="noise alone would train it"):
        _fit(loss)


def test_a_loss_of_each_example_is_not():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*noise alone")
        _fit("mse")
