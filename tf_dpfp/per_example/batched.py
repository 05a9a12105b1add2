"""Arguments of a layer that have the batch in them, and those that have not.

Sizes don't tell: positions `0 ... 31` look like a batch of 32. Whoever records
knows better, and is asked here.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from keras import tree

# Tells of a tensor whether its first axis may be the batch.
IsBatched = Callable[[tf.Tensor], bool]
# Why a layer with weights that is called on one graph may be refused.
OF_ONE_GRAPH = (
    "In a network over the nodes of one graph, the features of a node reach "
    "the predictions of its neighbours, so that no clipped gradient bounds its "
    "influence: give each example a graph of its own."
)


class _Answers(threading.local):
    """Answers for the arguments of the call that is being recorded."""

    known: dict[int, bool] | None = None
    ask: IsBatched | None = None


_ANSWERS = _Answers()


def is_batched(leaf: Any, reference: tf.Tensor | None = None) -> bool:
    """Tells whether an argument of the recorded call has the batch in it.

    Args:
        leaf: The argument.
        reference: Tensor of the batch; its size decides where nobody knows
            better.

    Returns:
        True for a tensor with one row for each example.
    """
    if not tf.is_tensor(leaf) or not leaf.shape.rank:
        return False
    if _ANSWERS.known is not None:
        return _ANSWERS.known.get(id(leaf), True)
    return reference is None or leaf.shape[0] == reference.shape[0]


@contextlib.contextmanager
def answered(
    known: dict[int, bool] | None, ask: IsBatched | None = None
) -> Iterator[None]:
    """Sets the answers for a call of a layer.

    Args:
        known: By the identity of each tensor; `None` if nobody knows.
        ask: Whom to ask of other tensors; `None` if nobody knows.
    """
    before = _ANSWERS.known, _ANSWERS.ask
    _ANSWERS.known, _ANSWERS.ask = known, ask
    try:
        yield
    finally:
        _ANSWERS.known, _ANSWERS.ask = before


def asking() -> IsBatched | None:
    """Returns whom to ask of tensors within the recorded call, if anyone."""
    return _ANSWERS.ask


def asked(
    is_batched: IsBatched | None, args: tuple, kwargs: dict
) -> dict[int, bool] | None:
    """Asks for every tensor among the arguments of a call."""
    if is_batched is None:
        return None
    return {
        id(leaf): bool(leaf.shape.rank != 0 and is_batched(leaf))
        for leaf in tree.flatten((args, kwargs))
        if tf.is_tensor(leaf)
    }


def spread(arguments: Any, batch_size: tf.Tensor | int) -> Any:
    """Gives arguments that are the same for all examples a row for each.

    Args:
        arguments: Tensors, nested. A first axis of size one becomes the
            batch; other tensors get the batch in front.
        batch_size: Number of examples.

    Returns:
        The same structure.
    """

    def of(leaf: Any) -> Any:
        if not tf.is_tensor(leaf):
            return leaf
        own = tf.shape(leaf)
        static = leaf.shape
        if static.rank and static.rank > 1 and static[0] == 1:
            own, static = own[1:], static[1:]
        wide = tf.broadcast_to(leaf, tf.concat([[batch_size], own], 0))
        known = batch_size if isinstance(batch_size, int) else None
        wide.set_shape([known, *static])
        return wide

    return tree.map_structure(of, arguments)
