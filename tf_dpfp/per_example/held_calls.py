"""Calls that a layer's own code makes of the layers it holds.

`watched` hands each of them to a function; calls that held layers make of
each other, and those of other threads, run as they are.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

# Takes a layer, its `call`, and the arguments; returns the outputs.
Watch = Callable[[keras.layers.Layer, Callable[..., Any], tuple, dict], Any]


class _Current(threading.local):
    """The function of the current thread, while own code runs."""

    watch: Watch | None = None


_CURRENT = _Current()
_LOCK = threading.RLock()
# How often each layer is watched, and its watched `call`.
_counts: dict[int, int] = {}
_calls: dict[int, Callable[..., Any]] = {}
_before: dict[int, Callable[..., Any] | None] = {}


def _watched_call(layer: keras.layers.Layer) -> Callable[..., Any]:
    original = layer.call

    def call(*args, **kwargs):
        watch = _CURRENT.watch
        if watch is None:
            return original(*args, **kwargs)
        _CURRENT.watch = None
        try:
            return watch(layer, original, args, kwargs)
        finally:
            _CURRENT.watch = watch

    return call


def _patch(layers: Iterable[keras.layers.Layer]) -> None:
    with _LOCK:
        for layer in layers:
            key = id(layer)
            count = _counts.get(key, 0)
            if count == 0:
                _before[key] = vars(layer).get("call")
                _calls[key] = _watched_call(layer)
                # Past Keras's attribute tracking: undone before anyone looks.
                object.__setattr__(layer, "call", _calls[key])
            _counts[key] = count + 1


def _unpatch(layers: Iterable[keras.layers.Layer]) -> None:
    with _LOCK:
        for layer in layers:
            key = id(layer)
            _counts[key] -= 1
            if _counts[key]:
                continue
            del _counts[key]
            before, own = _before.pop(key), _calls.pop(key)
            # Another thread, that records, may have put its own in place.
            if vars(layer).get("call") is not own:
                continue
            if before is None:
                object.__delattr__(layer, "call")
            else:
                object.__setattr__(layer, "call", before)


@contextlib.contextmanager
def watched(
    layers: Iterable[keras.layers.Layer], watch: Watch
) -> Iterator[None]:
    """Hands the calls that this thread's own code makes to a function.

    Args:
        layers: The layers that are held, at any depth.
        watch: Called in place of each call of one of them; calls within such
            a call are not handed to it.
    """
    layers = list(layers)
    before = _CURRENT.watch
    _patch(layers)
    _CURRENT.watch = watch
    try:
        yield
    finally:
        _CURRENT.watch = before
        _unpatch(layers)
