"""Trial of the losses that a model or its layers make by themselves.

A private step takes the mean over examples of what the code computes for each
example alone. Keras takes one number of the batch, which is the same if it is a
mean over the batch. If not, a private training would train on something else:
on a load balance of single examples, or on a sum that weighs less than the
other losses by the size of the batch. Nothing here is needed for privacy.
"""

import enum
import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tf_dpfp import user_warnings
from tf_dpfp.independence import inputs
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import random as keras_random
from tf_dpfp.keras_private import trainer as keras_trainer

_TOLERANCE = 1e-3
# Number of weights that losses are compared for.
_DRAWS = 6
# Number of times that losses are computed to find out if they are random.
_TRIES = 8


class _Kind(enum.Enum):
    """How the number of a batch follows from those of its examples."""

    MEAN = "mean"
    SUM = "sum"
    OTHER = "other"
    RANDOM = "random"


def check(model: keras.Model, batch: tuple, losses: np.ndarray) -> None:
    """Compares losses of a batch with those of its examples.

    Args:
        model: A built model.
        batch: A made-up batch, `(x, y, sample_weight)`.
        losses: The losses of its examples in a private step.

    Raises:
        ValueError: If what a layer adds is not a mean over the batch, or a
            private step computes another `compute_loss`.
    """
    # In a scope, generators begin anew with every pass: without seeds of their
    # own, random numbers would look as if they were none.
    with keras_random.seeds_from(keras_random.numbered()):
        _check(model, batch, losses)


def _check(model: keras.Model, batch: tuple, losses: np.ndarray) -> None:
    layers = keras_layers.all_layers(model)
    has_own = keras_trainer.has_own_loss(model)
    kinds = _kinds(model, layers, batch)
    for layer, kind in zip(layers, kinds[:-1], strict=True):
        if kind in (_Kind.SUM, _Kind.OTHER):
            raise ValueError(_refusal(layer, kind))
    if has_own and kinds[-1] in (_Kind.SUM, _Kind.OTHER):
        user_warnings.warn(_warning(model))
    if has_own and not _is_played_back(model, batch, losses):
        raise ValueError(
            f"The compute_loss of {type(model).__name__} gives other losses "
            "where the layers that it calls give what they gave for the "
            "batch, as they do in a private step. If it takes a gradient "
            "through a layer, as a gradient penalty does, that can't be done "
            "in compute_loss: compute it in the `call` of a layer that returns "
            "the loss of each example, and set "
            "`tf_dpfp.gradient_rules.register_gradient_rule(ThatLayer)"
            "(tf_dpfp.gradient_rules.GenericRule)`."
        )


def _is_played_back(
    model: keras.Model, batch: tuple, losses: np.ndarray
) -> bool:
    """Tells if losses are what `compute_loss` computes by calling layers."""

    def sums() -> list[float]:
        with keras_layers.without_regularizers(model.trainable_variables):
            return [
                _numbers(model, [], batch, [], True, slice(i, i + 1))[-1]
                for i in range(len(losses))
            ]

    called = sums()
    if all(map(_are_near, called, map(float, losses))):
        return True
    # Random numbers differ, whatever else does; of few, not always.
    return not all(all(map(_are_near, called, sums())) for _ in range(_TRIES))


def _kinds(
    model: keras.Model, layers: Sequence[keras.layers.Layer], batch: tuple
) -> list[_Kind]:
    """Tells the kind of what each layer adds, and of `compute_loss` last."""
    found = [_Kind.MEAN] * (len(layers) + 1)
    for draw in range(_DRAWS):
        weights = _drawn_weights(model, draw)
        # Random layers keep still outside of training.
        for training in (True, False):
            kinds = _kinds_of_draw(model, layers, batch, weights, training)
            if _Kind.RANDOM not in kinds:
                break
        found = [
            kind if known is _Kind.MEAN else known
            for known, kind in zip(found, kinds, strict=True)
        ]
    return found


def _drawn_weights(model: keras.Model, draw: int) -> list[tuple]:
    """Moves the weights: what is no mean for some may look like one."""
    size = float(min(draw, 1))
    return [
        (
            v,
            tf.convert_to_tensor(v.value)
            + tf.cast(
                tf.random.stateless_normal(v.shape, [draw, i], 0.0, size),
                v.dtype,
            ),
        )
        for i, v in enumerate(model.trainable_variables)
    ]


def _kinds_of_draw(model, layers, batch, weights, training) -> list[_Kind]:
    def numbers(rows: slice) -> list[float]:
        return _numbers(model, layers, batch, weights, training, rows)

    whole, again = numbers(slice(None)), numbers(slice(None))
    single = [numbers(slice(i, i + 1)) for i in range(inputs.EXAMPLES)]
    return [
        _kind(a, b, [one[i] for one in single])
        for i, (a, b) in enumerate(zip(whole, again, strict=True))
    ]


def _numbers(model, layers, batch, weights, training, rows) -> list[float]:
    """Computes what layers add, and `compute_loss`, of some examples."""
    x, y, sample_weight = tree.map_structure(
        lambda t: None if t is None else t[rows], batch
    )
    # What is written inside of the scope is gone with it.
    with keras.StatelessScope(state_mapping=weights, collect_losses=True):
        y_pred = _call(model, x, training)
        added = [
            sum(float(tf.reduce_sum(t)) for t in one)
            for one in map(keras_layers.added_losses, layers)
        ]
        if not keras_trainer.has_own_loss(model):
            return [*added, 0.0]
        loss = keras_trainer.compute_loss(model, x, y, y_pred, sample_weight)
        return [*added, float(tf.reduce_sum(loss))]


def _call(model: keras.Model, x, training: bool):
    if keras_trainer.takes_training(model):
        return model(x, training=training)
    return model(x)


def _kind(whole: float, again: float, single: Sequence[float]) -> _Kind:
    if not math.isfinite(whole):
        return _Kind.MEAN
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
