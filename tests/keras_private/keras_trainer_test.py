"""One test for each private thing of Keras that the package relies on."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import metrics as keras_metrics
from tf_dpfp.keras_private import trainer as keras_trainer


def _compiled(**kwargs):
    inputs = keras.Input((3,))
    a = layers.Dense(2, name="a")(inputs)
    b = layers.Dense(1, name="b")(inputs)
    model = keras.Model(inputs, {"a": a, "b": b})
    arguments = dict(
        optimizer="sgd",
        loss={"a": "mse", "b": "mae"},
        loss_weights={"a": 2.0, "b": 3.0},
    )
    model.compile(**(arguments | kwargs))
    return model


def test_loss_tracker():
    model = _compiled()
    keras_trainer.loss_tracker(model).update_state(4.0)
    assert model.get_metrics_result()["loss"] == 4.0


def test_compiled_loss():
    model = _compiled()
    assert keras_trainer.has_compiled_loss(model)
    assert keras_trainer.compiled_loss_arguments(model) == (
        {"a": "mse", "b": "mae"},
        {"a": 2.0, "b": 3.0},
    )
    assert not keras_trainer.has_compiled_loss(
        _compiled(loss=None, loss_weights=None)
    )


def test_structured_loss_keeps_one_number_per_example():
    def rows(y_true, y_pred):
        return tf.reduce_sum(y_true - y_pred, axis=-1)

    class Rows(keras.losses.Loss):
        def __call__(self, y_true, y_pred, sample_weight=None):
            values = rows(y_true, y_pred)
            return values if sample_weight is None else values * sample_weight

        def call(self, y_true, y_pred):
            return rows(y_true, y_pred)

    loss = keras_trainer.structured_loss(
        {"a": Rows(), "b": Rows()}, {"a": 2.0, "b": 3.0}, ["a", "b"]
    )
    y = {"a": tf.ones([4, 2]), "b": tf.fill([4, 1], 5.0)}
    y_pred = {"a": tf.zeros([4, 2]), "b": tf.zeros([4, 1])}
    weights = {"a": tf.range(4.0), "b": tf.ones([4])}
    np.testing.assert_allclose(
        loss(y, y_pred, weights), [15.0, 19.0, 23.0, 27.0]
    )


@pytest.mark.parametrize("fixed_size", [False, True])
def test_metrics_leave_out_padding(fixed_size):
    model = _compiled(metrics={"a": ["mse"]}, weighted_metrics={"b": ["mae"]})
    x = np.ones((3, 3), np.float32)
    y = {"a": np.zeros((3, 2), "float32"), "b": np.zeros((3, 1), "float32")}
    y_pred = {
        "a": tf.constant([[2.0, 2.0], [4.0, 4.0], [99.0, 99.0]]),
        "b": tf.constant([[1.0], [3.0], [99.0]]),
    }
    rows = tf.constant([True, True, False])
    model._compile_loss.build(y, y_pred)
    keras_metrics.update(model, x, y, y_pred, None, rows, fixed_size)
    logs = model.get_metrics_result()
    assert float(logs["a_mse"]) == 10.0
    assert float(logs["b_mae"]) == 2.0


def test_losses_of_outputs_are_tracked():
    model = _compiled()
    y = {"a": tf.zeros([3, 2]), "b": tf.zeros([3, 1])}
    a = tf.constant([[1.0, 1.0], [1.0, 1.0], [9.0, 9.0]])
    y_pred = {"a": a, "b": tf.fill([3, 1], 4.0)}
    model._compile_loss.build(y, y_pred)
    # The third row is padding.
    kept = tf.constant([True, True, False])
    keras_metrics.update(model, y["a"], y, y_pred, None, kept)
    logs = model.get_metrics_result()
    assert float(logs["a_loss"]) == 1.0 and float(logs["b_loss"]) == 4.0


def test_takes_training():
    class Without(keras.Model):
        def call(self, x):
            return x

    assert keras_trainer.takes_training(_compiled())
    assert not keras_trainer.takes_training(Without())


def test_sublayers_and_own_variables():
    class Outer(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = layers.Dense(2)

        def build(self, shape):
            self.inner.build(shape)
            self.scale = self.add_weight(shape=(1,))

        def call(self, x):
            return self.inner(x) * self.scale

    outer = Outer()
    outer(tf.ones([1, 3]))
    assert keras_layers.sublayers(outer) == [outer.inner]
    assert keras_layers.all_layers(outer) == [outer, outer.inner]
    assert [v is outer.scale for v in keras_layers.own_variables(outer)] == [
        True
    ]


def test_seed_variables_are_told_from_statistics():
    dropout, normalization = layers.Dropout(0.5), layers.BatchNormalization()
    normalization.build((None, 3))
    assert all(keras_layers.is_seed_variable(v) for v in dropout.variables)
    assert len(dropout.variables) == 1
    assert not any(
        keras_layers.is_seed_variable(v) for v in normalization.variables
    )


def test_quantized_and_rematerialized_layers_are_recognised():
    dense = layers.Dense(2)
    dense.build((None, 3))
    assert not keras_layers.is_quantized(dense)
    assert not keras_layers.is_rematerialized(dense)
    dense.quantize("int8")
    assert keras_layers.is_quantized(dense)
    if hasattr(keras, "RematScope"):
        with keras.RematScope(mode="full"):
            dense = layers.Dense(2)
        assert keras_layers.is_rematerialized(dense)
        with keras_layers.without_rematerialization([dense]):
            assert not keras_layers.is_rematerialized(dense)
        assert keras_layers.is_rematerialized(dense)


def test_masks_travel_with_tensors():
    tensor = tf.ones([2, 3])
    assert keras_layers.mask_of(tensor) is None
    mask = tf.constant([[True, False, True]] * 2)
    assert keras_layers.mask_of(keras_layers.with_mask(tensor, mask)) is mask
    embedded = layers.Embedding(3, 2, mask_zero=True)(tf.constant([[0, 1]]))
    np.testing.assert_array_equal(
        keras_layers.mask_of(embedded), [[False, True]]
    )
