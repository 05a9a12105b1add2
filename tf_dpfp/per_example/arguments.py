"""Arguments of a layer: which have a row for each example."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

# Given a layer, the tensors that it is called with, and for each whether its
# first axis is as long as the batch, tells for each if it is the batch.
Finder = Callable[
    [keras.layers.Layer, Sequence[tf.Tensor], list[bool]], list[bool]
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
    tensors = [
        leaf for leaf in leaves if tf.is_tensor(leaf) and leaf.shape.rank
    ]
    alike = [t.shape[0] == reference.shape[0] for t in tensors]
    if _CURRENT.finder is not None:
        alike = _CURRENT.finder(layer, tensors, alike)
    found = {id(t): has for t, has in zip(tensors, alike, strict=True)}
    return [found.get(id(leaf), False) for leaf in leaves]
