"""Gradient rules of layers that multiply rows by a matrix."""

import keras
import tensorflow as tf

from tf_dpfp.keras_private import kernels
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import rules


def rows(tensor: tf.Tensor, axes: int = 1) -> tf.Tensor:
    """`(batch, ..., features)` to `(batch, positions, features)`.

    Args:
        tensor: The tensor.
        axes: How many of the last axes are features.

    Returns:
        A tensor of rank 3; sizes known statically stay so.
    """
    shape = tensor.shape.as_list()
    split = len(shape) - axes
    features = 1
    for size in shape[split:]:
        features *= size
    positions: int | None = 1
    for size in shape[1:split]:
        positions = None if None in (positions, size) else positions * size
    if positions is None:
        batch = tf.shape(tensor)[0] if shape[0] is None else shape[0]
        count = tf.reduce_prod(tf.shape(tensor)[1:split])
        result = tf.reshape(tensor, tf.stack([batch, count, features]))
        result.set_shape([shape[0], None, features])
        return result
    if shape[0] is None:
        return tf.reshape(tensor, [-1, positions, features])
    return tf.reshape(tensor, [shape[0], positions, features])


def _of_width(tensor: tf.Tensor, width: int) -> tf.Tensor:
    """Returns a tensor with its last size, which a reshape may have lost."""
    if tensor.shape[-1] is not None:
        return tensor
    return tf.ensure_shape(tensor, [*tensor.shape[:-1], width])


def sum_positions(tensor: tf.Tensor, axes: int = 1) -> tf.Tensor:
    """Sums over everything between the batch and the last `axes` axes."""
    tensor = tf.cast(tensor, gradients.accumulation_dtype(tensor))
    between = list(range(1, tensor.shape.rank - axes))
    return tf.reduce_sum(tensor, axis=between) if between else tensor


def _lora_products(layer, left, right):
    """`x (A B) scale`: the gradients of both factors, never of A B."""
    a = tf.cast(layer.lora_kernel_a.value, left.dtype)
    b = tf.cast(layer.lora_kernel_b.value, left.dtype)
    right = right * keras_layers.lora_scale(layer)
    through_b = tf.matmul(right, b, transpose_b=True)
    return [
        (layer.lora_kernel_a, gradients.OuterProduct(left, through_b)),
        (
            layer.lora_kernel_b,
            gradients.OuterProduct(tf.matmul(left, a), right),
        ),
    ]


@rules.register_gradient_rule(keras.layers.Dense)
class DenseRule(rules.GradientRule):
    """`x W + b`: an outer product per position, and a sum over positions."""

    def supports(self, layer):
        return not keras_layers.is_quantized(layer)

    def record(self, layer, call, args, kwargs):
        return rules.record_before_activation(self, layer, call, args, kwargs)

    def gradients(self, call, output_gradients):
        layer, (gradient,) = call.layer, output_gradients
        kernel = kernels.kernel_of(layer)
        assert kernel is not None  # The layer was called.
        inputs = _of_width(call.inputs, kernel.shape[0])
        gradient = _of_width(gradient, kernel.shape[1])
        dtype = gradients.accumulation_dtype(inputs, gradient)
        left = tf.cast(rows(inputs), dtype)
        right = tf.cast(rows(gradient), dtype)
        result = []
        if layer.lora_enabled:
            result += _lora_products(layer, left, right)
        else:
            result.append((kernel, gradients.OuterProduct(left, right)))
        if layer.bias is not None:
            bias = gradients.PerExampleTensor(sum_positions(gradient))
            result.append((layer.bias, bias))
        return result
