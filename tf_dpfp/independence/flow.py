"""Flow of data: what none of the data of a batch reach.

Where examples are replaced and never left out, the batch size and the numbers
of the rows are no secrets. What follows from them and from released tensors
alone needs no rule: it is free of data.
"""

from collections.abc import Iterable, Mapping

import tensorflow as tf

from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# Without an input, they may hold data of other batches.
_SOURCES = ("Empty", "Placeholder")


class Flow:
    """Tensors of a graph that no data flow into.

    Args:
        free: Identities of such tensors.
        outer: The flow of the graph that calls this one.
    """

    def __init__(
        self, free: set[int] | None = None, outer: "Flow | None" = None
    ):
        self._free = set() if free is None else free
        self._outer = outer

    def is_free_tensor(
        self, tensor: tf.Tensor, values: Mapping[int, Value]
    ) -> bool:
        """Tells a tensor that no data flow into.

        Args:
            tensor: A tensor.
            values: What is known of the tensors of its graph.
        """
        if id(tensor) in self._free:
            return True
        value = values[id(tensor)]
        return value.is_free or value.kind is Kind.RESOURCE

    def is_free(self, op: tf.Operation, values: Mapping[int, Value]) -> bool:
        """Tells an operation that no data flow into.

        Args:
            op: An operation whose inputs were interpreted.
            values: What is known of the tensors of its graph.
        """
        if op.type in _SOURCES:
            return False
        return all(self.is_free_tensor(t, values) for t in op.inputs)

    def note(self, op: tf.Operation, values: Mapping[int, Value]) -> None:
        """Notes the outputs of an operation that was interpreted.

        Args:
            op: An operation.
            values: What is known of the tensors of its graph.
        """
        if self.is_free(op, values):
            self._free.update(map(id, op.outputs))

    def into(
        self, op: tf.Operation, body: tf.Graph, values: Mapping[int, Value]
    ) -> "Flow":
        """Returns the flow in a function.

        Args:
            op: The operation that calls it.
            body: The function's graph.
            values: What is known of the tensors around the operation.
        """
        found: set[int] = set()
        if op.type in _CALLS:
            found.update(
                id(inner)
                for inner, outer in zip(body.inputs, op.inputs, strict=True)
                if self.is_free_tensor(outer, values)
            )
        return Flow(found, self)

    def out_of(
        self, op: tf.Operation, body: tf.Graph, values: Mapping[int, Value]
    ) -> "Flow":
        """Returns the flow around a function that was interpreted.

        Args:
            op: The operation that called it.
            body: The function's graph.
            values: What is known of the tensors of the function.
        """
        assert self._outer is not None
        if op.type in _CALLS:
            self._outer.add(
                outer
                for outer, inner in zip(op.outputs, body.outputs, strict=True)
                if id(inner) in values and self.is_free_tensor(inner, values)
            )
        return self._outer

    def add(self, tensors: Iterable[tf.Tensor]) -> None:
        """Notes tensors that no data flow into."""
        self._free.update(map(id, tensors))
