import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp import mechanisms

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)


def _sequential(*middle, batch_size=None):
    inputs = keras.Input((4,), batch_size=batch_size)
    return keras.Sequential([inputs, *middle, layers.Dense(1)])


def _reasons(model):
    return [problem.reason for problem in tf_dpfp.validate(model)]


def test_a_sound_model_has_no_problems():
    model = _sequential(layers.Dense(3), layers.Dropout(0.1))
    assert tf_dpfp.validate(model) == []
    assert tf_dpfp.validate(tf_dpfp.make_private(model)) == []


def test_every_problem_is_listed_at_once():
    model = _sequential(
        layers.BatchNormalization(name="bn"),
        layers.SpectralNormalization(layers.Dense(2), name="spectral"),
        layers.Reshape((2, 1)),
        layers.SimpleRNN(3, stateful=True, name="stateful"),
        batch_size=2,
    )
    problems = tf_dpfp.validate(model)
    assert {p.where.split("/")[-1] for p in problems} == {
        "bn",
        "stateful",
        "spectral",
    }
    assert [p.fixable for p in problems].count(True) == 1
    with pytest.raises(ValueError) as error:
        tf_dpfp.make_private(model)
    for problem in problems:
        assert str(problem) in str(error.value)
    assert not tf_dpfp.loops.is_private(model)


def test_frozen_batch_normalization_is_allowed():
    model = _sequential(layers.BatchNormalization())
    model.layers[0].trainable = False
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss="mse")
    statistics = [v.numpy() for v in model.layers[0].variables]
    model.fit(X, Y, verbose=0)
    for variable, before in zip(
        model.layers[0].variables, statistics, strict=True
    ):
        np.testing.assert_array_equal(variable.numpy(), before)


def test_mixup_is_refused():
    if not hasattr(layers, "MixUp"):
        pytest.skip("this Keras has no MixUp")
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.MixUp(), layers.Flatten()]
    )
    assert "mixes the examples" in _reasons(model)[0]


def test_a_train_step_of_its_own_is_refused():
    class Step(keras.Sequential):
        def train_step(self, data):
            return {}

    model = Step([keras.Input((4,)), layers.Dense(1)])
    assert "train_step" in _reasons(model)[0]
    with pytest.raises(ValueError, match="train_step"):
        tf_dpfp.make_private(model)


def test_a_compute_loss_of_its_own_is_refused_beside_representations():
    class Loss(keras.Sequential):
        def compute_loss(self, *args, **kwargs):
            return 0.0

    assert tf_dpfp.validate(Loss([keras.Input((4,)), layers.Dense(1)])) == []
    clip = tf_dpfp.DPRepresentationClip(1.0, 1.0, labels="public")
    model = Loss([keras.Input((4,)), clip, layers.Dense(1)])
    assert "compute_loss" in _reasons(model)[0]
    with pytest.raises(ValueError, match="compute_loss"):
        tf_dpfp.make_private(model)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.LSTM(2, stateful=True),
        lambda: layers.RNN(layers.GRUCell(2), stateful=True),
        lambda: layers.Bidirectional(layers.SimpleRNN(2, stateful=True)),
    ],
)
def test_a_layer_that_keeps_its_states_is_refused(layer):
    model = keras.Sequential([keras.Input((3, 2), batch_size=1), layer()])
    with pytest.raises(ValueError, match="from one batch to the next.*=False"):
        tf_dpfp.make_private(model)


def test_private_twice_changes_nothing():
    model = tf_dpfp.make_private(_sequential())
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), "mse")
    fit, mechanism = model.fit, mechanisms.mechanism_of(model)
    assert tf_dpfp.make_private(model) is model
    assert model.fit is fit and mechanisms.mechanism_of(model) is mechanism


def _refused(model, match, loss="mse", **arguments):
    """Refused at the first try and at every other, with nothing spent."""
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=8),
        loss=loss,
        **arguments,
    )
    before = model.get_weights()

    def fit():
        model.fit(X, Y, verbose=0)

    def in_a_loop():
        tf_dpfp.loops.clipped_gradients(model, X, Y)

    for train in (fit, in_a_loop, fit):
        with pytest.raises(ValueError, match=match):
            train()
    assert tf_dpfp.ledger(model) == []
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class Centre(layers.Layer):
    """Takes the mean of the batch away."""

    def call(self, x):
        return x - tf.reduce_mean(x, axis=0, keepdims=True)


class StoppedCentre(layers.Layer):
    def call(self, x):
        return x - tf.stop_gradient(tf.reduce_mean(x, axis=0, keepdims=True))


class BackwardCentre(layers.Layer):
    """Mixes examples in the backward pass only."""

    def call(self, x):
        @tf.custom_gradient
        def identity(x):
            return tf.identity(
                x
            ), lambda g: g - tf.reduce_mean(g, axis=0, keepdims=True)

        return identity(x)


class Counted(layers.Layer):
    """Looks at how many examples there are, and at none of them."""

    def call(self, x):
        return x / tf.cast(tf.shape(x)[0], x.dtype)


class BackwardCounted(layers.Layer):
    def call(self, x):
        @tf.custom_gradient
        def identity(x):
            count = tf.cast(tf.shape(x)[0], x.dtype)
            return tf.identity(x), lambda g: g / count

        return identity(x)


@pytest.mark.parametrize(
    "layer", [Centre, StoppedCentre, BackwardCentre, Counted, BackwardCounted]
)
def test_layers_that_mix_examples_are_caught(layer):
    _refused(_sequential(layers.Dense(3), layer()), "depends on the other")


def test_a_loss_across_the_batch_is_caught():
    _refused(
        _sequential(),
        "depends on the others",
        loss=keras.losses.CosineSimilarity(axis=0),
    )


class Counting(layers.Layer):
    """Keeps a running mean of what it sees."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(shape[-1],), trainable=False)

    def call(self, x):
        self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(x, axis=0))
        return x


class CountingWithWeights(Counting):
    def build(self, shape):
        super().build(shape)
        self.scale = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        return super().call(x) * self.scale


@pytest.mark.parametrize("layer", [Counting, CountingWithWeights])
def test_layers_that_keep_statistics_are_caught(layer):
    _refused(_sequential(layer()), "statistics of the data")


def test_a_weight_used_outside_its_layers_call_is_caught():
    class Reader(layers.Layer):
        def __init__(self, other):
            super().__init__()
            object.__setattr__(self, "other", other)

        def call(self, x):
            return x + tf.reduce_sum(self.other.kernel)

    dense = layers.Dense(4)
    _refused(_sequential(dense, Reader(dense)), "do not add up|out of reach")


def test_a_wrong_rule_is_caught():
    class Scale(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

        def call(self, x):
            return x * self.scale

    @tf_dpfp.gradient_rules.register_gradient_rule(Scale)
    class Half(tf_dpfp.gradient_rules.GradientRule):
        def gradients(self, call, output_gradients):
            values = 0.5 * call.inputs * output_gradients[0]
            return [
                (
                    call.layer.scale,
                    tf_dpfp.gradient_rules.PerExampleTensor(values),
                )
            ]

    del Half
    _refused(_sequential(Scale()), "do not add up")


@pytest.mark.parametrize("with_weights", [False, True])
def test_a_loss_that_a_layer_adds_is_caught(with_weights):
    class Adds(layers.Layer):
        def build(self, shape):
            if with_weights:
                self.scale = self.add_weight(shape=(shape[-1],))

        def call(self, x):
            self.add_loss(tf.reduce_sum(x))
            return x * self.scale if with_weights else x

    _refused(_sequential(Adds()), "adds to the loss, .* a sum over the batch")


def test_what_can_be_refused_before_the_first_step_is():
    model = tf_dpfp.make_private(_sequential())
    with pytest.raises(ValueError, match="not compiled"):
        model.fit(X, Y)
    for optimizer in ("adam", keras.optimizers.SGD(), None):
        with pytest.raises(
            tf_dpfp.errors.NotPrivateError, match="adds no noise"
        ):
            model.compile(optimizer=optimizer, loss="mse")
    assert getattr(model, "optimizer", None) is None
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0))
    with pytest.raises(ValueError, match="without a loss"):
        model.fit(X, Y)
    frozen = tf_dpfp.make_private(_sequential())
    frozen.trainable = False
    frozen.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss="mse")
    with pytest.raises(ValueError, match="no trainable weights"):
        frozen.fit(X, Y, verbose=0)
    with pytest.raises(TypeError, match="keras.Model"):
        tf_dpfp.make_private(layers.Dense(1))


def test_labels_out_of_range_do_no_damage():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(1.0, noise_multiplier=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    # A step that stopped would tell that the example was in the batch.
    model.fit(X, np.array([0, 1, 0, 1, 0, 7, 1, 1]), verbose=0)
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())
    assert [entry.steps for entry in tf_dpfp.ledger(model)] == [1]


def test_reports_refuse_models_that_are_not_private():
    model = _sequential()
    for report in (
        tf_dpfp.ledger,
        lambda m: tf_dpfp.compute_epsilon(m, 1e-5),
        lambda m: tf_dpfp.privacy_statement(m, 1e-5),
        lambda m: tf_dpfp.loops.clipped_gradients(m, X, Y),
    ):
        with pytest.raises(
            tf_dpfp.errors.NotPrivateError, match="make_private"
        ):
            report(model)


def test_a_training_function_of_its_own_is_refused():
    class Twice(keras.Model):
        def make_train_function(self, force=False):
            def twice(iterator):
                data = next(iterator)
                self.train_step(data)
                return self.train_step(data)

            self.train_function = twice

    inputs = keras.Input((5,))
    model = Twice(inputs, keras.layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match="make_train_function of its own"):
        tf_dpfp.make_private(model)


def test_layers_of_one_fault_share_a_line():
    norms = [layers.BatchNormalization(name=f"bn_{i}") for i in range(3)]
    with pytest.raises(ValueError, match="privately") as error:
        tf_dpfp.make_private(_sequential(*norms))
    _, *lines = str(error.value).splitlines()
    assert len(lines) == 1
    assert all(f"bn_{i}" in lines[0] for i in range(3))
    assert lines[0].count("mixes the examples") == 1
