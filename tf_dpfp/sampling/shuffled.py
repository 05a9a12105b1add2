"""Batches of a fixed size, as `fit` makes them of arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfp.sampling import batching
from tf_dpfp.sampling import sources


def shuffled_batches(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int,
    shuffle: bool = True,
) -> tf.data.Dataset:
    """Goes through all examples, batch by batch; nothing is proved of them.

    Args:
        x: arrays, nested as in `poisson_batches`.
        y: targets.
        sample_weight: weights. Needs `y`.
        batch_size: number of examples in a batch; the last may have fewer.
        shuffle: whether every iteration has an order of its own.

    Returns:
        A data set of batches, each example in one of them.

    Raises:
        ValueError: if the arrays do not fit each other.
        TypeError: if they are none.
    """
    source = sources.make_source(x, y, sample_weight)

    def draws() -> Iterator[np.ndarray]:
        order = np.arange(source.size)
        if shuffle:
            np.random.default_rng().shuffle(order)
        for first in range(0, source.size, batch_size):
            yield order[first : first + batch_size]

    batches = batching.batches(source, draws, None, None)
    count = -(-source.size // batch_size)
    return batches.apply(tf.data.experimental.assert_cardinality(count))
