"""Prints how long the proof of a step takes for models of KerasHub.

python -m benchmarks.proof_hub

Twelve layers (blocks, for images), narrow ones: a proof follows operations,
however wide they are. Every model gets a mean over positions and a `Dense`
layer. BatchNormalization is frozen, its statistics with it.
"""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np
from absl import app
from absl import logging

from benchmarks import proof_models

_DEPTH = 12
_LENGTH = 16
_IMAGE = (64, 64, 3)
_ENCODER = {
    "vocabulary_size": 50,
    "num_layers": _DEPTH,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}
_GROUPED = {
    "vocabulary_size": 50,
    "num_layers": _DEPTH,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}


def _backbone(name: str, **config) -> Callable[[], keras.Model]:
    def build():
        return getattr(keras_hub.models, name)(**config)

    return build


def _resnet():
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 32, 64, 128],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=_IMAGE,
    )


def _efficientnet():
    return keras_hub.models.EfficientNetBackbone(
        stackwise_width_coefficients=[0.25] * 7,
        stackwise_depth_coefficients=[1.0] * 7,
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=[1, 2, 2, 3, 3, 4, 1],
        stackwise_input_filters=[32, 16, 24, 40, 80, 112, 192],
        stackwise_output_filters=[16, 24, 40, 80, 112, 192, 320],
        stackwise_expansion_ratios=[1, 6, 6, 6, 6, 6, 6],
        stackwise_squeeze_and_excite_ratios=[0.25] * 7,
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
        stackwise_block_types=["v1"] * 7,
        input_shape=_IMAGE,
        dropout=0.2,
    )


_PATCHES = {
    "image_shape": _IMAGE,
    "patch_size": 16,
    "num_layers": _DEPTH,
    "num_heads": 2,
    "hidden_dim": 16,
}


MODELS = {
    "BERT": _backbone("BertBackbone", **_ENCODER),
    "DistilBERT": _backbone("DistilBertBackbone", **_ENCODER),
    "RoBERTa": _backbone("RobertaBackbone", **_ENCODER),
    "DeBERTa": _backbone("DebertaV3Backbone", **_ENCODER, bucket_size=8),
    "ALBERT": _backbone(
        "AlbertBackbone",
        **_ENCODER | {"num_layers": 1, "num_inner_repetitions": _DEPTH},
        embedding_dim=8,
    ),
    "GPT-2": _backbone("GPT2Backbone", **_ENCODER),
    "OPT": _backbone("OPTBackbone", **_ENCODER),
    "Gemma": _backbone("GemmaBackbone", **_GROUPED, head_dim=8),
    "Llama": _backbone("LlamaBackbone", **_GROUPED),
    "Mistral": _backbone("MistralBackbone", **_GROUPED),
    "T5": _backbone("T5Backbone", **_ENCODER),
    "BART": _backbone("BartBackbone", **_ENCODER),
    "Whisper": _backbone(
        "WhisperBackbone",
        **_ENCODER,
        num_mels=8,
        max_encoder_sequence_length=_LENGTH,
        max_decoder_sequence_length=_LENGTH,
    ),
    "ViT": _backbone("ViTBackbone", **_PATCHES, mlp_dim=32),
    "DeiT": _backbone("DeiTBackbone", **_PATCHES, intermediate_dim=32),
    "DINOv2": _backbone("DINOV2Backbone", **_PATCHES, intermediate_dim=32),
    "CLIP, images": _backbone(
        "CLIPVisionEncoder", **_PATCHES, intermediate_dim=32
    ),
    "SigLIP, images": _backbone(
        "SigLIPVisionEncoder", **_PATCHES, intermediate_dim=32
    ),
    "ResNet-50, frozen statistics": _resnet,
    "EfficientNet-B0, frozen statistics": _efficientnet,
}


def classifier(backbone: keras.Model) -> keras.Model:
    """Puts a mean and a `Dense` layer on a backbone."""
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    output = backbone.output
    if isinstance(output, dict):
        # Of encoders and decoders, and of BERT, whatever has positions.
        names = ("decoder_sequence_output", "sequence_output")
        output = next(output[n] for n in names if n in output)
    axes = tuple(range(1, len(output.shape) - 1))
    pooled = keras.ops.mean(output, axis=axes)
    return keras.Model(backbone.inputs, keras.layers.Dense(3)(pooled))


def batch(model: keras.Model, size: int = 4) -> tuple[Any, np.ndarray]:
    """Makes up a batch of inputs and labels."""
    rng = np.random.default_rng(0)

    def values(tensor):
        shape = [size, *(n or _LENGTH for n in tensor.shape[1:])]
        if "int" not in tensor.dtype:
            return rng.uniform(size=shape).astype("float32")
        most = 2 if "mask" in tensor.name or "segment" in tensor.name else 50
        return rng.integers(0, most, shape).astype("int32")

    x = {t.name: values(t) for t in model.inputs}
    if len(x) == 1:
        (x,) = x.values()  # Of an image, under whatever name.
    return x, rng.integers(0, 3, size)


def row(name: str, build: Callable[[], keras.Model]) -> str:
    """Proves a private step, and returns a row of the table."""
    model = classifier(build())
    x, y = batch(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    traced = proof_models.trace_step(model, loss, (x, y))
    proof = traced.proof
    return (
        f"| {name} | {proof.operations} | {traced.seconds:.1f} "
        f"| {proof.seconds:.2f} | {proof.seconds / traced.seconds:.3f} "
        f"| {traced.verdict} |"
    )


def main(argv):
    del argv
    logging.set_verbosity(logging.ERROR)
    warnings.simplefilter("ignore")
    print("| Model | Operations | Tracing, s | Proof, s | Share | Verdict |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for name, build in MODELS.items():
        print(row(name, build), flush=True)


if __name__ == "__main__":
    app.run(main)
