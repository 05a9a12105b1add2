"""Restores of a Keras variable, and sums that no other thread undoes."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp.keras_private import graphs

# `tf.train.Checkpoint` writes a Keras variable by this method, past `assign`
# and past `load_own_variables`.
_RESTORE = "_restore_from_tensors"


# Beginnings of operations that write to the variable that comes first.
_WRITES = ("Assign", "ResourceScatter", "ResourceApply", "ResourceStrided")


class _Kept(threading.local):
    """Variables that nothing may write, or read, in this thread."""

    def __init__(self) -> None:
        self.variables: dict[int, keras.Variable] = {}
        # By whom they may not be read.
        self.unread: dict[int, str] = {}


_KEPT = _Kept()


@contextlib.contextmanager
def kept(variables: Sequence[keras.Variable]) -> Iterator[None]:
    """Refuses to assign to variables, in this thread.

    Args:
        variables: The variables.

    Yields:
        Nothing. Inside, `assign` raises a `ValueError`, while a graph is traced
        as well as eagerly; and so does, at the end, what the graph writes to
        them past Keras.
    """
    before = _KEPT.variables
    _KEPT.variables = {id(v): v for v in variables}
    start = len(_operations())
    try:
        yield
    finally:
        _KEPT.variables = before
    handles = {
        id(handle): variable
        for variable in variables
        for handle in _handles(variable)
    }
    for handle in _written_handles(_operations()[start:]):
        written = handles.get(id(_outside(handle)))
        if written is not None:
            raise _written(written)


def _written_handles(operations: Sequence[tf.Operation]) -> Iterator[tf.Tensor]:
    """Lists what operations write to, those of functions they call included."""
    for op in operations:
        if op.type.startswith(_WRITES):
            yield op.inputs[0]
        for body in graphs.bodies(op):
            yield from _written_handles(body.get_operations())


def _operations() -> Sequence[tf.Operation]:
    """Returns those of the graph that is being traced."""
    if tf.executing_eagerly():
        return []
    return tf.compat.v1.get_default_graph().get_operations()


def _handles(variable: keras.Variable) -> list[tf.Tensor]:
    """Lists the handles of a variable, one for each replica."""
    value = variable.value
    return [v.handle for v in getattr(value, "values", [value])]


def _outside(handle: tf.Tensor) -> tf.Tensor:
    """Follows the handle of a variable out of all functions."""
    while not hasattr(handle, "numpy"):
        captures = getattr(handle.graph, "captures", ())
        found = [outer for outer, inner in captures if inner is handle]
        if not found:
            break
        (handle,) = found
    return handle


def _written(variable: keras.Variable) -> ValueError:
    return ValueError(
        f"A metric writes '{variable.path}'. What it saw of the data would get "
        "into the weights without noise. Write to the metric's own variables. "
        f"Received: assign to variable={variable.path!r}"
    )


def _guard(variables: Any) -> None:
    """Replaces `assign` of a class of variables."""
    ordinary = variables.assign

    @functools.wraps(ordinary)
    def assign(self, value):
        if id(self) in _KEPT.variables:
            raise _written(self)
        return ordinary(self, value)

    variables.assign = assign


_guard(keras.Variable)


@contextlib.contextmanager
def unread(variables: Sequence[keras.Variable], reader: str) -> Iterator[None]:
    """Refuses to read variables, in this thread.

    Args:
        variables: The variables.
        reader: Who reads, for the message.

    Yields:
        Nothing. Inside, `value` and whatever goes by it raise a `ValueError`,
        while a graph is traced as well as eagerly.
    """
    before = _KEPT.unread
    _KEPT.unread = {id(v): reader for v in variables}
    try:
        yield
    finally:
        _KEPT.unread = before


def _guard_value(variables: Any) -> None:
    """Replaces the property `value` of a class of variables."""
    ordinary = variables.value

    @functools.wraps(ordinary.fget)
    def value(self):
        if _KEPT.unread and id(self) in _KEPT.unread:
            raise ValueError(
                f"{_KEPT.unread[id(self)]} reads the metric variable "
                f"'{self.path}', which holds what it saw of the data, without "
                "noise. Let it read weights, and variables of its own."
            )
        return ordinary.fget(self)

    variables.value = property(value, ordinary.fset, doc=ordinary.__doc__)


_guard_value(keras.Variable)


@contextlib.contextmanager
def made_eagerly() -> Iterator[None]:
    """Makes variables outside of the graph that is being traced.

    Under `tf.init_scope` alone TensorFlow still takes them for variables that
    the traced function created, and traces it a second time.
    """

    def create(next_creator, **kwargs):
        kwargs["experimental_enable_variable_lifting"] = False
        return next_creator(**kwargs)

    with tf.init_scope(), tf.variable_creator_scope(create):
        yield


def wrap_restores(
    variable: keras.Variable,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    """Replaces the method by which checkpoints restore one variable.

    Args:
        variable: The variable.
        wrap: Takes the method and returns the one to call in its place.

    Raises:
        RuntimeError: If variables of this Keras have no such method: a
            restore would go unnoticed.
    """
    restore = getattr(variable, _RESTORE, None)
    if restore is None:
        raise RuntimeError(
            f"Keras {keras.__version__} restores variables in a way that "
            "tf_dpfp does not know, and older checkpoints could lower the "
            "privacy ledger. Install another version of Keras, or a newer "
            f"tf_dpfp. Received: variable={variable.path!r}"
        )
    setattr(variable, _RESTORE, wrap(restore))


def replace_raw_assign(
    variable: keras.Variable, assign: Callable[..., Any]
) -> None:
    """Replaces the `assign` of TensorFlow's variable, inside of Keras's one.

    Args:
        variable: The variable.
        assign: What to call in its place, with the same arguments.
    """
    variable.value.assign = assign


def add_atomically(variable: keras.Variable, value: tf.Tensor | np.ndarray):
    """Adds to a variable, so that no addition of another thread is lost.

    `keras.Variable.assign_add` reads, adds and assigns: of two threads that
    read the same value, one addition is lost.

    Args:
        variable: The variable.
        value: The number to add; of the same type.
    """
    variable.value.assign_add(value)


def add_at(variable: keras.Variable, index: tf.Tensor, number: tf.Tensor):
    """Adds to one number of a variable, so that no addition is lost.

    Args:
        variable: The variable.
        index: Index of the number, one for each axis, int64.
        number: The number to add; of the same type.
    """
    value = variable.value
    if isinstance(value, tf.Variable) and not _is_distributed(value):
        value.scatter_nd_add([index], [number])
        return
    hot = [
        tf.one_hot(at, size, dtype=number.dtype)
        for at, size in zip(tf.unstack(index), variable.shape, strict=True)
    ]
    outer = hot[0]
    for axis in hot[1:]:
        outer = outer[..., None] * axis
    value.assign_add(outer * number)


def _is_distributed(value: tf.Variable) -> bool:
    return isinstance(value, tf.distribute.DistributedValues)
