"""Clip factors: what each example's gradient is multiplied by."""

import tensorflow as tf

# Rounding in the norm, the quotient and the product stays inside this margin,
# so that a clipped gradient is no longer than the threshold. The sum of the
# squares is the worst of it: two million equal numbers lose 8e-6 under XLA.
ROUNDING_MARGIN = 1.0 - 2.0**-15


def clip_factors(
    squared_norms: tf.Tensor,
    threshold: float | tf.Tensor,
    present: tf.Tensor,
    stability: float = 0.0,
) -> tf.Tensor:
    """`min(1, threshold / norm)`, and zero for what must not contribute.

    With a `stability` it is `threshold / (norm + stability)`: automatic
    clipping. Either way, factor times norm is at most the threshold.

    Args:
        squared_norms: Squared norms of the examples' gradients, `(batch,)`.
        threshold: The clip norm.
        present: Boolean, `(batch,)`: false for padding, for examples of zero
            weight, and for examples whose loss is not finite.
        stability: 0, or what automatic clipping adds to the norm.

    Returns:
        Factors of shape `(batch,)`, finite. An example whose norm is NaN or
        infinite gets zero.
    """
    safe = taking_part(squared_norms, present)
    squared_norms = tf.where(safe, squared_norms, tf.ones_like(squared_norms))
    threshold = tf.cast(threshold, squared_norms.dtype) * ROUNDING_MARGIN
    if stability:
        factors = threshold / (tf.sqrt(squared_norms) + stability)
    else:
        # A norm of zero gives an infinite quotient, and so a factor of one.
        factors = tf.minimum(threshold * tf.math.rsqrt(squared_norms), 1.0)
    return tf.where(safe, factors, tf.zeros_like(factors))


def centred_count(
    squared_norms: tf.Tensor, estimate: tf.Tensor, present: tf.Tensor
) -> tf.Tensor:
    """How many norms are at most `estimate`, less half of all that count.

    Adding or removing one example moves it by exactly 1/2, or by nothing if
    the example takes no part.

    Args:
        squared_norms: Squared norms of the examples' gradients, `(batch,)`.
        estimate: What they are compared with, a scalar.
        present: As in `clip_factors`.

    Returns:
        A float32 scalar. Private until noise is added.
    """
    bound = tf.square(tf.cast(estimate, squared_norms.dtype))
    signs = tf.where(squared_norms <= bound, 0.5, -0.5)
    safe = taking_part(squared_norms, present)
    return tf.reduce_sum(tf.where(safe, signs, tf.zeros_like(signs)))


def taking_part(squared_norms: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Which examples contribute: those present, of a finite norm."""
    return present & tf.math.is_finite(squared_norms)
