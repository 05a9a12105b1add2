"""A tiny instance of every text model that KerasHub offers, and data for it.

`FAMILIES` names each backbone with a configuration of one layer and a handful
of units, and the tasks on top of it. A backbone without a task gets a mean
over positions and a `Dense` layer.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

LENGTH = 5
VOCABULARY = 13
CLASSES = 3

_PLAIN = {
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 6,
}
_ENCODER = {**_PLAIN, "dropout": 0.0, "max_sequence_length": LENGTH}
_GROUPED = {
    "num_layers": 1,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 8,
    "intermediate_dim": 6,
}
_EXPERTS = {"num_experts": 3, "top_k": 2}
_GATED_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_conv_kernel_dim": 2,
}


def _both_sides(**arguments) -> dict:
    """The arguments of an encoder and the same of a decoder."""
    return {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in arguments.items()
    }


_T5_GEMMA = {
    **_both_sides(
        hidden_dim=8,
        intermediate_dim=6,
        num_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        layer_types=["full_attention"],
    )
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A backbone and the tasks that are built on it.

    Attributes:
        backbone: Name of the class in `keras_hub.models`.
        config: Its arguments, but for the size of the vocabulary.
        tasks: Names of task classes.
        vocabulary: What the backbone calls the size of its vocabulary.
    """

    backbone: str
    config: Mapping[str, Any]
    tasks: tuple[str, ...] = ()
    vocabulary: str = "vocabulary_size"

    @property
    def models(self) -> tuple[str, ...]:
        """What the sweep trains: the tasks, or the backbone by itself."""
        return self.tasks or (self.backbone,)


FAMILIES = (
    Family(
        "AlbertBackbone",
        {**_ENCODER, "embedding_dim": 4, "num_inner_repetitions": 2},
        ("AlbertTextClassifier", "AlbertMaskedLM"),
    ),
    Family("BartBackbone", _ENCODER, ("BartSeq2SeqLM",)),
    Family("BertBackbone", _ENCODER, ("BertTextClassifier", "BertMaskedLM")),
    Family("BloomBackbone", _PLAIN, ("BloomCausalLM",)),
    Family(
        "DebertaV3Backbone",
        {**_ENCODER, "bucket_size": 4},
        ("DebertaV3TextClassifier", "DebertaV3MaskedLM"),
    ),
    Family(
        "DistilBertBackbone",
        _ENCODER,
        ("DistilBertTextClassifier", "DistilBertMaskedLM"),
    ),
    Family(
        "EdRecBackbone",
        {
            "num_layers_enc": 1,
            "num_layers_dec": 1,
            "hidden_dim": 8,
            "intermediate_dim": 6,
            "num_heads": 2,
        },
        ("EdRecSeq2SeqLM",),
        "vocab_size",
    ),
    Family(
        "ElectraBackbone",
        {**_ENCODER, "embedding_dim": 4},
        vocabulary="vocab_size",
    ),
    Family("ESMBackbone", _ENCODER, ("ESMProteinClassifier", "ESMMaskedPLM")),
    Family(
        "FNetBackbone",
        {k: v for k, v in _ENCODER.items() if k != "num_heads"},
        ("FNetTextClassifier", "FNetMaskedLM"),
    ),
    Family(
        "FalconBackbone",
        {
            "num_layers": 1,
            "num_attention_heads": 2,
            "hidden_dim": 8,
            "intermediate_dim": 6,
        },
        ("FalconCausalLM",),
    ),
    Family("GPT2Backbone", _ENCODER, ("GPT2CausalLM",)),
    Family(
        "GPTNeoXBackbone",
        {**_PLAIN, "rotary_percentage": 0.5},
        ("GPTNeoXCausalLM",),
    ),
    Family(
        "GemmaBackbone",
        {**_GROUPED, "head_dim": 4, "final_logit_soft_cap": 3.0},
        ("GemmaCausalLM",),
    ),
    Family(
        "Gemma3Backbone",
        {**_GROUPED, "head_dim": 4, "image_size": 8},
        ("Gemma3CausalLM",),
    ),
    Family(
        "Gemma3nBackbone",
        {
            "text_hidden_size": 8,
            "num_hidden_layers": 1,
            "pad_token_id": 0,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "intermediate_size": [6],
            "hidden_activation": "gelu_approximate",
            "layer_types": ["full_attention"],
            "sliding_window": 4,
            "rope_theta": 10000.0,
            "max_position_embeddings": 16,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 2,
            "altup_num_inputs": 2,
            "laurel_rank": 1,
        },
        ("Gemma3nCausalLM",),
        "text_vocab_size",
    ),
    Family(
        "Gemma4Backbone",
        {**_GROUPED, "head_dim": 4, "image_size": 8},
        ("Gemma4CausalLM",),
    ),
    Family("GptOssBackbone", {**_GROUPED, **_EXPERTS}, ("GptOssCausalLM",)),
    Family(
        "LlamaBackbone",
        {**_GROUPED, "tie_word_embeddings": True},
        ("LlamaCausalLM",),
    ),
    Family("Llama3Backbone", _GROUPED, ("Llama3CausalLM",)),
    Family("MistralBackbone", _GROUPED, ("MistralCausalLM",)),
    Family("MixtralBackbone", {**_GROUPED, **_EXPERTS}, ("MixtralCausalLM",)),
    Family("OPTBackbone", _ENCODER, ("OPTCausalLM",)),
    Family("Phi3Backbone", _GROUPED, ("Phi3CausalLM",)),
    Family("Qwen2Backbone", _GROUPED, ("Qwen2CausalLM",)),
    Family("Qwen3Backbone", {**_GROUPED, "head_dim": 4}, ("Qwen3CausalLM",)),
    Family(
        "Qwen3MoeBackbone",
        {**_GROUPED, **_EXPERTS, "head_dim": 4, "moe_intermediate_dim": 4},
        ("Qwen3MoeCausalLM",),
    ),
    Family(
        "Qwen3_5Backbone",
        {**_GROUPED, **_GATED_DELTA, "num_layers": 2, "head_dim": 8},
        ("Qwen3_5CausalLM",),
    ),
    Family(
        "Qwen3_5MoeBackbone",
        {
            **{k: v for k, v in _GROUPED.items() if k != "intermediate_dim"},
            **_EXPERTS,
            **_GATED_DELTA,
            "num_layers": 2,
            "head_dim": 8,
            "moe_intermediate_dim": 4,
            "shared_expert_intermediate_size": 4,
        },
        ("Qwen3_5MoeCausalLM",),
    ),
    Family(
        "QwenMoeBackbone",
        {
            **_GROUPED,
            **_EXPERTS,
            "moe_intermediate_dim": 4,
            "shared_expert_intermediate_dim": 4,
        },
        ("QwenMoeCausalLM",),
    ),
    Family(
        "RWKV7Backbone",
        {
            "hidden_size": 8,
            "head_size": 4,
            "num_layers": 1,
            "intermediate_dim": 6,
            "gate_lora": 2,
            "mv_lora": 2,
            "aaa_lora": 2,
            "decay_lora": 2,
        },
        ("RWKV7CausalLM",),
    ),
    Family(
        "RobertaBackbone",
        _ENCODER,
        ("RobertaTextClassifier", "RobertaMaskedLM"),
    ),
    Family(
        "RoformerV2Backbone",
        {**_PLAIN, "dropout": 0.0, "head_size": 4},
        ("RoformerV2TextClassifier", "RoformerV2MaskedLM"),
    ),
    Family(
        "SmolLM3Backbone",
        {
            "hidden_dim": 8,
            "intermediate_dim": 6,
            "num_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "attention_dropout": 0.0,
            "rope_layer_enabled_list": [True],
            "layer_types": ["attention"],
            "mlp_bias": True,
            "layer_norm_epsilon": 1e-5,
            "max_position_embeddings": LENGTH,
            "rope_theta": 1e4,
            "partial_rotary_factor": 1.0,
        },
        ("SmolLM3CausalLM",),
    ),
    Family("T5Backbone", {**_PLAIN, "dropout": 0.0}, ("T5Seq2SeqLM",)),
    Family("T5GemmaBackbone", _T5_GEMMA, ("T5GemmaSeq2SeqLM",)),
    Family("T5Gemma2Backbone", _T5_GEMMA, ("T5Gemma2Seq2SeqLM",)),
    Family(
        "XLMRobertaBackbone",
        _ENCODER,
        ("XLMRobertaTextClassifier", "XLMRobertaMaskedLM"),
    ),
    Family("XLNetBackbone", _PLAIN),
)

MODELS = {name: family for family in FAMILIES for name in family.models}


def build(name: str) -> keras.Model:
    """Builds a tiny model with weights that hide nothing.

    Args:
        name: A key of `MODELS`.

    Returns:
        A functional model; what keras_hub initialises with zeros or ones is
        moved away from it.
    """
    import keras_hub

    family = MODELS[name]
    keras.utils.set_random_seed(0)
    backbone = getattr(keras_hub.models, family.backbone)(
        **{family.vocabulary: VOCABULARY}, **family.config
    )
    if name == family.backbone:
        model = _with_head(backbone)
    else:
        model = _task(getattr(keras_hub.models, name), backbone)
    for index, v in enumerate(model.trainable_variables):
        v.assign_add(keras.random.normal(v.shape, stddev=0.2, seed=index))
    return model


def _task(task: type, backbone: keras.Model) -> keras.Model:
    takes = inspect.signature(task.__init__).parameters
    arguments = {"num_classes": CLASSES, "dropout": 0.0, "preprocessor": None}
    return task(
        backbone=backbone,
        **{k: v for k, v in arguments.items() if k in takes},
    )


def _with_head(backbone: keras.Model) -> keras.Model:
    output = backbone.output
    if isinstance(output, dict):
        output = output.get("sequence_output", list(output.values())[-1])
    pooled = ops.mean(output, axis=1)
    return keras.Model(
        backbone.input, keras.layers.Dense(CLASSES, name="logits")(pooled)
    )


def data(model: keras.Model, examples: int, lengths=None) -> tuple:
    """Made-up inputs of a model: lengths differ, one sentence is of a token.

    Args:
        model: What `build` returned.
        examples: How many.
        lengths: The length of each; `None` to draw them.

    Returns:
        Inputs, labels and weights of the labels (`None` for classifiers).
    """
    rng = np.random.default_rng(3)
    if lengths is None:
        lengths = rng.integers(2, LENGTH + 1, examples)
        lengths[:2] = 1, LENGTH
    mask = np.arange(LENGTH) < lengths[:, None]
    # Few of the ids, so that they repeat within a sentence.
    tokens = np.where(mask, rng.integers(1, 5, mask.shape), 0)
    makers = {
        "segment_ids": lambda: rng.integers(0, 2, mask.shape),
        "mask_positions": lambda: np.stack(
            [np.zeros(examples), np.maximum(lengths - 1, 0)], axis=1
        ),
    }
    inputs = {}
    for name in model.input if isinstance(model.input, dict) else ():
        if name in makers:
            inputs[name] = makers[name]().astype("int32")
        elif name.endswith("padding_mask"):
            inputs[name] = mask.astype("int32")
        else:
            inputs[name] = tokens.astype("int32")
    shape = model.output.shape
    weights = None
    if len(shape) == 3:
        targets = 2 if "mask_positions" in inputs else LENGTH
        weights = mask[:, :targets].astype("float32")
        labels = rng.integers(0, shape[-1], (examples, targets))
    else:
        labels = rng.integers(0, shape[-1], examples)
    return inputs or tokens.astype("int32"), labels, weights
