"""Flow of data around the noise, into what a step does after it.

What follows the noise is post-processing if it reads released tensors, weights
and numbers of the optimizer, and nothing else. Keras runs code of users there:
regularisers, constraints, schedules of the learning rate, optimizers. Such code
may hold on to a tensor of the forward pass, or read a metric.
"""

from collections.abc import Collection, Sequence

import tensorflow as tf

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
    search = _Search(released, data_handles)
    for op in operations:
        if not state_rules.has_effect(op):
            continue
        if any(search.reaches_data(t, op.graph) for t in op.inputs):
            return op
    return None


class _Search:
    """Follows tensors back to what they are made of.

    Args:
        released: Names of tensors where to stop.
        data_handles: Handles of variables that hold data.
    """

    def __init__(
        self, released: Collection[str], data_handles: Collection[int]
    ):
        self._released = released
        self._data_handles = data_handles
        # Tensors that were followed before, and captures by graph.
        self._seen: dict[int, tf.Tensor] = {}
        self._captures: dict[int, dict[int, tf.Tensor]] = {}

    def reaches_data(self, tensor: tf.Tensor, graph: tf.Graph) -> bool:
        """Tells if a tensor is made of data.

        Args:
            tensor: The tensor.
            graph: Its graph, to which the names of released tensors belong.
        """
        waiting = [tensor]
        while waiting:
            tensor = waiting.pop()
            if id(tensor) in self._seen:
                continue
            self._seen[id(tensor)] = tensor
            if hasattr(tensor, "numpy"):  # Of Python: a constant of the graph.
                if id(tensor) in self._data_handles:
                    return True
                continue
            if tensor.graph is graph and tensor.name in self._released:
                continue
            captured = self._captured(tensor)
            if captured is not None:
                waiting.append(captured)
            elif _is_of_batch(tensor):
                return True
            else:
                waiting += tensor.op.inputs
        return False

    def _captured(self, tensor: tf.Tensor) -> tf.Tensor | None:
        """Returns what a placeholder of a function stands for, if known."""
        if tensor.op.type != "Placeholder":
            return None
        graph = tensor.graph
        if id(graph) not in self._captures:
            self._captures[id(graph)] = {
                id(inner): outer
                for outer, inner in getattr(graph, "captures", ())
            }
        return self._captures[id(graph)].get(id(tensor))


def _is_of_batch(tensor: tf.Tensor) -> bool:
    if tensor.op.type in _BATCHES:
        return True
    # An argument; those of call time are numbers of the ledger.
    if tensor.op.type != "Placeholder" or tensor.dtype == tf.resource:
        return False
    of_call = keras_call_time.captured_by(tensor.graph)
    return all(tensor is not other for other in of_call)
