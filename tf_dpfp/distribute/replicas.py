"""What a private step does with the replicas of a `tf.distribute` strategy."""

from collections.abc import Sequence

import tensorflow as tf


def count() -> int:
    """How many replicas step together under the current strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def index() -> tf.Tensor | int:
    """Which of all replicas, those of other workers included, this one is.

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
    """Adds up tensors over all replicas, in one all-reduce.

    What is given leaves the replica: it must be noised before.

    Args:
        tensors: Tensors of static shapes, the same on every replica; `None`
            where there is nothing.

    Returns:
        Their sums, on every replica.
    """
    present = [t for t in tensors if t is not None]
    if count() == 1 or not present:
        return list(tensors)
    summed = iter(
        tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.SUM, present
        )
    )
    return [None if t is None else next(summed) for t in tensors]
