"""Losses of a model's own are those of single examples, at the right scale."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras import ops

import tf_dpfp
from tests.oracles import reference

COUNT = 5


class KL(layers.Layer):
    """Adds a mean over the batch, as autoencoders do."""

    def call(self, mean, log_variance):
        kl = ops.square(mean) + ops.exp(log_variance) - 1.0 - log_variance
        self.add_loss(0.3 * ops.mean(ops.sum(kl, axis=-1)))
        return mean


def _autoencoder():
    inputs = keras.Input((4,))
    hidden = layers.Dense(5, activation="tanh")(inputs)
    code = KL()(layers.Dense(2)(hidden), layers.Dense(2)(hidden))
    return keras.Model(inputs, layers.Dense(4)(code))


class Subclassed(keras.Model):
    """Adds a loss in its own `call`, beside layers that it shares."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(4, activation="tanh")
        self.head = layers.Dense(4)

    def call(self, inputs):
        code = self.hidden(inputs)
        again = self.hidden(ops.tanh(code))
        self.add_loss(ops.mean(ops.square(code - again)))
        return self.head(again)


class Codes(layers.Layer):
    """Owns weights, and adds a loss in `call`: the generic rule."""

    def build(self, shape):
        self.table = self.add_weight(shape=(3, shape[-1]))

    def call(self, inputs):
        far = ops.square(inputs[:, None] - self.table[None])
        self.add_loss(ops.mean(ops.min(ops.sum(far, -1), -1)))
        return inputs + ops.mean(self.table, 0)


class Router(layers.Layer):
    """Adds a balance of loads, which is made of the batch as a whole."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.gate = layers.Dense(3, activation="softmax")

    def build(self, shape):
        self.gate.build(shape)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 3)

    def call(self, inputs):
        gates = self.gate(inputs)
        self.add_loss(3 * ops.sum(ops.square(ops.mean(gates, 0))))
        return gates


class OwnLoss(keras.Model):
    """Two terms, and what Keras computes: the compiled loss, penalties."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(
            4, activation="tanh", kernel_regularizer="l2", name="hidden"
        )
        self.head = layers.Dense(4, activity_regularizer="l1")
        self.seen = keras.metrics.Mean(name="term")

    def call(self, inputs):
        return self.head(self.hidden(inputs))

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        term = ops.mean(ops.square(x - y_pred) * ops.sigmoid(y))
        self.seen.update_state(term)
        return term + super().compute_loss(x, y, y_pred, sample_weight)


class CallsLayers(OwnLoss):
    """Calls layers once more within the loss."""

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        again = self.hidden(ops.tanh(x + y_pred))
        return ops.mean(ops.square(again - y))


class Branches(OwnLoss):
    """Branches within the loss, without the argument `training`."""

    def compute_loss(self, x, y, y_pred, sample_weight=None):
        far = ops.square(y_pred - y)
        return ops.cond(
            ops.mean(y) > 0.5,
            lambda: ops.mean(far),
            lambda: 2.0 * ops.mean(ops.sqrt(far + 1.0)),
        )


def _distiller():
    def make(units):
        return keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(units, activation="tanh", name="inner"),
                layers.Dense(4),
            ]
        )

    return keras.distillation.Distiller(
        make(5),
        make(5),
        [
            keras.distillation.LogitsDistillation(temperature=2.0),
            keras.distillation.FeatureDistillation("mse", "inner", "inner"),
        ],
    )


def _of_layers(*made):
    return lambda: keras.Sequential(
        [keras.Input((4,)), *(make() for make in made)]
    )


def _per_example_router():
    return tf_dpfp.PerExample(Router())


def _compiled_mse():
    return {"loss": "mse"}


MODELS = {
    "a layer adds": (_autoencoder, _compiled_mse),
    "a model adds": (Subclassed, _compiled_mse),
    "only added": (Subclassed, dict),
    "activities": (
        _of_layers(
            lambda: layers.Dense(4, activity_regularizer="l2"),
            lambda: layers.Dense(4, kernel_regularizer="l2"),
        ),
        _compiled_mse,
    ),
    "generic rule": (_of_layers(Codes, lambda: layers.Dense(4)), _compiled_mse),
    "example by example": (
        _of_layers(_per_example_router, lambda: layers.Dense(4)),
        _compiled_mse,
    ),
    "its own": (OwnLoss, _compiled_mse),
    "calls layers": (CallsLayers, dict),
    "branches": (Branches, dict),
    "distiller": (_distiller, _compiled_mse),
}


def _data():
    rng = np.random.default_rng(0)
    shape = (COUNT, 4)
    x = rng.normal(size=shape).astype("float32")
    return x, rng.uniform(size=shape).astype("float32")


def _penalties(model):
    return sum(
        tf.cast(v.regularizer(v.value), tf.float64)
        for v in model.trainable_variables
        if v.regularizer is not None
    )


def _gradients(build, compiled, like, x, y, reads_penalties):
    """Gradients in float64, one example after the other, and of the batch."""
    with reference.double_precision():
        model = build()
        model.compile("sgd", auto_scale_loss=False, **compiled())
        model(x[:1].astype(np.float64))
        for mine, theirs in zip(model.weights, like.weights, strict=True):
            mine.assign(theirs.numpy())

        def loss(x, y):
            y_pred = model(x, training=True)
            value = model.compute_loss(x, y, y_pred, None)
            return value - (_penalties(model) if reads_penalties else 0.0)

        variables = model.trainable_variables
        of_each = reference.gradients(loss, variables, x, y)
        with tf.GradientTape() as tape:
            value = loss(*(tf.constant(t, tf.float64) for t in (x, y)))
        whole = reference.differentiate(tape, value, variables)
        return of_each, [g.numpy() for g in whole]


@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_that_of_the_loop_over_examples(name, without_trial):
    build, compiled = MODELS[name]
    x, y = _data()
    keras.utils.set_random_seed(1)
    plain, model = build(), build()
    plain(x), model(x)
    model.set_weights(plain.get_weights())
    # Losses that are written by hand leave the penalties of weights out.
    reads = name not in ("calls layers", "branches", "distiller")
    of_each, whole = _gradients(build, compiled, plain, x, y, reads)
    if name not in ("branches", "example by example"):
        # Without clipping it is Keras's own gradient of the batch.
        for mean, expected in zip(
            [np.mean(parts, 0) for parts in zip(*of_each, strict=True)],
            whole,
            strict=True,
        ):
            np.testing.assert_allclose(mean, expected, atol=1e-9)
    groups = reference.flat_group(model)
    norms = reference.norms(of_each, groups)
    clip = float(np.median(norms))
    assert np.any(norms > clip) and np.any(norms < clip)
    expected = reference.clipped_sums(of_each, groups, [clip])

    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(
        1.0, l2_norm_clip=clip, noise_multiplier=0.0, expected_batch_size=COUNT
    )
    model.compile(optimizer, **compiled())
    model.train_on_batch(x, y)
    for before, after, total in zip(
        plain.trainable_variables,
        model.trainable_variables,
        expected,
        strict=True,
    ):
        moved = before.numpy() - after.numpy()
        if after.regularizer is not None:
            moved -= 2 * 0.01 * before.numpy()
        np.testing.assert_allclose(
            moved, total / COUNT, atol=2e-5, rtol=1e-4, err_msg=before.path
        )


def _private(model, optimizer=None, **compiled):
    tf_dpfp.make_private(model)
    compiled = compiled or {"loss": "mse"}
    model.compile(
        optimizer or tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), **compiled
    )
    return model


def test_what_metrics_see_of_the_loss_is_its_mean_over_examples(without_trial):
    x, y = _data()
    model = OwnLoss()
    y_pred = model(x).numpy()
    term = np.mean(np.square(x - y_pred) / (1 + np.exp(-y)))
    # The last piece of two is padded.
    optimizer = tf_dpfp.DPSGD(0.0, noise_multiplier=1.0, microbatch_size=2)
    logs = _private(model, optimizer).fit(x, y, batch_size=COUNT, verbose=0)
    np.testing.assert_allclose(logs.history["term"], [term], rtol=1e-5)


class ReadsMetric(OwnLoss):
    """Divides by what was computed of the examples before, without noise."""

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        loss = ops.mean(ops.square(y - y_pred))
        self.seen.update_state(loss)
        return loss / (1.0 + self.seen.result())


class KeepsMean(OwnLoss):
    """Keeps a running mean of the losses."""

    def __init__(self):
        super().__init__()
        self.mean = self.add_weight(shape=(), trainable=False)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        loss = ops.mean(ops.square(y - y_pred))
        self.mean.assign(0.9 * self.mean + 0.1 * loss)
        return loss - self.mean


class Vector(OwnLoss):
    """Returns a number for each output."""

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return ops.mean(ops.square(y - y_pred), axis=0)


class Total(layers.Layer):
    def call(self, inputs):
        self.add_loss(ops.sum(ops.square(inputs)))
        return inputs


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (ReadsMetric, "can't be trained privately"),
        (KeepsMean, "updates '.*'.* would leave without noise"),
        (Vector, r"must return one number.*\(4,\)"),
    ],
)
def test_losses_that_would_leak_or_are_no_number_are_refused(
    build, message, without_trial
):
    x, y = _data()
    model = build()
    model(x)
    with pytest.raises(ValueError, match=message):
        _private(model).train_on_batch(x, y)
    assert tf_dpfp.compute_epsilon(model, 1e-5) == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Router(name="gate"), "'gate' .Router.*as a whole.*PerExample"),
        (
            lambda: Total(name="total"),
            ".total. .Total.*a sum over the batch.*ops.mean",
        ),
    ],
)
def test_what_is_no_mean_over_the_batch_is_refused_by_name(make, message):
    model = _of_layers(make, lambda: layers.Dense(4))()
    with pytest.raises(ValueError, match=message):
        _private(model).train_on_batch(*_data())
    assert tf_dpfp.compute_epsilon(model, 1e-5) == 0.0


class OfBatch(OwnLoss):
    """Divides by the number of labels in the whole batch."""

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        is_label = ops.cast(y > 0.4, "float32")
        far = ops.square(y - y_pred) * is_label
        return ops.sum(far) / (1.0 + ops.sum(is_label))


def test_a_loss_of_the_batch_as_a_whole_is_warned_of():
    with pytest.warns(UserWarning, match="is not the mean of the losses"):
        _private(OfBatch()).train_on_batch(*_data())


@pytest.mark.filterwarnings("error")
def test_the_usual_forms_pass_the_trial_in_silence():
    for build in (_autoencoder, _distiller):
        _private(build()).train_on_batch(*_data())


class Dropped(OwnLoss):
    """Draws random numbers below its losses."""

    def __init__(self):
        super().__init__()
        self.dropout = layers.Dropout(0.5)

    def call(self, inputs, training=None):
        return self.head(self.dropout(self.hidden(inputs), training=training))


@pytest.mark.filterwarnings("error")
def test_random_numbers_are_not_taken_for_other_examples():
    penalised = keras.Sequential(
        [layers.Dropout(0.5), layers.Dense(4, activity_regularizer="l2")]
    )
    for model in (Dropped(), penalised):
        model(_data()[0])
        _private(model).train_on_batch(*_data())


def test_a_model_without_any_loss_is_refused(without_trial):
    model = _of_layers(lambda: layers.Dense(4))()
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0))
    with pytest.raises(ValueError, match="compiled without a loss"):
        model.fit(*_data(), verbose=0)
    assert tf_dpfp.compute_epsilon(model, 1e-5) == 0.0
