"""Class weights on data sets, for labels of any value."""

import numbers
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tf_dpfp.sampling import persons
from tf_dpfp.sampling import views


def weigh(batches: tf.data.Dataset, class_weight: Mapping[int, float]) -> Any:
    """Adds sample weights by class to batches `(x, y)`.

    Keras looks weights up in a table that ends with the greatest class it was
    given, and stops the training at a label above. Here such a label, one below
    zero and NaN have the weight 1, as classes without one have in Keras.

    Args:
        batches: The data set, whose `y` is one tensor. Of a data set of views
            the weights are multiplied.
        class_weight: From class to weight.

    Returns:
        The data set of `(x, y, sample_weight)`; `batches` itself, for Keras to
        refuse, if its elements are no such pairs or a class is no integer.
    """
    spec = batches.element_spec
    has_views = isinstance(spec, views.ViewBatch)
    if has_views:
        spec = tuple(persons.flat(spec))[:2]
    if not isinstance(spec, tuple) or len(spec) != 2:
        return batches
    labels = spec[1]
    if not isinstance(labels, tf.TensorSpec) or not labels.shape.rank:
        return batches
    if labels.shape.rank > 1 and labels.shape[-1] is None:
        return batches
    classes = list(class_weight)
    if not classes or not all(isinstance(c, numbers.Integral) for c in classes):
        return batches
    table = _table(class_weight)
    unconverted = tf.autograph.experimental.do_not_convert
    if has_views:
        return batches.map(
            unconverted(lambda batch: _weighed_views(batch, table)),
            tf.data.AUTOTUNE,
        ).prefetch(tf.data.AUTOTUNE)
    return batches.map(
        unconverted(lambda x, y: (x, y, _weights(y, table))), tf.data.AUTOTUNE
    ).prefetch(tf.data.AUTOTUNE)


def weights_of(y: Any, class_weight: Mapping[int, float]) -> tf.Tensor:
    """Returns the weights of labels.

    Args:
        y: Labels, as numbers or one-hot.
        class_weight: From class to weight.

    Returns:
        float32, one weight for each label.
    """
    return _weights(tf.convert_to_tensor(y), _table(class_weight))


def _table(class_weight: Mapping[int, float]) -> tf.Tensor:
    # Of no class at all there would be no row to look up.
    classes = range(max(*class_weight, 0) + 1)
    return tf.constant(
        [float(class_weight.get(c, 1.0)) for c in classes], tf.float32
    )


def _weighed_views(batch: views.ViewBatch, table: tf.Tensor) -> views.ViewBatch:
    """Multiplies the weights of views by those of their classes."""
    weights = _weights(persons.flat(batch.y), table)
    weights = tf.reshape(weights, tf.shape(batch.y)[:2])
    given = batch.sample_weight
    weights = tf.cast(weights, given.dtype)
    return batch._replace(sample_weight=given * weights)


def _weights(y: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Looks the weights of labels up, one-hot or not."""
    if y.shape.rank > 1 and y.shape[-1] != 1:
        y = tf.argmax(y, axis=-1)
    elif y.shape.rank > 1:
        y = tf.squeeze(y, axis=-1)
    if y.dtype.is_floating:
        y = tf.round(y)
    y = tf.cast(y, tf.float64)
    size = tf.size(table, tf.int32)
    is_known = (y >= 0) & (y < tf.cast(size, y.dtype))
    rows = tf.cast(tf.where(is_known, y, tf.zeros_like(y)), tf.int32)
    weights = tf.gather(table, tf.minimum(rows, size - 1))
    return tf.where(is_known, weights, tf.ones_like(weights))
