"""Operations of a traced function, those of the functions it calls included."""

import dataclasses
from typing import Any

from tensorflow.python.framework import op_def_registry

# They run code of others, and are listed as if they had no state.
_FOREIGN = ("PyFuncStateless", "XlaCustomCall", "XlaCustomCallV2")


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
        or any(arg.is_ref for arg in known.input_arg)
    )
    return Node(node.name, node.op, has_state, seed)
