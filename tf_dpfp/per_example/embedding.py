"""Gradient rule of lookups in an embedding table."""

import keras
import tensorflow as tf

from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import keras_layers
from tf_dpfp.per_example import rules


@rules.register_gradient_rule(keras.layers.Embedding)
class EmbeddingRule(rules.GradientRule):
    """The gradient touches the rows that the example's ids name."""

    def supports(self, layer):
        return not (keras_layers.is_quantized(layer) or layer.lora_enabled)

    def gradients(self, call, output_gradients):
        table, (gradient,) = call.layer._embeddings, output_gradients
        num_rows, width = table.shape
        batch = tf.shape(gradient)[0]
        positions = 1
        for size in gradient.shape[1:-1]:
            positions = None if None in (positions, size) else positions * size
        shape = [batch, -1 if positions is None else positions]
        if batch_size := gradient.shape[0]:
            shape[0] = batch_size
        ids = tf.cast(tf.reshape(call.inputs, shape), tf.int32)
        values = tf.reshape(gradient, [*shape, width])
        return [(table, gradients.RowGather(ids, values, num_rows))]
