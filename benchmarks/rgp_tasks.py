"""The tasks of `benchmarks.rgp_table`: data, a network, settings.

Two image classifiers that start from random weights, and a text classifier
that starts from pretrained ones: the top block of MiniLM with a new head, on
sentences of movie reviews. What is below the top block is public and stays as
it is, so its outputs are computed once for every sentence and are the data.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from examples.trainers import datasets
from examples.trainers import minilm
from examples.trainers import models
from examples.trainers import text_datasets

Arrays = tuple[Any, np.ndarray]

# Of the layer that is trained as it is, as in the authors' experiments.
HEAD = "logits"
TOKENS = 32
WIDTH = 384
_HEADS = 12
_NORM_EPSILON = 1e-12
BLOCKS = 6
_PREDICTION_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained, on what, for how long.

    Attributes:
        load: Returns `((x, y), (x_test, y_test))`.
        make_model: Returns a fresh classifier whose last layer is called
            `HEAD`.
        batch_size: Expected number of examples of a step.
        epochs: Passes over the data, as expected.
        learning_rate: Of Adam, for flat and per-layer clipping.
        rgp_learning_rate: Of Adam, for low-rank carriers.
    """

    load: Callable[[], tuple[Arrays, Arrays]]
    make_model: Callable[[], keras.Model]
    batch_size: int
    epochs: int
    learning_rate: float
    rgp_learning_rate: float


def load_images() -> tuple[Arrays, Arrays]:
    """Fashion-MNIST, centred."""
    (x, y), (x_test, y_test) = datasets.load("fashion_mnist")
    # By constants: the mean of the data would have to be private.
    return (2.0 * x - 1.0, y), (2.0 * x_test - 1.0, y_test)


def mlp() -> keras.Model:
    """784-512-512-10, 0.7 million weights."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(512, activation="tanh"),
            layers.Dense(512, activation="tanh"),
            layers.Dense(10, name=HEAD),
        ]
    )


def cnn() -> keras.Model:
    """The CNN of `examples.trainers.models`."""
    return models.build("cnn", (28, 28, 1), 10).classifier


def load_text() -> tuple[Arrays, Arrays]:
    """Movie-review sentences, as what goes into the top block of MiniLM."""
    train, test = text_datasets.load_movie_reviews()
    below = below_top()
    return tuple(
        (hidden_states(texts, below), labels) for texts, labels in (train, test)
    )


def below_top() -> keras.Model:
    """MiniLM without its top block, from tokens to hidden states."""
    encoder = minilm.backbone()
    return keras.Model(encoder.input, _block(encoder, BLOCKS - 2).output)


def hidden_states(texts: np.ndarray, below: keras.Model) -> dict:
    """Runs the frozen blocks over sentences.

    Args:
        texts: Sentences.
        below: What `below_top` returned.

    Returns:
        `hidden`, half-precision array of shape `(n, tokens, width)`, and
        `padding_mask`, of shape `(n, tokens)`.
    """
    tokens = minilm.preprocess(texts, TOKENS)
    hidden = below.predict(tokens, batch_size=_PREDICTION_BATCH, verbose=0)
    return {
        "hidden": hidden.astype("float16"),
        "padding_mask": np.asarray(tokens["padding_mask"], "int32"),
    }


def text_classifier(pretrained: bool = True) -> keras.Model:
    """The top block of MiniLM at a sentence's first token, and a new head.

    Queries are made of the first token alone, whose output is that of the
    whole block: nothing else of it would be used.

    Args:
        pretrained: Whether to load the block's weights.

    Returns:
        A model from what `hidden_states` returns to two logits.
    """
    hidden = keras.Input((TOKENS, WIDTH), name="hidden")
    mask = keras.Input((TOKENS,), dtype="int32", name="padding_mask")
    first = hidden[:, :1]
    # As in MiniLM, but without dropout.
    attention = layers.MultiHeadAttention(_HEADS, WIDTH // _HEADS)
    attended = attention(
        first, hidden, attention_mask=keras.ops.cast(mask[:, None], "bool")
    )
    norm = layers.LayerNormalization(epsilon=_NORM_EPSILON)
    between = norm(layers.Add()([first, attended]))
    wide = layers.Dense(4 * WIDTH, activation=_gelu)
    narrow = layers.Dense(WIDTH)
    last_norm = layers.LayerNormalization(epsilon=_NORM_EPSILON)
    output = last_norm(layers.Add()([between, narrow(wide(between))]))
    logits = layers.Dense(2, name=HEAD)(layers.Flatten()(output))
    model = keras.Model({"hidden": hidden, "padding_mask": mask}, logits)
    if pretrained:
        top = _block(minilm.backbone(), BLOCKS - 1)
        parts = (attention, norm, wide, narrow, last_norm)
        sources = (
            top._self_attention_layer,
            top._self_attention_layer_norm,
            top._feedforward_intermediate_dense,
            top._feedforward_output_dense,
            top._feedforward_layer_norm,
        )
        for part, source in zip(parts, sources, strict=True):
            part.set_weights(source.get_weights())
    return model


def _gelu(x):
    return keras.activations.gelu(x, approximate=True)


def freeze_all_but_kernels(model: keras.Model) -> None:
    """Freezes the biases and scales of all layers but the last."""
    head = model.layers[-1]
    of_head = {id(v) for v in head.trainable_variables}
    for variable in model.trainable_variables:
        if id(variable) not in of_head and variable.name != "kernel":
            variable.trainable = False


def _block(encoder: keras.Model, number: int) -> keras.layers.Layer:
    return encoder.get_layer(f"transformer_layer_{number}")


TASKS = {
    "mlp": Task(load_images, mlp, 2048, 6, 1e-2, 3e-3),
    "cnn": Task(load_images, cnn, 2048, 6, 1e-2, 1e-2),
    "text": Task(load_text, text_classifier, 1000, 8, 1e-2, 1e-2),
}
