"""Values that a compiled function asks Python for at each of its calls."""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import func_graph
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_v2_func_graphs


def value(
    read: Callable[[], tf.Tensor], spec: tf.TensorSpec, key: Hashable
) -> tf.Tensor:
    """Returns `read()`, as it is in the thread and at the time of each call.

    A `tf.function` captures a tensor once, when it is traced. A value of call
    time is an argument that TensorFlow fills by calling `read` in the thread
    that calls the function. In a loop or a branch of another function the
    function must not have been called before: TensorFlow then leaves the
    argument empty, and the call fails.

    Args:
        read: Function that returns an eager tensor.
        spec: Its shape and type.
        key: One argument of a function is made for each key.

    Returns:
        The tensor; of a graph, if one is being traced.
    """
    if tf.executing_eagerly():
        return read()
    graph = ops.get_default_graph()
    # Bodies of loops and branches have arguments of their own.
    while isinstance(graph.outer_graph, func_graph.FuncGraph):
        graph = graph.outer_graph
    return graph.capture_call_time_value(read, spec, key=key)


def traced_graph() -> tf.Graph | None:
    """Returns the graph that is being traced; `None` in eager code."""
    return None if tf.executing_eagerly() else ops.get_default_graph()


def runs_within(graph: tf.Graph | None) -> bool:
    """Tells if what is traced now runs at most once for each run of a graph.

    A branch does; a loop's body, or a function that is called, may run often.

    Args:
        graph: Result of `traced_graph` at an earlier time.
    """
    current = traced_graph()
    while current is not graph and isinstance(
        current, control_flow_v2_func_graphs.CondBranchFuncGraph
    ):
        current = current.outer_graph
    return current is graph


def captured_by(graph: tf.Graph) -> list[tf.Tensor]:
    """Lists the values of call time that a graph takes as arguments."""
    return list(getattr(graph, "deferred_internal_captures", ()))


class _Passed:
    """Creator of variables that only carries a value."""

    def __init__(self, value: Any):
        self.value = value

    def __call__(self, next_creator, **kwargs):
        return next_creator(**kwargs)


@contextlib.contextmanager
def passed_to_replicas(value: Any) -> Iterator[None]:
    """Hands a value to the threads that `strategy.run` starts inside.

    Eager replicas run in threads of their own, which take over the creators
    of variables of the thread that starts them, and nothing else.

    Args:
        value: The value.
    """
    with tf.variable_creator_scope(_Passed(value)):
        yield


def passed() -> Any:
    """Returns what was handed to this thread; `None` if nothing was."""
    stack = getattr(ops.get_default_graph(), "_variable_creator_stack", ())
    for _, creator in reversed(stack):
        if isinstance(creator, _Passed):
            return creator.value
    return None
