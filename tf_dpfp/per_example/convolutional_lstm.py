"""Per-example gradients of ConvLSTM cells.

A ConvLSTM is an LSTM whose two products are convolutions: of the inputs by
the kernel, of the state by the recurrent kernel. So both kernels have
gradients of convolutions, whose positions are those of all time steps.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp.keras_private import recurrence
from tf_dpfp.per_example import convolution
from tf_dpfp.per_example import dense
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import recurrences
from tf_dpfp.per_example import recurrent
from tf_dpfp.per_example import rules
from tf_dpfp.per_example import side_by_side


def _of_states(cell: keras.layers.Layer) -> convolution.Geometry:
    """Returns the geometry of the convolution of the state."""
    once = (1,) * cell.rank
    return convolution.Geometry(tuple(cell.kernel_size), once, once, "same")


def _fold(tensor: tf.Tensor) -> tf.Tensor:
    """From `(batch, time, ...)` to `(batch * time, ...)`."""
    return tf.reshape(tensor, [-1, *tensor.shape[2:]])


def _unfold(tensor: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """From `(batch * time, ...)` to `(batch, time, ...)`, as of `like`."""
    time = like.shape[1] if like.shape[1] is not None else tf.shape(like)[1]
    batch = like.shape[0] if like.shape[0] is not None else tf.shape(like)[0]
    return tf.reshape(tensor, [batch, time, *tensor.shape[1:]])


def _convolve(
    lefts: Sequence[tf.Tensor],
    kernel: tf.Tensor,
    geometry: convolution.Geometry,
) -> tf.Tensor:
    """Convolves with a kernel: all of it, or a tensor with each gate's."""
    if len(lefts) == 1:
        return convolution.convolve(lefts[0], kernel, geometry)
    blocks = tf.split(kernel, len(lefts), axis=-1)
    return tf.concat(
        [
            convolution.convolve(left, block, geometry)
            for left, block in zip(lefts, blocks, strict=True)
        ],
        axis=-1,
    )


def _product(
    left: tf.Tensor, gradient: tf.Tensor, geometry: convolution.Geometry
) -> gradients.OuterProduct:
    """Returns gradients of a kernel that met `left` at every time step.

    Args:
        left: Tensor of shape `(batch, time, ..., channels)`.
        gradient: Gradient of the convolution, `(batch, time, ..., filters)`.
        geometry: Of the convolution.
    """
    shape = (*geometry.kernel_size, left.shape[-1], gradient.shape[-1])
    cut = convolution.patches(
        tf.cast(_fold(left), gradient.dtype), geometry, _fold(gradient)
    )
    return gradients.OuterProduct(
        dense.rows(_unfold(cut, gradient)),
        dense.rows(gradient),
        lambda matrix: tf.reshape(
            matrix, [*([-1] * (matrix.shape.rank - 2)), *shape]
        ),
        layout=shape,
    )


def _products(
    lefts: Sequence[tf.Tensor],
    gradient: tf.Tensor,
    geometry: convolution.Geometry,
) -> gradients.PerExampleGradient:
    if len(lefts) == 1:
        return _product(lefts[0], gradient, geometry)
    blocks = tf.split(gradient, len(lefts), axis=-1)
    return side_by_side.SideBySide(
        [
            _product(left, block, geometry)
            for left, block in zip(lefts, blocks, strict=True)
        ]
    )


class ConvLSTM(recurrences.LSTM):
    """An LSTM of convolutions, channels last."""

    def multiply_inputs(self, cell, inputs, kernel):
        projected = _convolve(
            [_fold(one) for one in inputs],
            kernel,
            convolution.geometry_of(cell),
        )
        return _unfold(projected, inputs[0])

    def multiply_states(self, cell, states, kernel):
        return _convolve(states, kernel, _of_states(cell))

    def input_products(self, cell, inputs, gradient):
        return _products(inputs, gradient, convolution.geometry_of(cell))

    def state_products(self, cell, states, gradient):
        return _products(states, gradient, _of_states(cell))


class ConvLSTMRule(recurrent.RecurrentRule):
    """`ConvLSTM1D` to `ConvLSTM3D`, channels last."""

    def supports(self, layer: Any) -> bool:
        if layer.data_format != "channels_last":
            return False
        return super().supports(layer)


recurrences.RECURRENCES[recurrence.ConvLSTMCell] = ConvLSTM()
for _layer_type in (
    keras.layers.ConvLSTM1D,
    keras.layers.ConvLSTM2D,
    keras.layers.ConvLSTM3D,
):
    rules.register_gradient_rule(_layer_type)(ConvLSTMRule)
