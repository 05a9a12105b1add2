"""Weights that layers make in their first call."""

import keras
import numpy as np
import pytest

import tf_dpfp
from tf_dpfp.keras_private import layers as keras_layers


class Late(keras.layers.Layer):
    """Builds its sublayer in `call`, and counts as built before."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)

    def build(self, input_shape):
        del input_shape
        self.built = True

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 4)

    def call(self, x):
        return self.dense(x)


class OnlyInTraining(Late):
    """Calls its sublayer only in training."""

    def call(self, x, training=False):
        return self.dense(x) if training else keras.ops.pad(x, [[0, 0], [0, 1]])


def _model(late):
    model = tf_dpfp.make_private(
        keras.Sequential([keras.Input((3,)), late, keras.layers.Dense(2)])
    )
    model.compile(
        tf_dpfp.DPSGD(
            0.1,
            l2_norm_clip=1.0,
            noise_multiplier=1.0,
            expected_batch_size=8,
        ),
        "mse",
    )
    return model


def _data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 3)).astype("float32"), np.zeros([8, 2])


def test_weights_of_the_first_call_are_in_the_first_step():
    model = _model(Late())
    # Keras knows the sizes and calls nothing.
    assert len(model.trainable_variables) == 2
    assert keras_layers.has_unbuilt(model)
    gradients = tf_dpfp.loops.clipped_gradients(model, *_data())
    assert len(gradients.variables) == 4
    assert len(gradients.sums) == len(model.trainable_variables) == 4


def test_layers_that_a_graph_does_not_call_make_no_weights():
    class Task(keras.Model):
        def __init__(self, layer):
            inputs = keras.Input((3,))
            super().__init__(inputs, layer(inputs))
            # As KerasHub hangs a preprocessor on a task.
            self.reads_texts = keras.layers.Dense(3)

    class CallsIt(Task):
        def call(self, inputs, training=None, mask=None):
            return self.reads_texts(super().call(inputs))

    task = Task(keras.layers.Dense(2))
    assert not task.reads_texts.built
    assert not keras_layers.has_unbuilt(task)
    nested = keras.Sequential([keras.Input((3,)), task])
    assert not keras_layers.has_unbuilt(nested)
    assert keras_layers.has_unbuilt(Task(Late()))
    assert keras_layers.has_unbuilt(CallsIt(keras.layers.Dense(2)))


def test_fit_trains_weights_of_the_first_call():
    model = _model(Late())
    model.fit(*_data(), batch_size=8, epochs=1, verbose=0)
    kernel = model.layers[0].dense.kernel
    before = np.array(kernel)
    model.fit(*_data(), batch_size=8, epochs=1, verbose=0)
    assert len(model.optimizer.updated_variables) >= 4
    assert not np.allclose(before, kernel)


def test_weights_made_while_a_step_is_tried_are_refused():
    model = _model(OnlyInTraining())
    with pytest.raises(ValueError, match="made weights when it was called"):
        tf_dpfp.loops.clipped_gradients(model, *_data())
