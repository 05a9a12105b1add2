"""Gradient rules of layers that KerasHub defines for its models.

Found by name: KerasHub need not be installed, and is not imported here. Most
of its layers are made of Keras layers and need no rule.
"""

import keras
import tensorflow as tf

from tf_dpfp.per_example import dense
from tf_dpfp.per_example import generic
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import rules
from tf_dpfp.per_example import scale

_PACKAGE = "keras_hub"

# Each model brings a norm of its own: another place for a cast, `1 + scale`.
_SCALED_NORMS = (
    "EdRecRMSNormalization",
    "Gemma3nRMSNorm",
    "GptOssLayerNormalization",
    "LlamaLayerNorm",
    "MistralLayerNormalization",
    "MixtralLayerNormalization",
    "Phi3LayerNorm",
    "Qwen3LayerNorm",
    "Qwen3MoeLayerNorm",
    "Qwen3_5LayerNorm",
    "QwenLayerNorm",
    "QwenMoeLayerNorm",
    "RMSNormalization",
    "RoformerNorm",
    "T5LayerNorm",
)

# They call the layers they hold with the tokens of all examples in the first
# axis: only as a whole do they keep examples apart.
_WHOLE_LAYERS = (
    "GptOssTransformerDecoder",
    "MixtralSparseMoeBlock",
    "Qwen3SparseMoeBlock",
    "Qwen3_5MoeSparseMoeBlock",
    "QwenSparseMoeBlock",
)

for _name in _SCALED_NORMS:
    rules.register_by_name(_PACKAGE, _name)(scale.BroadcastRule)
for _name in _WHOLE_LAYERS:
    rules.register_by_name(_PACKAGE, _name)(generic.GenericRule)


@rules.register_by_name(_PACKAGE, "MaskedLMHead")
class MaskedLMHeadRule(rules.GradientRule):
    """A bias per word; everything else is in layers with rules of their own.

    The projection onto the words is the token embedding, in reverse.
    """

    holds_units = True

    def supports(self, layer):
        return layer.token_embedding is not None

    def record(self, layer, call, args, kwargs):
        # A position past the end would land in another example.
        last = keras.ops.shape(rules.first(args, kwargs))[1] - 1
        if "mask_positions" in kwargs:
            positions = keras.ops.clip(kwargs["mask_positions"], 0, last)
            kwargs = {**kwargs, "mask_positions": positions}
        else:
            inputs, positions, *others = args
            args = inputs, keras.ops.clip(positions, 0, last), *others
        return rules.record_before_activation(self, layer, call, args, kwargs)

    def gradients(self, call, output_gradients):
        (gradient,) = output_gradients
        bias = gradients.PerExampleTensor(dense.sum_positions(gradient))
        return [(call.layer._bias, bias)]


@rules.register_by_name(_PACKAGE, "ViTPatchingAndEmbedding")
class ClassTokenRule(rules.GradientRule):
    """A vector in front of the patches, the same for all examples.

    Patches and positions are in layers with rules of their own.
    """

    holds_units = True

    def supports(self, layer):
        return bool(layer.use_class_token)

    def gradients(self, call, output_gradients):
        (gradient,) = output_gradients
        token = call.layer.class_token
        first = tf.reshape(gradient[:, 0], [-1, *token.shape])
        return [(token, gradients.PerExampleTensor(first))]
