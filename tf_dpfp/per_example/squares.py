"""Sums of squares that no example can make too small.

A norm that was computed too small clips too little. So what rounding takes
from a sum of squares has to stay below the margin of the clip factor, 2^-15,
and what is flushed to zero must not hide behind a factor.
"""

import tensorflow as tf

from tf_dpfp import compilation

_LEAST_NORMAL = 2.0**-126
_LONG_ROW = 2**14
# Of so many squares a sum in float32 loses less than a quarter of the margin,
# in whatever order they are added.
_PIECE = 128


def flattened(values: tf.Tensor) -> tf.Tensor:
    """`(batch, size)`; a reduction of one axis is faster than of several."""
    size = values.shape[1:].num_elements()
    if size:
        # One operation; to ask for the number of rows takes six.
        return tf.reshape(values, [-1, size])
    if size is None:
        size = tf.reduce_prod(tf.shape(values)[1:])
    return tf.reshape(values, tf.stack([tf.shape(values)[0], size]))


def sum_squares(values: tf.Tensor) -> tf.Tensor:
    """Squared norms of the rows; overflow gives infinity, never a wrap."""
    flat = flattened(values)
    if compilation.target() is compilation.Target.KERNELS:
        # One pass over the numbers, where squaring and summing take two.
        return tf.square(tf.math.reduce_euclidean_norm(flat, axis=1))
    if _loses_addends(flat):
        total = tf.reduce_sum(tf.cast(_partial(flat), tf.float64), axis=1)
        return tf.cast(total, flat.dtype)
    return tf.reduce_sum(tf.square(flat), axis=1)


def _partial(flat: tf.Tensor) -> tf.Tensor:
    """Squares of rows, added up by pieces where the length is known.

    In float32: a piece is too short to lose more than 127 roundings. To write
    every square in float64 takes several times as long.
    """
    length = flat.shape[1]
    if length is None:
        return tf.square(tf.cast(flat, tf.float64))
    whole = length - length % _PIECE
    rows = tf.shape(flat)[0] if flat.shape[0] is None else flat.shape[0]
    pieces = tf.reshape(flat[:, :whole], [rows, whole // _PIECE, _PIECE])
    sums = tf.reduce_sum(tf.square(pieces), axis=2)
    if whole == length:
        return sums
    rest = tf.reduce_sum(tf.square(flat[:, whole:]), axis=1, keepdims=True)
    return tf.concat([sums, rest], axis=1)


def _loses_addends(flat: tf.Tensor) -> bool:
    """Tells rows so long that XLA's sums of them on CPUs lose what they add.

    It adds one number after the other, where kernels and other devices add up
    in a tree: at 2^24 numbers, 4e-4 of a squared norm were missing.
    """
    if compilation.has_accelerator():
        return False
    return flat.shape[1] is None or flat.shape[1] >= _LONG_ROW


def not_flushed(
    squares: tf.Tensor, of: tf.Tensor, times: float = 1.0
) -> tf.Tensor:
    """Adds what sums of squares over the last axis may have lost to zero."""
    size = of.shape[-1] if of.shape[-1] is not None else tf.shape(of)[-1]
    return squares + tf.cast(size, squares.dtype) * (times * _LEAST_NORMAL)
