"""Seeds of random layers: `keras.random.SeedGenerator` beyond the public API.

Keras's random layers take a seed from a generator whose state is a variable.
It is saved with the model, starts from `keras.utils.set_random_seed`, and
counts on from there: whoever knows it knows every dropout mask of a training.
Within `seeds_from` generators take their seeds from elsewhere, and their state
stays.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import stateless_scope

Draw = Callable[[], tf.Tensor]


class _Current(threading.local):
    """The source of seeds of this thread."""

    draw: Draw | None = None


_CURRENT = _Current()


@contextlib.contextmanager
def seeds_from(draw: Draw) -> Iterator[None]:
    """Makes all `SeedGenerator`s of this thread take their seeds from `draw`.

    Args:
        draw: Returns a seed, int64 of shape `(2,)`, another one in every call.
    """
    before, _CURRENT.draw = _CURRENT.draw, draw
    try:
        yield
    finally:
        _CURRENT.draw = before


def drawn_seed() -> tf.Tensor | None:
    """Draws a seed from the source of this thread; `None` if it has none."""
    return None if _CURRENT.draw is None else _CURRENT.draw()


def _is_given(state: keras.Variable) -> bool:
    """Tells if a `keras.StatelessScope` holds a value for a variable."""
    if not stateless_scope.in_stateless_scope():
        return False
    scope = stateless_scope.get_stateless_scope()
    return scope.get_current_value(state) is not None


def _redirect(generators: Any) -> None:
    """Replaces `next` of a class of generators."""
    ordinary = generators.next

    @functools.wraps(ordinary)
    def next_seed(self, ordered=True):
        if _CURRENT.draw is None or _is_given(self.state):
            return ordinary(self, ordered)
        return tf.cast(_CURRENT.draw(), self.state.dtype)

    generators.next = next_seed


_redirect(keras.random.SeedGenerator)
