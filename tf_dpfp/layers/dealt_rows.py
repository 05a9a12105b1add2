"""Rows that one replica of several releases: its piece of a batch.

A replica can't tell its own piece of a batch from a whole batch that a loop
hands to every replica, so whoever deals batches says so. Each replica noises
its rows by itself, from a stream of its own, and the step counts once, as the
batch of all of them.
"""

import contextlib
import threading
from collections.abc import Iterator

import tensorflow as tf

from tf_dpfp.distribute import replicas


class _Thread(threading.local):
    """What this thread is told: replicas are threads."""

    is_dealt: bool = False


_THREAD = _Thread()


@contextlib.contextmanager
def dealt() -> Iterator[None]:
    """Says that the batch of this replica is its piece, in this thread."""
    before, _THREAD.is_dealt = _THREAD.is_dealt, True
    try:
        yield
    finally:
        _THREAD.is_dealt = before


def check_dealt(name: str) -> None:
    """Refuses to release rows that may be on several replicas.

    Args:
        name: Name of the layer.

    Raises:
        ValueError: If there are several, and nobody dealt.
    """
    count = replicas.count()
    if count > 1 and not _THREAD.is_dealt:
        raise ValueError(
            f"DPRepresentationClip '{name}' trains on one replica, or in steps "
            "that deal a batch to several, each example to one: `fit` and "
            "`train_on_batch` of a private model. Received a strategy of "
            f"{count}."
        )


def number() -> tf.Tensor | int:
    """Returns the number of this replica, part of the key of its noise."""
    return replicas.index() if replicas.count() > 1 else 0


def total(size: tf.Tensor | int) -> tf.Tensor | int:
    """Adds up numbers of rows over all replicas.

    They leave the replica as they are: where examples are replaced, the number
    of rows is no secret.

    Args:
        size: The number of rows of this replica.

    Returns:
        The number of rows of all; `size` itself on one.
    """
    if replicas.count() == 1:
        return size
    (found,) = replicas.sum_over_all([tf.cast(size, tf.int64)])
    return found
