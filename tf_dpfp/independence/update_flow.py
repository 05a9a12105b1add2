"""Flow of data around the noise, into what a step does after it.

What follows the noise is post-processing if it reads released tensors, weights
and numbers of the optimizer, and nothing else. Keras runs code of users there:
regularisers, constraints, schedules of the learning rate, optimizers. Such code
may hold on to a tensor of the forward pass, or read a metric.
"""

from collections.abc import Collection, Sequence

import tensorflow as tf

from tf_dpfp.independence import seed_origins
from tf_dpfp.independence import state_rules
from tf_dpfp.keras_private import call_time as keras_call_time

# A batch comes from an iterator or is an argument; a pass begins with the last.
_BATCHES = frozenset(
    "IteratorGetNext IteratorGetNextSync PlaceholderWithDefault".split()
)


def first_with_data(
    operations: Sequence[tf.Operation],
    released: Collection[str],
    data_handles: Collection[int],
) -> tf.Operation | None:
    """Finds an operation that writes, or prints, what holds data.

    Whatever an operation makes of data counts as data, a function included.

    Args:
        operations: Operations of a graph whose writes are judged.
        released: Names of tensors of the same graph that may be read, data or
            not: those with noise.
        data_handles: Identities of handles of variables that hold data: those
            of metrics.

    Returns:
        The operation; `None` if there is none.
    """
    free: dict[int, tf.Tensor] = {}
    for op in operations:
        if not state_rules.has_effect(op):
            continue
        for tensor in op.inputs:
            if _reaches_data(tensor, op.graph, released, data_handles, free):
                return op
    return None


def _reaches_data(
    tensor: tf.Tensor,
    graph: tf.Graph,
    released: Collection[str],
    data_handles: Collection[int],
    free: dict[int, tf.Tensor],
) -> bool:
    """Follows a tensor back to what it is made of.

    Args:
        tensor: The tensor.
        graph: Its graph.
        released: Names of its tensors where to stop.
        data_handles: Handles of variables that hold data.
        free: Tensors that were followed before; grows.
    """
    waiting = [tensor]
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in free:
            continue
        free[id(tensor)] = tensor
        if hasattr(tensor, "numpy"):  # Of Python: a constant of the graph.
            if id(tensor) in data_handles:
                return True
            continue
        if tensor.graph is graph and tensor.name in released:
            continue
        captured = seed_origins.captured(tensor)
        if captured is not None:
            waiting.append(captured)
        elif _is_of_batch(tensor):
            return True
        else:
            waiting += tensor.op.inputs
    return False


def _is_of_batch(tensor: tf.Tensor) -> bool:
    if tensor.op.type in _BATCHES:
        return True
    # An argument; those of call time are numbers of the ledger.
    if tensor.op.type != "Placeholder" or tensor.dtype == tf.resource:
        return False
    of_call = keras_call_time.captured_by(tensor.graph)
    return all(tensor is not other for other in of_call)
