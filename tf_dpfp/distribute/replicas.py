"""Replicas of a `tf.distribute` strategy in a private step."""

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
import tensorflow as tf


def count() -> int:
    """Returns the number of replicas under the current strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def index() -> tf.Tensor | int:
    """Returns the global index of this replica, across all workers.

    Raises:
        RuntimeError: If the call is not made for one replica, inside
            `strategy.run`.
    """
    context = tf.distribute.get_replica_context()
    if context is None:
        raise RuntimeError(
            "A private step belongs to one replica. Call it inside of "
            "`strategy.run`, or train with `model.fit`."
        )
    return context.replica_id_in_sync_group


def make_together(make: Callable[[], None]) -> None:
    """Makes variables once for all replicas, wherever that is asked for.

    Inside of a replica all of them must ask for the same, in one order.

    Args:
        make: Makes them, outside of replicas and in the scope of the strategy.
    """
    context = tf.distribute.get_replica_context()
    if context is None or not tf.distribute.has_strategy():
        make()
        return

    def in_scope(strategy: tf.distribute.Strategy) -> None:
        with tf.init_scope(), strategy.scope():
            make()

    context.merge_call(in_scope)


def has_own(value: Any) -> bool:
    """Tells if a copy of a variable is that of who asks, and no other's.

    Args:
        value: A TensorFlow variable. If replicas have copies of it, only they
            have one of their own.
    """
    if not isinstance(value, tf.distribute.DistributedValues):
        return True
    inside = tf.distribute.get_replica_context() is not None
    return inside and tf.distribute.has_strategy()


def own_variable(value: np.ndarray | tf.Tensor) -> tf.Variable:
    """Makes a variable of which every replica has a copy of its own.

    Args:
        value: Value of all copies to begin with.

    Returns:
        The variable. A replica reads and writes its own copy alone, and
        outside of replicas the first one is read.
    """
    return tf.Variable(
        value,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def assign_to_all(variable: tf.Variable, value: np.ndarray | tf.Tensor) -> None:
    """Writes to the copies of all replicas, also from inside of one.

    Args:
        variable: Result of `own_variable`.
        value: The value.
    """
    for copy in getattr(variable, "values", [variable]):
        copy.assign(value)


def sum_over_all(
    tensors: Sequence[tf.Tensor | tf.IndexedSlices | None],
) -> list[tf.Tensor | tf.IndexedSlices | None]:
    """Adds up tensors over all replicas, by one all-reduce for each device.

    What is given leaves the replica: it must be noised before.

    Args:
        tensors: Tensors of the same shapes on every replica; `None` where there
            is nothing. Slices must be of the same rows on every replica.

    Returns:
        Their sums, on every replica.
    """
    if count() == 1:
        return list(tensors)
    sent = [t.values if _is_slices(t) else t for t in tensors]
    together: dict[str, list[int]] = {}
    for index, tensor in enumerate(sent):
        if tensor is not None:
            together.setdefault(tensor.device, []).append(index)
    context = tf.distribute.get_replica_context()
    sums: list[tf.Tensor | tf.IndexedSlices | None] = [None] * len(tensors)
    # Of tensors on several devices TensorFlow would reduce one by one.
    for indices in together.values():
        summed = context.all_reduce(
            tf.distribute.ReduceOp.SUM, [sent[i] for i in indices]
        )
        for index, total in zip(indices, summed, strict=True):
            mine = tensors[index]
            sums[index] = (
                tf.IndexedSlices(total, mine.indices, mine.dense_shape)
                if _is_slices(mine)
                else total
            )
    return sums


def _is_slices(tensor: Any) -> TypeGuard[tf.IndexedSlices]:
    return isinstance(tensor, tf.IndexedSlices)
