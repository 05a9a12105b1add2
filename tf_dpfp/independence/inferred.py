"""Sizes that TensorFlow infers from the sizes that a proof knows.

What TensorFlow says of the shape of a tensor may come from `set_shape`, which
no kernel checks. So the operation is made anew, in a graph that never runs, of
inputs of which no more is known than what is proved.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import handle_data_util

from tf_dpfp.independence import bounds as bounds_lib
from tf_dpfp.independence import functions
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value
from tf_dpfp.keras_private import graphs

# Nobody infers anything through functions here; and what these say of the
# shape of an argument is checked by no kernel.
_UNCHECKED = functions.CALLS | {
    "TensorListConcat", "TensorListConcatV2", "TensorListGather",
    "TensorListGetItem", "TensorListPopBack", "TensorListStack",
}  # fmt: skip
# Of all that say shapes in an attribute, only these compare them.
_CHECKED = frozenset(
    """
    EnsureShape OptionalGetValue ParseExample ParseExampleV2
    ParseSequenceExample ParseSequenceExampleV2 ParseSingleExample
    ParseSingleSequenceExample
    """.split()
)
UNPROVED_SHAPE = (
    "It is said to have sizes that are not proved.",
    "Don't use `set_shape`, nor shapes in the signature of a function: "
    "`tf.ensure_shape` checks what it says.",
)
_Key = tuple[object, ...]

CLAIMS = frozenset(
    """
    Case If OptionalGetValue PartitionedCall PlaceholderWithDefault
    StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile While
    """.split()
)


def claimed(op: tf.Operation) -> list[tf.TensorShape]:
    """Reads the shapes that an operation says its outputs have.

    Optimizers of graphs take them for true, and no kernel checks them: what
    reads a size becomes a constant.

    Args:
        op: An operation of a type in `CLAIMS`.

    Returns:
        One shape for each output.
    """
    attributes = op.node_def.attr
    for name in ("output_shapes", "_output_shapes"):
        shapes = attributes[name].list.shape if name in attributes else ()
        if shapes:
            return [tf.TensorShape(s) for s in shapes]
    if op.type == "PlaceholderWithDefault":
        return [tf.TensorShape(attributes["shape"].shape)]
    return [tf.TensorShape(None)] * len(op.outputs)


def says_more(shape: tf.TensorShape, sizes: Sizes | None) -> bool:
    """Tells if a shape says more than what is proved.

    Args:
        shape: The shape.
        sizes: The sizes that are proved.
    """
    if shape.rank is None:
        return False
    if sizes is None or len(sizes) != shape.rank:
        return True
    return any(
        n is not None and s != n
        for n, s in zip(shape.as_list(), sizes, strict=True)
    )


class Inference:
    """Infers sizes; the same ones are inferred once."""

    def __init__(self):
        self._graph = tf.Graph()
        self._found: dict[_Key, list[Sizes | None]] = {}
        self._alike: dict[_Key, list[Sizes | None]] = {}
        self._stand_ins: dict[_Key, tf.Tensor] = {}
        # Operations are known by their identity, and so must live on.
        self._kept: list[tf.Operation] = []

    # A step of a user's own may be traced with AutoGraph.
    @tf.autograph.experimental.do_not_convert
    def sizes(
        self, op: tf.Operation, values: Sequence[Value]
    ) -> list[Sizes | None]:
        """Infers the sizes of the outputs of an operation.

        Args:
            op: The operation.
            values: What is known of its inputs.

        Returns:
            Sizes of each output that hold whatever else its inputs are;
            `None` where not even their number is known.
        """
        if op.type == "Const":
            return [sizes_of(op.outputs[0].shape)]
        if op.type in _UNCHECKED or _says_shapes(op):
            return [None] * len(op.outputs)
        if op.type == "ReadVariableOp":
            known = values[0].kind is Kind.RESOURCE
            return [_of_variable(op.inputs[0]) if known else None]
        key = (id(op), tuple((v.sizes, v.numbers) for v in values))
        if key not in self._found:
            self._found[key] = self._infer(op, values)
            self._kept.append(op)
        return self._found[key]

    def _infer(
        self, op: tf.Operation, values: Sequence[Value]
    ) -> list[Sizes | None]:
        attributes = {
            name: value
            for name, value in op.node_def.attr.items()
            if not name.startswith("_")
        }
        if any(t.dtype.base_dtype == tf.resource for t in op.inputs):
            # What is known of a handle is no part of its value.
            return self._made(op, values, attributes)
        # Layers that are alike have operations that are: one is made of each.
        key = (
            op.type,
            tuple(map(_looks, op.inputs, values)),
            *sorted((n, a.SerializeToString()) for n, a in attributes.items()),
        )
        if key not in self._alike:
            self._alike[key] = self._made(op, values, attributes)
        return self._alike[key]

    def _made(
        self,
        op: tf.Operation,
        values: Sequence[Value],
        attributes: dict[str, Any],
    ) -> list[Sizes | None]:
        """Makes an operation of stand-ins, and reads off the sizes."""
        unknown: list[Sizes | None] = [None] * len(op.outputs)
        with self._graph.as_default():
            try:
                inputs = [
                    self._stand_in(tensor, value)
                    for tensor, value in zip(op.inputs, values, strict=True)
                ]
                dtypes = [t.dtype for t in op.outputs]
                made = graphs.make(op.type, inputs, dtypes, attributes)
            except (RuntimeError, TypeError, ValueError, tf.errors.OpError):
                # Shapes that do not fit, as its kernel will say; or a function
                # that is called by its name.
                return unknown
        return [sizes_of(t.shape) for t in made.outputs]

    def _stand_in(self, tensor: tf.Tensor, value: Value) -> tf.Tensor:
        """Makes a tensor of which as much is known as is proved."""
        dtype = tensor.dtype.base_dtype
        if dtype == tf.resource:
            made = graphs.placeholder(dtype, tf.TensorShape([]))
            handle_data_util.copy_handle_data(tensor, made)
            return made
        key = _looks(tensor, value)
        if key not in self._stand_ins:
            known = _known(value, dtype) if dtype.is_integer else None
            if known is None:
                known = graphs.placeholder(dtype, _shape_of(value))
            self._stand_ins[key] = known
        return self._stand_ins[key]


def _looks(tensor: tf.Tensor, value: Value) -> _Key:
    """Returns all that a stand-in of a tensor, but a handle, is made of."""
    is_list = value.kind in (Kind.LIST, Kind.RESOURCE)
    return tensor.dtype.base_dtype, is_list, value.sizes, value.numbers


def _says_shapes(op: tf.Operation) -> bool:
    """Tells if an operation has an attribute with shapes nobody checks."""
    known = _says.get(op.type)
    if known is None:
        says = any("shape" in a.type for a in op.op_def.attr)
        known = _says[op.type] = says and op.type not in _CHECKED
    return known


_says: dict[str, bool] = {}


def _of_variable(handle: tf.Tensor) -> Sizes | None:
    """Returns the sizes that a variable was made with."""
    known = handle_data_util.get_resource_handle_data(handle)
    if known is None or not known.is_set or len(known.shape_and_type) != 1:
        return None
    return sizes_of(tf.TensorShape(known.shape_and_type[0].shape))


def _known(value: Value, dtype: tf.DType) -> tf.Tensor | None:
    """Makes a shape, or another list of numbers, of which some are known."""
    numbers, shape = value.numbers, _shape_of(value)
    if numbers is None or shape.num_elements() != len(numbers):
        return None
    plain = [_number(n) for n in numbers]
    low, high = bounds_lib.limits(dtype)
    if any(n is not None and not low <= n <= high for n in plain):
        return None
    if None not in plain:
        array = np.array(plain, dtype.as_numpy_dtype)
        return tf.constant(array.reshape(shape.as_list()), dtype)
    if shape.rank != 1:
        return None
    return tf.stack(
        [
            graphs.placeholder(dtype, tf.TensorShape([]))
            if n is None
            else tf.constant(n, dtype)
            for n in plain
        ]
    )


def _shape_of(value: Value) -> tf.TensorShape:
    if value.sizes is None or value.kind in (Kind.LIST, Kind.RESOURCE):
        return tf.TensorShape(None)
    return tf.TensorShape([_number(s) for s in value.sizes])


def _number(size: MaybeSize) -> int | None:
    return int(size) if size is not None and size.is_number else None


def sizes_of(shape: tf.TensorShape) -> Sizes | None:
    """Returns the sizes of a shape; `None` if their number is not known.

    Args:
        shape: The shape.
    """
    if shape.rank is None:
        return None
    return tuple(None if n is None else Size.of(n) for n in shape.as_list())


def made_with(tensor: tf.Tensor) -> tf.TensorShape:
    """Returns the shape that a tensor of a batch was made with.

    Layers get the tensor itself, and may say other things of it by
    `set_shape`.

    Args:
        tensor: The tensor.
    """
    operation = tensor.op
    if operation.type in ("Placeholder", "PlaceholderWithDefault"):
        return tf.TensorShape(operation.get_attr("shape"))
    return tensor.shape
