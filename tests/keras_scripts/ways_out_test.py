"""Layers that are refused as they are, and the ways out of the messages."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras import ops

import tf_dpfp
from tests.keras_scripts import common

_RNG = np.random.default_rng(0)


def _refused(model, x, y, match):
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss="mse")
    with pytest.raises(ValueError, match=match):
        model.fit(x, y, verbose=0)
    assert tf_dpfp.ledger(model) == []


class TimeMajor(layers.Layer):
    """Calls a layer with the batch in the second axis."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def call(self, x):
        turned = ops.transpose(x, (1, 0, 2))
        return ops.transpose(self.dense(turned), (1, 0, 2))


class TimeMajorByRule(TimeMajor):
    pass


def _time_major(layer):
    return keras.Sequential([keras.Input((7, 4)), layer])


def test_time_major_layers():
    tf_dpfp.gradient_rules.register_gradient_rule(TimeMajorByRule)(
        tf_dpfp.gradient_rules.GenericRule
    )
    x = _RNG.normal(size=(16, 7, 4)).astype("float32")
    y = x[..., :3] + x[..., 1:]
    _refused(
        _time_major(TimeMajor()), x, y, "PerExample.layer.`, or .*GenericRule"
    )
    for layer in (TimeMajorByRule, lambda: tf_dpfp.PerExample(TimeMajor())):
        common.assert_learns_as_ordinary(
            lambda layer=layer: _time_major(layer()), x, y, loss="mse"
        )


class Critic(layers.Layer):
    """Wasserstein critic with a gradient penalty, of each example."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = keras.Sequential(
            [keras.Input((5,)), layers.Dense(8, "tanh"), layers.Dense(1)]
        )

    def call(self, real, fake):
        middle = 0.5 * (real + fake)
        with tf.GradientTape() as tape:
            tape.watch(middle)
            score = self.body(middle)
        slope = tf.norm(tape.gradient(score, middle), axis=-1, keepdims=True)
        return self.body(fake) - self.body(real) + 10.0 * (slope - 1.0) ** 2


class CriticByRule(Critic):
    pass


def _critic(layer):
    inputs = [keras.Input((5,)), keras.Input((5,))]
    return keras.Model(inputs, layer(*inputs))


def test_gradient_penalties():
    tf_dpfp.gradient_rules.register_gradient_rule(CriticByRule)(
        tf_dpfp.gradient_rules.GenericRule
    )
    x = [_RNG.normal(m, size=(16, 5)).astype("float32") for m in (0, 1)]
    y = np.zeros((16, 1), np.float32)
    _refused(_critic(Critic()), x, y, "gradient penalties do.*GenericRule")
    common.assert_learns_as_ordinary(
        lambda: _critic(CriticByRule()),
        x,
        y,
        loss=lambda y, p: ops.sum(p, -1),
        learning_rate=0.01,
    )
