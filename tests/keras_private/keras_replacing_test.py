import keras
import numpy as np
from keras import layers

from tf_dpfp.keras_private import replacing


def _model():
    inputs = keras.Input((4,))
    norm = layers.BatchNormalization(name="norm")
    return norm, keras.Model(inputs, norm(inputs, training=True), name="net")


def test_whatever_holds_a_layer_holds_the_new_one():
    norm, model = _model()

    def closure(x):
        return norm(x)

    replacing.become(norm, layers.LayerNormalization(name="norm"), (None, 4))
    assert model.layers[1] is norm
    assert type(norm) is layers.LayerNormalization
    x = np.random.default_rng(0).normal(size=(3, 4))
    expected = layers.LayerNormalization()(x)
    for call in (norm, closure, model, keras.Model(model.input, norm.output)):
        np.testing.assert_allclose(call(x), expected, atol=1e-6)


def test_the_new_weights_take_the_place_of_the_old_ones():
    norm, model = _model()
    before = [v.path for v in norm.trainable_variables]
    replacing.become(norm, layers.LayerNormalization(name="norm"), (None, 4))
    assert [v.path for v in model.variables] == before
    assert norm.path == "norm"
    # Weights that are tracked are saved, by Keras and by TensorFlow.
    assert set(norm._trackable_children()) >= {"gamma", "beta"}
    assert not hasattr(norm, "moving_mean")


def test_a_compiled_model_forgets_its_functions_and_keeps_its_optimizer():
    _, model = _model()
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 4)), np.ones((2, 4)), verbose=0)
    optimizer = model.optimizer
    replacing.forget_compiled(model)
    assert model.train_function is None and not model.compiled
    assert model.optimizer is optimizer
    replacing.forget_compiled(layers.Dense(1))
