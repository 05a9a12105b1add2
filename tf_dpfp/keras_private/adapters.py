"""Batches of what `fit` takes beside arrays and data sets, as Keras reads them.

A `keras.utils.PyDataset` may have threads or processes of its own, and the
shapes of a generator's batches show in the batches alone. Keras's adapters know
both; the tests beside this file fail when Keras changes them.
"""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers import data_adapters


def batches_of(x: Any, shuffle: bool = False) -> tf.data.Dataset:
    """Makes a data set of the batches of a `PyDataset` or a generator.

    Reads two batches for their shapes. Those of a generator are still in the
    data set, which goes through it once.

    Args:
        x: The `PyDataset` or the generator.
        shuffle: Boolean, whether to shuffle the batches of a finite
            `PyDataset` before every pass over it.

    Returns:
        A data set, of a cardinality that is known if `x` tells its length.

    Raises:
        ValueError: If it is neither of both, or has no batch.
    """
    if not isinstance(x, keras.utils.PyDataset):
        adapter = data_adapters.get_data_adapter(x)
        # Keras would go through the batches that it read once more.
        once = adapter.generator()
        adapter.generator = lambda: once
        return _without_empty(adapter.get_tf_dataset())
    adapter = data_adapters.get_data_adapter(
        x, shuffle=shuffle and x.num_batches is not None
    )
    read = adapter._get_iterator

    def one_pass() -> Iterator[Any]:
        x.on_epoch_begin()
        yield from read()
        x.on_epoch_end()

    adapter._get_iterator = one_pass
    batches = adapter.get_tf_dataset()
    if x.num_batches is None:
        return batches
    return batches.apply(tf.data.experimental.assert_cardinality(x.num_batches))


def _without_empty(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Leaves out what is `None` at the end of a batch, as in `(x, y, None)`."""
    spec = batches.element_spec
    if not isinstance(spec, tuple):
        return batches
    count = len(spec)
    while count > 1 and isinstance(spec[count - 1], tf.OptionalSpec):
        count -= 1
    if count == len(spec):
        return batches
    return batches.map(
        tf.autograph.experimental.do_not_convert(lambda *batch: batch[:count])
    )
