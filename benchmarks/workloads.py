"""The models that the benchmarks train, and made-up data for them.

The numbers that flow through a step do not change what it costs, so the data
are random; the shapes are those of real tasks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from benchmarks import rgp_tasks


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model and a batch for it.

    Attributes:
        name: Name on the command line.
        make_model: Returns a fresh, uncompiled model.
        make_batch: Returns `(x, y)` for a number of examples.
        batch_size: Examples of a step.
        length: Tokens of an example, `None` where there are none. If not, both
            functions take `length=`.
    """

    name: str
    make_model: Callable[..., keras.Model]
    make_batch: Callable[..., tuple[Any, np.ndarray]]
    batch_size: int
    length: int | None = None


def mlp() -> keras.Model:
    """784-1024-1024-10, 1.9 million weights."""
    return keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(1024, activation="relu"),
            keras.layers.Dense(1024, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def wide_mlp() -> keras.Model:
    """4096-4096-10: nearly all of it is one square matrix."""
    return keras.Sequential(
        [
            keras.Input((4096,)),
            keras.layers.Dense(4096, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def tutorial_cnn() -> keras.Model:
    """The convolutional network of TF-Privacy's MNIST tutorial."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(
                16, 8, strides=2, padding="same", activation="relu"
            ),
            keras.layers.MaxPool2D(2, 1),
            keras.layers.Conv2D(
                32, 4, strides=2, padding="valid", activation="relu"
            ),
            keras.layers.MaxPool2D(2, 1),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def transformer(
    num_layers: int = 4,
    width: int = 256,
    num_heads: int = 8,
    length: int = 128,
    vocabulary: int = 8000,
    num_classes: int = 10,
    dropout: float = 0.0,
) -> keras.Model:
    """A pre-norm transformer encoder with mean pooling."""
    tokens = keras.Input((length,), dtype="int32")
    positions = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
    x = keras.layers.Embedding(vocabulary, width)(tokens)
    x += keras.layers.Embedding(length, width)(positions)
    for _ in range(num_layers):
        h = keras.layers.LayerNormalization()(x)
        h = keras.layers.MultiHeadAttention(num_heads, width // num_heads)(h, h)
        x += keras.layers.Dropout(dropout)(h) if dropout else h
        h = keras.layers.LayerNormalization()(x)
        h = keras.layers.Dense(4 * width, activation="gelu")(h)
        h = keras.layers.Dense(width)(h)
        x += keras.layers.Dropout(dropout)(h) if dropout else h
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, keras.layers.Dense(num_classes)(x))


def small_transformer(length: int = 128) -> keras.Model:
    """Two layers of width 128, with dropout."""
    return transformer(2, 128, 4, length, dropout=0.1)


def frozen_transformer(length: int = 128) -> keras.Model:
    """The transformer with nothing but its last layer to train."""
    model = transformer(length=length)
    for layer in model.layers[:-1]:
        layer.trainable = False
    return model


def bert_base(length: int = 128) -> keras.Model:
    """A classifier on KerasHub's BERT of base size, 110 million weights.

    The backbone takes sequences of any length; random weights, dropout as in
    pretraining.
    """
    del length
    import keras_hub  # Only workloads of BERTs need it.

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=_BERT_VOCABULARY,
        num_layers=12,
        num_heads=12,
        hidden_dim=768,
        intermediate_dim=3072,
        max_sequence_length=512,
    )
    return keras_hub.models.BertTextClassifier(backbone, num_classes=10)


def _minilm_backbone() -> keras.Model:
    import keras_hub

    return keras_hub.models.BertBackbone(
        vocabulary_size=_BERT_VOCABULARY,
        num_layers=6,
        num_heads=12,
        hidden_dim=384,
        intermediate_dim=1536,
        max_sequence_length=512,
    )


def minilm(length: int = 128) -> keras.Model:
    """A classifier on a BERT of MiniLM's size, 22.7 million weights.

    Random weights, dropout as in pretraining; everything is trained.
    """
    del length
    import keras_hub

    return keras_hub.models.BertTextClassifier(
        _minilm_backbone(), num_classes=10
    )


def minilm_lora(length: int = 128) -> keras.Model:
    """The same with LoRA of rank 8 on queries and values."""
    del length
    import keras_hub

    backbone = _minilm_backbone()
    backbone.enable_lora(8)
    return keras_hub.models.BertTextClassifier(backbone, num_classes=10)


def _images(*shape: int):
    def make(count: int):
        rng = np.random.default_rng(0)
        x = rng.random((count, *shape), dtype=np.float32)
        return x, rng.integers(0, 10, count)

    return make


def _tokens(vocabulary: int):
    def make(count: int, length: int):
        rng = np.random.default_rng(0)
        x = rng.integers(0, vocabulary, (count, length)).astype(np.int32)
        return x, rng.integers(0, 10, count)

    return make


def _bert_batch(count: int, length: int):
    tokens, labels = _tokens(_BERT_VOCABULARY)(count, length)
    inputs = {
        "token_ids": tokens,
        "segment_ids": np.zeros_like(tokens),
        "padding_mask": np.ones_like(tokens),
    }
    return inputs, labels


def _text_block() -> keras.Model:
    return rgp_tasks.text_classifier(pretrained=False)


def _hidden_states(count: int):
    rng = np.random.default_rng(0)
    shape = (count, rgp_tasks.TOKENS, rgp_tasks.WIDTH)
    inputs = {
        "hidden": rng.normal(size=shape).astype(np.float32),
        "padding_mask": np.ones(shape[:2], np.int32),
    }
    return inputs, rng.integers(0, 2, count)


_BERT_VOCABULARY = 30522

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("transformer", transformer, _tokens(8000), 16, 128),
        Workload("dropout", small_transformer, _tokens(8000), 16, 128),
        Workload("frozen", frozen_transformer, _tokens(8000), 16, 128),
        Workload("mlp_256", mlp, _images(784), 256),
        Workload("mlp_2048", mlp, _images(784), 2048),
        Workload("wide_mlp", wide_mlp, _images(4096), 256),
        Workload("cnn_256", tutorial_cnn, _images(28, 28, 1), 256),
        Workload("cnn_2048", tutorial_cnn, _images(28, 28, 1), 2048),
        Workload("rgp_mlp", rgp_tasks.mlp, _images(28, 28, 1), 2048),
        Workload("rgp_text", _text_block, _hidden_states, 1000),
        Workload("bert_base", bert_base, _bert_batch, 8, 128),
        Workload("minilm", minilm, _bert_batch, 32, 128),
        Workload("minilm_lora", minilm_lora, _bert_batch, 32, 128),
    )
}
# Run only when asked for.
ASKED_FOR = ("bert_base", "minilm", "minilm_lora", "frozen", "dropout")
