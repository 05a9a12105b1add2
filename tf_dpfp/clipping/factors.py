"""Clip factors and centred counts, from squared norms."""

import tensorflow as tf

# Rounding in the norm, the quotient and the product stays inside this margin,
# so that a clipped gradient is no longer than the clip norm. The sum of the
# squares is the worst of it: two million equal numbers lose 8e-6 under XLA.
ROUNDING_MARGIN = 1.0 - 2.0**-15


def clip_factors(
    squared_norms: tf.Tensor,
    clip_norm: float | tf.Tensor,
    present: tf.Tensor,
    stability: float = 0.0,
) -> tf.Tensor:
    """Computes the factor that each example's gradient is multiplied by.

    The factor is `min(1, C / norm)` for a clip norm C, and with a `stability`
    `C / (norm + stability)`: automatic clipping. Either way, factor times norm
    is at most C, and C is lowered by `ROUNDING_MARGIN` for that.

    Edge cases, by the squared norm of an example in float32:

    | squared norm            | factor     | with `stability` |
    |-------------------------|------------|------------------|
    | 0                       | 1          | `C / stability`  |
    | denormal, as 1e-45      | 1          | `C / stability`  |
    | at most C^2, less margin| 1          | as above         |
    | huge, as 3e38           | `C / norm` | as above         |
    | infinite, or NaN        | 0          | 0                |
    | any, `present` false    | 0          | 0                |

    Example:

    >>> squared_norms = tf.constant([0.0, 0.25, 4.0, float("inf")])
    >>> present = tf.constant([True, True, True, True])
    >>> clip_factors(squared_norms, 1.0, present).numpy().round(3).tolist()
    [1.0, 1.0, 0.5, 0.0]

    Args:
        squared_norms: Squared norms of the examples' gradients, `(batch,)`.
        clip_norm: The clip norm C, a number or a scalar tensor.
        present: Boolean, `(batch,)`: false for padding, for examples of zero
            weight, and for examples whose loss is not finite.
        stability: 0, or what automatic clipping adds to the norm.

    Returns:
        Finite factors of shape `(batch,)`.
    """
    safe = taking_part(squared_norms, present)
    squared_norms = tf.where(safe, squared_norms, tf.ones_like(squared_norms))
    bound = tf.cast(clip_norm, squared_norms.dtype) * ROUNDING_MARGIN
    if stability:
        factors = bound / (tf.sqrt(squared_norms) + stability)
    else:
        # A norm of zero gives an infinite quotient, and so a factor of one.
        factors = tf.minimum(bound * tf.math.rsqrt(squared_norms), 1.0)
    return tf.where(safe, factors, tf.zeros_like(factors))


def centred_count(
    squared_norms: tf.Tensor, estimate: tf.Tensor, present: tf.Tensor
) -> tf.Tensor:
    """Counts norms of at most `estimate`, less half of all that take part.

    Adding or removing one example moves it by exactly 1/2, or by nothing if
    the example takes no part.

    Args:
        squared_norms: Squared norms of the examples' gradients, `(batch,)`.
        estimate: The norm they are compared with, a scalar.
        present: As in `clip_factors`.

    Returns:
        A float32 scalar. Private until noise is added.
    """
    bound = tf.square(tf.cast(estimate, squared_norms.dtype))
    signs = tf.where(squared_norms <= bound, 0.5, -0.5)
    safe = taking_part(squared_norms, present)
    return tf.reduce_sum(tf.where(safe, signs, tf.zeros_like(signs)))


def taking_part(squared_norms: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Tells which examples contribute: those present, of a finite norm."""
    return present & tf.math.is_finite(squared_norms)
