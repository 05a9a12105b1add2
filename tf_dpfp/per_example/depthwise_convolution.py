"""Gradient rules of depthwise and separable convolutions."""

import keras
import tensorflow as tf
from keras import ops

from tf_dpfp.per_example import convolution
from tf_dpfp.per_example import dense
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import rules


def _depthwise_gradient(inputs, output_gradient, geometry, kernel_shape):
    """Every channel is convolved with kernels of its own.

    The kernel is small beside the input, so its gradient is written out, one
    kernel position at a time.

    Args:
        inputs: Input of the convolution, channels last.
        output_gradient: Gradient of its output, channels last.
        geometry: Of the convolution.
        kernel_shape: `(*kernel_size, channels, depth_multiplier)`.

    Returns:
        A `PerExampleTensor` gradient.
    """
    kernel_shape = tuple(kernel_shape)
    multiplier = kernel_shape[-1]
    windows = convolution.windows(inputs, geometry, output_gradient)
    right = dense.rows(output_gradient)
    columns = []
    for window in windows:
        left = dense.rows(window)
        if multiplier > 1:
            # Output channel c * multiplier + j belongs to input channel c.
            left = tf.repeat(left, multiplier, axis=2)
        columns.append(tf.reduce_sum(left * right, axis=1))
    stacked = tf.stack(columns, axis=1)
    return gradients.PerExampleTensor(tf.reshape(stacked, [-1, *kernel_shape]))


def _bias_gradient(layer, output_gradient):
    if layer.bias is None:
        return []
    summed = dense.sum_positions(output_gradient)
    return [(layer.bias, gradients.PerExampleTensor(summed))]


class _DepthwiseRule(rules.GradientRule):
    """Patches of one channel times the gradients of that channel."""

    def record(self, layer, call, args, kwargs):
        return rules.record_before_activation(self, layer, call, args, kwargs)

    def gradients(self, call, output_gradients):
        layer, (gradient,) = call.layer, output_gradients
        dtype = gradients.accumulation_dtype(call.inputs, gradient)
        inputs = convolution.channels_last(layer, call.inputs)
        gradient = convolution.channels_last(layer, gradient)
        kernel = _depthwise_gradient(
            tf.cast(inputs, dtype),
            tf.cast(gradient, dtype),
            convolution.geometry_of(layer),
            layer.kernel.shape,
        )
        return [(layer.kernel, kernel), *_bias_gradient(layer, gradient)]


class _SeparableRule(rules.GradientRule):
    """A depthwise convolution, then a dense layer at every position."""

    def record(self, layer, call, args, kwargs):
        # The tensor between the two kernels never leaves the layer's own
        # call, so the two convolutions run here, one after the other.
        del call
        inputs = rules.first(args, kwargs)
        between = ops.depthwise_conv(
            inputs,
            layer.depthwise_kernel,
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )
        outputs = ops.conv(
            between,
            layer.pointwise_kernel,
            strides=1,
            padding="valid",
            data_format=layer.data_format,
        )
        if layer.bias is not None:
            shape = [1] * (layer.rank + 2)
            channel_axis = -1 if layer.data_format == "channels_last" else 1
            shape[channel_axis] = layer.filters
            outputs = ops.add(outputs, ops.reshape(layer.bias, shape))
        recorded = rules.LayerCall(
            layer, self, inputs, (between, outputs), between
        )
        if layer.activation is not None:
            outputs = layer.activation(outputs)
        return outputs, recorded

    def gradients(self, call, output_gradients):
        layer, between = call.layer, call.saved
        dtype = gradients.accumulation_dtype(call.inputs, *output_gradients)
        inputs, between, between_gradient, gradient = (
            tf.cast(convolution.channels_last(layer, tensor), dtype)
            for tensor in (call.inputs, between, *output_gradients)
        )
        depthwise = _depthwise_gradient(
            inputs,
            between_gradient,
            convolution.geometry_of(layer),
            layer.depthwise_kernel.shape,
        )
        shape = tuple(layer.pointwise_kernel.shape)
        pointwise = gradients.OuterProduct(
            dense.rows(between),
            dense.rows(gradient),
            lambda matrix: tf.reshape(
                matrix, [*([-1] * (matrix.shape.rank - 2)), *shape]
            ),
            layout=shape,
        )
        return [
            (layer.depthwise_kernel, depthwise),
            (layer.pointwise_kernel, pointwise),
            *_bias_gradient(layer, gradient),
        ]


for _layer_type in (
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
):
    rules.register_gradient_rule(_layer_type)(_DepthwiseRule)
for _layer_type in (
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
):
    rules.register_gradient_rule(_layer_type)(_SeparableRule)
