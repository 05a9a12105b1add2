"""Gradient rules of layers that scale their input elementwise."""

import keras
import tensorflow as tf

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import rules


def _copies(variable: keras.Variable, like: tf.Tensor) -> tf.Tensor:
    """A copy for every example, of a shape that broadcasts along positions."""
    value = tf.convert_to_tensor(variable.value)
    ones = [1] * (like.shape.rank - 2)
    shape = tf.stack([tf.shape(like)[0], *ones, *value.shape])
    copies = tf.broadcast_to(tf.reshape(value, [1, *ones, *value.shape]), shape)
    # A tensor of its own, so that the tape stops here.
    return tf.identity(copies)


class BroadcastRule(rules.GradientRule):
    """Vectors along the last axis that a layer only broadcasts.

    Root-mean-square norms with a scale, layer scales: the layer's own `call`
    runs once, with one copy of each vector per example in its place, and the
    gradient of a copy is that of its example. A formula of the layer's (`1 +
    scale`, a cast before or after) need not be known.
    """

    def supports(self, layer):
        own = keras_layers.own_variables(layer)
        return len(own) == len(layer.variables) and all(
            v.trainable and len(v.shape) == 1 for v in own
        )

    def record(self, layer, call, args, kwargs):
        inputs = rules.first(args, kwargs)
        variables = self.variables(layer)
        copies = tuple(_copies(v, inputs) for v in variables)
        with keras.StatelessScope() as scope:
            for variable, copy in zip(variables, copies, strict=True):
                # The argument of the scope takes no other shapes.
                scope.add_update((variable, copy))
            outputs = call(*args, **kwargs)
        return outputs, rules.LayerCall(layer, self, inputs, copies, variables)

    def gradients(self, call, output_gradients):
        return [
            (
                v,
                gradients.PerExampleTensor(
                    tf.reshape(gradient, [-1, *v.shape])
                ),
            )
            for v, gradient in zip(call.saved, output_gradients, strict=True)
            if gradient is not None
        ]


@rules.register_gradient_rule(keras.layers.PReLU)
class PReLURule(rules.GradientRule):
    """`alpha * x` where x is negative, summed over the shared axes."""

    def gradients(self, call, output_gradients):
        alpha, (gradient,) = call.layer.alpha, output_gradients
        dtype = gradients.accumulation_dtype(call.inputs, gradient)
        negative = tf.minimum(tf.cast(call.inputs, dtype), 0.0)
        values = negative * tf.cast(gradient, dtype)
        shared = [axis for axis in call.layer.shared_axes or []]
        if shared:
            values = tf.reduce_sum(values, axis=shared, keepdims=True)
        values = tf.reshape(values, [-1, *alpha.shape])
        return [(alpha, gradients.PerExampleTensor(values))]
