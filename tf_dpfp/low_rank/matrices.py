"""Kernels as the matrices that they multiply by.

A dense kernel is a matrix. An einsum kernel is one whose rows are the letters
that are summed over, a convolution's one whose rows are the numbers of a
patch.
"""

import dataclasses
import math
import string

import keras
import tensorflow as tf

from tf_dpfp.keras_private.kernels import kernel_of
from tf_dpfp.per_example import einsum_dense

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
# Layers whose kernel multiplies rows, at every position alike.
MATRIX_LAYERS = (keras.layers.Dense, keras.layers.EinsumDense, *_CONVOLUTIONS)


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """Layout of a kernel as a matrix.

    Attributes:
        shape: Shape of the kernel.
        axes: The kernel's axes, those of the rows before those of the columns.
        num_row_axes: Number of row axes.
        layout: The `layout` of the outer products that the layer's gradient
            rule makes: of those, the factors are rows and columns of this
            matrix.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    num_row_axes: int
    layout: object = None

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[a] for a in self.axes[: self.num_row_axes])

    @property
    def num_columns(self) -> int:
        return math.prod(self.shape[a] for a in self.axes[self.num_row_axes :])

    def to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """A kernel, or a batch of them, as matrices."""
        batch = kernel.shape.rank - len(self.shape)
        order = [*range(batch), *(axis + batch for axis in self.axes)]
        return tf.reshape(
            _transposed(kernel, order),
            [*([-1] * batch), self.num_rows, self.num_columns],
        )

    def to_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
        """Reverses `to_matrix`, for one matrix."""
        kernel = tf.reshape(matrix, [self.shape[axis] for axis in self.axes])
        return _transposed(
            kernel, [self.axes.index(a) for a in range(len(self.axes))]
        )


def _transposed(tensor: tf.Tensor, order: list[int]) -> tf.Tensor:
    if order == sorted(order):
        return tensor
    return tf.transpose(tensor, order)


def view_of(layer: keras.layers.Layer) -> MatrixView | None:
    """Finds the layout of a layer's kernel as a matrix.

    Args:
        layer: A layer of `MATRIX_LAYERS`.

    Returns:
        The view, or `None` if the layer is not built or the kernel is no
        matrix: an einsum whose kernel differs from position to position.
    """
    kernel = kernel_of(layer)
    if kernel is None:
        return None
    shape = tuple(kernel.shape)
    axes = tuple(range(len(shape)))
    if isinstance(layer, keras.layers.EinsumDense):
        return _einsum_view(layer.equation, shape)
    if isinstance(layer, _CONVOLUTIONS):
        return MatrixView(shape, axes, len(shape) - 1, layout=shape)
    return MatrixView(shape, axes, 1)


def _einsum_view(equation: str, shape: tuple[int, ...]) -> MatrixView | None:
    # However many axes `...` stands for: the kernel has none of them.
    spare = next(c for c in string.ascii_letters if c not in equation)
    letters = einsum_dense.parse(equation.replace("...", spare), 0, 0)
    if not letters.is_matrix_product():
        return None
    have = letters.contracted + letters.produced
    return MatrixView(
        shape,
        tuple(letters.kernel.index(letter) for letter in have),
        len(letters.contracted),
        layout=(have, letters.kernel),
    )
