"""Losses per example, each a function of that example alone.

Keras losses are means over the batch, and some of their denominators (the
number of unmasked tokens, the sum of the sample weights) belong to the whole
batch: through them one example would change what the others contribute. Here
the loss of example i is what Keras computes for a batch that holds nothing
but example i.

Losses that Keras defines row by row are called once for the batch and reduced
within each row. Anything else, a user's function first of all, is called on
batches of one: vectorised, or in a loop where it branches or loops itself,
which is slower and can be proved. Whatever it does, it never sees two examples.
"""

import math
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.step import single_examples

# Row i of what these return depends on row i of their arguments alone, and
# nothing in their code looks at the batch. Hinge and SquaredHinge ask whether
# all labels of the batch are 0 or 1, and have a form of their own below; CTC
# loops for as long as the longest example.
_EXAMPLE_WISE = {
    name
    for name in (
        "BinaryCrossentropy",
        "BinaryFocalCrossentropy",
        "CategoricalCrossentropy",
        "CategoricalFocalCrossentropy",
        "CategoricalGeneralizedCrossEntropy",
        "CategoricalHinge",
        "CosineSimilarity",
        "Huber",
        "KLDivergence",
        "LogCosh",
        "MeanAbsoluteError",
        "MeanAbsolutePercentageError",
        "MeanSquaredError",
        "MeanSquaredLogarithmicError",
        "Poisson",
        "SparseCategoricalCrossentropy",
    )
    if hasattr(keras.losses, name)
}
_EXAMPLE_WISE_CLASSES = tuple(
    getattr(keras.losses, name) for name in _EXAMPLE_WISE
)
_EXAMPLE_WISE_FUNCTIONS = tuple(
    getattr(keras.losses, name)
    for name in (
        "binary_crossentropy",
        "binary_focal_crossentropy",
        "categorical_crossentropy",
        "categorical_focal_crossentropy",
        "categorical_hinge",
        "cosine_similarity",
        "huber",
        "kl_divergence",
        "log_cosh",
        "mean_absolute_error",
        "mean_absolute_percentage_error",
        "mean_squared_error",
        "mean_squared_logarithmic_error",
        "poisson",
        "sparse_categorical_crossentropy",
    )
    if hasattr(keras.losses, name)
)


def _hinge(y_true, y_pred):
    """Hinge of each row; labels 0 and 1 mean -1 and 1, row by row."""
    y_true = tf.cast(y_true, y_pred.dtype)
    is_binary = tf.reduce_all(
        tf.equal(y_true, 0.0) | tf.equal(y_true, 1.0),
        axis=list(range(1, y_true.shape.rank)),
        keepdims=True,
    )
    y_true = tf.where(is_binary, 2.0 * y_true - 1.0, y_true)
    return tf.maximum(1.0 - y_true * y_pred, 0.0)


def _mean_hinge(y_true, y_pred):
    return tf.reduce_mean(_hinge(y_true, y_pred), -1)


def _mean_squared_hinge(y_true, y_pred):
    return tf.reduce_mean(tf.square(_hinge(y_true, y_pred)), -1)


# What they are called by; for a class, its type.
_HINGES = {
    keras.losses.Hinge: _mean_hinge,
    keras.losses.hinge: _mean_hinge,
    keras.losses.SquaredHinge: _mean_squared_hinge,
    keras.losses.squared_hinge: _mean_squared_hinge,
}


class PerExampleLoss(keras.losses.Loss):
    """Keras loss that returns one number per example.

    Args:
        loss: A `keras.losses.Loss` or a function `(y_true, y_pred)`.

    Raises:
        ValueError: If the loss compares examples with each other.
    """

    def __init__(self, loss):
        name = getattr(loss, "name", None) or getattr(
            loss, "__name__", type(loss).__name__
        )
        super().__init__(name=name)
        if isinstance(loss, keras.losses.Circle) or loss is getattr(
            keras.losses, "circle", None
        ):
            raise ValueError(
                "The Circle loss compares the examples of a batch with each "
                "other; one example then changes what the others contribute. "
                "Use a loss of single examples."
            )
        self._loss = loss
        self._is_loss = isinstance(loss, keras.losses.Loss)
        self._hinge = _hinge_of(loss)
        self._example_wise = self._hinge or _is_example_wise(loss)
        self._loss_reduction = (
            loss.reduction if self._is_loss else "sum_over_batch_size"
        )

    def __call__(self, y_true, y_pred, sample_weight=None):
        if isinstance(y_true, str):
            # Of a dictionary that fits no output, Keras takes the keys.
            raise ValueError(
                "The targets are a dictionary whose keys are not those of the "
                "model's outputs. Name them as `model.output_names` or the "
                "dictionary that the model returns. Received: the key "
                f"'{y_true}' as targets of the loss '{self.name}'"
            )
        if self._example_wise:
            return self._by_examples(y_true, y_pred, sample_weight)
        return self._one_by_one(y_true, y_pred, sample_weight)

    def call(self, y_true, y_pred):
        """Returns the loss of each example, unweighted."""
        return self(y_true, y_pred)

    def _by_examples(self, y_true, y_pred, sample_weight):
        mask = keras_layers.mask_of(y_pred)
        y_pred = keras.ops.convert_to_tensor(y_pred)
        y_true = keras.ops.convert_to_tensor(y_true)
        if y_true.dtype == tf.bool:
            # As Keras does, which casts all labels.
            y_true = keras.ops.cast(y_true, y_pred.dtype)
        if y_true.dtype == tf.string:
            raise ValueError(
                f"The loss '{self.name}' needs targets that are numbers. "
                "Encode labels first: names, y = np.unique(y, "
                "return_inverse=True), with names that are public. Received: "
                "targets of type string"
            )
        if self._is_loss:
            y_pred = keras.ops.cast(y_pred, self._loss.dtype)
        if y_pred.shape.rank == 1:
            # Keras would take the mean over the last axis: the batch.
            y_pred, y_true = y_pred[:, None], tf.reshape(y_true, [-1, 1])
        self._check_axis(y_pred.shape.rank)
        if self._hinge is not None:
            values = self._hinge(*_same_rank(y_true, y_pred))
        elif self._is_loss:
            values = self._loss.call(y_true, y_pred)
        else:
            values = self._loss(*_same_rank(y_true, y_pred))
        # Of values the loss itself leaves out (`ignore_class`).
        own = keras_layers.mask_of(values)
        if own is not None:
            own = tf.cast(own, tf.bool)
            mask = own if mask is None else tf.cast(mask, tf.bool) & own
        return reduce_examples(
            values, sample_weight, mask, self._loss_reduction
        )

    def _check_axis(self, rank: int) -> None:
        axis = keras_layers.loss_axis(self._loss)
        if axis in (0, -rank):
            raise ValueError(
                f"{type(self._loss).__name__} reduces over axis {axis}, the "
                "examples of the batch, so the loss of one example depends on "
                f"the others. Use another axis. Received: axis={axis}"
            )

    def _one_by_one(self, y_true, y_pred, sample_weight):
        mask = keras_layers.mask_of(y_pred)
        given = {"y_true": y_true, "y_pred": y_pred}
        if mask is not None:
            given["mask"] = mask
        if sample_weight is not None:
            given["sample_weight"] = sample_weight
        given = tree.map_structure(keras.ops.convert_to_tensor, given)

        def of_one(example):
            prediction = keras_layers.with_mask(
                example["y_pred"], example.get("mask")
            )
            weight = example.get("sample_weight")
            if self._is_loss:
                value = self._loss(example["y_true"], prediction, weight)
            else:
                # Of a function Keras makes a loss, which casts both.
                value = reduce_examples(
                    _at_least_examples(
                        self._loss(
                            *tree.map_structure(
                                _in_floats, (example["y_true"], prediction)
                            )
                        )
                    ),
                    weight,
                    example.get("mask"),
                    "sum_over_batch_size",
                )
            return [tf.reduce_sum(tf.cast(value, keras.config.floatx()))]

        (losses,) = single_examples.mapped(of_one, given)
        return losses


def _hinge_of(loss: Any) -> Any:
    return _HINGES.get(type(loss)) or next(
        (form for key, form in _HINGES.items() if key is loss), None
    )


def _is_example_wise(loss: Any) -> bool:
    if any(loss is function for function in _EXAMPLE_WISE_FUNCTIONS):
        return True
    return type(loss) in _EXAMPLE_WISE_CLASSES


def _in_floats(values: tf.Tensor) -> tf.Tensor:
    if values.dtype == tf.string:
        return values
    floats = keras.ops.cast(values, keras.config.floatx())
    return keras_layers.with_mask(floats, keras_layers.mask_of(values))


def _at_least_examples(values: tf.Tensor) -> tf.Tensor:
    values = tf.convert_to_tensor(values)
    return values[None] if values.shape.rank == 0 else values


def _same_rank(y_true, y_pred):
    """Adapts labels as Keras does: they may lack a last axis of 1."""
    if y_true.shape.rank == y_pred.shape.rank - 1 and y_pred.shape[-1] == 1:
        y_true = y_true[..., None]
    elif y_true.shape.rank == y_pred.shape.rank + 1 and y_true.shape[-1] == 1:
        y_true = tf.squeeze(y_true, -1)
    return y_true, y_pred


def _aligned(weights: tf.Tensor, rank: int) -> tf.Tensor:
    """Gives weights the rank of the values, the batch axis first."""
    while weights.shape.rank > rank and weights.shape[-1] == 1:
        weights = tf.squeeze(weights, -1)
    if weights.shape.rank > rank:
        raise ValueError(
            "`sample_weight` has more axes than the loss has values: "
            f"{tuple(weights.shape)} against {rank} axes. Give one weight per "
            "example or per value."
        )
    while weights.shape.rank < rank:
        weights = weights[..., None]
    return weights


def reduce_examples(
    values: tf.Tensor,
    sample_weight: tf.Tensor | None,
    mask: tf.Tensor | None,
    reduction: str | None,
) -> tf.Tensor:
    """Reduces loss values within each example, as Keras would a batch of one.

    Args:
        values: Tensor of shape `(batch, ...)`.
        sample_weight: Weights of shape `(batch,)` up to that of `values`.
        mask: True for the values that count, of shape `(batch,)` up to that of
            `values`.
        reduction: Reduction of the Keras loss. Means divide by the number
            of values, or of unmasked values, or by the sum of the weights of
            the example, never of the batch.

    Returns:
        Tensor of shape `(batch,)`.
    """
    rank = values.shape.rank
    axes = list(range(1, rank))
    weights = None
    if mask is not None:
        weights = _aligned(tf.cast(mask, values.dtype), rank)
        if reduction not in ("sum", "mean_with_sample_weight"):
            size = (
                math.prod(weights.shape[1:])
                if None not in (weights.shape[1:])
                else tf.reduce_prod(tf.shape(weights)[1:])
            )
            valid = tf.reduce_sum(weights, axis=axes, keepdims=True)
            weights *= tf.math.divide_no_nan(tf.cast(size, values.dtype), valid)
    if sample_weight is not None:
        given = tf.cast(tf.convert_to_tensor(sample_weight), values.dtype)
        given = _aligned(given, rank)
        weights = given if weights is None else weights * given
    if weights is not None:
        values = values * weights
    if not axes:
        if reduction == "mean_with_sample_weight" and weights is not None:
            return tf.math.divide_no_nan(values, weights)
        return values
    total = tf.reduce_sum(values, axis=axes)
    if reduction == "sum":
        return total
    if reduction == "mean_with_sample_weight" and weights is not None:
        weights = tf.broadcast_to(weights, tf.shape(values))
        return tf.math.divide_no_nan(total, tf.reduce_sum(weights, axis=axes))
    return tf.reduce_mean(values, axis=axes)


def per_example(loss: Any) -> Any:
    """Maps the `loss` argument of `compile` to losses of single examples.

    Args:
        loss: A loss, its name, a function, or a nested structure of these.

    Returns:
        The same structure of `PerExampleLoss`; `None` stays `None`.
    """

    def convert(leaf):
        if leaf is None:
            return None
        return PerExampleLoss(keras.losses.get(leaf))

    return tree.map_structure(convert, loss)


def has_weight(sample_weight: Any, batch_size) -> tf.Tensor:
    """Tells for each example if it has any weight.

    An example of zero weight contributes nothing and is counted nowhere:
    padding rows are marked so.

    Args:
        sample_weight: Weights, nested over outputs, or `None`.
        batch_size: Number of examples.

    Returns:
        Boolean tensor of shape `(batch,)`.
    """
    leaves = [w for w in tree.flatten(sample_weight) if w is not None]
    if not leaves:
        return tf.ones([batch_size], tf.bool)
    rows = []
    for leaf in leaves:
        leaf = tf.convert_to_tensor(leaf)
        axes = list(range(1, leaf.shape.rank))
        # Weights may be booleans, which zero is not.
        nonzero = tf.not_equal(leaf, tf.zeros_like(leaf))
        rows.append(tf.reduce_any(nonzero, axis=axes))
    return tf.reduce_any(tf.stack(rows), axis=0)
