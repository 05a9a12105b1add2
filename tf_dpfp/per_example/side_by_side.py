"""Per-example gradients of a kernel of which each block has its own."""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.per_example import gradients


class SideBySide(gradients.PerExampleGradient):
    """Gradients of blocks of columns, beside each other.

    Args:
        parts: Per-example gradients of the blocks, from left to right.
    """

    def __init__(self, parts: Sequence[gradients.PerExampleGradient]):
        self.parts = tuple(parts)

    def squared_norms(self) -> tf.Tensor:
        return tf.add_n([part.squared_norms() for part in self.parts])

    def weighted_sum(self, factors: tf.Tensor) -> tf.Tensor:
        sums = [part.weighted_sum(factors) for part in self.parts]
        return tf.concat(sums, axis=-1)

    def materialize(self) -> tf.Tensor:
        return tf.concat([part.materialize() for part in self.parts], axis=-1)
