"""Clipping of representations: rows of bounded length, whatever they were."""

import numpy as np
import tensorflow as tf

from tf_dpfp.clipping.factors import ROUNDING_MARGIN


def clip_representations(
    tensor: tf.Tensor, clip_norm: float, rows: int = 1
) -> tf.Tensor:
    """Scales every example down to an L2 norm of at most `clip_norm`.

    The norm is over all axes but the first, and over the `rows` that are one
    person's, which then get one factor. It is taken of the example over
    its largest absolute value, so that no square overflows or vanishes. The
    bound is lowered by `ROUNDING_MARGIN`, for rounding in the norm, the
    quotient and the product.

    Args:
        tensor: Examples in the first axis, float32 or wider.
        clip_norm: The bound C.
        rows: Number of rows after each other that are clipped together.

    Returns:
        A tensor of the same shape and type. Examples that hold a number that
        is not finite are zero.
    """
    axes = list(range(1, tensor.shape.rank))
    finite = tf.reduce_all(tf.math.is_finite(tensor), axis=axes, keepdims=True)
    tensor = tf.where(finite, tensor, tf.zeros_like(tensor))
    if rows == 1:
        return _clipped(tensor, clip_norm)
    shape = tf.shape(tensor)
    together = tf.concat([[shape[0] // rows, rows], shape[1:]], axis=0)
    clipped = _clipped(tf.reshape(tensor, together), clip_norm)
    return tf.ensure_shape(tf.reshape(clipped, shape), tensor.shape)


def _clipped(tensor: tf.Tensor, clip_norm: float) -> tf.Tensor:
    """Clips what is in the first axis; all numbers are finite."""
    axes = list(range(1, tensor.shape.rank))
    largest = tf.reduce_max(tf.abs(tensor), axis=axes, keepdims=True)
    # Numbers that flush to zero as they are divided would give 0 / 0.
    empty = largest < _smallest(tensor.dtype)
    unit = tensor / tf.where(empty, tf.ones_like(largest), largest)
    length = tf.sqrt(tf.reduce_sum(tf.square(unit), axis=axes, keepdims=True))
    length = tf.maximum(length, tf.ones_like(length))
    bound = tf.cast(clip_norm * ROUNDING_MARGIN, tensor.dtype)
    clipped = unit * tf.minimum(largest, bound / length)
    return tf.where(empty, tf.zeros_like(clipped), clipped)


def _smallest(dtype: tf.DType) -> float:
    """Returns the smallest number that is not flushed to zero."""
    return float(np.finfo(dtype.as_numpy_dtype).tiny)
