"""Clip factors: what each example's gradient is multiplied by."""

import tensorflow as tf

# Rounding in the norm, the quotient and the product stays inside this margin,
# so that a clipped gradient is no longer than the threshold. The sum of the
# squares is the worst of it: two million equal numbers lose 8e-6 under XLA.
_ROUNDING_MARGIN = 1.0 - 2.0**-15


def clip_factors(
    squared_norms: tf.Tensor, threshold: float | tf.Tensor, present: tf.Tensor
) -> tf.Tensor:
    """`min(1, threshold / norm)`, and zero for what must not contribute.

    Args:
        squared_norms: Squared norms of the examples' gradients, `(batch,)`.
        threshold: The clip norm.
        present: Boolean, `(batch,)`: false for padding, for examples of zero
            weight, and for examples whose loss is not finite.

    Returns:
        Factors of shape `(batch,)`, finite, in [0, 1]. An example whose norm
        is NaN or infinite gets zero.
    """
    safe = present & tf.math.is_finite(squared_norms)
    squared_norms = tf.where(safe, squared_norms, tf.ones_like(squared_norms))
    threshold = tf.cast(threshold, squared_norms.dtype) * _ROUNDING_MARGIN
    # A norm of zero gives an infinite quotient, and so a factor of one.
    factors = tf.minimum(1.0, threshold * tf.math.rsqrt(squared_norms))
    return tf.where(safe, factors, tf.zeros_like(factors))
