"""Gradients of weights that a layer owns beside the layers it holds.

Class tokens, positions, layer scales, latent arrays, temperatures. The layer
runs once, on the batch, and the layers it holds are recorded by themselves.
What is left, the layer's own code, is a function of its arguments, of what the
layers it holds gave, and of its own weights; its results are what it returns
and what it gives to the layers it holds. Their gradients come with the
backward pass. So the own code runs once more for each example, vectorised, with
a copy of the own weights and with the outputs of the held layers played back,
and is differentiated: the gradient of copy `i` is that of example `i`.
"""

import contextlib
import dataclasses
import types
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import vectorized
from tf_dpfp.per_example import batched
from tf_dpfp.per_example import generic
from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import held_calls
from tf_dpfp.per_example import rules


@dataclasses.dataclass(frozen=True)
class _Held:
    """One call of a held layer by own code.

    Attributes:
        layer: The layer.
        is_wide: For every argument of floating-point numbers: true if it was
            the same for all examples and was given once for each.
        is_result: For each of them: true if its gradient is wanted.
        outputs: What the call returned.
    """

    layer: keras.layers.Layer
    is_wide: tuple[bool, ...]
    is_result: tuple[bool, ...]
    outputs: Any


@dataclasses.dataclass(frozen=True)
class _Run:
    """One run of own code on a batch.

    Attributes:
        args: Positional arguments of the layer.
        kwargs: Keyword arguments of the layer.
        held: Calls of held layers, in order.
        reference: A tensor of the batch.
        ask: Tells whether a tensor has the batch in it, or `None`.
    """

    args: tuple
    kwargs: dict
    held: Sequence[_Held]
    reference: tf.Tensor
    ask: batched.IsBatched | None

    def played(self) -> tuple:
        """Returns everything that the own code of one example is given."""
        return self.args, self.kwargs, [held.outputs for held in self.held]

    def has_rows(self, leaf: Any) -> bool:
        """Tells whether a leaf has one row for each example."""
        return _has_rows(leaf, self.reference, self.ask)


def _has_rows(
    leaf: Any, reference: tf.Tensor, ask: batched.IsBatched | None
) -> bool:
    if not tf.is_tensor(leaf) or not leaf.shape.rank:
        return False
    if leaf is reference:
        return True
    if ask is not None:
        return bool(ask(leaf))
    return leaf.shape[0] == reference.shape[0]


def _same(leaf: Any) -> Any:
    """Returns a tensor of its own, whose gradient is that of one use."""
    if not tf.is_tensor(leaf):
        return leaf
    return keras_layers.with_mask(tf.identity(leaf), keras_layers.mask_of(leaf))


def _tensors(arguments: Any) -> list[Any]:
    """Flattens arguments; a weight that is one becomes a tensor."""
    return [
        tf.convert_to_tensor(leaf) if isinstance(leaf, keras.Variable) else leaf
        for leaf in tree.flatten(arguments)
    ]


def _is_floating(leaf: Any) -> bool:
    return tf.is_tensor(leaf) and leaf.dtype.is_floating


class NeedsGenericRule(ValueError):
    """Raised if own code calls a held layer on its weights alone.

    What the layer gives has no batch, and own code may give it one in any way.
    """


class _OtherwiseError(ValueError):
    """Raised if own code of one example is not that of a batch."""


def _way_out(layer: keras.layers.Layer) -> str:
    return (
        "Register the generic rule for it: "
        "`tf_dpfp.gradient_rules.register_gradient_rule"
        f"({type(layer).__name__})(tf_dpfp.gradient_rules.GenericRule)`."
    )


class _Recorded:
    """Calls of held layers while own code runs on a batch.

    Args:
        reference: A tensor of the batch.
        ask: Tells whether a tensor has the batch in it, or `None`.
    """

    def __init__(
        self, reference: tf.Tensor, ask: batched.IsBatched | None
    ) -> None:
        self._reference, self._ask = reference, ask
        self.held: list[_Held] = []
        self.results: list[tf.Tensor] = []

    def __call__(self, layer, call, args, kwargs):
        flat = _tensors((args, kwargs))
        rows = [_has_rows(leaf, self._reference, self._ask) for leaf in flat]
        size = tf.shape(self._reference)[0]
        is_wide = _wide(flat, rows)
        flat = [
            batched.spread(leaf, size) if wide else leaf
            for leaf, wide in zip(flat, is_wide, strict=True)
        ]
        floating = [i for i, leaf in enumerate(flat) if _is_floating(leaf)]
        is_result = tuple(rows[i] or is_wide[i] for i in floating)
        for i, wanted in zip(floating, is_result, strict=True):
            if wanted:
                flat[i] = _same(flat[i])
                self.results.append(flat[i])
        args, kwargs = tree.pack_sequence_as((args, kwargs), flat)
        outputs = call(*args, **kwargs)
        wide = tuple(is_wide[i] for i in floating)
        self.held.append(_Held(layer, wide, is_result, outputs))
        return outputs


def _wide(flat: Sequence[Any], rows: Sequence[bool]) -> tuple[bool, ...]:
    """Tells which arguments a held layer must be given once per example.

    A weight that is an argument needs a gradient for each example. Beside
    others that have the batch, a first axis of one takes it.
    """
    if not any(rows) and any(map(_is_floating, flat)):
        raise NeedsGenericRule
    return tuple(
        not row
        and _is_floating(leaf)
        and (leaf.shape.rank or 0) > 1
        and leaf.shape[0] == 1
        for leaf, row in zip(flat, rows, strict=True)
    )


class _Replay:
    """Plays the outputs of held layers back, for one example.

    Args:
        layer: The layer that holds them.
        held: Calls on the batch.
        outputs: What each gave for the example.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        held: Sequence[_Held],
        outputs: Sequence[Any],
    ) -> None:
        self._layer = layer
        self._calls: Iterator = zip(held, outputs, strict=True)
        self.results: list[tf.Tensor] = []

    def __call__(self, layer, call, args, kwargs):
        del call
        held, outputs = next(self._calls, (None, None))
        # Masks and modes may be others here, where nothing comes of them.
        flat = [f for f in _tensors((args, kwargs)) if _is_floating(f)]
        if (
            held is None
            or held.layer is not layer
            or len(held.is_wide) != len(flat)
        ):
            raise _OtherwiseError(
                f"Layer '{self._layer.name}' ({type(self._layer).__name__}) "
                "owns weights beside other layers, and calls those otherwise "
                f"for one example than for a batch: '{layer.name}'. "
                + _way_out(self._layer)
            )
        for leaf, wide, wanted in zip(
            flat, held.is_wide, held.is_result, strict=True
        ):
            if wanted:
                self.results.append(batched.spread(leaf, 1) if wide else leaf)
        return outputs


class OwnWeightsRule(rules.GradientRule):
    """Weights of a layer beside layers it holds, by its own code once more.

    What it does not cover, and the generic rule does: random numbers that own
    code draws, for they would be drawn twice; and losses that it adds.
    """

    holds_units = True

    def supports(self, layer):
        held = [
            v for sub in keras_layers.sublayers(layer) for v in sub.variables
        ]
        own = keras_layers.own_variables(layer)
        return (
            not all(map(keras_layers.is_seed_variable, held))
            and not any(map(keras_layers.is_seed_variable, own))
            and not any(map(may_add_losses, keras_layers.all_layers(layer)))
        )

    def record(self, layer, call, args, kwargs):
        reference = generic.batch_of(args, kwargs)
        recorded = _Recorded(reference, batched.asking())
        losses = len(keras_layers.added_losses(layer))
        held = keras_layers.all_layers(layer)[1:]
        with held_calls.watched(held, recorded):
            outputs = call(*args, **kwargs)
        if len(keras_layers.added_losses(layer)) > losses:
            raise ValueError(
                f"Layer '{layer.name}' ({type(layer).__name__}) owns weights "
                "beside other layers, and adds a loss: the gradient of each "
                "example needs the generic rule. " + _way_out(layer)
            )
        outputs = tree.map_structure(_same, outputs)
        returned = [t for t in tree.flatten(outputs) if _is_floating(t)]
        run = _Run(args, kwargs, recorded.held, reference, batched.asking())
        sources = (*recorded.results, *returned)
        inputs = rules.first(args, kwargs)
        return outputs, rules.LayerCall(layer, self, inputs, sources, run)

    def gradients(self, call, output_gradients):
        variables = self.variables(call.layer)
        copies = [
            generic.copies(v, tf.shape(call.saved.reference)[0])
            for v in variables
        ]
        wanted = [g is not None for g in output_gradients]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(copies)
            found = _results(call.layer, call.saved, variables, copies, wanted)
        given = [
            tf.convert_to_tensor(g) for g in output_gradients if g is not None
        ]
        own = tape.gradient(found, copies, given)
        return [
            (v, gradients.PerExampleTensor(tf.convert_to_tensor(gradient)))
            for v, gradient in zip(variables, own, strict=True)
            if gradient is not None
        ]


def _results(
    layer: keras.layers.Layer,
    run: _Run,
    variables: Sequence[keras.Variable],
    copies: Sequence[tf.Tensor],
    wanted: Sequence[bool],
) -> list[tf.Tensor]:
    """Runs own code for each example.

    Args:
        layer: The layer.
        run: Its run on the batch.
        variables: Its own weights.
        copies: A copy of each for every example.
        wanted: Which results are wanted, of all.

    Returns:
        The wanted results, for the whole batch.
    """
    given = run.played()
    flat = tree.flatten(given)
    rows = [run.has_rows(leaf) for leaf in flat]
    others = [v for v in layer.variables if not v.trainable]

    def one(elements):
        weights, leaves = elements
        leaves = iter(leaves)
        merged = [
            next(leaves)[None] if has_rows else leaf
            for leaf, has_rows in zip(flat, rows, strict=True)
        ]
        args, kwargs, outputs = tree.pack_sequence_as(given, merged)
        replay = _Replay(layer, run.held, outputs)
        mapping = list(zip(variables, weights, strict=True))
        held = keras_layers.all_layers(layer)[1:]
        with (
            held_calls.watched(held, replay),
            keras.StatelessScope(
                state_mapping=mapping, collect_losses=True
            ) as scope,
            _for_one_example(layer),
        ):
            returned = layer(*args, **kwargs)
        generic.refuse_statistics(layer, others, scope)
        results = replay.results
        results += [t for t in tree.flatten(returned) if _is_floating(t)]
        with _for_one_example(layer):
            return [
                tf.squeeze(t, 0)
                for t, known in zip(results, wanted, strict=True)
                if known
            ]

    leaves = [f for f, has_rows in zip(flat, rows, strict=True) if has_rows]
    return vectorized.mapped(one, (list(copies), leaves))


@contextlib.contextmanager
def _for_one_example(layer: keras.layers.Layer) -> Iterator[None]:
    """Says what is wrong where own code takes no batch of one."""
    try:
        yield
    except _OtherwiseError:
        raise
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise _OtherwiseError(
            f"Layer '{layer.name}' ({type(layer).__name__}) owns weights "
            "beside other layers, and its own code does not run on one "
            "example with what these gave for it. Keep the examples in the "
            "first axis wherever it calls a layer, without merging other axes "
            "into it. " + _way_out(layer)
        ) from error


def may_add_losses(layer: keras.layers.Layer) -> bool:
    """Tells whether a layer adds to the loss, by code or a regularizer."""
    if layer.activity_regularizer is not None:
        return True
    for cls in type(layer).__mro__:
        if cls.__module__.partition(".")[0] == "keras":
            return False
        for item in vars(cls).values():
            function = getattr(item, "__wrapped__", item)
            code = getattr(function, "__code__", None)
            if code is not None and _names(code, "add_loss"):
                return True
    return False


def _names(code: types.CodeType, name: str) -> bool:
    """Tells whether code, or a function in it, names an attribute."""
    if name in code.co_names:
        return True
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return any(_names(one, name) for one in inner)


RULE = OwnWeightsRule()
