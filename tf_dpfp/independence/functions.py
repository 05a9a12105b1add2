"""Functions that the operations of a graph call."""

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import function_def_to_graph

from tf_dpfp.keras_private import graphs

# Operations that call functions of which the proof knows what they do.
CALLS = graphs.CALLS


def graph_of(function: Any) -> tf.Graph | None:
    """Returns the graph of a function, read from its definition if need be."""
    graph = getattr(function, "graph", None)
    definition = getattr(function, "definition", None)
    if graph is not None or definition is None:
        return graph
    with tf.init_scope():
        return function_def_to_graph.function_def_to_graph(definition)


def constant(tensor: tf.Tensor) -> np.ndarray | None:
    """Returns the elements of a constant; `None` of any other tensor.

    `tf.get_static_value` knows more, and some of it from `set_shape`, which
    may be wrong.

    Args:
        tensor: A tensor of a graph.
    """
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    if tensor.op.type != "Const":
        return None
    return tf.get_static_value(tensor)


def names_of(op: tf.Operation) -> list[str]:
    """Lists the functions that an operation calls."""
    if op.type in ("Case", "StatelessCase"):
        return [branch.name for branch in op.get_attr("branches")]
    kinds = {
        "If": ("then_branch", "else_branch"),
        "StatelessIf": ("then_branch", "else_branch"),
        "While": ("cond", "body"),
        "StatelessWhile": ("cond", "body"),
    }
    return [op.get_attr(k).name for k in kinds.get(op.type, ("f",))]
