"""Gradient rules of lookups in a table."""

import inspect

import keras
import tensorflow as tf

from tf_dpfp.keras_private import kernels
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import lookups as keras_lookups
from tf_dpfp.per_example import dense
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import rules
from tf_dpfp.per_example import sums


def _lookups(table, ids, gradient: tf.Tensor) -> gradients.EmbeddingRows:
    """The rows that the ids name; whatever is not the batch is positions."""
    values = dense.rows(gradient)
    rows, is_valid = keras_lookups.rows_of(ids, table.shape[0])
    ids = tf.reshape(tf.cast(rows, tf.int32), tf.shape(values)[:2])
    # An id without a row moves none.
    is_valid = tf.reshape(is_valid, tf.concat([tf.shape(ids), [1]], 0))
    values = tf.where(is_valid, values, tf.zeros_like(values))
    ids.set_shape(values.shape[:2])
    return gradients.EmbeddingRows(ids, values, table.shape[0])


def _lora_factors(layer, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    return (
        tf.cast(layer.lora_embeddings_a.value, dtype),
        tf.cast(layer.lora_embeddings_b.value, dtype),
    )


def _lora_lookups(layer, ids, gradient: tf.Tensor):
    """Rows of `A B scale`: rows of A, and products with B."""
    gradient = tf.cast(gradient, gradients.accumulation_dtype(gradient))
    gradient *= keras_layers.lora_scale(layer)
    a, b = _lora_factors(layer, gradient.dtype)
    thin = tf.gather(a, keras_lookups.rows_of(ids, a.shape[0])[0])
    return [
        (
            layer.lora_embeddings_a,
            _lookups(a, ids, tf.matmul(gradient, b, transpose_b=True)),
        ),
        (
            layer.lora_embeddings_b,
            gradients.OuterProduct(dense.rows(thin), dense.rows(gradient)),
        ),
    ]


def _lora_projection(layer, inputs: tf.Tensor, gradient: tf.Tensor):
    """Products with the rows of `A B scale`; thin on either side."""
    dtype = gradients.accumulation_dtype(inputs, gradient)
    inputs, gradient = tf.cast(inputs, dtype), tf.cast(gradient, dtype)
    gradient *= keras_layers.lora_scale(layer)
    a, b = _lora_factors(layer, dtype)
    return [
        (
            layer.lora_embeddings_a,
            gradients.OuterProduct(
                gradient,
                tf.matmul(inputs, b, transpose_b=True),
                layout=sums.TABLE_LAYOUT,
            ),
        ),
        (
            layer.lora_embeddings_b,
            gradients.OuterProduct(tf.matmul(gradient, a), inputs),
        ),
    ]


@rules.register_gradient_rule(keras.layers.Embedding)
class EmbeddingRule(rules.GradientRule):
    """The gradient touches the rows that the example's ids name."""

    def supports(self, layer):
        return not keras_layers.is_quantized(layer)

    def gradients(self, call, output_gradients):
        layer, (gradient,) = call.layer, output_gradients
        if layer.lora_enabled:
            return _lora_lookups(layer, call.inputs, gradient)
        table = kernels.table_of(layer)
        return [(table, _lookups(table, call.inputs, gradient))]


class ReversibleEmbeddingRule(EmbeddingRule):
    """A table that is looked up in, and in reverse projects onto its rows.

    In reverse the gradient is an outer product. That of a tied table has the
    layout which `sums.add` adds to lookups without writing either out.
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
        if layer.tie_weights and layer.lora_enabled:
            return _lora_projection(layer, inputs, gradient)
        if layer.tie_weights:
            product = gradients.OuterProduct(
                gradient, inputs, layout=sums.TABLE_LAYOUT
            )
            return [(kernels.table_of(layer), product)]
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


@rules.register_by_name("keras_rs", "EmbedReduce")
class EmbedReduceRule(EmbeddingRule):
    """Lookups that are added up over positions, with weights or without.

    The rows that were looked up are seen before they are added up, so that the
    gradient is that of a lookup, whatever the weights and the divisor.
    """

    def record(self, layer, call, args, kwargs):
        with keras_lookups.noted() as lookups:
            outputs = call(*args, **kwargs)
        ((ids, found),) = lookups
        if not tf.is_tensor(found) or isinstance(
            ids, (tf.SparseTensor, tf.RaggedTensor)
        ):
            raise ValueError(
                f"Layer '{layer.name}' is called on ids that are ragged or "
                "sparse, which have no row for each example. Pad them to a "
                "dense tensor, and give padding the weight 0."
            )
        return outputs, rules.LayerCall(layer, self, ids, (found,))


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
