"""Telling a ledger of every restore of its variable.

`set_weights` and Keras files use `assign`; `tf.train.Checkpoint` has a way of
its own.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp.keras_private import variables as keras_variables


def watch(
    variable: keras.Variable,
    restore: Callable[[Any], None],
    in_graph: Callable[[Any], None],
) -> None:
    """Replaces what writes to a variable from outside.

    Args:
        variable: The variable of the ledger.
        restore: Called with what would be written, in its place; writes what
            it keeps of it in other ways.
        in_graph: The same for what a compiled function, or TensorFlow past
            Keras, would write; part of a graph.
    """

    def assign(value):
        (restore if tf.executing_eagerly() else in_graph)(value)
        return value

    def assign_past_keras(value, *_, **__):
        in_graph(value)
        return variable.value

    def wrap(of_checkpoints: Callable[..., Any]) -> Callable[..., Any]:
        def restore_from_tensors(restored_tensors):
            if not tf.executing_eagerly() or len(restored_tensors) != 1:
                return of_checkpoints(restored_tensors)
            (value,) = restored_tensors.values()
            restore(value)
            return variable.value

        return restore_from_tensors

    variable.assign = assign
    keras_variables.replace_raw_assign(variable, assign_past_keras)
    keras_variables.wrap_restores(variable, wrap)
