"""What follows the noise reads no data; each of these did, in silence."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.replicas import common
from tf_dpfp import loops

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
CLIP = 1.0
_READS = "reads (data|the metric)"


class _Kept:
    """Holds on to what it is given."""

    tensor = None
    metric = None


class _Holding(layers.Layer):
    """Keeps a sum over the batch, which nothing in the model reads."""

    def call(self, x):
        _Kept.tensor = tf.reduce_sum(x, 0)[:, None]
        return x


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, read):
        self._read = read

    def __call__(self, step):
        return 1.0 + self._read()

    def get_config(self):
        return {}


def _of_batch(shape=()):
    kept = _Kept.tensor
    if kept is None:
        return tf.zeros(shape)
    return kept if shape else tf.reduce_sum(kept)


def _of_metric(shape=()):
    return tf.zeros(shape) + _Kept.metric.total


def _of_value(shape=()):
    """Reads a metric past Keras."""
    return tf.zeros(shape) + _Kept.metric_value


def _model(read=None, place=None, optimizer=tf_dpfp.DPSGD, **kwargs):
    """A private line, one part of whose update reads something."""
    _Kept.tensor = None
    regularizer = constraint = None
    rate = 1.0
    if place == "regularizer":
        regularizer = lambda w: tf.reduce_sum(w * read((3, 1)))  # noqa: E731
    elif place == "constraint":
        constraint = lambda w: w - read((3, 1))  # noqa: E731
    elif place == "schedule":
        rate = _Schedule(read)
    keras.utils.set_random_seed(1)
    _Kept.metric = keras.metrics.Mean()
    _Kept.metric_value = _Kept.metric.total.value
    dense = layers.Dense(
        1, kernel_regularizer=regularizer, kernel_constraint=constraint
    )
    model = keras.Sequential([keras.Input((3,)), _Holding(), dense])
    tf_dpfp.make_private(model)
    model.compile(
        optimizer(
            rate,
            l2_norm_clip=CLIP,
            noise_multiplier=0.0,
            expected_batch_size=1.0,
        ),
        "mse",
        metrics=[keras.metrics.MeanMetricWrapper(lambda y, p: p)],
        **kwargs,
    )
    # One of the model's metrics, wherever the model makes it.
    model.watched = _Kept.metric
    return model


def _fit(model):
    model.fit(X, Y, batch_size=6, shuffle=False, verbose=0)


def _eager_loop(model):
    model.optimizer.apply(loops.clipped_gradients(model, X, Y))


@pytest.mark.parametrize("place", ["regularizer", "constraint", "schedule"])
@pytest.mark.parametrize("read", [_of_batch, _of_metric, _of_value])
def test_update_that_reads_data_is_refused(place, read):
    model = _model(read, place)
    before = model.get_weights()
    with pytest.raises(ValueError, match=_READS):
        _fit(model)
    for mine, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_update_is_watched_under_xla_and_in_loops():
    with pytest.raises(ValueError, match=_READS):
        _fit(_model(_of_batch, "constraint", jit_compile=True))
    with pytest.raises(ValueError, match=_READS):
        _fit(_model(_of_batch, "constraint", steps_per_execution=2))
    with pytest.raises(ValueError, match=_READS):
        tf.function(_eager_loop)(_model(_of_batch, "regularizer"))


@pytest.mark.parametrize("place", ["regularizer", "constraint", "schedule"])
def test_eager_update_that_reads_a_metric_is_refused(place):
    model = _model(_of_metric, place, run_eagerly=True)
    with pytest.raises(ValueError, match="reads the metric variable"):
        _eager_loop(model)
    with pytest.raises(ValueError, match="reads the metric variable"):
        _fit(model)


class _Reading(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        more = tf.reduce_sum(_of_batch())
        super().update_step(gradient + more, variable, learning_rate)


def test_optimizer_that_reads_the_batch_is_refused():
    private = tf_dpfp.private_optimizer_class(_Reading)
    with pytest.raises(ValueError, match="reads data without noise"):
        _fit(_model(optimizer=private))


def test_replicas_that_read_the_batch_are_refused():
    def make():
        model = common.mlp()
        held = keras.Sequential([keras.Input((7,)), _Holding(), model])
        for layer in model.layers:
            if hasattr(layer, "kernel"):
                layer.kernel.constraint = lambda w: (
                    w - tf.reduce_sum(_of_batch())
                )
        return held

    model = common.private(2, make=make)
    common.refuses(model, "reads data without noise")


def test_update_may_read_weights_and_its_own_state():
    class Moving(keras.constraints.Constraint):
        def __init__(self):
            self.count = keras.Variable(0.0)

        def __call__(self, w):
            self.count.assign_add(1.0)
            return w / (1.0 + 1e-3 * self.count)

    model = _model(lambda _: Moving(), "schedule")
    model.layers[-1].kernel.constraint = Moving()
    rate = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model.compile(
        tf_dpfp.DPAdam(
            rate,
            noise_multiplier=1.0,
            clipping=tf_dpfp.PerLayer(thresholds=tf_dpfp.clipping.Adaptive()),
            use_ema=True,
            ema_overwrite_frequency=2,
            weight_decay=0.1,
            global_clipnorm=1.0,
        ),
        "mse",
    )
    _fit(model)
    _fit(model)
    assert np.isfinite(model.get_weights()[0]).all()
    tf.function(_eager_loop)(model)
