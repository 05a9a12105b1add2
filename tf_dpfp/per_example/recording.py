"""Recording the layer calls of a forward pass.

`find_units` cuts a model into the pieces that a gradient rule covers;
`record_calls` watches those pieces during one forward pass, in eager mode,
while a `tf.function` is traced, and in several threads at once
(`tf.distribute.MirroredStrategy` traces every replica in a thread of its own
over the same layer objects).
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.per_example import batched
from tf_dpfp.per_example import generic
from tf_dpfp.per_example import own_weights
from tf_dpfp.per_example import rules

# Layers that call what they hold inside a loop: the tensors of the loop's body
# are out of reach, so the whole layer is one unit.
_LOOPING_LAYERS = (keras.layers.RNN, keras.layers.TimeDistributed)


@dataclasses.dataclass(frozen=True)
class Unit:
    """A layer whose calls are recorded, and the rule that does it."""

    layer: keras.layers.Layer
    rule: rules.GradientRule

    @property
    def variables(self) -> list[keras.Variable]:
        return self.rule.variables(self.layer)


def find_units(root: keras.layers.Layer) -> list[Unit]:
    """Cuts a built model into units, each covered by one gradient rule.

    A layer with a registered rule is a unit. One without that owns trainable
    weights beside sublayers is a unit for these weights alone, and its
    sublayers are looked at, too. A layer that owns trainable weights
    otherwise, or calls its sublayers inside a loop, is a unit under the
    generic rule. Of any other layer the sublayers are looked at.
    Layers without trainable weights are left alone and cost nothing.

    Args:
        root: A built model or layer.

    Returns:
        The units, in the order in which Keras lists the layers. Every
        trainable variable of `root` is in at least one unit.
    """
    units: list[Unit] = []
    seen: set[int] = set()

    def visit(layer: keras.layers.Layer) -> None:
        if id(layer) in seen or not keras_layers.trainable_variables(layer):
            return
        seen.add(id(layer))
        rule = rules.rule_for(layer)
        if rule is not None:
            units.append(Unit(layer, rule))
            if not rule.holds_units:
                return
            for sublayer in keras_layers.sublayers(layer):
                visit(sublayer)
            return
        owns_weights = any(
            v.trainable for v in keras_layers.own_variables(layer)
        )
        is_loop = isinstance(layer, _LOOPING_LAYERS)
        if owns_weights and not is_loop and own_weights.RULE.supports(layer):
            units.append(Unit(layer, own_weights.RULE))
        elif owns_weights or is_loop:
            units.append(Unit(layer, generic.GENERIC_RULE))
            return
        for sublayer in keras_layers.sublayers(layer):
            visit(sublayer)

    visit(root)
    return units


class Played(NamedTuple):
    """What a recorded call gave for one example.

    Attributes:
        outputs: What it returned.
        added: What it added to the loss, or `None`.
    """

    outputs: Any
    added: tf.Tensor | None


class NotRecordedError(ValueError):
    """Raised if a layer is called that has nothing more to play back."""


class _Recorder(threading.local):
    """The recording of the current thread: calls, or `None`."""

    calls: list[rules.LayerCall] | None = None
    graph: object = None
    is_batched: batched.IsBatched | None = None
    batch_size: tf.Tensor | int = 0
    # Layers whose arguments had no batch in them.
    spread: tuple[str, ...] = ()
    # Number of consecutive rows that are of one example.
    positions: tf.Tensor | int = 1
    # What the calls of each layer return, by its identity; `None`: run them.
    played: dict[int, Iterator[Played]] | None = None


_RECORDER = _Recorder()
_PATCH_LOCK = threading.RLock()
_patch_counts: dict[int, int] = {}


def _current_graph() -> object:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _patched_call(unit: Unit):
    original = unit.layer.call

    def call(*args, **kwargs):
        if _RECORDER.played is not None:
            return _play_back(unit.layer)
        calls = _RECORDER.calls
        if calls is None:
            return original(*args, **kwargs)
        if _current_graph() is not _RECORDER.graph:
            raise ValueError(
                f"Layer '{unit.layer.name}' ({type(unit.layer).__name__}) is "
                "called inside a loop or a function of another layer, where "
                "its per-example gradients are out of reach. Register a "
                "gradient rule for the outer layer: "
                "`tf_dpfp.gradient_rules.register_gradient_rule(OuterLayer)"
                "(tf_dpfp.gradient_rules.GenericRule)`."
            )
        known = batched.asked(_RECORDER.is_batched, args, kwargs)
        is_spread = bool(known) and not any((known or {}).values())
        if is_spread:
            # The same for all examples, as positions are; a gradient of each
            # example needs a row of each.
            rows = _RECORDER.batch_size * _RECORDER.positions
            args, kwargs = batched.spread((args, kwargs), rows)
            known = None
            _RECORDER.spread += (unit.layer.name,)
        with batched.answered(known, _RECORDER.is_batched):
            outputs, recorded = _recorded(
                unit.layer, unit.rule, calls, original, args, kwargs
            )
        recorded.is_spread = is_spread
        recorded.outputs = outputs
        recorded.positions = _RECORDER.positions
        calls.append(recorded)
        return outputs

    return call


def _recorded(
    layer: keras.layers.Layer,
    rule: rules.GradientRule,
    calls: list[rules.LayerCall],
    original: Callable[..., Any],
    args: tuple,
    kwargs: dict,
) -> tuple[Any, rules.LayerCall]:
    """Runs a layer by its rule, or by the generic one if that asks for it."""
    count = len(calls)
    # A unit's own sublayers are the rule's affair, unless it says not.
    if not rule.holds_units:
        _RECORDER.calls = None
    try:
        return rule.record(layer, original, args, kwargs)
    except own_weights.NeedsGenericRule:
        if not rule.holds_units:
            raise  # Of a layer within, which its own record meets.
    finally:
        _RECORDER.calls = calls
    del calls[count:]
    return _recorded(layer, generic.GENERIC_RULE, calls, original, args, kwargs)


def _play_back(layer: keras.layers.Layer) -> Any:
    recorded = (_RECORDER.played or {}).get(id(layer), iter(()))
    played = next(recorded, None)
    if played is None:
        raise NotRecordedError(
            f"Layer '{layer.name}' ({type(layer).__name__}) is called more "
            "often for the loss of one example than for that of a batch, so "
            "its per-example gradients are out of reach."
        )
    if played.added is not None:
        layer.add_loss(played.added)
    return played.outputs


def _patch(units: Sequence[Unit]) -> None:
    with _PATCH_LOCK:
        for unit in units:
            count = _patch_counts.get(id(unit.layer), 0)
            if count == 0:
                object.__setattr__(unit.layer, "call", _patched_call(unit))
            _patch_counts[id(unit.layer)] = count + 1


def _unpatch(units: Sequence[Unit]) -> None:
    with _PATCH_LOCK:
        for unit in units:
            count = _patch_counts.pop(id(unit.layer)) - 1
            if count:
                _patch_counts[id(unit.layer)] = count
            else:
                object.__delattr__(unit.layer, "call")


def _note_on(names: Sequence[str]) -> str:
    """Tells of layers that gave more axes than in an ordinary step."""
    return (
        f"In a private step, layers called on what is the same for all "
        f"examples ({', '.join(sorted(set(names)))}) give one row for each "
        "example: (batch, ...). Use what they give by broadcasting, as in `x + "
        "table(positions)`, or set "
        "`tf_dpfp.gradient_rules.register_gradient_rule(OuterLayer)"
        "(tf_dpfp.gradient_rules.GenericRule)` for the layer that calls them. "
        + batched.OF_ONE_GRAPH
    )


@contextlib.contextmanager
def explaining(calls: Sequence[rules.LayerCall]) -> Iterator[None]:
    """Notes on errors that calls gave one row for each example.

    Args:
        calls: Recorded calls, of which some may have been on what is the same
            for all examples.
    """
    try:
        yield
    except Exception as error:
        names = [call.layer.name for call in calls if call.is_spread]
        if names:
            error.add_note(_note_on(names))
        raise


@contextlib.contextmanager
def record_calls(
    units: Sequence[Unit],
    is_batched: batched.IsBatched | None = None,
    batch_size: tf.Tensor | int = 0,
) -> Iterator[list[rules.LayerCall]]:
    """Records every call of the units made by this thread.

    Args:
        units: What `find_units` returned.
        is_batched: Tells of an argument of a layer whether it has the batch in
            it. A call without the batch gets its arguments once for each
            example. `None`: every call has it.
        batch_size: Number of examples; needed with `is_batched`.

    Yields:
        A list that fills with `LayerCall`s as the model is called.

    Raises:
        RuntimeError: If this thread is recording already.
    """
    if _RECORDER.calls is not None:
        raise RuntimeError("`record_calls` does not nest in one thread.")
    calls: list[rules.LayerCall] = []
    _patch(units)
    _RECORDER.calls, _RECORDER.graph = calls, _current_graph()
    _RECORDER.is_batched, _RECORDER.batch_size = is_batched, batch_size
    _RECORDER.spread = ()
    try:
        yield calls
    except Exception as error:
        if _RECORDER.spread:
            error.add_note(_note_on(_RECORDER.spread))
        raise
    finally:
        _RECORDER.calls, _RECORDER.graph = None, None
        _RECORDER.is_batched, _RECORDER.batch_size = None, 0
        _unpatch(units)


@contextlib.contextmanager
def folded(count: tf.Tensor | int) -> Iterator[None]:
    """Says that calls get several rows of each example, one after the other.

    Args:
        count: Number of rows that were one before.
    """
    before = _RECORDER.positions
    _RECORDER.positions = before * count
    try:
        yield
    finally:
        _RECORDER.positions = before


def is_folded() -> bool:
    """Tells if rows are not examples in what is called just now."""
    positions = _RECORDER.positions
    return not isinstance(positions, int) or positions != 1


@contextlib.contextmanager
def played_back(
    units: Sequence[Unit], played: Sequence[tuple[int, Played]]
) -> Iterator[None]:
    """Lets units return what was recorded, in place of running.

    Args:
        units: What `find_units` returned.
        played: Identities of layers and what their calls give, in the order
            of the calls.

    Raises:
        NotRecordedError: If a layer is called more often.
    """
    before = _RECORDER.played
    by_layer: dict[int, list[Played]] = {}
    for layer, call in played:
        by_layer.setdefault(layer, []).append(call)
    _patch(units)
    _RECORDER.played = {k: iter(calls) for k, calls in by_layer.items()}
    try:
        yield
    finally:
        _RECORDER.played = before
        _unpatch(units)
