"""Scripts with losses of their own, and generative ones, condensed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras import ops

import tf_dpfp
from tests.keras_scripts import common

COUNT = 32


def _numbers(width=4):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT, width)).astype("float32")
    return x, (x[:, :1] > x[:, 1:2]).astype("float32")


def _dense(units, **kwargs):
    return lambda: keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, activation="tanh"),
            layers.Dense(units, **kwargs),
        ]
    )


def test_focal_loss():
    common.assert_learns_as_ordinary(
        _dense(1, activation="sigmoid"),
        *_numbers(),
        learning_rate=1.0,
        loss=keras.losses.BinaryFocalCrossentropy(gamma=2.0),
        metrics=["AUC"],
    )


def test_pinball_loss_of_several_quantiles():
    quantiles = np.array([0.1, 0.5, 0.9], "float32")

    def pinball(y_true, y_pred):
        far = y_true - y_pred
        return ops.mean(
            ops.maximum(quantiles * far, (quantiles - 1.0) * far), axis=-1
        )

    x, _ = _numbers()
    common.assert_learns_as_ordinary(
        _dense(3), x, 2.0 * x[:, :1] + 1.0, learning_rate=0.3, loss=pinball
    )


def test_several_outputs():
    def build():
        inputs = keras.Input((4,))
        x = layers.Dense(8, activation="tanh")(inputs)
        kind = layers.Dense(1, activation="sigmoid", name="kind")(x)
        return keras.Model(
            inputs, {"kind": kind, "size": layers.Dense(1, name="size")(x)}
        )

    x, y = _numbers()
    common.assert_learns_as_ordinary(
        build,
        x,
        {"kind": y, "size": x[:, 2:3] + 1.0},
        loss={"kind": "binary_crossentropy", "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.5},
        metrics={"kind": ["accuracy"], "size": ["mae"]},
    )


def test_distillation():
    def build():
        teacher, student = _dense(2)(), _dense(2)()
        return keras.distillation.Distiller(
            teacher, student, keras.distillation.LogitsDistillation(2.0)
        )

    x, y = _numbers()
    model = common.assert_learns_as_ordinary(
        build,
        x,
        y[:, 0].astype("int32"),
        learning_rate=0.5,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    names = set(model.get_metrics_result())
    assert {"accuracy", "student_loss", "distillation_loss"} <= names


def supervised_contrastive(labels, features):
    features = ops.normalize(features, axis=1)
    logits = ops.matmul(features, ops.transpose(features)) / 0.1
    same = ops.cast(ops.equal(labels, ops.transpose(labels)), "float32")
    same = same / ops.sum(same, axis=1, keepdims=True)
    return ops.mean(ops.sum(-same * ops.log_softmax(logits, axis=1), axis=1))


def test_contrastive_learning_is_warned_of():
    """It compares the examples of a batch, and is constant on one alone."""
    model = tf_dpfp.make_private(_dense(3)())
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), supervised_contrastive
    )
    x, y = _numbers()
    with pytest.warns(UserWarning, match="noise alone would train it"):
        model.fit(x, y, batch_size=8, verbose=0)


class Sampling(layers.Layer):
    """Draws a code, and adds its divergence to the loss."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, mean, log_variance):
        kl = 1 + log_variance - ops.square(mean) - ops.exp(log_variance)
        self.add_loss(-0.05 * ops.mean(ops.sum(kl, axis=-1)))
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        # Small, for the two trainings draw other noise.
        return mean + 0.001 * ops.exp(0.5 * log_variance) * noise


def test_variational_autoencoder():
    def build():
        inputs = keras.Input((4,))
        x = layers.Dense(8, activation="tanh")(inputs)
        code = Sampling()(layers.Dense(3)(x), layers.Dense(3)(x))
        x = layers.Dense(8, activation="tanh")(code)
        return keras.Model(inputs, layers.Dense(4)(x))

    x, _ = _numbers()
    common.assert_learns_as_ordinary(
        build, x, x, learning_rate=0.2, epochs=6, tolerance=5e-3, loss="mse"
    )


def _pictures():
    rng = np.random.default_rng(0)
    real = rng.normal(1.0, 0.5, (COUNT // 2, 8, 8, 1))
    made = rng.normal(0.0, 1.0, (COUNT // 2, 8, 8, 1))
    order = rng.permutation(COUNT)
    x = np.concatenate([real, made]).astype("float32")[order]
    y = np.repeat([[1.0], [0.0]], COUNT // 2, 0).astype("float32")[order]
    return x, y


def test_discriminator_of_a_dcgan():
    def build():
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(4, 4, strides=2, padding="same"),
                layers.LeakyReLU(0.2),
                layers.Conv2D(8, 4, strides=2, padding="same"),
                layers.LeakyReLU(0.2),
                layers.Flatten(),
                layers.Dense(1),
            ]
        )

    common.assert_learns_as_ordinary(
        build,
        *_pictures(),
        learning_rate=0.3,
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    )


class Critic(layers.Layer):
    """Loss of a critic, with the penalty of its gradient, of each example."""

    def __init__(self):
        super().__init__()
        self.body = keras.Sequential(
            [keras.Input((4,)), layers.Dense(8, "tanh"), layers.Dense(1)]
        )

    def call(self, real, made):
        between = 0.5 * (real + made)
        with tf.GradientTape() as tape:
            tape.watch(between)
            score = self.body(between)
        slope = tape.gradient(score, between)
        length = ops.sqrt(ops.sum(ops.square(slope), -1, keepdims=True))
        difference = self.body(made) - self.body(real)
        return difference + 10.0 * ops.square(length - 1.0)


# The fourth line: a gradient within `call` needs a copy for each example.
tf_dpfp.gradient_rules.register_gradient_rule(Critic)(
    tf_dpfp.gradient_rules.GenericRule
)


def test_critic_of_a_wgan_with_gradient_penalty():
    def build():
        inputs = [keras.Input((4,), name=name) for name in ("real", "made")]
        return keras.Model(inputs, Critic()(*inputs))

    x, _ = _numbers()
    common.assert_learns_as_ordinary(
        build,
        [x, np.tanh(x[::-1])],
        np.zeros((COUNT, 1), "float32"),
        learning_rate=0.02,
        loss=lambda y_true, y_pred: ops.mean(y_pred, -1),
    )


class PenalizedCritic(keras.Model):
    """The same in `compute_loss`, where layers give what they gave before."""

    def __init__(self):
        super().__init__()
        self.body = Critic().body

    def call(self, inputs):
        return self.body(inputs)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            score = self.body(x)
        slope = tape.gradient(score, x)
        return ops.mean(ops.square(slope)) + ops.mean(y_pred)


class PartlyPenalizedCritic(PenalizedCritic):
    """A part of its score is no layer's, and has a gradient all the same."""

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            score = self.body(x) + ops.sum(ops.square(x), -1, keepdims=True)
        slope = tape.gradient(score, x)
        return ops.mean(ops.square(slope)) + ops.mean(y_pred)


@pytest.mark.parametrize("critic", [PenalizedCritic, PartlyPenalizedCritic])
def test_a_gradient_within_compute_loss_is_refused_with_a_way_out(
    critic,
):
    model = tf_dpfp.make_private(critic())
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0))
    x, y = _numbers()
    with pytest.raises(ValueError, match="gradient.*compute_loss.*GenericRule"):
        model.fit(x, y, batch_size=8, verbose=0)
    assert tf_dpfp.compute_epsilon(model, 1e-5) == 0.0
