"""Origin of a data set, beyond the public API of TensorFlow."""

from collections.abc import Sequence

import tensorflow as tf


def made_of(dataset: tf.data.Dataset) -> Sequence[tf.data.Dataset]:
    """Returns the data sets that one was directly made of."""
    return dataset._inputs()
