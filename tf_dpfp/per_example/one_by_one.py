"""Calls of a layer on one example after the other.

A loop whose rounds see one example each (`looped`): what an example gives can't
depend on the others, whatever the layer computes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.per_example import generic
from tf_dpfp.per_example import looped


@dataclasses.dataclass(frozen=True)
class OneByOne:
    """A layer that is called on batches of one.

    Attributes:
        layer: The layer.
        weights: Its weights that are handed in as tensors.
    """

    layer: keras.layers.Layer
    weights: tuple[keras.Variable, ...]

    def __call__(
        self,
        args: tuple,
        kwargs: dict,
        values: Sequence[tf.Tensor],
        has_copies: bool,
    ) -> tuple[Any, tf.Tensor | None]:
        """Calls the layer.

        Args:
            args: Positional arguments. All tensors have the batch as their
                first axis.
            kwargs: Keyword arguments, likewise.
            values: Values of `weights`.
            has_copies: True if `values` are one for each example.

        Returns:
            What the layer returns, for the whole batch, and what it added to
            the loss of each example, or `None`.
        """
        flat = tree.flatten((args, kwargs))
        is_tensor = [tf.is_tensor(leaf) for leaf in flat]
        tensors = [t for t, known in zip(flat, is_tensor, strict=True) if known]
        batch_size = _batch_size(self.layer, tensors)
        others = [v for v in self.layer.variables if not v.trainable]
        seeded = [v for v in others if keras_layers.is_seed_variable(v)]
        statistics = [v for v in others if not keras_layers.is_seed_variable(v)]
        seeds = [generic.example_seeds(v, batch_size) for v in seeded]
        structure: list[Any] = []

        def call(weights, example):
            leaves = iter(example[len(seeds) :])
            merged = [
                next(leaves)[None] if known else leaf
                for leaf, known in zip(flat, is_tensor, strict=True)
            ]
            one_args, one_kwargs = tree.pack_sequence_as((args, kwargs), merged)
            mapping = list(zip(self.weights, weights, strict=True))
            mapping += zip(seeded, example[: len(seeds)], strict=True)
            with (
                keras_layers.losses_apart(self.layer),
                keras.StatelessScope(
                    state_mapping=mapping, collect_losses=True
                ) as scope,
            ):
                outputs = self.layer(*one_args, **one_kwargs)
            generic.refuse_statistics(self.layer, statistics, scope)
            structure.append(outputs)
            return generic.added_losses(scope) + [
                tf.squeeze(t, 0) for t in tree.flatten(outputs) if t is not None
            ]

        found = looped.mapped(
            call, list(values), has_copies, seeds + tensors, others
        )
        return generic.apart(found, structure[0])


def _batch_size(layer: keras.layers.Layer, tensors: Sequence[tf.Tensor]):
    """Returns the number of examples; checks what is known of it."""
    if not tensors:
        raise ValueError(
            f"Layer '{layer.name}' is called without a tensor: there is no "
            "batch of examples to call it on one by one."
        )
    shapes = [t.shape for t in tensors]
    known = {s[0] for s in shapes if s.rank and s[0] is not None}
    if any(s.rank == 0 for s in shapes) or len(known) > 1:
        raise ValueError(
            f"Layer '{layer.name}' is called on one example after the other: "
            "the first axis of every tensor it is given must be the batch. "
            f"Received: shapes {[tuple(s) for s in shapes]}. Give it what is "
            "the same for all examples in its constructor."
        )
    return tf.shape(tensors[0])[0]
