"""Per-example gradients of carriers, and the way back to the kernel.

With W = L R + (W - L R) and the last term held fixed, the forward pass is
that of W, and the gradients of L and R follow from the gradient G of W:

    dL = G R^T        (d, r)
    dR = L^T G        (r, p)

A per-example gradient `X^T D` is a product of thin matrices, and so are these
two: `X^T (D R^T)` and `(X L)^T D`. The gradient of W is never formed. Both
together are what a step releases, laid end to end in one vector of r (d + p)
numbers. After the noise it goes back to the size of the kernel by

    dW = dL R + L dR - L L^T dL R,

which without noise is G less its part outside of both bases:
`G - (I - L L^T) G (I - R^T R)`.

The bound on an example's influence rests on nothing here: the norms are those
of the very numbers that are summed, whatever the carriers are.

Reference:
    Yu et al., 2021, arXiv 2106.09352.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dpfp import per_example
from tf_dpfp.low_rank import marks
from tf_dpfp.low_rank import matrices
from tf_dpfp.low_rank.carriers import Carriers


class CarrierGradient(per_example.PerExampleGradient):
    """Gradients of the carriers of one kernel.

    Args:
        parts: The gradients of each carrier.
    """

    def __init__(self, parts: Sequence[per_example.PerExampleGradient]):
        self.parts = tuple(parts)

    def squared_norms(self) -> tf.Tensor:
        return tf.add_n([part.squared_norms() for part in self.parts])

    def weighted_sum(self, factors: tf.Tensor) -> tf.Tensor:
        """Sums the carriers' gradients by weights, end to end: `(size,)`."""
        sums = [part.weighted_sum(factors) for part in self.parts]
        return tf.concat([tf.reshape(s, [-1]) for s in sums], axis=0)

    def materialize(self) -> tf.Tensor:
        every = [part.materialize() for part in self.parts]
        return tf.concat(
            [
                tf.reshape(values, [-1, values.shape[1] * values.shape[2]])
                for values in every
            ],
            axis=1,
        )


def project(
    gradient: per_example.PerExampleGradient,
    carriers: Carriers,
    view: matrices.MatrixView,
) -> CarrierGradient:
    """Projects the gradients of a kernel to its carriers.

    Args:
        gradient: Per-example gradients of the kernel, all uses added up.
        carriers: Its carriers.
        view: Its layout as a matrix.

    Returns:
        The per-example gradients of the carriers.
    """
    if isinstance(gradient, per_example.OuterProduct) and _is_product_of(
        gradient, view
    ):
        # Where the layer is; see `PerDevice`.
        with tf.device(gradient.left.device):
            return CarrierGradient(_product_parts(gradient, carriers))
    values = view.to_matrix(gradient.materialize())
    with tf.device(values.device):
        return CarrierGradient(_matrix_parts(values, carriers))


def project_all(
    gradients: Sequence[per_example.PerExampleGradient | None],
    carriers: Sequence[Carriers | None],
    variables: Sequence[keras.Variable],
) -> list[per_example.PerExampleGradient | None]:
    """Projects the gradients of the kernels that have carriers.

    Args:
        gradients: Per-example gradients, one entry for each variable.
        carriers: Carriers, or `None` where the gradient stays as it is.
        variables: The trainable variables.

    Returns:
        One entry for each variable: what is to be clipped and released.
    """
    return [
        gradient
        if gradient is None or own is None
        else project(gradient, own, marks.marked_view(variable))
        for gradient, own, variable in zip(
            gradients, carriers, variables, strict=True
        )
    ]


def _is_product_of(
    gradient: per_example.OuterProduct, view: matrices.MatrixView
) -> bool:
    """Tells if the factors are rows and columns of the view's matrix."""
    if view.layout is None:
        return gradient.layout is None and gradient.is_matrix
    return gradient.layout == view.layout


def _product_parts(gradient, carriers: Carriers):
    left, right = gradient.left, gradient.right
    parts = []
    if carriers.right is not None:
        parts.append(
            per_example.OuterProduct(left, _rows_times(right, carriers.right))
        )
    return [
        *parts,
        per_example.OuterProduct(_rows_times(left, carriers.left), right),
    ]


def _rows_times(rows: tf.Tensor, basis: tf.Tensor) -> tf.Tensor:
    """`(batch, positions, n)` times `(n, r)`, as one product of matrices."""
    flat = tf.reshape(rows, [-1, rows.shape[2]])
    product = tf.matmul(flat, tf.cast(basis, rows.dtype))
    shape = [
        dynamic if static is None else static
        for static, dynamic in zip(
            rows.shape[:2], tf.unstack(tf.shape(rows)[:2]), strict=True
        )
    ]
    return tf.reshape(product, [*shape, basis.shape[1]])


def _matrix_parts(values: tf.Tensor, carriers: Carriers):
    parts = []
    if carriers.right is not None:
        right = tf.cast(carriers.right, values.dtype)
        parts.append(tf.matmul(values, right))
    left = tf.cast(carriers.left, values.dtype)
    parts.append(tf.matmul(tf.transpose(left), values))
    return [per_example.PerExampleTensor(part) for part in parts]


def reconstruct(
    released: tf.Tensor, carriers: Carriers, view: matrices.MatrixView
) -> tf.Tensor:
    """Turns released carriers into an update of the kernel.

    This is post-processing.

    Args:
        released: Released carriers of the kernel, `(size,)`.
        carriers: The carriers it was projected with.
        view: Layout of the kernel as a matrix.

    Returns:
        A tensor of the kernel's shape.
    """
    left = tf.cast(carriers.left, released.dtype)
    rank = left.shape[1]
    if carriers.right is None:
        of_right = tf.reshape(released, [rank, view.num_columns])
        return view.to_kernel(tf.matmul(left, of_right))
    right = tf.cast(carriers.right, released.dtype)
    of_left, of_right = tf.split(
        released, [view.num_rows * rank, view.num_columns * rank]
    )
    of_left = tf.reshape(of_left, [view.num_rows, rank])
    of_right = tf.reshape(of_right, [rank, view.num_columns])
    of_left -= tf.matmul(left, tf.matmul(left, of_left, transpose_a=True))
    # One product in place of two and a sum: the kernel is large.
    matrix = tf.matmul(
        tf.concat([of_left, left], axis=1),
        tf.concat([tf.transpose(right), of_right], axis=0),
    )
    return view.to_kernel(matrix)
