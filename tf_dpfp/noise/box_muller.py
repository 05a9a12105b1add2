"""Normals from random bits: the Box-Muller transform, in float32.

Reference:
    Box and Muller, 1958.
"""

import math

import tensorflow as tf


def _radius_and_turns(
    bits: tf.Tensor, deviation: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the radius, and the angle in half turns, in [-1, 1).

    The angle takes 24 bits of its word, all that float32 holds; the other 8
    are the last of the radius's 39: its logarithm reaches to 2^-40, and tails
    to 7.4 standard deviations.
    """
    high = tf.cast(tf.bitwise.bitwise_and(bits[0], 0x7FFFFFFF), tf.float32)
    low = tf.cast(tf.bitwise.bitwise_and(bits[1], 0xFF), tf.float32)
    uniform = (high + (low + 0.5) * 2.0**-8) * 2.0**-31
    # The square of a small deviation would be zero, and so the noise.
    radius = tf.sqrt(tf.math.log(uniform) * -2.0) * deviation
    turns = tf.cast(tf.bitwise.bitwise_and(bits[1], ~0xFF), tf.float32)
    return radius, turns * 2.0**-31


def by_kernels(
    bits: tf.Tensor, deviation: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes pairs of normals by TensorFlow's kernels.

    Args:
        bits: int32, `(2, half)`.
        deviation: Standard deviation, a scalar.

    Returns:
        The first numbers of the pairs and the second, float32, `(half,)` each.
    """
    radius, turns = _radius_and_turns(bits, deviation)
    angle = turns * math.pi
    return radius * tf.cos(angle), radius * tf.sin(angle)


def by_polynomials(
    bits: tf.Tensor, deviation: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes pairs of normals for XLA, whose sine and cosine are slow.

    Args:
        bits: int32, `(2, half)`.
        deviation: Standard deviation, a scalar.

    Returns:
        The first numbers of the pairs and the second, float32, `(half,)` each.
    """
    radius, turns = _radius_and_turns(bits, deviation)
    # Sine and cosine of half the angle, in [-pi/2, pi/2], then doubled. The
    # Taylor polynomials are exact to float32 there.
    halved = turns * 0.5
    square = tf.square(halved)
    sine = halved * _polynomial(square, _SINE)
    cosine = _polynomial(square, _COSINE)
    return (
        radius * (tf.square(cosine) - tf.square(sine)),
        radius * (2.0 * sine * cosine),
    )


_SINE = [
    (-1) ** k * math.pi ** (2 * k + 1) / math.factorial(2 * k + 1)
    for k in range(7)
]
_COSINE = [
    (-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k) for k in range(8)
]


def _polynomial(x: tf.Tensor, coefficients: list[float]) -> tf.Tensor:
    result = tf.fill(tf.shape(x), coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result
