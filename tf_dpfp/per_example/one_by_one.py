"""Calls of a layer on one example after the other.

A loop whose rounds see one example each: what an example gives can't depend on
the others, whatever the layer computes. The backward pass is a loop of the
same kind, which calls the layer once more: nothing is handed from one round to
the next.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.per_example import generic


@dataclasses.dataclass(frozen=True)
class OneByOne:
    """A layer that is called on batches of one.

    Attributes:
        layer: The layer.
        weights: Its weights that are handed in as tensors.
    """

    layer: keras.layers.Layer
    weights: tuple[keras.Variable, ...]

    def __call__(
        self,
        args: tuple,
        kwargs: dict,
        values: Sequence[tf.Tensor],
        has_copies: bool,
    ) -> tuple[Any, tf.Tensor | None]:
        """Calls the layer.

        Args:
            args: Positional arguments. All tensors have the batch as their
                first axis.
            kwargs: Keyword arguments, likewise.
            values: Values of `weights`.
            has_copies: True if `values` are one for each example.

        Returns:
            What the layer returns, for the whole batch, and what it added to
            the loss of each example, or `None`.
        """
        flat = tree.flatten((args, kwargs))
        is_tensor = [tf.is_tensor(leaf) for leaf in flat]
        tensors = [t for t, known in zip(flat, is_tensor, strict=True) if known]
        batch_size = _batch_size(self.layer, tensors)
        others = [v for v in self.layer.variables if not v.trainable]
        seeded = [v for v in others if keras_layers.is_seed_variable(v)]
        statistics = [v for v in others if not keras_layers.is_seed_variable(v)]
        seeds = [generic.example_seeds(v, batch_size) for v in seeded]
        structure: list[Any] = []

        def call(weights, example):
            leaves = iter(example[len(seeds) :])
            merged = [
                next(leaves)[None] if known else leaf
                for leaf, known in zip(flat, is_tensor, strict=True)
            ]
            one_args, one_kwargs = tree.pack_sequence_as((args, kwargs), merged)
            mapping = list(zip(self.weights, weights, strict=True))
            mapping += zip(seeded, example[: len(seeds)], strict=True)
            with (
                keras_layers.losses_apart(self.layer),
                keras.StatelessScope(
                    state_mapping=mapping, collect_losses=True
                ) as scope,
            ):
                outputs = self.layer(*one_args, **one_kwargs)
            generic.refuse_statistics(self.layer, statistics, scope)
            structure.append(outputs)
            return generic.added_losses(scope) + [
                tf.squeeze(t, 0) for t in tree.flatten(outputs) if t is not None
            ]

        found = mapped(call, list(values), has_copies, seeds + tensors)
        return generic.apart(found, structure[0])


def _batch_size(layer: keras.layers.Layer, tensors: Sequence[tf.Tensor]):
    """Returns the number of examples; checks what is known of it."""
    if not tensors:
        raise ValueError(
            f"Layer '{layer.name}' is called without a tensor: there is no "
            "batch of examples to call it on one by one."
        )
    shapes = [t.shape for t in tensors]
    known = {s[0] for s in shapes if s.rank and s[0] is not None}
    if any(s.rank == 0 for s in shapes) or len(known) > 1:
        raise ValueError(
            f"Layer '{layer.name}' is called on one example after the other: "
            "the first axis of every tensor it is given must be the batch. "
            f"Received: shapes {[tuple(s) for s in shapes]}. Give it what is "
            "the same for all examples in its constructor."
        )
    return tf.shape(tensors[0])[0]


def mapped(
    call: Callable[[list, list], list[tf.Tensor]],
    weights: list[tf.Tensor],
    has_copies: bool,
    examples: list[tf.Tensor],
) -> list[tf.Tensor]:
    """Calls a function on each example, and differentiates it likewise.

    Args:
        call: Takes weights and the tensors of one example.
        weights: Weights, the same for all examples or one of each.
        has_copies: True if there are copies for each example.
        examples: Tensors, examples along the first axis.

    Returns:
        What the function returns, for the whole batch.
    """
    count = len(weights)
    if has_copies:
        mapped = weights + examples
    else:
        mapped = examples

    def one(shared, example):
        if has_copies:
            return call(example[:count], example[count:])
        return call(shared, example)

    shared = [] if has_copies else weights
    signature = _signature(one, shared, mapped)
    floating = [t.dtype.is_floating for t in mapped]

    @tf.custom_gradient
    def run(*tensors):
        shared, mapped = _apart(tensors, len(tensors) - len(floating))
        outputs = tf.map_fn(
            lambda example: _ensured(one(shared, example), signature),
            mapped,
            fn_output_signature=signature,
        )

        def gradient(*output_gradients):
            # What was looked up makes slices of its gradient.
            dense = [tf.convert_to_tensor(g) for g in output_gradients]
            found = iter(_gradients(one, shared, mapped, floating, dense))
            own = [
                None if g is None else tf.reduce_sum(g, axis=0)
                for g in (next(found) for _ in shared)
            ]
            return own + [next(found) if f else None for f in floating]

        return outputs, gradient

    return list(run(*shared, *mapped))


def _gradients(
    one, shared, mapped, floating, output_gradients
) -> list[tf.Tensor | None]:
    """Gradients of each example: of the weights, and of what is floating.

    `None` for what nothing hangs on: zeros that no example makes would be the
    same for all of them.
    """
    watched = [m for m, f in zip(mapped, floating, strict=True) if f]
    kinds = [tf.TensorSpec(t.shape, t.dtype) for t in shared]
    kinds += [tf.TensorSpec(t.shape[1:], t.dtype) for t in watched]
    elements = [*mapped, *output_gradients]
    is_connected: list[bool] = []

    def backward(elements):
        example, gradients = _apart(elements, len(mapped))
        sources = [*shared]
        sources += [e for e, f in zip(example, floating, strict=True) if f]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            outputs = one(shared, example)
        pairs = [
            (o, g)
            for o, g in zip(outputs, gradients, strict=True)
            if o.dtype.is_floating
        ]
        found = tape.gradient(
            [o for o, _ in pairs],
            sources,
            output_gradients=[g for _, g in pairs],
        )
        is_connected[:] = [g is not None for g in found]
        return _ensured(
            [g for g in found if g is not None],
            [k for g, k in zip(found, kinds, strict=True) if g is not None],
        )

    # Traced and never run: it tells what is connected.
    specs = [tf.TensorSpec(t.shape[1:], t.dtype) for t in elements]
    tf.function(backward, autograph=False).get_concrete_function(specs)
    known = [k for k, has in zip(kinds, is_connected, strict=True) if has]
    if not known:
        return [None] * len(is_connected)
    found = iter(tf.map_fn(backward, elements, fn_output_signature=known))
    return [next(found) if has else None for has in is_connected]


def _ensured(tensors, specs: Sequence[tf.TensorSpec]) -> list[tf.Tensor]:
    """Checks the shapes that a loop says its results have."""
    return [
        tf.ensure_shape(tf.convert_to_tensor(tensor), spec.shape)
        for tensor, spec in zip(tensors, specs, strict=True)
    ]


def _apart(tensors, count: int) -> tuple[list, list]:
    return list(tensors[:count]), list(tensors[count:])


def _signature(one, shared, mapped) -> list[tf.TensorSpec]:
    """Returns shapes and types of the outputs for one example."""
    specs = [tf.TensorSpec(t.shape, t.dtype) for t in shared]
    specs += [tf.TensorSpec(t.shape[1:], t.dtype) for t in mapped]
    # Traced and never run.
    traced = tf.function(
        lambda *tensors: one(*_apart(tensors, len(shared))), autograph=False
    ).get_concrete_function(*specs)
    return [tf.TensorSpec(t.shape, t.dtype) for t in traced.outputs]
