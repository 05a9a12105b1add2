"""Trial of the losses that a model or its layers make by themselves.

A private step takes the mean over examples of what the code computes for each
example alone. Keras takes one number of the batch, which is the same if it is a
mean over the batch. If not, a private training would train on something else:
on a load balance of single examples, or on a sum that weighs less than the
other losses by the size of the batch. Nothing here is needed for privacy.
"""

import enum
import math
import warnings
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp.independence import inputs
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import trainer as keras_trainer

_TOLERANCE = 1e-3


class _Kind(enum.Enum):
    """How the number of a batch follows from those of its examples."""

    MEAN = "mean"
    SUM = "sum"
    OTHER = "other"
    RANDOM = "random"


def check(model: keras.Model, batch: tuple) -> None:
    """Compares losses of a batch with those of its examples.

    Args:
        model: A built model.
        batch: A made-up batch, `(x, y, sample_weight)`.

    Raises:
        ValueError: If what a layer adds is not a mean over the batch.
    """
    with inputs.restored(model.non_trainable_variables):
        _call(model, batch[0], training=True)
    adding = _adding_layers(model)
    if adding:
        kinds = _kinds(model, batch, lambda: _added(adding))
        for layer, kind in zip(adding, kinds, strict=True):
            if kind in (_Kind.SUM, _Kind.OTHER):
                raise ValueError(_refusal(layer, kind))
    if keras_trainer.has_own_loss(model):
        (kind,) = _kinds(model, batch, None)
        if kind in (_Kind.SUM, _Kind.OTHER):
            warnings.warn(_warning(model), stacklevel=2)


def _adding_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Lists the layers that added losses in the latest call."""
    return [
        layer
        for layer in keras_layers.all_layers(model)
        if keras_layers.added_losses(layer)
    ]


def _added(layers: Sequence[keras.layers.Layer]) -> list[float]:
    return [
        sum(float(tf.reduce_sum(t)) for t in keras_layers.added_losses(layer))
        for layer in layers
    ]


def _kinds(
    model: keras.Model,
    batch: tuple,
    added: Callable[[], list[float]] | None,
) -> list[_Kind]:
    """Tells the kind of each loss.

    Args:
        model: The model.
        batch: A made-up batch.
        added: Returns what layers added in the latest call; `None`: the loss
            of the model's own `compute_loss`.

    Returns:
        One for each loss.
    """
    state = model.non_trainable_variables

    def numbers(rows: slice, training: bool) -> list[float]:
        x, y, weight = tree.map_structure(
            lambda t: None if t is None else t[rows], batch
        )
        with inputs.restored(state):
            y_pred = _call(model, x, training)
            if added is not None:
                return added()
            loss = keras_trainer.compute_loss(model, x, y, y_pred, weight)
            return [float(tf.reduce_sum(loss))]

    kinds: list[_Kind] = []
    # Random layers keep still outside of training.
    for training in (True, False):
        whole = numbers(slice(None), training)
        again = numbers(slice(None), training)
        single = [
            numbers(slice(i, i + 1), training) for i in range(inputs.EXAMPLES)
        ]
        kinds = [
            _kind(a, b, [one[i] for one in single])
            for i, (a, b) in enumerate(zip(whole, again, strict=True))
        ]
        if _Kind.RANDOM not in kinds:
            break
    return kinds


def _call(model: keras.Model, x, training: bool):
    if keras_trainer.takes_training(model):
        return model(x, training=training)
    return model(x)


def _kind(whole: float, again: float, single: Sequence[float]) -> _Kind:
    if not _are_near(whole, again):
        return _Kind.RANDOM
    total = math.fsum(single)
    if _are_near(whole, total / len(single)):
        return _Kind.MEAN
    return _Kind.SUM if _are_near(whole, total) else _Kind.OTHER


def _are_near(a: float, b: float) -> bool:
    if not math.isfinite(a) or not math.isfinite(b):
        return math.isfinite(a) == math.isfinite(b)
    return abs(a - b) <= _TOLERANCE * max(abs(a), abs(b), 1e-6)


def _refusal(layer: keras.layers.Layer, kind: _Kind) -> str:
    made = "a sum over the batch"
    if kind is _Kind.OTHER:
        made = "made of the batch as a whole, as a balance of loads is"
    return (
        f"What layer '{layer.name}' ({type(layer).__name__}) adds to the loss, "
        "by `add_loss` or an `activity_regularizer`, is not the mean of what "
        f"it adds for each example alone: it is {made}. A private step takes "
        "the gradient of each example alone, and their mean. Add a mean over "
        "the batch (`ops.mean` over the first axis, last); or, for what it "
        "adds for a batch of one example, use "
        f"`tf_dpfp.PerExample({type(layer).__name__}(...))`."
    )


def _warning(model: keras.Model) -> str:
    return (
        f"The compute_loss of {type(model).__name__} is not the mean of the "
        "losses of the examples of a batch. A private step calls it on one "
        "example at a time, and trains on the mean of what it returns."
    )
