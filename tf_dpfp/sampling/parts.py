"""Batches that say from which part of the data they were drawn."""

from typing import Any, NamedTuple

import tensorflow as tf


class PartBatch(NamedTuple):
    """Batch of a step, and the part that it was drawn from.

    Attributes:
        batch: The batch, as the data set without parts has it.
        part: Number of the part, int64.
    """

    batch: Any
    part: tf.Tensor


def split(data: Any) -> tuple[Any, tf.Tensor | None]:
    """Returns the batch, and the part that it was drawn from.

    Args:
        data: An element of a data set, or its specification.

    Returns:
        The batch and the number of the part; `None` if it does not say.
    """
    if isinstance(data, PartBatch):
        return data.batch, data.part
    return data, None
