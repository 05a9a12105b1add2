"""Arguments of a layer: which have a row for each example."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

# Given a layer and the tensors that it is called with, tells for each if it has
# a row for each example; `None` if that can't be told.
Finder = Callable[
    [keras.layers.Layer, Sequence[tf.Tensor]], Sequence[bool] | None
]


class _Current(threading.local):
    """Finder of the current thread."""

    finder: Finder | None = None


_CURRENT = _Current()


@contextlib.contextmanager
def found_by(finder: Finder | None) -> Iterator[None]:
    """Asks a finder for the arguments of the layers called inside.

    Args:
        finder: The finder; `None` goes by the sizes alone.
    """
    before, _CURRENT.finder = _CURRENT.finder, finder
    try:
        yield
    finally:
        _CURRENT.finder = before


def have_examples(
    layer: keras.layers.Layer, leaves: Sequence[Any], reference: tf.Tensor
) -> list[bool]:
    """Tells for each argument of a layer if its first axis is the batch.

    An axis as long as the batch need not be it: of a mask for sequences of 8
    positions, in a batch of 8.

    Args:
        layer: The layer.
        leaves: Its arguments, flat.
        reference: The one whose first axis is the batch.
    """
    alike = [
        tf.is_tensor(leaf)
        and bool(leaf.shape.rank)
        and leaf.shape[0] == reference.shape[0]
        for leaf in leaves
    ]
    if _CURRENT.finder is None or alike.count(True) < 2:
        return alike
    chosen = [
        leaf for leaf, is_alike in zip(leaves, alike, strict=True) if is_alike
    ]
    found = _CURRENT.finder(layer, chosen)
    if found is None:
        return alike
    remaining = iter(found)
    return [is_alike and next(remaining) for is_alike in alike]
