"""Augmentation of one example: layers or a function, and what it may do.

A view must be a function of its example and of random numbers alone. So the
function is called on one example at a time and traced, and its graph may
neither keep nor write anything, nor run Python code: what it kept would reach
the views of later examples.

Random numbers that are drawn one row after the other hang on the row: leave
an example out, and all later ones are augmented otherwise. To whoever knows
the numbers, one example would then move the sum by several clip norms, as it
would with known masks of random layers. So generators of Keras take their
seeds from secret ones of each view, and a seed of TensorFlow's that may be
known is refused.
"""

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp.keras_private import autograph
from tf_dpfp.keras_private import graphs as tf_graphs
from tf_dpfp.keras_private import random as keras_random

# From one example to a view of it.
Augment: TypeAlias = Callable[[Any], Any]

# They mix the examples of a batch, and a view is made of one.
_MIXING = ("MixUp", "CutMix")
# Operations with state that keep nothing of what they see.
_HARMLESS = (
    *("StatefulPartitionedCall", "PartitionedCall", "While", "If", "Case"),
    *("VarHandleOp", "ReadVariableOp", "Assert"),
    *("HashTableV2", "LookupTableFindV2", "LookupTableSizeV2"),
)


def checked(augment: Any) -> Augment | None:
    """Returns the function that makes a view of one example.

    Args:
        augment: A Keras layer, several of them, a function of one example, or
            `None`.

    Returns:
        The function, or `None`.

    Raises:
        ValueError: If a layer mixes examples.
        TypeError: If it is none of them.
    """
    if augment is None:
        return None
    layers = augment if isinstance(augment, (list, tuple)) else [augment]
    if layers and all(isinstance(layer, keras.Layer) for layer in layers):
        return autograph.of_user(_of_layers(list(layers)))
    if isinstance(augment, tf.types.experimental.PolymorphicFunction):
        # Traced anew with secret seeds: its own traces hold those of before.
        augment = getattr(augment, "python_function", augment)
    if callable(augment):
        return autograph.of_user(augment)
    raise TypeError(
        "`augment` must be a Keras layer, a list of layers, or a function of "
        "one example. Received: augment of type "
        f"{type(augment).__name__}"
    )


def _of_layers(layers: list[keras.Layer]) -> Augment:
    for layer in layers:
        if type(layer).__name__ in _MIXING:
            raise ValueError(
                f"A {type(layer).__name__} mixes the examples of a batch, and "
                "one example could then move the part of another. Leave it "
                "out: each view is made of one example. Received: augment="
                f"'{layer.name}'"
            )

    def view(x: Any) -> Any:
        if not tf.is_tensor(x):
            raise ValueError(
                "Layers augment inputs that are one tensor. Give a function of "
                "one example instead. Received: x of structure "
                f"{tree.map_structure(lambda leaf: tuple(leaf.shape), x)}"
            )
        # Alone in its batch.
        batch = tf.expand_dims(x, 0)
        for layer in layers:
            batch = layer(batch, training=True)
        return tf.squeeze(tf.convert_to_tensor(batch), 0)

    return view


def traced(augment: Augment, specs: Any) -> Any:
    """Traces an augmentation and checks its graph.

    Args:
        augment: Function of one example.
        specs: Specification of an example.

    Returns:
        A concrete function of an example and of its secret seed.

    Raises:
        ValueError: If a view may depend on anything but its example, or has no
            static shape.
    """

    def view(example: Any, seed: tf.Tensor) -> Any:
        number = itertools.count()

        def draw() -> tf.Tensor:
            return seed + tf.constant([next(number), 0], seed.dtype)

        with keras_random.seeds_from(draw):
            made = augment(example)
        return tree.map_structure(_as_tensor, tree.lists_to_tuples(made))

    function = tf.function(view, autograph=False).get_concrete_function(
        specs, tf.TensorSpec([2], tf.int64)
    )
    _check(tf_graphs.operations(function))
    return function


def _as_tensor(leaf: Any) -> tf.Tensor:
    if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
        raise ValueError(
            "`augment` must return dense tensors. Received: a "
            f"{type(leaf).__name__} of shape {leaf.shape}"
        )
    leaf = tf.convert_to_tensor(leaf)
    if not leaf.shape.is_fully_defined():
        raise ValueError(
            "`augment` must return tensors of static shape, that of one "
            "example. Declare it with `tf.ensure_shape`. Received: shape "
            f"{leaf.shape}"
        )
    return leaf


def _check(operations: list[tf_graphs.Node]) -> None:
    for operation in operations:
        if operation.seed is not None:
            if operation.seed != (0, 0):
                raise ValueError(
                    f"`augment` draws random numbers ({operation.kind}) from a "
                    "seed that may be known, its own or that of "
                    "`tf.random.set_seed`, one view after the other: to leave "
                    "an example out would change the views of others. Draw "
                    "them with `keras.random`, without a seed, or with layers "
                    "of Keras: they take secret seeds here. Received: seed="
                    f"{operation.seed}"
                )
        elif operation.has_state and operation.kind not in _HARMLESS:
            raise ValueError(
                f"`augment` runs {operation.kind}, which may keep something of "
                "one example for the views of another. Write it with "
                "TensorFlow or `keras.ops`, without variables that it changes "
                "and without Python code that runs in every step; draw random "
                "numbers with `keras.random`. Received: operation "
                f"'{operation.name}'"
            )
