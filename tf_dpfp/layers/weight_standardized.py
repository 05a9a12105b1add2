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
from tf_dpfp.per_example import dense
from tf_dpfp.per_example import gradients
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
    x = tf_dpfp.recipes.WSConv2D(32, 3, padding="same", use_bias=False)(x)
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

    def to_conv2d(self) -> keras.layers.Conv2D:
        """Returns an ordinary convolution that computes the same.

        A model with it loads where `tf_dpfp` is not installed.

        Returns:
            A built `keras.layers.Conv2D` of the same name, whose kernel is the
            standardised one.

        Raises:
            ValueError: If the layer is not built.
        """
        if not self.built:
            raise ValueError(
                "A layer has a kernel to standardise once it is built: call it "
                f"on an input first. Received: {self.name!r}."
            )
        config = super().get_config() | {
            "kernel_regularizer": None,
            "kernel_constraint": None,
        }
        layer = keras.layers.Conv2D.from_config(config)
        channels = self.kernel.shape[-2] * self.groups
        images = [None, None, None, None]
        images[-1 if self.data_format == "channels_last" else 1] = channels
        layer.build(tuple(images))
        kernel, _ = _standardized(
            ops.cast(self.kernel, _dtype(self)), self.epsilon
        )
        layer.set_weights([kernel, *self.get_weights()[1:]])
        return layer

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon}


def _dtype(layer: keras.layers.Layer) -> str:
    """Returns the dtype of statistics: never half precision."""
    return "float64" if layer.compute_dtype == "float64" else "float32"


@per_example.register_gradient_rule(WSConv2D)
class _StandardizedRule(convolution.ConvolutionRule):
    """That of a convolution, taken through the standardisation."""

    def gradients(self, call, output_gradients):
        layer, (gradient,) = call.layer, output_gradients
        gradient = tf.cast(gradient, gradients.accumulation_dtype(gradient))
        # As the layer saw it.
        seen = ops.cast(layer.kernel.value, layer.compute_dtype)
        filters, scale = _standardized(
            ops.cast(seen, _dtype(layer)), layer.epsilon
        )
        (kernel, of_filters), *_ = super().gradients(
            call, (_scaled(layer, gradient, scale),)
        )
        found: list[tuple[keras.Variable, per_example.PerExampleGradient]]
        found = [(kernel, _through(of_filters, filters))]
        if layer.bias is not None:
            last = convolution.channels_last(layer, gradient)
            bias = per_example.PerExampleTensor(dense.sum_positions(last))
            found.append((layer.bias, bias))
        return found


def _scaled(layer, gradient: tf.Tensor, scale) -> tf.Tensor:
    """Multiplies the gradient of each filter's outputs by its scale."""
    shape = [1] * gradient.shape.rank
    shape[-1 if layer.data_format == "channels_last" else 1] = -1
    return gradient * tf.reshape(tf.cast(scale, gradient.dtype), shape)


def _through(
    gradient: per_example.PerExampleGradient, filters
) -> mapped.Mapped:
    """Takes scaled gradients of filters through the standardisation."""
    axes = list(range(1, 1 + len(filters.shape)))[:-1]

    def of_tensor(values: tf.Tensor) -> tf.Tensor:
        unit = tf.cast(filters, values.dtype)
        along = tf.reduce_sum(unit * values, axes, keepdims=True)
        mean = tf.reduce_mean(values, axes, keepdims=True)
        return values - (mean + unit * along)

    def of_product(product: per_example.OuterProduct) -> tf.Tensor:
        left, right = product.left, product.right
        unit = tf.cast(filters, left.dtype)
        columns = tf.reshape(unit, [-1, filters.shape[-1]])
        along = tf.reduce_sum(tf.matmul(left, columns) * right, axis=1)
        means = tf.reduce_mean(left, axis=2)[:, None]
        mean = tf.matmul(means, right)[:, 0]
        # One for each example and filter.
        shape = [-1, *[1] * len(axes), filters.shape[-1]]
        along, mean = tf.reshape(along, shape), tf.reshape(mean, shape)
        return product.materialize() - (mean + unit * along)

    return mapped.Mapped(gradient, of_tensor, of_product)
