"""Replicas of a `tf.distribute` strategy in a private step."""

from collections.abc import Sequence

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


def sum_over_all(
    tensors: Sequence[tf.Tensor | None],
) -> list[tf.Tensor | None]:
    """Adds up tensors over all replicas, by one all-reduce for each device.

    What is given leaves the replica: it must be noised before.

    Args:
        tensors: Tensors of static shapes, the same on every replica; `None`
            where there is nothing.

    Returns:
        Their sums, on every replica.
    """
    if count() == 1:
        return list(tensors)
    together: dict[str, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor is not None:
            together.setdefault(tensor.device, []).append(index)
    context = tf.distribute.get_replica_context()
    sums: list[tf.Tensor | None] = [None] * len(tensors)
    # Of tensors on several devices TensorFlow would reduce one by one.
    for indices in together.values():
        summed = context.all_reduce(
            tf.distribute.ReduceOp.SUM, [tensors[i] for i in indices]
        )
        for index, total in zip(indices, summed, strict=True):
            sums[index] = total
    return sums
