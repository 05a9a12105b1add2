"""Gradient carriers: orthonormal bases on both sides of a kernel.

For a kernel W of shape (d, p), `left` is L of shape (d, r) and `right` is the
transpose of R, of shape (p, r); the columns of both are orthonormal. They
approximate the leading singular directions of a target, found by the power
method. Nothing here sees a gradient: targets are weights, which are private
already, and random numbers from a public seed.

Reference:
    Yu et al., 2021, arXiv 2106.09352.
"""

from typing import NamedTuple

import tensorflow as tf

# TensorFlow's normals differ under XLA, its Philox bits do not: a run may be
# resumed on either.
_BITS = "philox"


class Carriers(NamedTuple):
    """Two orthonormal bases of one kernel.

    Attributes:
        left: `(d, r)`, orthonormal columns.
        right: `(p, r)`, orthonormal columns; `None` where only one carrier
            is released.
    """

    left: tf.Tensor
    right: tf.Tensor | None


def orthonormal(matrix: tf.Tensor, fallback: tf.Tensor) -> tf.Tensor:
    """Computes an orthonormal basis of a matrix's columns.

    Args:
        matrix: Thin, `(n, r)` with r at most n.
        fallback: Of the same shape; its columns take the place of a matrix
            that is zero or not finite.

    Returns:
        `(n, r)`, orthonormal columns, whatever the rank of `matrix`.
    """
    # Squares of tiny columns would vanish.
    scale = tf.reduce_max(tf.abs(matrix))
    usable = tf.math.is_finite(scale) & (scale > 0.0)
    matrix = tf.where(usable, matrix / scale, fallback)
    return tf.linalg.qr(matrix).q


def normals(size: int, seed: tf.Tensor) -> tf.Tensor:
    """Draws independent normals of variance 1/2; the scale does not matter.

    Args:
        size: Number of normals.
        seed: Public, integers of shape `(2,)`.

    Returns:
        float32 tensor of shape `(size,)`, finite, the same under XLA.
    """
    bits = tf.random.stateless_uniform(
        [size], seed, minval=None, maxval=None, dtype=tf.int32, alg=_BITS
    )
    return _to_normals(bits)


def _to_normals(bits: tf.Tensor) -> tf.Tensor:
    # No closer to 1 than 2^-22, which float32 tells from 1 also when
    # `erfinv` adds 1 to it.
    uniform = tf.cast(tf.bitwise.right_shift(bits, 10), tf.float32) + 0.5
    return tf.math.erfinv(uniform * 2.0**-21)


def random_carriers(starts: Carriers) -> Carriers:
    """Computes carriers in random directions.

    Args:
        starts: Normals, of the carriers' shapes.

    Returns:
        The `Carriers`.
    """
    return Carriers(*[tf.linalg.qr(start).q for start in starts])


def leading_carriers(target: tf.Tensor, starts: Carriers) -> Carriers:
    """Finds carriers along the leading singular directions of a matrix.

    One round of the power method.

    Args:
        target: `(d, p)`; where it is zero or not finite, the carriers are
            random.
        starts: Normals, of the carriers' shapes.

    Returns:
        The `Carriers`.
    """
    right = orthonormal(
        tf.matmul(target, starts.left, transpose_a=True), starts.right
    )
    left = orthonormal(tf.matmul(target, right), starts.left)
    return Carriers(left, right)
