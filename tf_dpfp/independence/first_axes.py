"""Which arguments of layers have the batch in them.

Positions `0 ... 31` look like a batch of 32, and a batch of one like a table
that all examples share, so sizes alone do not decide. What no data lead to,
and whose size is not the batch size, is the same for all examples. In a graph
this can be followed, and every private step runs in one.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import proof
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence.prover import Walk

# They read the shape of a tensor and none of its elements.
_SHAPES = frozenset(("Shape", "ShapeN", "Size", "Rank"))


class FirstAxes:
    """Answers for one micro-batch that is recorded.

    Args:
        examples: Tensors of the micro-batch.
    """

    def __init__(self, examples: Sequence[tf.Tensor]):
        self._examples = examples
        self._reached = {id(t): True for t in examples}
        self._walk: Walk | None = None

    def __call__(self, tensor: tf.Tensor) -> bool:
        """Tells whether the first axis of a tensor may be the batch.

        Args:
            tensor: Argument of a layer, of one axis or more.

        Returns:
            False if the tensor is the same for all examples.
        """
        if not tf.is_symbolic_tensor(tensor):
            # A constant of the model, made before the batch was there.
            return False
        if self._is_reached(tensor):
            return True
        if tensor.shape.rank is not None and tensor.shape[0] is not None:
            # The size of the batch is not known while a step is traced.
            return False
        return self._hangs_on_batch(tensor)

    def _is_reached(self, tensor: tf.Tensor) -> bool:
        """Tells whether data lead to the elements of a tensor."""
        reached, stack = self._reached, [tensor]
        while stack:
            top = stack[-1]
            if id(top) in reached:
                stack.pop()
                continue
            if top.op.type == "Placeholder":
                reached[id(top)] = _may_be_data(top)
                continue
            inputs = () if top.op.type in _SHAPES else top.op.inputs
            missing = [i for i in inputs if id(i) not in reached]
            if any(reached.get(id(i)) for i in inputs):
                reached[id(top)] = True
            elif missing:
                stack.append(missing[0])
            else:
                reached[id(top)] = False
        return reached[id(tensor)]

    def _hangs_on_batch(self, tensor: tf.Tensor) -> bool:
        """Tells whether the first size of a tensor free of data is known."""
        if self._walk is None:
            self._walk = proof.walk_of(tensor.graph, self._examples)
        sizes = self._walk.value(tensor).sizes
        if not sizes or sizes[0] is None:
            return True
        return sizes_lib.hang_on_batch(sizes[:1])


def _may_be_data(placeholder: tf.Tensor) -> bool:
    """Tells whether a tensor from outside of a graph may hold data."""
    if placeholder.dtype == tf.resource:
        return False
    while True:
        captures = getattr(placeholder.graph, "captures", ())
        outside = [e for e, inner in captures if inner is placeholder]
        if not outside:
            return True
        (external,) = outside
        if not tf.is_symbolic_tensor(external):
            # Made before the batch was there.
            return False
        if external.op.type != "Placeholder":
            return external.op.type != "Const"
        placeholder = external
