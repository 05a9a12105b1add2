"""Convolutions whose kernel is standardised, and their gradient rule.

With c the kernel of a filter less its mean, and r = 1 / sqrt(|c|^2 + epsilon),
the filter is u = r c. A change of the kernel by d changes it by
`r (d - mean(d) - u (u . d))`, which is a symmetric map: it takes the gradient
of u to that of the kernel, the same map for every example.
"""

import keras
import tensorflow as tf
from keras import ops

from tf_dpfp import arguments
from tf_dpfp import per_example
from tf_dpfp.per_example import convolution
from tf_dpfp.per_example import mapped


def _standardized(kernel, epsilon: float):
    """Returns the filters of a kernel, and what each was multiplied by."""
    axes = list(range(len(kernel.shape) - 1))
    centred = kernel - ops.mean(kernel, axis=axes, keepdims=True)
    squares = ops.sum(ops.square(centred), axis=axes, keepdims=True)
    scale = ops.rsqrt(squares + epsilon)
    return centred * scale, scale


@keras.saving.register_keras_serializable("tf_dpfp")
class WSConv2D(keras.layers.Conv2D):
    """A `keras.layers.Conv2D` whose filters have zero mean and unit norm.

    Weight standardisation, scaled by the number of a filter's inputs, keeps the
    size of activations the same from layer to layer, without statistics of a
    batch. Beside `GroupNormalization` it takes the place of
    `BatchNormalization`, which mixes examples. Gradients of single examples
    are exact: those of the filters, taken through the standardisation.

    Example:

    ```python
    x = tf_dpfp.WSConv2D(32, 3, padding="same", use_bias=False)(x)
    x = keras.layers.GroupNormalization(8)(x)
    ```

    Args:
        filters: Number of filters; see `keras.layers.Conv2D`.
        kernel_size: Height and width of a filter.
        epsilon: Added to the squared norm of a filter.
        **kwargs: Other arguments of `keras.layers.Conv2D`.

    Input shape:
        That of `keras.layers.Conv2D`.

    Output shape:
        That of `keras.layers.Conv2D`.

    Raises:
        ValueError: If `epsilon` is not positive.

    Reference:
        - Qiao et al., 2019, "Micro-Batch Training with Batch-Channel
            Normalization and Weight Standardization", arXiv 1903.10520.
        - Brock et al., 2021, arXiv 2101.08692 (scaled).
        - De et al., 2022, arXiv 2204.13650 (in private training).
    """

    def __init__(self, filters, kernel_size, epsilon: float = 1e-4, **kwargs):
        super().__init__(filters, kernel_size, **kwargs)
        self.epsilon = arguments.number("epsilon", epsilon, above=0.0)

    def convolution_op(self, inputs, kernel):
        """Convolves with the standardised kernel."""
        filters, _ = _standardized(ops.cast(kernel, _dtype(self)), self.epsilon)
        return super().convolution_op(inputs, ops.cast(filters, kernel.dtype))

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon}


def _dtype(layer: keras.layers.Layer) -> str:
    """Returns the dtype of statistics: never half precision."""
    return "float64" if layer.compute_dtype == "float64" else "float32"


@per_example.register_gradient_rule(WSConv2D)
class _StandardizedRule(convolution.ConvolutionRule):
    """That of a convolution, taken through the standardisation."""

    def gradients(self, call, output_gradients):
        layer = call.layer
        (kernel, of_filters), *others = super().gradients(
            call, output_gradients
        )
        # As the layer saw it.
        seen = ops.cast(kernel.value, layer.compute_dtype)
        filters, scale = _standardized(
            ops.cast(seen, _dtype(layer)), layer.epsilon
        )
        axes = list(range(1, len(kernel.shape)))

        def to_kernel(gradient: tf.Tensor) -> tf.Tensor:
            unit = tf.cast(filters, gradient.dtype)
            along = tf.reduce_sum(unit * gradient, axes, keepdims=True)
            mean = tf.reduce_mean(gradient, axes, keepdims=True)
            left = gradient - mean - unit * along
            return tf.cast(scale, gradient.dtype) * left

        return [(kernel, mapped.Mapped(of_filters, to_kernel)), *others]
