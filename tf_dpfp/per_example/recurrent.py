"""Gradient rules of recurrent layers.

The layer's own `call` runs, but for the loop over time steps. There the cells'
recurrences run one cell after the other, in a form that keeps what the
gradients need.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from keras import tree

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import recurrence
from tf_dpfp.per_example import recurrences
from tf_dpfp.per_example import rules

# Swapping a method and calling the layer must not interleave with another
# thread that does the same.
_SWAP_LOCK = threading.RLock()


@contextlib.contextmanager
def _swapped(
    layer: keras.layers.Layer, name: str, value: Any
) -> Iterator[None]:
    """Gives an attribute of a layer another value for a while."""
    with _SWAP_LOCK:
        own = vars(layer)
        had, before = name in own, own.get(name)
        # Past Keras's attribute tracking: this is undone before anyone looks.
        object.__setattr__(layer, name, value)
        try:
            yield
        finally:
            if had:
                object.__setattr__(layer, name, before)
            else:
                object.__delattr__(layer, name)


def _cells(layer: keras.layers.RNN) -> list:
    if type(layer.cell) is keras.layers.StackedRNNCells:
        return list(layer.cell.cells)
    return [layer.cell]


def _is_known(cell: Any, compute_dtype: str) -> bool:
    """Tells if a cell computes what its recurrence does."""
    return (
        type(cell) in recurrences.RECURRENCES
        and "call" not in vars(cell)
        and cell.activity_regularizer is None
        and cell.compute_dtype == compute_dtype
        and not keras_layers.is_quantized(cell)
        and cell.dropout < 1
        and cell.recurrent_dropout < 1
    )


class RecurrentRule(rules.GradientRule):
    """`LSTM`, `GRU`, `SimpleRNN` and `RNN` over these cells or a stack."""

    def supports(self, layer):
        if layer.stateful:
            return True  # To be refused.
        cells = _cells(layer)
        if not all(_is_known(cell, layer.compute_dtype) for cell in cells):
            return False
        is_stack = cells[0] is not layer.cell
        # A stack of one cell nests its states in its own way.
        if is_stack and (
            len(cells) == 1 or layer.cell.compute_dtype != layer.compute_dtype
        ):
            return False
        weights = [(c.kernel, c.recurrent_kernel, c.bias) for c in cells]
        covered = {id(v) for several in weights for v in several}
        return all(id(v) in covered for v in self.variables(layer))

    def record(self, layer, call, args, kwargs):
        if layer.stateful:
            raise ValueError(
                f"Layer '{layer.name}' ({type(layer).__name__}) hands its "
                "states from one batch to the next: examples of several "
                "batches would meet, and what it keeps would leave without "
                "noise. Received: stateful=True. Set `stateful=False`."
            )
        runs: list[recurrences.Run] = []
        recording_thread = threading.get_ident()
        original = layer.inner_loop

        def inner_loop(*args, **kwargs):
            # A thread that does not record may call the layer meanwhile.
            if threading.get_ident() != recording_thread:
                return original(*args, **kwargs)
            return _inner_loop(layer, runs, *args, **kwargs)

        with _swapped(layer, "inner_loop", inner_loop):
            outputs = call(*args, **kwargs)
        sources = tuple(run.projected for run in runs)
        inputs = rules.first(args, kwargs)
        return outputs, rules.LayerCall(layer, self, inputs, sources, runs)

    def gradients(self, call, output_gradients):
        result: recurrences.Pairs = []
        for run, gradient in zip(call.saved, output_gradients, strict=True):
            if gradient is not None:
                kind = recurrences.RECURRENCES[type(run.cell)]
                result += kind.weight_gradients(run, gradient)
        return result


def _inner_loop(
    layer: keras.layers.RNN,
    runs: list[recurrences.Run],
    sequences: tf.Tensor,
    initial_state: Any,
    mask: Any,
    training: bool = False,
) -> tuple[tf.Tensor, tf.Tensor, Any]:
    """Does what `RNN.inner_loop` does, and notes each cell's run."""
    if tree.is_nested(mask):
        mask = mask[0]
    if mask is not None:
        mask = ops.convert_to_tensor(mask)
    if layer.go_backwards:
        sequences = tf.reverse(sequences, [1])
        mask = None if mask is None else tf.reverse(mask, [1])
    cells = _cells(layer)
    states = initial_state if cells[0] is not layer.cell else [initial_state]
    new_states: list[tf.Tensor] = []
    last = sequences
    for cell, state in zip(cells, states, strict=True):
        last, sequences, run, new = _run(
            layer, cell, sequences, tree.flatten(state), mask, training
        )
        runs.append(run)
        new_states += new
    return last, sequences, tree.pack_sequence_as(initial_state, new_states)


def _run(layer, cell, sequences, states, mask, training):
    """Runs one cell over all time steps."""
    kind = recurrences.RECURRENCES[type(cell)]
    input_masks = recurrent_masks = ()
    # Drawn by the layer's `call` before.
    if training and cell.dropout:
        input_masks = _as_tuple(cell.get_dropout_mask(sequences[:, 0]))
    if training and cell.recurrent_dropout:
        recurrent_masks = _as_tuple(cell.get_recurrent_dropout_mask(states[0]))
    inputs = (sequences,)
    if input_masks:
        inputs = tuple(sequences * m[:, None] for m in input_masks)
    projected = kind.projected(cell, inputs)
    step = kind.step(cell, recurrent_masks)

    # At a masked step the output is not the state.
    saves_states = mask is not None

    def step_and_save(projected, states):
        output, new_states, saved = step(projected, states)
        if saves_states:
            saved = [states[0], *saved]
        if saved:
            saved = [tf.stop_gradient(t) for t in saved]
            output = tf.concat([output, *saved], axis=-1)
        return output, new_states

    last, outputs, new_states = recurrence.scan(
        step_and_save,
        projected,
        states,
        mask,
        layer.unroll,
        layer.zero_output_for_mask,
    )
    if layer.return_state:
        # Where states alone are used, the outputs get zeros of a known shape
        # for a gradient, and not those of an empty list.
        last, outputs, *new_states = tf.identity_n(
            [last, outputs, *tree.flatten(new_states)]
        )
    count = 1 + saves_states + kind.saves_resets
    parts = tf.split(outputs, count, axis=-1) if count > 1 else [outputs]
    run = recurrences.Run(
        cell,
        inputs,
        projected,
        recurrent_masks,
        parts[1] if saves_states else _before(states[0], parts[0]),
        parts[-1] if kind.saves_resets else None,
    )
    last = last[..., : parts[0].shape[-1]]
    return last, parts[0], run, tree.flatten(new_states)


def _before(first: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Returns the state before each step, where the state is the output."""
    states = tf.concat([first[:, None], outputs[:, :-1]], axis=1)
    return tf.stop_gradient(states)


def _as_tuple(masks: Any) -> tuple[tf.Tensor, ...]:
    return tuple(masks) if isinstance(masks, (list, tuple)) else (masks,)


class BidirectionalRule(rules.GradientRule):
    """No weights of its own: its two layers are recorded by themselves.

    On a GPU it would run both in one kernel of cuDNN, past the layers.
    """

    holds_units = True

    def record(self, layer, call, args, kwargs):
        inner = layer.forward_layer
        if hasattr(inner, "use_cudnn"):
            with _swapped(inner, "use_cudnn", False):
                outputs = call(*args, **kwargs)
        else:
            outputs = call(*args, **kwargs)
        inputs = rules.first(args, kwargs)
        return outputs, rules.LayerCall(layer, self, inputs, ())

    def gradients(self, call, output_gradients):
        del call, output_gradients
        return []


for _layer_type in (
    keras.layers.RNN,
    keras.layers.LSTM,
    keras.layers.GRU,
    keras.layers.SimpleRNN,
):
    rules.register_gradient_rule(_layer_type)(RecurrentRule)
rules.register_gradient_rule(keras.layers.Bidirectional)(BidirectionalRule)
