"""Metrics of private steps are those of Keras on the same examples."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp

COUNT, TOKENS = 10, 4


class NoWeights(keras.metrics.Metric):
    """A metric that takes no weights, and no batch without examples."""

    def __init__(self):
        super().__init__(name="highest")
        self.seen = self.add_variable((), "zeros", name="seen")

    def update_state(self, y_true, y_pred, sample_weight=None):
        assert sample_weight is None
        del y_true
        self.seen.assign(
            keras.ops.maximum(self.seen, keras.ops.max(y_pred + 1.0))
        )

    def result(self):
        return self.seen + 0.0


def _tokens(mask_zero=True):
    inputs = keras.Input((TOKENS,), dtype="int32")
    hidden = layers.Embedding(9, 5, mask_zero=mask_zero)(inputs)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(hidden))


def _image():
    return keras.Sequential(
        [keras.Input((3, 3, 2)), layers.Conv2D(2, 1, activation="softmax")]
    )


def _two_outputs():
    inputs = keras.Input((TOKENS,), dtype="int32")
    hidden = layers.Embedding(9, 5, mask_zero=True)(inputs)
    tags = layers.Dense(3, activation="softmax", name="tags")(hidden)
    mean = layers.GlobalAveragePooling1D()(hidden)
    kind = layers.Dense(1, activation="sigmoid", name="kind")(mean)
    return keras.Model(inputs, {"tags": tags, "kind": kind})


class OwnMetrics(keras.Sequential):
    def __init__(self):
        super().__init__([keras.Input((3, 3, 2)), layers.Conv2D(1, 1)])
        self.input_mean = keras.metrics.Mean(name="input_mean")

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.input_mean.update_state(x)
        return super().compute_metrics(x, y, y_pred, sample_weight)


def _data(kind):
    rng = np.random.default_rng(0)
    x = rng.integers(1, 9, (COUNT, TOKENS)).astype("int32")
    for i in range(COUNT):
        x[i, i % TOKENS + 1 :] = 0
    tags = rng.integers(0, 3, (COUNT, TOKENS))
    weights = rng.uniform(0.1, 2.0, (COUNT, TOKENS)).astype("float32")
    if kind == "tokens":
        return x, tags
    if kind == "weighted tokens":
        return x, tags, weights
    if kind == "outputs":
        return x, {"tags": tags, "kind": rng.integers(0, 2, (COUNT, 1))}
    if kind == "weighted outputs":
        y = {"tags": tags, "kind": rng.integers(0, 2, (COUNT, 1))}
        return x, y, {"tags": weights, "kind": weights[:, 0]}
    image = rng.normal(size=(COUNT, 3, 3, 2)).astype("float32")
    return image, rng.integers(0, 2, (COUNT, 3, 3))


CROSSENTROPY = "sparse_categorical_crossentropy"
CASES = {
    "masked tokens": (_tokens, "tokens", {"metrics": ["accuracy"]}),
    "tokens": (
        lambda: _tokens(mask_zero=False),
        "tokens",
        {"metrics": ["accuracy", CROSSENTROPY]},
    ),
    "weights of tokens": (
        _tokens,
        "weighted tokens",
        {"metrics": ["accuracy"], "weighted_metrics": ["accuracy"]},
    ),
    "images": (
        _image,
        "image",
        {"metrics": [keras.metrics.MeanIoU, NoWeights]},
    ),
    "outputs": (
        _two_outputs,
        "outputs",
        {
            "metrics": {"tags": ["accuracy"], "kind": ["mae", "accuracy"]},
            "loss": {"tags": CROSSENTROPY, "kind": "binary_crossentropy"},
        },
    ),
    "weights of outputs": (
        _two_outputs,
        "weighted outputs",
        {
            "metrics": {"kind": "mae"},
            "weighted_metrics": {"tags": ["accuracy"], "kind": ["mse"]},
            "loss": {"tags": CROSSENTROPY, "kind": "binary_crossentropy"},
        },
    ),
    "its own": (OwnMetrics, "image", {"loss": "mse", "metrics": ["mae"]}),
}


def _made(metrics):
    """Metrics belong to one model: makes those that are given as classes."""

    def make(leaf):
        if leaf is keras.metrics.MeanIoU:
            return leaf(2, sparse_y_pred=False, name="iou")
        return leaf() if isinstance(leaf, type) else leaf

    return keras.tree.map_structure(make, metrics)


@pytest.mark.parametrize(
    ("case", "microbatch_size"),
    [
        *((case, None) for case in CASES),
        # Pieces of four, the last one padded.
        ("weights of tokens", 4),
        ("images", 4),
    ],
)
def test_metrics_are_those_of_an_ordinary_evaluation(
    case, microbatch_size, without_trial
):
    build, kind, compiled = CASES[case]
    x, y, *weights = _data(kind)
    compiled = {"loss": CROSSENTROPY} | compiled
    ordinary = build()
    ordinary.compile("sgd", **_made(compiled))
    batches = tf.data.Dataset.from_tensor_slices((x, y, *weights))
    # Of ten examples: one batch, as means of scalars hang on the batches.
    expected = ordinary.evaluate(
        batches.batch(COUNT), return_dict=True, verbose=0
    )

    private = build()
    private.set_weights(ordinary.get_weights())
    tf_dpfp.make_private(private)
    optimizer = tf_dpfp.DPSGD(
        0.0, noise_multiplier=1.0, microbatch_size=microbatch_size
    )
    private.compile(optimizer, **_made(compiled))
    found = private.fit(batches.batch(COUNT), verbose=0).history
    assert set(found) == set(expected)
    # Of a loss under masks, each example counts as much as any other.
    names = [n for n in expected if not n.endswith("loss") or kind == "image"]
    assert names
    for name in names:
        np.testing.assert_allclose(
            found[name][0], expected[name], rtol=1e-5, err_msg=name
        )


def test_metrics_of_a_batch_without_examples_stay(without_trial):
    model = tf_dpfp.make_private(_image())

    def mean(y_true, y_pred):
        del y_true
        return keras.ops.mean(y_pred)

    model.compile(
        tf_dpfp.DPSGD(0.0, noise_multiplier=1.0, expected_batch_size=1),
        CROSSENTROPY,
        metrics=[mean, NoWeights()],
    )
    x, y = _data("image")
    sizes = [4, 0, 1]
    pieces = tf.data.Dataset.from_generator(
        lambda: ((x[:n], y[:n]) for n in sizes),
        output_signature=(
            tf.TensorSpec([None, *x.shape[1:]], x.dtype),
            tf.TensorSpec([None, *y.shape[1:]], y.dtype),
        ),
    )
    found = model.fit(pieces, verbose=0).history
    # Keras means the means of the two batches that have examples.
    np.testing.assert_allclose(found["mean"], [0.5], rtol=1e-6)
    assert 1.0 < found["highest"][0] < 2.0


class CentersOnMetrics(keras.Model):
    """Keeps a mean of the inputs, which it takes where metrics are updated."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)
        self.mean = self.add_weight(
            shape=(3,), initializer="zeros", trainable=False
        )

    def call(self, x):
        return self.dense(x - self.mean)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.mean.assign(keras.ops.mean(x, axis=0))
        return super().compute_metrics(x, y, y_pred, sample_weight)


class Writes(keras.metrics.Mean):
    """Adds to a weight of the model beside its own variables."""

    def __init__(self, variable):
        super().__init__(name="writes")
        self._writes = [variable]

    def update_state(self, y_true, y_pred, sample_weight=None):
        self._writes[0].assign_add(keras.ops.ones_like(self._writes[0]))
        super().update_state(y_pred)


@pytest.mark.parametrize("arguments", [{}, {"run_eagerly": True}])
@pytest.mark.parametrize("kind", ["compute_metrics", "metric", "optimizer"])
def test_a_metric_that_writes_a_weight_is_refused(kind, arguments):
    """What it saw would be in the weights, and in the next step's loss."""
    x = np.ones((8, 3), np.float32)
    metrics = None
    if kind == "metric":
        model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
        metrics = [Writes(model.layers[-1].bias)]
    elif kind == "optimizer":
        model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    else:
        model = CentersOnMetrics()
        model(x)
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0)
    if kind == "optimizer":
        # A rate that follows the data would tell of them in the weights.
        metrics = [Writes(optimizer._learning_rate)]
    model.compile(optimizer, loss="mse", metrics=metrics, **arguments)
    before = model.get_weights()
    with pytest.raises(ValueError, match="A metric writes"):
        model.fit(x, x[:, :1], batch_size=4, verbose=0)
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    assert sum(e.steps for e in tf_dpfp.ledger(model)) == 0


class WritesPastKeras(keras.metrics.Mean):
    """Adds to the TensorFlow variable behind a weight."""

    def __init__(self, variable, nested=False):
        super().__init__(name="writes")
        self.variable = variable
        self.write = tf.function(self._write) if nested else self._write

    def _write(self, y_pred):
        mean = tf.reduce_mean(y_pred)
        self.variable.value.assign_add(mean * tf.ones_like(self.variable))

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.write(y_pred)
        return super().update_state(y_pred)


class WritesInABranch(WritesPastKeras):
    """Adds to it in a branch of a branch of a function."""

    def _write(self, y_pred):
        write = super()._write
        once = tf.constant(1)

        def body(i):
            write(y_pred)
            return [i + 1]

        tf.cond(
            once > 0,
            lambda: tf.while_loop(lambda i: i < 2, body, [once])[0],
            lambda: once,
        )


@pytest.mark.parametrize("arguments", [{}, {"jit_compile": True}])
@pytest.mark.parametrize(
    "writes",
    [
        WritesPastKeras,
        functools.partial(WritesPastKeras, nested=True),
        WritesInABranch,
    ],
)
def test_a_metric_that_writes_a_weight_past_keras_is_refused(writes, arguments):
    x = np.ones((8, 3), np.float32)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0),
        loss="mse",
        metrics=[writes(model.layers[-1].kernel)],
        **arguments,
    )
    before = model.get_weights()
    with pytest.raises(ValueError, match="A metric writes"):
        model.fit(x, x[:, :1], batch_size=4, verbose=0)
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


class NormOf(keras.metrics.Metric):
    """Shows the length of a weight, which it holds."""

    def __init__(self, variable):
        super().__init__(name="norm")
        self.variable = variable

    def update_state(self, y_true, y_pred, sample_weight=None):
        pass

    def result(self):
        return keras.ops.norm(self.variable)


def test_a_metric_may_read_a_weight():
    x = np.ones((8, 3), np.float32)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0),
        loss="mse",
        metrics=[NormOf(model.layers[-1].kernel)],
    )
    history = model.fit(x, x[:, :1], batch_size=4, verbose=0).history
    norm = np.linalg.norm(model.layers[-1].kernel.numpy())
    np.testing.assert_allclose(history["norm"], [norm], rtol=1e-6)
