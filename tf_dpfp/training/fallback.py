"""Models that XLA can't compile.

Keras asks for XLA where an accelerator is, without looking at the model. That a
step can't be compiled shows at its first call, before anything of it has run:
no noise was drawn, no weight changed and nothing was counted. The batch of that
call is kept, so the same step is taken without XLA.
"""

import itertools
import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import user_warnings
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.mechanisms import state as state_lib

TrainFunction = Callable[[Any], Any]

# Of errors that XLA raises while it compiles. Others come from a step that
# runs, and are passed on.
_SIGNS = (
    "Detected unsupported operations",
    "XLA compilation requires",
    "tf2xla conversion failed",
    "must be a compile-time constant",
)
_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
)


def guarded(model: keras.Model, train_function: TrainFunction) -> TrainFunction:
    """Makes a training function that does without XLA if it has to.

    Args:
        model: A private model.
        train_function: Function that takes a step, or several, on the next
            batches of an iterator.

    Returns:
        A function that, at its first call, falls back to one that XLA does not
        compile, with a warning, if XLA was not asked for. It raises
        `ValueError` if it was.
    """
    function, compiled = train_function, False
    state = state_lib.state_of(model)

    def take_steps(iterator: Any) -> Any:
        nonlocal function, compiled
        compiles = model.jit_compile or state.compiles_pieces
        if compiled or not compiles or model.run_eagerly:
            return function(iterator)
        by_default = state.xla_by_default
        batches: list[Any] = []
        if by_default:
            batches = list(
                itertools.islice(iterator, model.steps_per_execution)
            )
        try:
            logs = function(_again(iterator, batches))
        except _ERRORS as error:
            if not any(sign in str(error) for sign in _SIGNS):
                raise
            reason = _reason(model, error)
            if not by_default:
                raise ValueError(
                    f"{reason} Compile the model with jit_compile=False. "
                    "Received: jit_compile=True"
                ) from error
            user_warnings.warn(
                f"{reason} It trains without XLA, as with jit_compile=False.",
            )
            function = _without_xla(model)
            logs = function(_again(iterator, batches))
        compiled = True
        return logs

    return take_steps


def _again(iterator: Any, batches: list[Any]) -> Any:
    """Returns an iterator over batches that were taken from another."""
    if not batches:
        return iterator
    if not hasattr(iterator, "element_spec"):
        return iter(batches)
    # Of the same kind, so that a function is traced for both at once.
    return iter(
        tf.data.Dataset.from_generator(
            lambda: iter(batches), output_signature=iterator.element_spec
        )
    )


def _without_xla(model: keras.Model) -> TrainFunction:
    """Makes Keras's training function anew, without XLA."""
    ours = model.train_function
    model.jit_compile = False
    state_lib.ordinary(model, "make_train_function")(True)
    plain, model.train_function = model.train_function, ours
    return plain


def _reason(model: keras.Model, error: tf.errors.OpError) -> str:
    """Says which layer XLA can't compile, by the names of operations."""
    names = {layer.name for layer in keras_layers.all_layers(model)}
    names.discard(model.name)
    # TensorFlow numbers the second scope of a name.
    parts = [
        part if part in names else re.sub(r"_\d+$", "", part)
        for part in re.findall(r"[\w.]+", str(error))
    ]
    found = [part for part in parts if part in names]
    where = f"layer '{found[-1]}' of " if found else ""
    return f"XLA can't compile {where}model '{model.name}'."
