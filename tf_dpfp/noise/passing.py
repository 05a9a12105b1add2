"""Rows whose noised count passes a threshold, without noise for every row.

**Law.** Each row has a count, most of them 0, and independent normal noise.
With counts in standard deviations of that noise, a row of count n passes a
threshold t with probability Phi(n - t), independently of the others. That is
all that is used of the noise, so a coin of this probability is drawn in its
place: for each row that is named, and for all others, of count 0, at once. Of
those the gaps from one that passes to the next are geometric, so the time taken
is by the number that passes.

Coins have 53 bits: each probability is met up to 2^-53.
"""

import math
from typing import Any

import tensorflow as tf

from tf_dpfp.noise import secure
from tf_dpfp.noise.keys import SecureKey

_PHILOX = 1
_BITS = 53


def probability(threshold: float) -> float:
    """Computes the probability with which a row of count 0 passes.

    Args:
        threshold: The threshold, in standard deviations of the noise.

    Example:

    >>> round(probability(3.0), 5)
    0.00135
    """
    return 0.5 * math.erfc(threshold / math.sqrt(2.0))


def passes(counts: tf.Tensor, threshold: float, key: Any) -> tf.Tensor:
    """Draws which of some rows pass.

    Args:
        counts: The count of each row in standard deviations of the noise,
            float64 of shape `(n,)`; may be infinite.
        threshold: The threshold, in the same.
        key: uint64 scalar, or a `SecureKey`.

    Returns:
        Boolean tensor of shape `(n,)`.
    """
    root = tf.constant(math.sqrt(2.0), tf.float64)
    chances = 0.5 * tf.math.erfc((threshold - counts) / root)
    return _uniforms(tf.shape(counts)[0], key) <= chances


def passing_of(num_rows: int, threshold: float, key: Any) -> tf.Tensor:
    """Draws which rows of a table pass, if the count of every row were 0.

    Args:
        num_rows: Number of rows.
        threshold: The threshold, in standard deviations of the noise.
        key: uint64 scalar, or a `SecureKey`.

    Returns:
        int64 tensor of the rows that pass, in ascending order.
    """
    chance = probability(threshold)
    if chance <= 0.0:
        return tf.zeros([0], tf.int64)
    if chance >= 1.0:
        return tf.range(num_rows, dtype=tf.int64)
    # So many that another round is hardly ever needed.
    expected = num_rows * chance
    size = math.ceil(expected + 6.0 * math.sqrt(expected)) + 8
    log_of_none = math.log1p(-chance)

    def more(count, found):
        uniforms = _uniforms(size, key, count)
        gaps = tf.floor(tf.math.log(uniforms) / log_of_none)
        # Beyond the table is beyond it, however far.
        gaps = tf.cast(tf.minimum(gaps, float(num_rows)), tf.int64) + 1
        return count + 1, tf.concat([found, found[-1] + tf.cumsum(gaps)], 0)

    _, found = tf.while_loop(
        lambda _, found: found[-1] < num_rows - 1,
        more,
        (tf.constant(0, tf.int64), tf.constant([-1], tf.int64)),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
    )
    return tf.boolean_mask(found, (found >= 0) & (found < num_rows))


def _uniforms(
    size: int | tf.Tensor, key: Any, draw: int | tf.Tensor = 0
) -> tf.Tensor:
    """Draws multiples of 2^-53, above 0 and at most 1, all equally likely.

    Args:
        size: How many.
        key: uint64 scalar, or a `SecureKey`.
        draw: Number of the draw among those of one key, int64.

    Returns:
        float64 tensor of shape `(size,)`.
    """
    if isinstance(key, SecureKey):
        words = tf.bitcast(secure.words(2 * size, [-1, 2]), tf.int64)
    else:
        # A draw ends far below 2^64, where the next one begins.
        counter = tf.stack([tf.constant(0, tf.int64), tf.cast(draw, tf.int64)])
        words = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=tf.reshape(size, [1]),
            key=tf.reshape(key, [1]),
            counter=tf.bitcast(counter, tf.uint64),
            alg=_PHILOX,
            dtype=tf.int64,
        )
    integers = tf.bitwise.right_shift(
        tf.bitcast(words, tf.uint64), tf.constant(64 - _BITS, tf.uint64)
    )
    return (tf.cast(integers, tf.float64) + 1.0) * 2.0**-_BITS
