"""Length of a `fit`: batches of its data, and the steps that it takes."""

import math
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp.sampling import pipelines


def batches_of(arguments: dict[str, Any]) -> int | None:
    """Counts the batches of one iteration over the data of `fit`.

    Args:
        arguments: The bound arguments of `fit`.

    Returns:
        The number; `None` if it can't be told.
    """
    x = arguments["x"]
    if isinstance(x, tf.data.Dataset):
        count = int(x.cardinality())
        return count if count >= 0 else None
    if isinstance(x, keras.utils.PyDataset):
        found = x.num_batches
        return None if found is None or math.isinf(found) else int(found)
    leaves = [leaf for leaf in tree.flatten(x) if leaf is not None]
    if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
        return None  # A generator.
    held_out = arguments.get("validation_split") or 0.0
    count = math.floor(int(leaves[0].shape[0]) * (1.0 - held_out))
    batch_size = arguments.get("batch_size") or pipelines.KERAS_BATCH_SIZE
    return -(-count // batch_size)


def is_cut_off(arguments: dict[str, Any]) -> bool:
    """Tells if every epoch ends where the data end, whatever Keras asks for.

    Args:
        arguments: The bound arguments of `fit`.

    Returns:
        True if so: a call of the training function then takes no more steps
        than there are batches left.
    """
    # A PyDataset tells its length, and nothing holds it to that.
    counted = not isinstance(arguments["x"], keras.utils.PyDataset)
    return counted and not arguments.get("steps_per_epoch")


def steps_of(
    arguments: dict[str, Any], steps_per_execution: int = 1
) -> int | None:
    """Counts the steps that `fit` takes if nothing stops it.

    Args:
        arguments: The bound arguments of `fit`.
        steps_per_execution: Number of steps in a call of the training function.

    Returns:
        The number of all epochs together; `None` if it can't be told.
    """
    epochs = max(0, arguments["epochs"] - (arguments["initial_epoch"] or 0))
    batches, asked = batches_of(arguments), arguments.get("steps_per_epoch")
    if not asked:
        return None if batches is None else epochs * batches
    calls = -(-asked // steps_per_execution)
    if batches is None or epochs * calls * steps_per_execution <= batches:
        return epochs * calls * steps_per_execution
    return _steps_of_iterations(epochs, calls, batches, steps_per_execution)


def _steps_of_iterations(
    epochs: int, calls: int, batches: int, steps_per_execution: int
) -> int:
    """Counts steps where iterations over the data end amid epochs.

    Keras ends the epoch in which the data run out, and begins the next one with
    an iteration of its own.
    """
    total, begun = 0, 0
    for _ in range(epochs):
        room = -(-(batches - begun) // steps_per_execution)
        taken = min(calls, room) * steps_per_execution
        total += min(taken, batches - begun)
        begun += taken
        if begun >= batches:
            begun = 0
    return total
