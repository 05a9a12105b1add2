"""Clipping of representations: rows of bounded length, whatever they were."""

import numpy as np
import tensorflow as tf

from tf_dpfp.clipping.factors import ROUNDING_MARGIN


def clip_representations(tensor: tf.Tensor, clip_norm: float) -> tf.Tensor:
    """Scales every example down to an L2 norm of at most `clip_norm`.

    The norm is over all axes but the first. It is taken of the example over
    its largest absolute value, so that no square overflows or vanishes. The
    bound is lowered by `ROUNDING_MARGIN`, for rounding in the norm, the
    quotient and the product.

    Args:
        tensor: Examples in the first axis, float32 or wider.
        clip_norm: The bound C.

    Returns:
        A tensor of the same shape and type. Examples that hold a number that
        is not finite are zero.
    """
    axes = list(range(1, tensor.shape.rank))
    finite = tf.reduce_all(tf.math.is_finite(tensor), axis=axes, keepdims=True)
    tensor = tf.where(finite, tensor, tf.zeros_like(tensor))
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
