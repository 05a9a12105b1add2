"""Differences between two trials, beyond rounding."""

from typing import NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp.keras_private import layers as keras_layers

_TOLERANCES = {"float16": 5e-2, "bfloat16": 1e-1}


_TOLERANCE = 2e-3


def tolerance_of(model: keras.Model) -> float:
    """Returns the relative difference up to which it is rounding."""
    return max(
        [_TOLERANCE]
        + [
            _TOLERANCES.get(layer.compute_dtype, 0.0)
            for layer in keras_layers.all_layers(model)
        ]
    )


class Difference(NamedTuple):
    """Difference of two tensors that should be equal.

    Attributes:
        scale: Largest finite absolute value of the first.
        distance: Largest absolute difference; infinite where one is NaN
            and the other is not.
    """

    scale: tf.Tensor
    distance: tf.Tensor


# Gradients; of a table, some of its rows.
_Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices | None


def difference(a: _Gradient, b: _Gradient) -> Difference:
    """Compares two tensors; a `None` is taken for zeros."""
    # Inside the graph, where gradients are freed as they are used.
    if a is None and b is None:
        return Difference(tf.constant(0.0), tf.constant(0.0))
    if isinstance(a, tf.IndexedSlices) and isinstance(b, tf.IndexedSlices):
        a, b = _same_rows(a, b)
    a, b = (None if t is None else tf.convert_to_tensor(t) for t in (a, b))
    a = tf.zeros_like(b) if a is None else a
    b = tf.zeros_like(a) if b is None else b
    if not a.shape.is_compatible_with(b.shape):
        return Difference(tf.constant(1.0), tf.constant(np.inf))
    if not (a.dtype.is_floating and b.dtype.is_floating):
        a, b = tf.cast(a, tf.float64), tf.cast(b, tf.float64)
    a, b = tf.cast(a, tf.float32), tf.cast(b, tf.float32)
    same = tf.equal(a, b) | (tf.math.is_nan(a) & tf.math.is_nan(b))
    distance = tf.where(same, 0.0, tf.abs(a - b))
    distance = tf.where(tf.math.is_nan(distance), np.inf, distance)
    finite = tf.where(tf.math.is_finite(a), tf.abs(a), 0.0)
    return Difference(
        tf.reduce_max(tf.concat([[0.0], _flat(finite)], 0)),
        tf.reduce_max(tf.concat([[0.0], _flat(distance)], 0)),
    )


def _same_rows(
    a: tf.IndexedSlices, b: tf.IndexedSlices
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the rows that either has, those of the same number added up."""
    indices = [tf.cast(each.indices, tf.int64) for each in (a, b)]
    rows, places = tf.unique(tf.concat(indices, axis=0))
    of_a, of_b = tf.split(places, [tf.size(each) for each in indices])
    count = tf.size(rows)
    return (
        tf.math.unsorted_segment_sum(a.values, of_a, count),
        tf.math.unsorted_segment_sum(b.values, of_b, count),
    )


def _flat(tensor: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tensor, [-1])


def far_apart(differences: list[Difference], tolerance: float) -> list[bool]:
    """Tells for each difference if it is more than rounding."""
    # Some gradients are zero but for rounding (an attention key's bias): what
    # rounding is, the largest gradient tells.
    rounding = 1e-5 * max((d.scale for d in differences), default=0.0)
    return [
        not d.distance <= tolerance * max(d.scale, 1e-6) + rounding
        for d in differences
    ]
