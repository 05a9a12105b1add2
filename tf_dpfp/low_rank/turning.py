"""Numbers of carriers, said in other carriers.

What is released of a kernel are two matrices, in coordinates of its carriers:
`dL` in those of R, and `dR` in those of L. Where carriers turn, the same part
of the kernel has other coordinates,

    dL (R R'^T)    and    (L'^T L) dR,

as far as the new carriers reach. Both products are with matrices of norm at
most 1: no vector gets longer, whatever the carriers are. Correlated noise rests
on that.
"""

import tensorflow as tf

from tf_dpfp.low_rank import matrices
from tf_dpfp.low_rank.carriers import Carriers

# For rounding, of the products below and of those with them.
_MARGIN = 1.0 - 2.0**-12


def turned(
    released: tf.Tensor,
    before: Carriers,
    now: Carriers,
    view: matrices.MatrixView,
) -> tf.Tensor:
    """Turns numbers of a kernel's carriers into those of other carriers.

    Args:
        released: The numbers, laid end to end as they are released.
        before: The carriers they are of.
        now: The carriers they are to be of.
        view: The kernel's layout as a matrix.

    Returns:
        The numbers, of the same shape and no longer in L2 norm.
    """
    rank = before.left.shape[1]
    across = tf.cast(contraction(now.left, before.left), released.dtype)
    if before.right is None or now.right is None:
        of_right = tf.reshape(released, [rank, view.num_columns])
        return tf.reshape(tf.matmul(across, of_right), [-1])
    along = tf.cast(contraction(before.right, now.right), released.dtype)
    of_left, of_right = tf.split(
        released, [view.num_rows * rank, view.num_columns * rank]
    )
    of_left = tf.matmul(tf.reshape(of_left, [view.num_rows, rank]), along)
    of_right = tf.matmul(across, tf.reshape(of_right, [rank, view.num_columns]))
    return tf.concat([tf.reshape(of_left, [-1]), tf.reshape(of_right, [-1])], 0)


def contraction(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Computes the product of two bases, of norm at most 1.

    Args:
        first: `(n, r)`, columns that are orthonormal but for rounding.
        second: `(n, r)`, likewise.

    Returns:
        `first^T second`, divided by bounds of both norms where they are above
        1, and a little smaller.
    """
    product = tf.matmul(first, second, transpose_a=True)
    bounds = _squared_norm_bound(first) * _squared_norm_bound(second)
    return product * (_MARGIN * tf.math.rsqrt(bounds))


def _squared_norm_bound(basis: tf.Tensor) -> tf.Tensor:
    """Bounds the squared norm of a matrix; 1 if its columns are orthonormal."""
    gram = tf.matmul(basis, basis, transpose_a=True)
    return 1.0 + tf.norm(gram - tf.eye(basis.shape[1], dtype=basis.dtype))
