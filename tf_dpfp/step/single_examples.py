"""Functions of one example, called on each example of a batch.

Vectorised; or in a loop where the function branches or loops itself, which is
slower and can be proved.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import tree

from tf_dpfp.keras_private import random as keras_random
from tf_dpfp.keras_private import vectorized
from tf_dpfp.per_example import looped

_CONTROL_FLOW = frozenset(
    """
    Case If StatelessCase StatelessIf StatelessWhile While
    """.split()
)

# Takes nested tensors of one example, a batch of one, and returns tensors.
Function = Callable[[Any], list[tf.Tensor]]


def mapped(function: Function, given: Any) -> list[tf.Tensor]:
    """Calls a function on each example.

    Args:
        function: Takes a batch of one, in the structure of `given`.
        given: Tensors with examples along the first axis, nested; other leaves
            are handed to each call as they are.

    Returns:
        What the function returns, examples along the first axis.
    """
    examples = [leaf for leaf in tree.flatten(given) if tf.is_tensor(leaf)]

    def of_one(leaves):
        if draws:
            seed, *leaves = leaves
            with keras_random.seeds_of_example(seed):
                return named(leaves)
        return named(leaves)

    def named(leaves):
        # A loss may have a name that can't be the first of a scope.
        with tf.name_scope("one"):
            return function(_packed(given, leaves))

    draws: list[None] = []
    with keras_random.counted_draws() as drawn:
        branches = _branches(of_one, examples)
    if drawn:
        # No example draws from the source, which counts.
        draws = drawn
        examples = [_seeds_of(examples), *examples]
    if branches:
        return looped.mapped(
            lambda _, leaves: of_one(leaves),
            weights=[],
            has_copies=False,
            examples=examples,
        )
    return vectorized.mapped(of_one, [_densely(t) for t in examples])


def _seeds_of(examples: list[tf.Tensor]) -> tf.Tensor:
    """Draws a seed for each example."""
    spread = tf.random.stateless_uniform(
        tf.stack([tf.shape(examples[0])[0], 2]),
        seed=keras_random.drawn_seed(),
        minval=0,
        maxval=2**31 - 1,
        dtype=tf.int32,
    )
    return tf.cast(spread, tf.int64)


def _densely(tensor: tf.Tensor) -> tf.Tensor:
    """Makes the gradient of a tensor dense.

    Vectorised, an example is looked up, and its gradient is a slice. Slices of
    several uses are joined end to end, where rows are examples no more.
    """
    if not tensor.dtype.is_floating:
        return tensor

    @tf.custom_gradient
    def dense(tensor):
        return tf.identity(tensor), tf.convert_to_tensor

    return dense(tensor)


def trace(function: Function, given: Any) -> tf.Graph:
    """Traces a function of one example, in a graph that never runs.

    Args:
        function: As for `mapped`.
        given: As for `mapped`.

    Returns:
        The graph.
    """
    examples = [leaf for leaf in tree.flatten(given) if tf.is_tensor(leaf)]
    return _trace(lambda leaves: function(_packed(given, leaves)), examples)


def _packed(given: Any, leaves: list[tf.Tensor]) -> Any:
    remaining = iter(leaves)
    return tree.map_structure(
        lambda leaf: next(remaining)[None] if tf.is_tensor(leaf) else leaf,
        given,
    )


def _trace(function, examples: list[tf.Tensor]) -> tf.Graph:
    specs = [tf.TensorSpec(t.shape[1:], t.dtype) for t in examples]
    traced = tf.function(function, autograph=False)
    return traced.get_concrete_function(specs).graph


def _branches(function, examples: list[tf.Tensor]) -> bool:
    """Tells if a function of one example branches or loops."""
    graph = _trace(function, examples)
    return any(op.type in _CONTROL_FLOW for op in graph.get_operations())
