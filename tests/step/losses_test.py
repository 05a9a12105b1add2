"""The loss of an example is what Keras computes for a batch of one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.step import losses

ROW_WISE = [
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalHinge",
    "CosineSimilarity",
    "Hinge",
    "Huber",
    "KLDivergence",
    "LogCosh",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Poisson",
    "SquaredHinge",
]
REDUCTIONS = ["sum_over_batch_size", "sum", "mean", "mean_with_sample_weight"]
B, T, D = 4, 5, 3


def _data(sequence=True, sparse=False):
    rng = np.random.default_rng(0)
    shape = (B, T, D) if sequence else (B, D)
    y_pred = rng.dirichlet(np.ones(D), shape[:-1]).astype(np.float32)
    if sparse:
        return rng.integers(0, D, shape[:-1]), y_pred
    return np.eye(D, dtype=np.float32)[rng.integers(0, D, shape[:-1])], y_pred


def _weights(kind):
    rng = np.random.default_rng(1)
    if kind is None:
        return None
    shape = {"example": (B,), "column": (B, 1), "position": (B, T)}[kind]
    return rng.uniform(0.1, 2.0, shape).astype(np.float32)


def _prediction(y_pred, mask):
    return keras_layers.with_mask(
        tf.constant(y_pred), None if mask is None else tf.constant(mask)
    )


def _one_by_one(loss, y_true, y_pred, weights, mask):
    rows = []
    for i in range(len(y_pred)):
        one = slice(i, i + 1)
        value = loss(
            tf.constant(y_true[one]),
            _prediction(y_pred[one], None if mask is None else mask[one]),
            None if weights is None else tf.constant(weights[one]),
        )
        rows.append(float(tf.reduce_sum(value)))
    return np.array(rows)


def _check(loss, y_true, y_pred, weights=None, mask=None, reference=None):
    found = losses.PerExampleLoss(loss)(
        tf.constant(y_true),
        _prediction(y_pred, mask),
        None if weights is None else tf.constant(weights),
    )
    assert found.shape == (len(y_pred),)
    expected = _one_by_one(reference or loss, y_true, y_pred, weights, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


_MASK = np.array(
    [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]], bool
)


@pytest.mark.parametrize("name", ROW_WISE)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_row_wise_losses(name, reduction):
    loss = getattr(keras.losses, name)(reduction=reduction)
    y_true, y_pred = _data(sequence=False)
    for kind in (None, "example", "column"):
        _check(loss, y_true, y_pred, _weights(kind))
    y_true, y_pred = _data()
    for kind in (None, "position"):
        for mask in (None, _MASK):
            _check(loss, y_true, y_pred, _weights(kind), mask)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (kind, labels)
        for kind in (
            keras.losses.Hinge(),
            keras.losses.SquaredHinge(),
            keras.losses.hinge,
            keras.losses.squared_hinge,
        )
        # Keras maps labels of 0 and 1 to -1 and 1 if ALL of them are such.
        for labels in ([0, 1, 0.5, -1], [0.5, 0, 0, 1], [0, 1, 1, 0])
    ],
)
def test_losses_that_look_at_all_labels_see_one_example_at_a_time(loss, labels):
    y_true = np.array(labels, np.float32)[:, None]
    y_pred = np.array([[0.3], [-0.2], [2.0], [0.1]], np.float32)
    reference = loss
    if not isinstance(loss, keras.losses.Loss):
        reference = lambda y_true, y_pred, _: loss(y_true, y_pred)  # noqa: E731
    _check(loss, y_true, y_pred, reference=reference)
    # Whatever label another example has, this one's loss stays.
    others = np.concatenate([y_true[:1], y_true[1:] * 0.25])
    first, second = (
        losses.PerExampleLoss(loss)(tf.constant(y), tf.constant(y_pred))[0]
        for y in (y_true, others)
    )
    np.testing.assert_allclose(first, second, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, -2])
def test_a_loss_that_reduces_over_the_examples_is_refused(axis):
    loss = losses.PerExampleLoss(keras.losses.CosineSimilarity(axis=axis))
    with pytest.raises(ValueError, match="reduces over axis .*Received: axis="):
        loss(tf.ones((3, 2)), tf.ones((3, 2)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sparse_categorical_crossentropy(reduction):
    for arguments in ({}, {"ignore_class": 1}):
        loss = keras.losses.SparseCategoricalCrossentropy(
            reduction=reduction, **arguments
        )
        y_true, y_pred = _data(sparse=True)
        for kind in (None, "position"):
            for mask in (None, _MASK):
                _check(loss, y_true, y_pred, _weights(kind), mask)


def test_the_reduction_none_is_the_mean_within_the_example():
    y_true, y_pred = _data()
    _check(
        keras.losses.MeanSquaredError(reduction=None),
        y_true,
        y_pred,
        reference=keras.losses.MeanSquaredError(),
    )


@pytest.mark.parametrize("name", ["mse", "binary_crossentropy", "hinge"])
def test_predictions_of_rank_one_are_not_averaged_over_the_batch(name):
    rng = np.random.default_rng(0)
    y_pred = rng.uniform(0.1, 0.9, B).astype(np.float32)
    y_true = rng.integers(0, 2, B).astype(np.float32)
    loss = keras.losses.get(name)
    found = losses.PerExampleLoss(loss)(
        tf.constant(y_true), tf.constant(y_pred)
    )
    expected = loss(tf.constant(y_true[:, None]), tf.constant(y_pred[:, None]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_ctc_is_called_on_batches_of_one():
    rng = np.random.default_rng(0)
    y_pred = rng.normal(size=(B, T, D + 1)).astype(np.float32)
    y_true = rng.integers(1, D + 1, (B, 2))
    _check(keras.losses.CTC(), y_true, y_pred)


@pytest.mark.parametrize("name", ["Dice", "Tversky"])
def test_losses_over_the_whole_batch_are_called_on_batches_of_one(name):
    y_true, y_pred = _data()
    _check(getattr(keras.losses, name)(), y_true, y_pred)


def _per_row(y_true, y_pred):
    return tf.reduce_sum(tf.abs(y_true - y_pred) ** 1.5, axis=(1, 2))


def _scalar(y_true, y_pred):
    return tf.reduce_mean(_per_row(y_true, y_pred))


def _centred(y_true, y_pred):
    centre = tf.reduce_mean(y_pred, axis=0, keepdims=True)
    return tf.reduce_sum((y_pred - centre + y_true) ** 2)


class _Custom(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return tf.reduce_mean((y_true - y_pred) ** 2, axis=-1)


@pytest.mark.parametrize("function", [_per_row, _scalar, _centred])
def test_functions_of_users_never_see_two_examples(function):
    y_true, y_pred = _data()
    expected = [
        float(tf.reduce_sum(function(y_true[i : i + 1], y_pred[i : i + 1])))
        for i in range(B)
    ]
    loss = losses.PerExampleLoss(function)
    found = loss(tf.constant(y_true), tf.constant(y_pred))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    weighted = loss(
        tf.constant(y_true),
        tf.constant(y_pred),
        tf.constant(_weights("example")),
    )
    np.testing.assert_allclose(
        weighted, expected * _weights("example"), rtol=1e-5
    )


def test_loss_classes_of_users_with_masks_and_weights():
    y_true, y_pred = _data()
    for reduction in REDUCTIONS:
        _check(
            _Custom(reduction=reduction),
            y_true,
            y_pred,
            _weights("position"),
            _MASK,
        )


@pytest.mark.parametrize("loss", ["circle", keras.losses.Circle()])
def test_circle_is_refused(loss):
    with pytest.raises(ValueError, match="compares the examples"):
        losses.per_example(loss)


def test_structures_of_losses():
    found = losses.per_example({"a": "mse", "b": None, "c": _scalar})
    assert found["b"] is None
    assert found["a"].name == "mean_squared_error"
    assert isinstance(found["c"], losses.PerExampleLoss)


def test_weights_with_too_many_axes_are_refused():
    with pytest.raises(ValueError, match="more axes"):
        losses.reduce_examples(tf.ones([2]), tf.ones([2, 3]), None, "sum")


def test_has_weight():
    rows = losses.has_weight(
        {
            "a": tf.constant([0.0, 1.0, 0.0]),
            "b": tf.constant([[0.0], [0.0], [2.0]]),
        },
        3,
    )
    np.testing.assert_array_equal(rows, [False, True, True])
    np.testing.assert_array_equal(losses.has_weight(None, 2), [True, True])
    # As the preprocessors of KerasHub's language models give them.
    mask = tf.constant([[False, True], [False, False]])
    np.testing.assert_array_equal(losses.has_weight(mask, 2), [True, False])


def test_labels_in_words_are_refused():
    loss = losses.PerExampleLoss(keras.losses.SparseCategoricalCrossentropy())
    with pytest.raises(ValueError, match="needs targets that are numbers"):
        loss(tf.constant(["yes", "no"]), tf.ones((2, 2)))


@pytest.mark.parametrize("labels", ["int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("predictions", ["float32", "bfloat16"])
def test_functions_of_users_get_the_numbers_that_keras_gives(
    labels, predictions
):
    seen = []

    def loss(y_true, y_pred):
        seen.append((y_true.dtype, y_pred.dtype))
        return keras.ops.square(y_true - y_pred[:, 0])

    y_true = np.array([0, 1, 1, 0]).astype(labels)
    y_pred = tf.cast(np.array([[0.5], [2.0], [0.0], [1.0]]), predictions)
    found = losses.PerExampleLoss(loss)(tf.constant(y_true), y_pred)
    np.testing.assert_allclose(found, [0.25, 1.0, 1.0, 1.0])
    # Of a functional form Keras makes a loss, which casts both.
    assert set(seen) == {(tf.float32, tf.float32)}


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.mean_squared_error,
        keras.losses.BinaryCrossentropy(),
    ],
)
def test_labels_may_be_true_and_false(loss):
    y_true = np.array([False, True, True, False])
    y_pred = np.random.default_rng(0).dirichlet(np.ones(2), 4)
    if loss is not keras.losses.sparse_categorical_crossentropy and (
        not isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    ):
        y_true, y_pred = y_true[:, None], y_pred[:, :1]
    found, expected = (
        losses.PerExampleLoss(loss)(
            tf.constant(y), tf.constant(y_pred, tf.float32)
        )
        for y in (y_true, y_true.astype("int32"))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
