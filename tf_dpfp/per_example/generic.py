"""The generic rule: exact per-example gradients of any layer.

The layer is called once for every example, with a copy of its trainable weights
for each: the gradient with respect to copy `i` is the gradient of example `i`.
The calls are vectorised; what TensorFlow can't vectorise with weights for each
example, such as a convolution, runs in a loop (`looped`). Every example gets
its own random stream: dropout masks differ between examples, as they do in an
ordinary batch.

Costs the memory of `batch` copies of the layer's weights; a layer with many
weights deserves a rule of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import random as keras_random
from tf_dpfp.keras_private import vectorized
from tf_dpfp.per_example import batched
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import looped
from tf_dpfp.per_example import rules


def batch_of(args: tuple, kwargs: dict) -> tf.Tensor:
    """Returns a tensor of the batch among the arguments of a call."""
    for leaf in tree.flatten((args, kwargs)):
        if batched.is_batched(leaf):
            return leaf
    raise ValueError("expected a tensor among the layer's arguments")


def copies(variable: keras.Variable, batch_size) -> tf.Tensor:
    """Returns a copy of a weight for each example."""
    value = tf.convert_to_tensor(variable.value)
    shape = tf.concat([[batch_size], tf.shape(value)], axis=0)
    spread = tf.broadcast_to(value[None], shape)
    spread.set_shape([None, *value.shape])
    # A tensor of its own, so that the tape stops here.
    return tf.identity(spread)


def example_seeds(variable: keras.Variable, batch_size) -> tf.Tensor:
    """A seed for each example; the generator moves on by one draw."""
    secret = keras_random.drawn_seed()
    state = tf.convert_to_tensor(variable.value)
    spread = tf.random.stateless_uniform(
        tf.stack([batch_size, 2]),
        seed=tf.cast(state if secret is None else secret, tf.int64),
        minval=0,
        maxval=2**31 - 1,
        dtype=tf.int32,
    )
    if secret is None:
        variable.assign(state + tf.constant([0, 1], dtype=state.dtype))
    return tf.cast(spread, state.dtype)


def _only_row(layer: keras.layers.Layer, output: tf.Tensor) -> tf.Tensor:
    """Takes the one row of what a layer gives for one example."""
    if output.shape.rank is not None and output.shape[:1] not in ([1], [None]):
        raise ValueError(
            f"Layer '{layer.name}' ({type(layer).__name__}) gives for one "
            f"example a tensor of shape {tuple(output.shape)}, whose first "
            "axis is not the batch: tokens of all examples laid end to end, as "
            "routers of experts do, are not told apart again. Return tensors "
            "of shape (batch, ...)."
        )
    return tf.squeeze(output, 0)


class GenericRule(rules.GradientRule):
    """Exact gradients of any layer, by one vectorised call per example.

    Works for custom layers, recurrent layers and layers that own weights
    beside sublayers. A layer that mixes examples, or that keeps statistics of
    what it sees, is refused.
    """

    def record(self, layer, call, args, kwargs):
        reference = batch_of(args, kwargs)
        batch_size = tf.shape(reference)[0]
        trainable = self.variables(layer)
        sources = tuple(copies(v, batch_size) for v in trainable)
        is_seed = keras_layers.is_seed_variable
        others = [v for v in layer.variables if not v.trainable]
        seed_states = [v for v in others if is_seed(v)]
        statistics = [v for v in others if not is_seed(v)]
        seeds = [example_seeds(v, batch_size) for v in seed_states]
        flat = tree.flatten((args, kwargs))
        mapped = [batched.is_batched(leaf, reference) for leaf in flat]

        def call_one(elements):
            weights, example_seeds, leaves = elements
            leaves = iter(leaves)
            merged = [
                next(leaves)[None] if is_mapped else leaf
                for leaf, is_mapped in zip(flat, mapped, strict=True)
            ]
            one_args, one_kwargs = tree.pack_sequence_as((args, kwargs), merged)
            mapping = list(zip(trainable, weights, strict=True))
            mapping += zip(seed_states, example_seeds, strict=True)
            with (
                keras_layers.losses_apart(layer),
                keras.StatelessScope(
                    state_mapping=mapping, collect_losses=True
                ) as scope,
            ):
                outputs = call(*one_args, **one_kwargs)
            refuse_statistics(layer, statistics, scope)
            # What is no tensor (`None`) can't be vectorised, nor need be.
            structure.append(outputs)
            return added_losses(scope) + [
                _only_row(layer, t)
                for t in tree.flatten(outputs)
                if t is not None
            ]

        structure: list[Any] = []
        shared = [
            tf.is_tensor(f) for f, m in zip(flat, mapped, strict=True) if not m
        ]
        found = _mapped(
            call_one,
            (
                sources,
                seeds,
                [f for f, m in zip(flat, mapped, strict=True) if m],
            ),
            others,
            may_loop=not any(shared),
        )
        outputs, added = apart(found, structure[0])
        return outputs, rules.LayerCall(
            layer,
            self,
            rules.first(args, kwargs),
            sources,
            trainable,
            added=added,
        )

    def gradients(self, call, output_gradients):
        return [
            # A gather in the layer makes its gradient an `IndexedSlices`.
            (
                variable,
                gradients.PerExampleTensor(tf.convert_to_tensor(gradient)),
            )
            for variable, gradient in zip(
                call.saved, output_gradients, strict=True
            )
            if gradient is not None
        ]


def _mapped(
    call_one: Callable[[Any], list[tf.Tensor]],
    elements: Any,
    frozen: Sequence[keras.Variable],
    may_loop: bool,
) -> list[tf.Tensor]:
    """Calls a function on every example: vectorised, or in a loop.

    Args:
        call_one: Takes the tensors of one example, in their structure.
        elements: Tensors, examples along the first axis, nested.
        frozen: Variables of the layer that don't train.
        may_loop: False if tensors from elsewhere go in, whose gradients a loop
            does not know.
    """
    flat = tree.flatten(elements)

    def of_one(leaves):
        return call_one(tree.pack_sequence_as(elements, leaves))

    if not may_loop or not looped.needs_loop(of_one, flat):
        return vectorized.mapped(call_one, elements)
    return looped.mapped(
        lambda _, leaves: of_one(leaves),
        weights=[],
        has_copies=False,
        examples=flat,
        frozen=frozen,
    )


def refuse_statistics(layer, variables, scope) -> None:
    """Raises ValueError if a layer updates any of the variables."""
    for variable in variables:
        if scope.get_current_value(variable) is not None:
            raise ValueError(
                f"Layer '{layer.name}' ({type(layer).__name__}) updates "
                f"'{variable.path}' while it trains: statistics of the data "
                "would leave without noise. Replace the layer, or set "
                "`layer.trainable = False`."
            )


def added_losses(scope: keras.StatelessScope) -> list[tf.Tensor]:
    """Adds up what layers added to the loss, by `add_loss`, in a scope.

    Args:
        scope: A scope that collects losses.

    Returns:
        A list of one number; an empty list if nothing was added.
    """
    if not scope.losses:
        return []
    floatx = keras.config.floatx()
    return [tf.add_n([tf.reduce_sum(tf.cast(t, floatx)) for t in scope.losses])]


def apart(
    found: Sequence[tf.Tensor], structure: Any
) -> tuple[Any, tf.Tensor | None]:
    """Separates outputs of a layer from what it added to the loss.

    Args:
        found: What was added, if anything, and the outputs, flat.
        structure: Outputs for one example; leaves may be `None`.

    Returns:
        The outputs in their structure, and what was added or `None`.
    """
    leaves = tree.flatten(structure)
    count = sum(leaf is not None for leaf in leaves)
    outputs = iter(found[len(found) - count :])
    packed = tree.pack_sequence_as(
        structure, [None if leaf is None else next(outputs) for leaf in leaves]
    )
    return packed, found[0] if len(found) > count else None


GENERIC_RULE = GenericRule()
