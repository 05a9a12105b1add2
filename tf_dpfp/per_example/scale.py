"""Gradient rules of layers that scale their input elementwise."""

import keras
import tensorflow as tf

from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import rules


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
        return [(alpha, gradients.Materialized(values))]
