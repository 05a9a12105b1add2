"""Which layers' own losses are means over the batch."""

import keras
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp.independence import own_losses
from tf_dpfp.keras_private import layers as keras_layers

BATCH = (tf.constant([[0.5], [-2.0], [3.0]]), tf.zeros((3, 1)), None)


class Activity(layers.Layer):
    """Adds the mean, the sum or the square of a mean to the loss."""

    def __init__(self, of, **kwargs):
        super().__init__(**kwargs)
        self.of = of

    def call(self, inputs):
        self.add_loss(self.of(inputs))
        return inputs


def _model(of):
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(1), Activity(of, name="activity")]
    )
    model.compile("sgd", "mse")
    return model


def _square_of_mean(t):
    return keras.ops.mean(t) ** 2


def test_a_mean_passes():
    own_losses.check(_model(keras.ops.mean), BATCH, None)


@pytest.mark.parametrize("of", [keras.ops.sum, _square_of_mean])
def test_what_is_no_mean_is_refused_by_name(of):
    with pytest.raises(ValueError, match="'activity'"):
        own_losses.check(_model(of), BATCH, None)


def test_keras_takes_a_loss_for_that_of_a_layer_by_a_number():
    """If it no longer does, `losses_apart` has nothing to keep apart."""
    one, other = Activity(keras.ops.sum), layers.Dense(1)
    with keras.StatelessScope(collect_losses=True) as scope:
        one(tf.ones((1, 1)))
        with keras_layers.losses_apart(other):
            other._loss_ids.add(id(scope.losses[0]))
            assert keras_layers.added_losses(other) == scope.losses
        assert not keras_layers.added_losses(other)
        with keras_layers.losses_apart(one):
            pass
        assert keras_layers.added_losses(one) == scope.losses


def test_a_loss_of_an_inner_scope_leaves_no_number_of_a_tensor_behind():
    """Another tensor may have it by then: the trial refused 4 of 25 models."""
    inner = Activity(_square_of_mean)
    layer = tf_dpfp.PerExample(inner)
    with keras.StatelessScope(collect_losses=True) as scope:
        layer(BATCH[0])
        assert keras_layers.added_losses(layer) == scope.losses
        assert not inner._loss_ids


def test_one_by_one_a_square_of_a_mean_passes():
    model = keras.Sequential(
        [
            keras.Input((1,)),
            Activity(keras.ops.mean),
            tf_dpfp.PerExample(Activity(_square_of_mean)),
        ]
    )
    model.compile("sgd", "mse")
    own_losses.check(model, BATCH, None)
