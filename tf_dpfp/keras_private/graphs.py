"""Operations of a traced function, those of the functions it calls included."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.framework import op_def_registry

# They run code of others, and are listed as if they had no state.
_FOREIGN = ("PyFuncStateless", "XlaCustomCall", "XlaCustomCallV2")
_PYTHON = frozenset("EagerPyFunc NumpyFunction PyFunc PyFuncStateless".split())
# Beginnings of operations that change the memory of their input, write files,
# or draw random numbers, and don't say so.
_BY_NAME = ("Debug", "ExtractGlimpse", "Fractional", "Inplace", "RiscRandom")
# Operations that call functions of which it is known what they do.
CALLS = frozenset(
    """
    Case If PartitionedCall StatefulPartitionedCall StatelessCase StatelessIf
    StatelessWhile While
    """.split()
)


@dataclasses.dataclass(frozen=True)
class Node:
    """An operation of a graph.

    Attributes:
        name: Name of the operation.
        kind: Its kind, such as `"MatMul"`.
        has_state: True if TensorFlow says that it has state, or doesn't know;
            if it writes what it is given by reference; if it runs code that is
            no graph, whose word for it is all that there is.
        seed: Both seeds of an operation that draws random numbers one call
            after the other; `None` for others.
    """

    name: str
    kind: str
    has_state: bool
    seed: tuple[int, int] | None


def operations(function: Any) -> list[Node]:
    """Lists the operations of a function and of all functions it calls.

    Args:
        function: A concrete function of TensorFlow.

    Returns:
        The operations.
    """
    graph = function.graph.as_graph_def()
    library = graph.library.function
    called = {body.signature.name for body in library}
    nodes = [*graph.node, *(node for body in library for node in body.node_def)]
    return [_node(node) for node in nodes if node.op not in called]


def _node(node: Any) -> Node:
    seed = None
    if "seed" in node.attr and "seed2" in node.attr:
        seed = int(node.attr["seed"].i), int(node.attr["seed2"].i)
    known = op_def_registry.get(node.op)
    has_state = (
        known is None
        or known.is_stateful
        or node.op in _FOREIGN
        or is_unruly(node.op, known)
    )
    return Node(node.name, node.op, has_state, seed)


def is_unruly(kind: str, definition: Any) -> bool:
    """Tells an operation that does more than its definition says.

    Some are defined as if they had no state, and change their inputs, write
    files, draw random numbers, share a batch with other calls, or call any.

    Args:
        kind: Its kind.
        definition: Its definition, of TensorFlow's registry.
    """
    if kind in CALLS:
        return False
    if kind.startswith(_BY_NAME) or kind in _PYTHON:
        return True
    if any(arg.is_ref for arg in definition.input_arg):
        return True
    # By a shared name other rounds of a loop fill the same queue.
    names = () if definition.is_stateful else ("shared_name",)
    return any(
        attribute.name in names or attribute.type in ("func", "list(func)")
        for attribute in definition.attr
    )


def make(
    kind: str,
    inputs: Sequence[tf.Tensor],
    dtypes: Sequence[tf.DType],
    attributes: Mapping[str, attr_value_pb2.AttrValue],
) -> tf.Operation:
    """Makes an operation in the current graph.

    `tf.Graph.create_op` does no more, and takes twice as long: it looks for
    arguments that it no longer has.

    Args:
        kind: Its kind, such as `"MatMul"`.
        inputs: Its inputs, of the same graph.
        dtypes: Types of its outputs.
        attributes: All its attributes that have no default.

    Returns:
        The operation.

    Raises:
        ValueError: If the shapes of the inputs do not fit.
    """
    graph = tf.compat.v1.get_default_graph()
    return graph._create_op_internal(
        kind, inputs, dtypes, attrs=attributes, name="made"
    )


def placeholder(dtype: tf.DType, shape: tf.TensorShape) -> tf.Tensor:
    """Makes a tensor of which nothing but its shape is known.

    Args:
        dtype: Its type.
        shape: What is known of its shape.

    Returns:
        The tensor, of the current graph.
    """
    attributes = {
        "dtype": attr_value_pb2.AttrValue(type=dtype.as_datatype_enum),
        "shape": attr_value_pb2.AttrValue(shape=shape.as_proto()),
    }
    return make("Placeholder", [], [dtype], attributes).outputs[0]


def bodies(op: tf.Operation) -> Iterator[tf.Graph]:
    """Lists the graphs of the functions that an operation names.

    Args:
        op: An operation of a graph. Functions of which only a definition is
            left have captured nothing, and are left out.
    """
    for attribute in op.op_def.attr:
        if attribute.type not in ("func", "list(func)"):
            continue
        value = op.get_attr(attribute.name)
        for function in value if isinstance(value, list) else [value]:
            body = _body(op.graph, function.name)
            if body is not None:
                yield body


def _body(graph: Any, name: str) -> tf.Graph | None:
    while graph is not None:
        try:
            return getattr(graph._get_function(name), "graph", None)
        except (ValueError, KeyError, AttributeError):
            graph = getattr(graph, "outer_graph", None)
    return None
