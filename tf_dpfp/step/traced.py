"""Trace of a forward and backward pass, for a proof to follow."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from keras import tree

from tf_dpfp import layers as layers_lib
from tf_dpfp import per_example


@dataclasses.dataclass(frozen=True)
class Traced:
    """Forward and backward pass of one micro-batch, in a graph.

    Attributes:
        graph: The graph.
        operations: The operations that the pass added to it.
        examples: Tensors of the micro-batch, one row for each example.
        losses: One loss per example.
        present: Boolean, `(batch,)`: true for examples that take part.
        representations: Representations that a layer releases with noise.
        gradients: What is clipped, one entry per variable.
        paths: Path of each variable.
        secret_handles: Handles of the variables that secret seeds come from.
        trackers: Variables of Keras's metrics of the loss of each output.
        metrics: Variables in which metrics keep what they saw of the data.
        piece: Number of the micro-batch.
        of_weights: Tensors made of weights alone, outside of the graph.
        in_pieces: True if a step takes one micro-batch after the other.
    """

    graph: tf.Graph
    operations: Sequence[tf.Operation]
    examples: Sequence[tf.Tensor]
    losses: tf.Tensor
    present: tf.Tensor
    representations: Sequence[layers_lib.Release]
    gradients: Sequence[per_example.PerExampleGradient | None]
    paths: Sequence[str]
    secret_handles: Sequence[tf.Tensor] = ()
    trackers: Sequence[tf.Variable] = ()
    metrics: Sequence[tf.Variable] = ()
    piece: tf.Tensor | int = 0
    of_weights: Sequence[tf.Tensor] = ()
    in_pieces: bool = False


def as_examples(data: Any) -> Any:
    """Gives a batch tensors of its own in the graph that is being traced.

    Arrays become tensors of the graph, which a proof can tell from constants;
    nothing that was computed of the batch before is taken for the batch. Its
    size is forgotten: a number could not be told from others that are equal by
    chance, and code that reads it would do other things for other sizes. XLA
    finds it again when it compiles.

    Args:
        data: A micro-batch, nested; leaves may be `None`.

    Returns:
        The same structure of tensors. Outside of a graph, `data` itself.
    """
    if tf.executing_eagerly():
        return data

    def own(leaf):
        if leaf is None:
            return None
        leaf = tf.convert_to_tensor(leaf)
        # Whoever made it may have said what is wrong, by `set_shape`.
        leaf = tf.ensure_shape(leaf, [None, *leaf.shape[1:]])
        return tf.raw_ops.PlaceholderWithDefault(
            input=leaf, shape=[None, *leaf.shape[1:]]
        )

    return tree.map_structure(own, data)


def count_operations() -> int:
    """Counts the operations of the graph that is being traced."""
    if tf.executing_eagerly():
        return 0
    return len(tf.compat.v1.get_default_graph().get_operations())
