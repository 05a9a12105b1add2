"""Seeds of random layers: `keras.random.SeedGenerator` beyond the public API.

Keras's random layers take a seed from a generator whose state is a variable.
It is saved with the model, starts from `keras.utils.set_random_seed`, and
counts on from there: whoever knows it knows every dropout mask of a training.
Within `seeds_from` generators take their seeds from elsewhere, and their state
stays.
"""

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend
from keras.src.backend.common import stateless_scope

Draw = Callable[[], tf.Tensor]


class _Current(threading.local):
    """The source of seeds of this thread."""

    draw: Draw | None = None
    threefry: bool = False


_CURRENT = _Current()


@contextlib.contextmanager
def seeds_from(draw: Draw, threefry: bool = False) -> Iterator[None]:
    """Makes all `SeedGenerator`s of this thread take their seeds from `draw`.

    Args:
        draw: Returns a seed, int64 of shape `(2,)`, another one in every call.
        threefry: Draw dropout masks by ThreeFry. XLA makes slow code of Philox,
            TensorFlow's choice, where a mask's seed is computed in the step.
    """
    before = _CURRENT.draw, _CURRENT.threefry
    _CURRENT.draw, _CURRENT.threefry = draw, threefry
    try:
        yield
    finally:
        _CURRENT.draw, _CURRENT.threefry = before


def numbered() -> Draw:
    """Returns a source of seeds that anyone knows: 1, 2, and so on."""
    counter = itertools.count(1)
    return lambda: tf.constant([next(counter), 0], tf.int64)


@contextlib.contextmanager
def seeds_of_example(seed: tf.Tensor) -> Iterator[None]:
    """Makes all `SeedGenerator`s take seeds made of that of an example.

    Args:
        seed: Seed of the example, int64 of shape `(2,)`.
    """
    counter = itertools.count()

    def draw() -> tf.Tensor:
        return seed + tf.constant([next(counter), 0], tf.int64)

    with seeds_from(draw, _CURRENT.threefry):
        yield


@contextlib.contextmanager
def counted_draws() -> Iterator[list[None]]:
    """Counts the seeds that are drawn, and draws none from the source.

    Yields:
        A list with an entry for each.
    """
    found: list[None] = []

    def draw() -> tf.Tensor:
        found.append(None)
        return tf.zeros([2], tf.int64)

    if _CURRENT.draw is None:
        yield found
        return
    with seeds_from(draw, _CURRENT.threefry):
        yield found


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


def _with_threefry(module: Any) -> None:
    """Replaces `dropout` of Keras's backend, which layers call by its name."""
    ordinary = module.dropout

    @functools.wraps(ordinary)
    def dropout(inputs, rate, noise_shape=None, seed=None):
        # Kernels outside of XLA, those of a trial, have no such generator.
        by_threefry = _CURRENT.threefry and not tf.executing_eagerly()
        if not by_threefry or not 0.0 < rate < 1.0:
            return ordinary(inputs, rate, noise_shape, seed)
        return tf.nn.experimental.stateless_dropout(
            inputs,
            rate=rate,
            noise_shape=module._get_concrete_noise_shape(inputs, noise_shape),
            seed=module._cast_seed(module.draw_seed(seed)),
            rng_alg="threefry",
        )

    module.dropout = dropout


_redirect(keras.random.SeedGenerator)
_with_threefry(backend.random)
