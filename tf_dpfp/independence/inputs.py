"""Made-up inputs for trials, and the eager mode that trials run in."""

import concurrent.futures
import contextlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

ROWS = 3


_UNKNOWN_SIZE = 4


class CannotProbe(Exception):
    """Inputs of this kind can't be made up."""


def made_up(
    leaf, rng: np.random.Generator, rows: int = ROWS
) -> tf.Tensor | None:
    """Random numbers of the type and shape of a leaf, for some examples."""
    if leaf is None:
        return None
    dtype = tf.as_dtype(leaf.dtype)
    shape = [rows] + [
        _UNKNOWN_SIZE if size is None else size for size in leaf.shape[1:]
    ]
    if dtype == tf.bool:
        return tf.ones(shape, tf.bool)
    if dtype.is_integer:
        return tf.cast(rng.integers(0, 2, shape), dtype)
    if dtype.is_floating:
        return tf.cast(rng.uniform(0.1, 0.9, shape), dtype)
    raise CannotProbe(f"inputs of type {dtype.name}")


@contextlib.contextmanager
def restored(variables):
    """Gives variables their values back when what is inside has run."""
    values = [tf.identity(v.value) for v in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def build(model: keras.Model, x: Any) -> None:
    """Builds a model by calling it on made-up inputs.

    Variables made while a step is traced would not be there for the trial.

    Args:
        model: A model that is not built.
        x: Inputs of a real batch; only shapes and types are looked at.
    """

    def call_on_made_up() -> None:
        rng = np.random.default_rng(0)
        model(tree.map_structure(lambda leaf: made_up(leaf, rng), x))

    try:
        outside_of_graphs(call_on_made_up)
    except (CannotProbe, tf.errors.OpError):
        # As in the trial, which will say so.
        model(x)


def outside_of_graphs(function, *args) -> Any:
    """Calls a function in eager mode, whatever is being traced."""
    # A thread of its own is in eager mode whatever is traced in this one.
    # (`tf.init_scope` would leave the graph too, but tapes record nothing in
    # it.)
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(function, *args).result()
