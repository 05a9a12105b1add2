"""Proofs of steps that release noised representations."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp.independence import representations as trial_lib

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = np.zeros((8, 2), "float32")


@pytest.fixture(autouse=True)
def _no_trial(monkeypatch):
    """Leaves everything to the proof."""
    found = trial_lib.Findings((), (), 1)
    monkeypatch.setattr(trial_lib, "examine", lambda *_: found)


class Below(layers.Layer):
    """Computes something of the examples below the noise."""

    def __init__(self, function):
        super().__init__(trainable=False)
        self.function = function
        self.seen = []

    def call(self, inputs):
        self.seen.append(inputs)
        return self.function(inputs)


class Keeps(layers.Layer):
    """Keeps a sum in a variable that Keras does not know."""

    def __init__(self):
        super().__init__(trainable=False)
        self.total = tf.Variable(0.0)

    def call(self, inputs):
        self.total.assign_add(tf.reduce_sum(inputs))
        return inputs


def _route(x):
    choice = tf.one_hot(tf.argmax(x, -1), 3)
    place = tf.reduce_sum(tf.cumsum(choice, 0) * choice, -1)
    return x * tf.cast(place <= 2.0, x.dtype)[:, None]


def _clip(**kwargs):
    return tf_dpfp.DPRepresentationClip(1.0, 1.0, labels="public", **kwargs)


def _model(below, *above, eager=False, loss="mse"):
    model = keras.Sequential(
        [keras.Input((3,)), below, _clip(), *above, layers.Dense(2)]
    )
    tf_dpfp.make_private(model)
    model.compile("sgd", loss, run_eagerly=eager)
    return model


class Positives(keras.metrics.Metric):
    """Counts predictions above zero, as an example of Keras does."""

    def __init__(self):
        super().__init__(name="positives")
        self.count = self.add_variable((), "zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.count.assign_add(
            keras.ops.sum(keras.ops.cast(y_pred > 0, "float32"))
        )

    def result(self):
        return self.count


@pytest.mark.parametrize("eager", [False, True])
def test_the_result_of_a_metric_may_be_its_variable(eager):
    model = _model(Below(lambda x: x))
    model.compile("sgd", "mse", metrics=[Positives()], run_eagerly=eager)
    logs = model.train_on_batch(X, Y, return_dict=True)
    assert 0 <= logs["positives"] <= 2 * len(X)


MIXING = {
    "routing": (_route, "Cumsum"),
    "mean": (lambda x: x - 1e-4 * tf.reduce_mean(x, 0), "Mean"),
    "rows moved": (lambda x: x + tf.roll(x, 1, 0), "Roll"),
}


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_below_the_noise_is_refused_by_name(name, eager):
    function, operation = MIXING[name]
    model = _model(Below(function), eager=eager)
    with pytest.raises(ValueError, match="the representations") as refusal:
        model.train_on_batch(X, Y)
    assert operation in str(refusal.value)
    assert sum(e.steps for e in tf_dpfp.ledger(model)) == 0


@pytest.mark.parametrize("eager", [False, True])
def test_what_a_variable_keeps_is_refused(eager):
    model = _model(Keeps(), eager=eager)
    with pytest.raises(ValueError, match="Assign"):
        model.train_on_batch(X, Y)


def test_a_loss_that_looks_below_the_noise_is_refused():
    below = Below(lambda x: x)
    model = _model(
        below,
        loss=lambda t, p: tf.reduce_mean((p - below.seen[-1][:, :2]) ** 2),
    )
    with pytest.raises(ValueError, match="data"):
        model.train_on_batch(X, Y)


class Around(keras.Model):
    """Adds the inputs to what was noised."""

    def __init__(self):
        super().__init__()
        self.clip = _clip()
        self.dense = layers.Dense(2)

    def call(self, x, training=None):
        return self.dense(self.clip(x, training=training)) + 1e-6 * x[:, :2]


@pytest.mark.parametrize("eager", [False, True])
def test_a_way_around_the_layer_is_refused(eager):
    model = Around()
    model(X)
    tf_dpfp.make_private(model)
    model.compile("sgd", "mse", run_eagerly=eager)
    with pytest.raises(ValueError, match="can't be trained privately"):
        model.train_on_batch(X, Y)


@pytest.mark.parametrize("eager", [False, True])
def test_whatever_is_above_the_noise_is_proved(eager):
    model = _model(
        layers.Dense(3, trainable=False),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        layers.Softmax(axis=0),
        eager=eager,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not proved")
        model.train_on_batch(X, Y)
        model.train_on_batch(X[:5], Y[:5])
    assert sum(e.steps for e in tf_dpfp.ledger(model)) == 2


def test_a_loop_over_draws_is_proved_before_its_first_step():
    model = _model(Below(_route))
    batches = tf_dpfp.representations.stratified_batches(
        X, np.arange(8) % 2, draw_size=2, labels="public"
    )
    with pytest.raises(ValueError, match="Cumsum"):
        with tf_dpfp.loops.sampled_steps(model, batches):
            pass


def test_a_switch_turned_later_is_seen_in_the_next_trace():
    below = Below(lambda x: x)
    model = _model(below)
    model.train_on_batch(X, Y)
    below.function = _route
    with pytest.raises(ValueError, match="Cumsum"):
        model.train_on_batch(X[:5], Y[:5])


def test_a_joint_step_knows_its_own_noise(monkeypatch):
    monkeypatch.undo()
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(3), _clip(), layers.Dense(2)]
    )
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), "mse")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not proved")
        model.fit(X, Y, batch_size=8, verbose=0)
