"""Vectors of texts from frozen public encoders, each text by itself.

They look at no private text but their own, so all that is spent is spent on
the model above them. What an encoder was trained on no guarantee covers.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from examples.trainers import feature_cache
from examples.trainers import minilm
from examples.trainers import mpnet

ENCODERS: Mapping[str, types.ModuleType] = {"minilm": minilm, "mpnet": mpnet}
_BLOCK = "transformer_layer_{}"
# As long as those of `hashed_words`.
_LENGTH = 10.0**0.5
_TOGETHER = 32
# Lengths are rounded up to multiples: as many shapes to trace.
_STEP = 8


def encode(
    texts: Sequence[str],
    encoder: str,
    levels: int = 4,
    sequence_length: int = 48,
    windows: int = 1,
) -> np.ndarray:
    """Runs a frozen encoder over texts, once; the vectors are kept for later.

    Args:
        texts: Texts.
        encoder: A key of `ENCODERS`.
        levels: Of how many blocks, from the top, the token means are laid side
            by side.
        sequence_length: Tokens of a window; what is longer is cut.
        windows: Number of windows that a long text is read in. Its vector is
            the mean of theirs. One window is what a text begins with.

    Returns:
        `float32` of shape `(n, levels, width)`.

    Raises:
        ValueError: If the encoder does not have so many levels.
        DatasetUnavailableError: If the encoder can't be had.
    """
    module = ENCODERS[encoder]
    backbone = module.backbone()
    if levels > backbone.num_layers:
        raise ValueError(
            f"--levels must be at most {backbone.num_layers}, the number of "
            f"blocks of {encoder}. Received: {levels}."
        )
    network = _levels_of(backbone, levels)
    tokens = _tokens(module, texts, sequence_length, windows)
    return feature_cache.features(
        f"{encoder}-{levels}",
        network,
        tokens,
        lambda inputs: _vectors(network, inputs),
    )


def scaled(vectors: np.ndarray, public: np.ndarray) -> np.ndarray:
    """Takes off what all texts have in common, and makes vectors of one length.

    The vectors of any two texts lie in nearly the same direction, which tells
    nothing about their classes and takes most of what is left by clipping. The
    mean of private vectors would have to be private; that of public ones is
    near to it.

    Args:
        vectors: Of texts, as `encode` returns them.
        public: Of texts that no guarantee has to cover.

    Returns:
        `float32` of shape `(n, levels * width)`. Each level has the same part
        in it.
    """
    middle = _unit(public).mean(axis=0)
    found = _unit(_unit(vectors) - middle) * (_LENGTH / vectors.shape[1] ** 0.5)
    return found.reshape(len(vectors), -1).astype("float32")


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-6)


def _levels_of(backbone: keras.Model, levels: int) -> keras.Model:
    """The encoder, from tokens to the token means of its last blocks."""
    count = backbone.num_layers
    means = [
        minilm.mean_over_tokens(
            backbone.get_layer(_BLOCK.format(number)).output,
            backbone.input["padding_mask"],
        )
        for number in range(count - levels, count)
    ]
    return keras.Model(backbone.input, ops.stack(means, axis=1))


def _tokens(
    module: types.ModuleType,
    texts: Sequence[str],
    sequence_length: int,
    windows: int,
) -> dict[str, np.ndarray]:
    """Tokens of shape `(n, windows, sequence_length)`."""
    parts = [_parts(text, sequence_length, windows) for text in texts]
    flat = [part or "" for several in parts for part in several]
    tokens = {
        name: value.reshape(len(texts), windows, sequence_length)
        for name, value in module.preprocess(flat, sequence_length).items()
    }
    there = np.array([[part is not None for part in some] for some in parts])
    tokens["padding_mask"] = (
        tokens["padding_mask"].astype("int32") * there[:, :, None]
    )
    return tokens


def _parts(text: str, sequence_length: int, windows: int) -> list[str | None]:
    """What the windows show of a text; `None` for those behind its end."""
    if windows == 1:
        return [text]
    # Three tokens for two words, about; what does not fit in is cut.
    step = max(1, 2 * sequence_length // 3)
    words = text.split()
    starts = range(0, windows * step, step)
    return [
        " ".join(words[start : start + step])
        if start < max(1, len(words))
        else None
        for start in starts
    ]


def _vectors(network: keras.Model, tokens: dict[str, np.ndarray]) -> np.ndarray:
    """The means over the windows of each text."""
    mask = tokens["padding_mask"]
    lengths = mask.sum(axis=2).reshape(-1)
    flat = {
        name: value.reshape(-1, value.shape[2])
        for name, value in tokens.items()
    }
    run = tf.function(network, reduce_retracing=True)
    # Shorter windows together: little is computed for padding.
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    vectors = np.zeros((len(lengths), *network.output.shape[1:]), "float32")
    for start in range(0, len(order), _TOGETHER):
        rows = order[start : start + _TOGETHER]
        longest = -(-lengths[rows].max() // _STEP) * _STEP
        vectors[rows] = run(
            {name: value[rows, :longest] for name, value in flat.items()}
        )
    seen = np.maximum((lengths > 0).reshape(mask.shape[:2]).sum(axis=1), 1)
    vectors = vectors.reshape(*mask.shape[:2], *vectors.shape[1:])
    return vectors.sum(axis=1) / seen[:, None, None]
