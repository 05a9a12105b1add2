"""Models built under a `keras.RematScope` train as without it."""

import keras
import numpy as np
import pytest
from keras import layers

import tf_dpfp
from tf_dpfp.keras_private import layers as keras_layers

pytestmark = pytest.mark.skipif(
    not hasattr(keras, "RematScope"), reason="this Keras has no RematScope"
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4, 5)).astype("float32")
Y = RNG.normal(size=(6, 2)).astype("float32")


class Block(layers.Layer):
    """A layer that holds others and has no weights of its own."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(5, activation="tanh")
        self.norm = layers.LayerNormalization()

    def build(self, shape):
        self.inner.build(shape)
        self.norm.build(shape)
        self.built = True

    def call(self, x):
        return self.norm(x + self.inner(x))


def _model():
    return keras.Sequential(
        [
            keras.Input((4, 5)),
            Block(),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2, activation="tanh", name="last"),
        ]
    )


def _trained(scope, noise_multiplier=0.0):
    keras.utils.set_random_seed(0)
    if scope is None:
        model = _model()
    else:
        with keras.RematScope(**scope):
            model = _model()
        remat = [
            one
            for one in keras_layers.all_layers(model)
            if keras_layers.is_rematerialized(one)
        ]
        assert len(remat) > 2
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(
            0.5,
            l2_norm_clip=0.3,
            noise_multiplier=noise_multiplier,
            expected_batch_size=6.0,
        ),
        loss="mse",
    )
    model.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0)
    return model


SCOPES = {
    "full": {"mode": "full"},
    "activations": {"mode": "activations"},
    "by_name": {"mode": "list_of_layers", "layer_names": ["last"]},
}


@pytest.mark.parametrize("name", SCOPES)
def test_steps_are_those_without_the_scope(name):
    plain, model = _trained(None), _trained(SCOPES[name])
    for a, b in zip(plain.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # What Keras does of its own is as it was.
    assert keras_layers.is_rematerialized(model.get_layer("last"))


class OwnRemat(layers.Layer):
    """Rematerialises by itself, where no scope can be set aside."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(5, activation="tanh")

    def build(self, shape):
        self.inner.build(shape)
        self.built = True

    def call(self, x):
        return keras.remat(self.inner)(x)


def test_a_layer_that_hides_its_calls_is_refused():
    model = keras.Sequential(
        [keras.Input((4, 5)), OwnRemat(), layers.Flatten(), layers.Dense(2)]
    )
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss="mse")
    with pytest.raises(ValueError, match="do not add up|out of reach"):
        model.fit(X, Y, batch_size=6, verbose=0)
    assert tf_dpfp.ledger(model) == []
