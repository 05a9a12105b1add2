"""Gradient rules of normalisation layers.

The gradient of a scale needs the normalised input, which the layers do not
hand out. The rules normalise it themselves, with Keras's own formula for the
moments (a more careful one would train another function than the one that is
evaluated), and use it for the output as well: nothing is computed twice.
"""

import abc

import keras
import tensorflow as tf
from keras import ops

from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import rules


def _upcast(inputs: tf.Tensor) -> tf.Tensor:
    """At least float32: statistics of half precision numbers overflow."""
    return tf.cast(inputs, gradients.accumulation_dtype(inputs))


def _positive(axes, rank: int) -> list[int]:
    axes = axes if isinstance(axes, (list, tuple)) else [axes]
    return sorted(axis % rank for axis in axes)


def _summed_to(values: tf.Tensor, axes: list[int], shape) -> tf.Tensor:
    """Sums over everything but the batch and `axes`; one row per example."""
    between = [a for a in range(1, values.shape.rank) if a not in axes]
    values = tf.reduce_sum(values, axis=between) if between else values
    return tf.reshape(values, [-1, *shape])


def _broadcast(variable, axes: list[int], like: tf.Tensor) -> tf.Tensor:
    shape = [1] * like.shape.rank
    for axis in axes:
        shape[axis] = like.shape[axis]
    value = tf.convert_to_tensor(variable.value)
    return tf.reshape(tf.cast(value, like.dtype), shape)


def _standardize(
    inputs: tf.Tensor, axes: list[int], epsilon: float, centered: bool
) -> tf.Tensor:
    """`(x - mean) / sqrt(variance + epsilon)`, or without the means.

    The gradient is written from the result. Automatic differentiation keeps
    three tensors of this size until the backward pass; the rules keep the
    result anyway.
    """

    def mean_of(x):
        return tf.reduce_mean(x, axis=axes, keepdims=True)

    @tf.custom_gradient
    def standardize(inputs):
        if centered:
            mean, variance = ops.moments(inputs, axes=axes, keepdims=True)
            inverse = tf.math.rsqrt(variance + epsilon)
            normalized = (inputs - mean) * inverse
        else:
            inverse = tf.math.rsqrt(mean_of(tf.square(inputs)) + epsilon)
            normalized = inputs * inverse

        def backward(gradient):
            along = normalized * mean_of(gradient * normalized)
            if centered:
                along += mean_of(gradient)
            return (gradient - along) * inverse

        return normalized, backward

    return standardize(inputs)


class _NormalizationRule(rules.GradientRule):
    """`normalize(x) * scale + offset`, scale and offset along some axes."""

    def axes(self, layer, rank: int) -> list[int]:
        """The axes of the input that scale and offset run along."""
        return _positive(layer.axis, rank)

    @abc.abstractmethod
    def normalize(self, layer, inputs: tf.Tensor) -> tf.Tensor:
        """The normalised input, before scale and offset."""

    def parameters(self, layer) -> tuple:
        """Scale and offset; either may be `None`."""
        return layer.gamma, layer.beta

    def record(self, layer, call, args, kwargs):
        del call
        inputs = rules.first(args, kwargs)
        axes = self.axes(layer, inputs.shape.rank)
        if 0 in axes:
            raise ValueError(
                f"Layer '{layer.name}' ({type(layer).__name__}) normalizes "
                f"across the batch (axis={layer.axis}), which mixes examples. "
                "Choose an axis other than 0."
            )
        normalized = self.normalize(layer, _upcast(inputs))
        scale, offset = self.parameters(layer)
        outputs = normalized
        if scale is not None:
            outputs = outputs * _broadcast(scale, axes, outputs)
        if offset is not None:
            outputs = outputs + _broadcast(offset, axes, outputs)
        outputs = tf.cast(tf.cast(outputs, inputs.dtype), layer.compute_dtype)
        saved = (axes, normalized)
        return outputs, rules.LayerCall(layer, self, inputs, (outputs,), saved)

    def gradients(self, call, output_gradients):
        axes, normalized = call.saved
        gradient = tf.cast(output_gradients[0], normalized.dtype)
        scale, offset = self.parameters(call.layer)
        result = []
        for variable, values in (
            (scale, lambda: gradient * normalized),
            (offset, lambda: gradient),
        ):
            if variable is not None:
                rows = _summed_to(values(), axes, variable.shape)
                result.append((variable, gradients.PerExampleTensor(rows)))
        return result


@rules.register_gradient_rule(keras.layers.LayerNormalization)
class LayerNormalizationRule(_NormalizationRule):
    """Normalised over the axes of its scale."""

    def normalize(self, layer, inputs):
        axes = self.axes(layer, inputs.shape.rank)
        if getattr(layer, "rms_scaling", False):
            variance = ops.var(inputs, axis=axes, keepdims=True)
            return inputs * tf.math.rsqrt(variance + layer.epsilon)
        return _standardize(inputs, axes, layer.epsilon, centered=True)


@rules.register_gradient_rule(keras.layers.GroupNormalization)
class GroupNormalizationRule(_NormalizationRule):
    """Normalised over positions and the channels of a group."""

    def normalize(self, layer, inputs):
        (axis,) = self.axes(layer, inputs.shape.rank)
        shape = [
            dynamic if static is None else static
            for static, dynamic in zip(
                inputs.shape, tf.unstack(tf.shape(inputs)), strict=True
            )
        ]
        channels = inputs.shape[axis]
        split = shape[:axis] + [layer.groups, channels // layer.groups]
        grouped = tf.reshape(inputs, split + shape[axis + 1 :])
        over = [a for a in range(1, grouped.shape.rank) if a != axis]
        normalized = _standardize(grouped, over, layer.epsilon, centered=True)
        return tf.reshape(normalized, shape)


class _RMSNormalizationRule(_NormalizationRule):
    """Normalised by the root of the mean square."""

    def supports(self, layer):
        # Keras lets the scale broadcast against the last axes whatever `axis`
        # says; only where these are the same is the formula below the layer's.
        axes = layer.axis if isinstance(layer.axis, list) else [layer.axis]
        return axes == list(range(-len(axes), 0))

    def parameters(self, layer):
        return layer.scale, None

    def normalize(self, layer, inputs):
        axes = self.axes(layer, inputs.shape.rank)
        return _standardize(inputs, axes, layer.epsilon, centered=False)


# Keras has the layer from 3.9 on.
if hasattr(keras.layers, "RMSNormalization"):
    rules.register_gradient_rule(keras.layers.RMSNormalization)(
        _RMSNormalizationRule
    )
