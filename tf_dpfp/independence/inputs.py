"""Made-up inputs for trials, and the eager mode that trials run in."""

import concurrent.futures
import contextlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tf_dpfp import user_warnings
from tf_dpfp.keras_private import layers as keras_layers

# Examples in a made-up batch.
EXAMPLES = 3
# Size of an axis that data may have of any size.
_UNKNOWN_SIZE = 4


class CannotTry(Exception):
    """Raised for inputs that can't be made up."""


def made_up(
    leaf, rng: np.random.Generator, batch_size: int = EXAMPLES
) -> tf.Tensor | None:
    """Returns random numbers, or words, of the type and shape of a leaf."""
    if leaf is None:
        return None
    dtype = tf.as_dtype(leaf.dtype)
    shape = [batch_size] + [
        _UNKNOWN_SIZE if size is None else size for size in leaf.shape[1:]
    ]
    if dtype == tf.bool:
        return tf.ones(shape, tf.bool)
    if dtype.is_integer:
        return tf.cast(rng.integers(0, 2, shape), dtype)
    if dtype.is_floating:
        return tf.cast(rng.uniform(0.1, 0.9, shape), dtype)
    if dtype == tf.string:
        # Words that no vocabulary needs to have, and numbers all the same.
        return tf.constant(rng.integers(0, 2, shape).astype(str))
    raise CannotTry(f"inputs of type {dtype.name}")


def made_up_batch(
    data: Any, rng: np.random.Generator, batch_size: int = EXAMPLES
) -> Any:
    """Makes up a batch.

    Args:
        data: Batch or specifications; only shapes and types are looked at.
        rng: Generator of the numbers.
        batch_size: Number of examples.

    Raises:
        CannotTry: If inputs of such a type can't be made up.
    """
    return tree.map_structure(lambda leaf: made_up(leaf, rng, batch_size), data)


def followed_by(first: Any, other: Any, twice: bool = False) -> Any:
    """Keeps the first example and replaces the rest by another batch's.

    Args:
        first: Batch whose first example is kept.
        other: Batch that gives the other examples.
        twice: Append the whole of `other` once more.
    """
    return tree.map_structure(
        lambda a, b: (
            None
            if a is None
            else tf.concat([a[:1], b[1:], *([b] if twice else [])], 0)
        ),
        first,
        other,
    )


def statistics_of(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables that a forward pass must not change."""
    return [
        v
        for v in model.non_trainable_variables
        if not keras_layers.is_seed_variable(v)
    ]


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
        model(made_up_batch(x, rng))

    try:
        outside_of_graphs(call_on_made_up)
    except (CannotTry, tf.errors.OpError):
        # As in the trial, which will say so.
        model(x)


def outside_of_graphs(function, *args) -> Any:
    """Calls a function in eager mode, whatever is being traced."""
    # A thread of its own is in eager mode whatever is traced in this one.
    # (`tf.init_scope` would leave the graph too, but tapes record nothing in
    # it.)
    frame = user_warnings.script_frame()

    def for_the_script() -> Any:
        with user_warnings.on_behalf_of(frame):
            return function(*args)

    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(for_the_script).result()
