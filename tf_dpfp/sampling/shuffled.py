"""Shuffled batches of a fixed size, as `fit` makes them from arrays."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfp import arguments
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
    """Divides all examples into batches; nothing is proved of them.

    Args:
        x: Arrays, nested as in `poisson_batches`.
        y: Targets.
        sample_weight: Weights. Needs `y`.
        batch_size: Number of examples in a batch; the last may have fewer.
        shuffle: Boolean, whether to shuffle the examples before every
            iteration.

    Returns:
        A data set of batches, each example in one of them.

    Raises:
        ValueError: If the arrays differ in their number of examples, or an
            argument is outside its range.
        TypeError: If examples cannot be drawn from `x`.
    """
    batch_size = arguments.positive_integer("batch_size", batch_size)
    shuffle = arguments.boolean("shuffle", shuffle)
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
