"""Gradient rules of lookups in a table."""

import inspect

import keras
import tensorflow as tf

from tf_dpfp.per_example import dense
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import keras_layers
from tf_dpfp.per_example import rules


def _lookups(table, ids, gradient: tf.Tensor) -> gradients.RowGather:
    """The rows that the ids name; whatever is not the batch is positions."""
    values = dense.rows(gradient)
    ids = tf.reshape(tf.cast(ids, tf.int32), tf.shape(values)[:2])
    ids.set_shape(values.shape[:2])
    return gradients.RowGather(ids, values, table.shape[0])


@rules.register_gradient_rule(keras.layers.Embedding)
class EmbeddingRule(rules.GradientRule):
    """The gradient touches the rows that the example's ids name."""

    def supports(self, layer):
        return not (keras_layers.is_quantized(layer) or layer.lora_enabled)

    def gradients(self, call, output_gradients):
        table, (gradient,) = call.layer._embeddings, output_gradients
        return [(table, _lookups(table, call.inputs, gradient))]


class ReversibleEmbeddingRule(EmbeddingRule):
    """A table that is looked up in, and in reverse projects onto its rows.

    In reverse the gradient is an outer product. That of a tied table has the
    layout which `gradients.add` adds to lookups without writing either out.
    """

    def record(self, layer, call, args, kwargs):
        outputs, recorded = super().record(layer, call, args, kwargs)
        arguments = inspect.signature(call).bind(*args, **kwargs).arguments
        recorded.saved = bool(arguments.get("reverse", False))
        return outputs, recorded

    def gradients(self, call, output_gradients):
        is_reverse = call.saved
        if not is_reverse:
            return super().gradients(call, output_gradients)
        layer, (logits,) = call.layer, call.sources
        gradient = output_gradients[0]
        cap = getattr(layer, "logit_soft_cap", None)
        if cap is not None:
            # The slope of `cap * tanh(x / cap)` from what came out of it.
            bounded = tf.cast(logits, gradient.dtype) / cap
            gradient *= 1.0 - tf.square(bounded)
        # The projection may compute in a type of its own.
        inputs = dense.rows(tf.cast(call.inputs, logits.dtype))
        gradient = dense.rows(gradient)
        if layer.tie_weights:
            product = gradients.OuterProduct(
                gradient, inputs, layout=gradients.TABLE_LAYOUT
            )
            return [(layer._embeddings, product)]
        product = gradients.OuterProduct(inputs, gradient)
        return [(layer.reverse_embeddings, product)]


# The layer of KerasHub came first; Keras has it only in later versions.
rules.register_by_name("keras_hub", "ReversibleEmbedding")(
    ReversibleEmbeddingRule
)
if hasattr(keras.layers, "ReversibleEmbedding"):
    rules.register_gradient_rule(keras.layers.ReversibleEmbedding)(
        ReversibleEmbeddingRule
    )


@rules.register_by_name("keras_hub", "PositionEmbedding")
class PositionEmbeddingRule(rules.GradientRule):
    """Lookups at the positions of a sequence, the same for every example."""

    def record(self, layer, call, args, kwargs):
        outputs, recorded = super().record(layer, call, args, kwargs)
        arguments = inspect.signature(call).bind(*args, **kwargs).arguments
        positions = arguments.get("positions")
        if positions is None:
            positions = tf.range(tf.shape(outputs)[-2])
            positions += tf.cast(arguments.get("start_index", 0), tf.int32)
        recorded.saved = tf.broadcast_to(positions, tf.shape(outputs)[:-1])
        return outputs, recorded

    def gradients(self, call, output_gradients):
        table, (gradient,) = call.layer.position_embeddings, output_gradients
        return [(table, _lookups(table, call.saved, gradient))]
