import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers

pytestmark = pytest.mark.usefixtures("without_trial")

READY_MADE = [
    tf_dpfp.DPSGD,
    tf_dpfp.DPAdam,
    tf_dpfp.DPAdamW,
    tf_dpfp.DPAdagrad,
    tf_dpfp.DPRMSprop,
    tf_dpfp.DPLion,
]
OTHERS = [
    getattr(keras.optimizers, name)
    for name in ("Adamax", "Nadam", "Ftrl", "Lamb", "Adafactor", "Adadelta")
    if hasattr(keras.optimizers, name)
]


@keras.saving.register_keras_serializable(package="test")
class SignDescent(keras.optimizers.Optimizer):
    """A user's optimizer."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(
            variable,
            keras.ops.sign(gradient)
            * keras.ops.cast(learning_rate, gradient.dtype),
        )


X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)


ALL = READY_MADE + [
    tf_dpfp.private_optimizer_class(base) for base in [*OTHERS, SignDescent]
]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_class_serializes(cls):
    optimizer = cls(
        learning_rate=keras.optimizers.schedules.CosineDecay(0.1, 10),
        l2_norm_clip=0.3,
        noise_multiplier=1.5,
        clipping="per_layer",
        expected_batch_size=7.5,
        microbatch_size=4,
        seed=3,
        weight_decay=0.01,
        name="mine",
    )
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is cls
    assert again.get_config() == optimizer.get_config()
    assert again.clipping == tf_dpfp.PerLayer()
    for name in (
        "l2_norm_clip",
        "noise_multiplier",
        "expected_batch_size",
        "microbatch_size",
        "seed",
    ):
        assert getattr(again, name) == getattr(optimizer, name), name
    assert cls.from_config(optimizer.get_config()).name == "mine"


@pytest.mark.parametrize("cls", ALL[6:], ids=lambda cls: cls.__name__)
def test_any_keras_optimizer_trains(cls):
    model = helpers.private_line(cls(learning_rate=0.01, noise_multiplier=1.0))
    before = model.get_weights()
    model.fit(X, Y, epochs=2, verbose=0)
    assert np.any(model.get_weights()[0] != before[0])
    assert [entry.steps for entry in tf_dpfp.ledger(model)] == [2]
    base = next(
        c for c in cls.__mro__ if not c.__module__.startswith("tf_dpfp")
    )
    assert tf_dpfp.private_optimizer_class(base) is cls


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "l2_norm_clip",
            [0.0, -1.0, math.nan, math.inf, None, "1", True, 1e-30],
        ),
        ("noise_multiplier", [-0.1, math.nan, math.inf, "x", "1.0", True]),
        ("expected_batch_size", [0, -3, math.nan, math.inf, "8", True]),
        ("microbatch_size", [0, -1, 2.5, "4", True]),
        ("clipping", ["layer", None, 3]),
        ("seed", [1.5, 1.0, "s", "1", True, -1]),
        ("loss_scale_factor", [0.0, -1.0, math.nan]),
        ("gradient_accumulation_steps", [2]),
    ],
)
def test_wrong_arguments(name, values):
    for value in values:
        arguments = {"noise_multiplier": 1.0} | {name: value}
        with pytest.raises(ValueError, match=name):
            tf_dpfp.DPSGD(0.1, **arguments)


def test_the_noise_multiplier_must_be_given():
    with pytest.raises(ValueError, match="must be given"):
        tf_dpfp.DPAdam(1e-3)


def test_settings_are_read_only():
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0)
    for name in ("noise_multiplier", "l2_norm_clip", "clipping", "seed"):
        with pytest.raises(AttributeError):
            setattr(optimizer, name, 0.0)


@pytest.mark.parametrize("base", ["sgd", None, layers.Dense])
def test_what_is_no_optimizer_class_is_refused(base):
    with pytest.raises(TypeError, match="takes a subclass"):
        tf_dpfp.private_optimizer_class(base)


def test_loss_scaling_wrappers_are_refused():
    with pytest.raises(TypeError, match="skips steps"):
        tf_dpfp.private_optimizer_class(keras.optimizers.LossScaleOptimizer)
    model = tf_dpfp.make_private(
        keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    )
    with pytest.raises(
        tf_dpfp.errors.NotPrivateError, match="LossScaleOptimizer"
    ):
        model.compile(
            keras.optimizers.LossScaleOptimizer(
                tf_dpfp.DPSGD(0.1, noise_multiplier=1.0)
            ),
            loss="mse",
        )


def test_ordinary_gradients_are_refused_and_nothing_moves():
    model = helpers.private_line(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0))
    optimizer, variables = model.optimizer, model.trainable_variables
    gradients = [tf.ones_like(v.value) for v in variables]
    before = model.get_weights()
    refused = pytest.raises(
        tf_dpfp.errors.NotPrivateError, match="make_private"
    )
    with refused:
        optimizer.apply(gradients, variables)
    with refused:
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    plain.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss="mse")
    with refused:
        plain.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(before[0], model.get_weights()[0])
    assert tf_dpfp.ledger(model) == []


def test_apply_checks_the_variables_and_takes_both_forms():
    model = helpers.private_line(
        tf_dpfp.DPSGD(0.1, noise_multiplier=0.0, expected_batch_size=4)
    )
    clipped = tf_dpfp.loops.clipped_gradients(model, X[:4], Y[:4])
    with pytest.raises(ValueError, match="Leave the argument out"):
        model.optimizer.apply(clipped, model.trainable_variables[:1])
    with pytest.raises(TypeError, match="go to the optimizer as they are"):
        model.optimizer.apply_gradients(zip(clipped, [], strict=False))
    model.optimizer.apply(clipped, model.trainable_variables)
    model.optimizer.apply_gradients(clipped)
    assert int(model.optimizer.iterations) == 2
    assert [entry.steps for entry in tf_dpfp.ledger(model)] == [2]


def test_gradients_of_a_model_with_another_optimizer_are_refused():
    """Or the ledger of the model would not count their step."""
    first, other = (
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=4)
        for _ in range(2)
    )
    model = helpers.private_line(first)
    clipped = tf_dpfp.loops.clipped_gradients(model, X[:4], Y[:4])
    before = model.get_weights()
    refused = pytest.raises(
        tf_dpfp.errors.NotPrivateError, match="compiled with another optimizer"
    )
    with refused:
        other.apply(clipped)
    model.compile(other, "mse")
    with refused:
        other.apply(clipped)
    np.testing.assert_array_equal(before[0], model.get_weights()[0])
    assert tf_dpfp.ledger(model) == []


def test_an_unknown_batch_size_is_refused():
    model = helpers.private_line(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0))
    clipped = tf_dpfp.loops.clipped_gradients(model, X, Y)
    with pytest.raises(ValueError, match="expected_batch_size="):
        model.optimizer.apply(clipped)
    with pytest.raises(ValueError, match="expected_batch_size="):
        model.fit(((X, Y) for _ in range(2)), verbose=0)
    batches = tf_dpfp.poisson_batches(X, Y, expected_batch_size=4)
    other = helpers.private_line(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=5)
    )
    with pytest.raises(ValueError, match="make the two agree"):
        other.fit(batches, verbose=0)
    assert tf_dpfp.ledger(other) == []


def test_a_batch_that_was_not_dealt_to_the_replicas_is_refused():
    model = helpers.private_line(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=4)
    )
    clipped = tf_dpfp.loops.clipped_gradients(model, X, Y)

    class Two:
        num_replicas_in_sync = 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.distribute, "get_strategy", Two)
        with pytest.raises(
            tf_dpfp.errors.NotPrivateError, match="count each example"
        ):
            model.optimizer.apply(clipped)
    dealt = dataclasses.replace(clipped, replicas=2)
    with pytest.raises(
        tf_dpfp.errors.NotPrivateError, match="one of 2 replicas"
    ):
        model.optimizer.apply(dealt)
    assert tf_dpfp.ledger(model) == []


def test_moving_averages_of_the_weights():
    model = helpers.private_line(
        tf_dpfp.DPSGD(
            0.1,
            noise_multiplier=0.0,
            use_ema=True,
            ema_momentum=0.5,
        )
    )
    seen = [None]

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(model.get_weights()[0])

    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[Note()])
    # Keras starts the average with the weights after the first step.
    average = seen[1]
    for weights in seen[2:]:
        average = 0.5 * average + 0.5 * weights
    np.testing.assert_allclose(model.get_weights()[0], average, atol=1e-6)


def test_the_regularisation_is_not_clipped_and_not_divided():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(
                1, use_bias=False, kernel_regularizer=keras.regularizers.L2(5.0)
            ),
        ]
    )
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(
            1.0,
            noise_multiplier=0.0,
            l2_norm_clip=1e-6,
            expected_batch_size=100,
        ),
        loss="mse",
    )
    kernel = model.get_weights()[0]
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(
        model.get_weights()[0], kernel - 10.0 * kernel, atol=1e-5
    )


def test_classes_say_what_they_take():
    import inspect

    for cls in READY_MADE:
        parameters = inspect.signature(cls).parameters
        for name in ("learning_rate", "l2_norm_clip", "noise_multiplier"):
            assert name in parameters
        assert "noise_multiplier:" in cls.__doc__
