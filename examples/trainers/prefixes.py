"""A prefix of learned vectors in front of the tokens of a text."""

from __future__ import annotations

import keras
from keras import ops


class Prefix(keras.layers.Layer):
    """Puts learned vectors in front of the states of a text's tokens.

    The blocks above look at them as at tokens; nothing of the encoder itself
    is trained.

    Args:
        length: Number of vectors.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, tokens, features)`.

    Output shape:
        `(batch, length + tokens, features)`.

    Reference:
        Li and Liang, Prefix-Tuning, ACL 2021, arXiv 2101.00190, and Lester et
        al., 2021, arXiv 2104.08691: here between two blocks, at one level.
    """

    def __init__(self, length: int, **kwargs):
        super().__init__(**kwargs)
        self.length = length

    def build(self, input_shape):
        self.vectors = self.add_weight(
            name="vectors",
            shape=(self.length, input_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=0.1),
        )

    def call(self, states):
        vectors = ops.broadcast_to(
            self.vectors, (ops.shape(states)[0], *self.vectors.shape)
        )
        return ops.concatenate([vectors, states], axis=1)

    def compute_output_shape(self, input_shape):
        batch, tokens, features = input_shape
        total = None if tokens is None else tokens + self.length
        return (batch, total, features)

    def padded(self, padding_mask):
        """The mask of the output: no vector of the prefix is padding."""
        return ops.pad(padding_mask, ((0, 0), (self.length, 0)), "constant", 1)

    def get_config(self):
        return {**super().get_config(), "length": self.length}
