"""Trials: what reaches a layer, and what gets around it.

Inside a trial a `DPRepresentationClip` neither adds noise nor counts. It
notes what it was given and returns a constant, so that whatever still depends
on the inputs did not come through it.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

import tensorflow as tf


@dataclasses.dataclass
class Trial:
    """What the layers were called with.

    Attributes:
        inputs: The input of every call, in the order of the calls.
        training: Whether each call was one of training.
    """

    inputs: list[tf.Tensor] = dataclasses.field(default_factory=list)
    training: list[bool] = dataclasses.field(default_factory=list)

    def stand_in(
        self, inputs: tf.Tensor, dtype: str, training: bool
    ) -> tf.Tensor:
        """Notes a call and returns what stands for its output.

        Args:
            inputs: The input.
            dtype: Of the output.
            training: Whether it is a call of training.

        Returns:
            Numbers that depend on nothing but the shape of the input. None is
            zero or equal to another: a product or a difference would hide
            what goes around the layer.
        """
        self.inputs.append(inputs)
        self.training.append(training)
        count = tf.cast(tf.size(inputs), tf.float32)
        numbers = 0.5 + tf.range(count) / (2.0 * count + 1.0)
        return tf.cast(tf.reshape(numbers, tf.shape(inputs)), dtype)


class _Current(threading.local):
    trial: Trial | None = None


_CURRENT = _Current()


def current() -> Trial | None:
    """The trial that this thread is in."""
    return _CURRENT.trial


@contextlib.contextmanager
def trial() -> Iterator[Trial]:
    """Makes a trial of the model calls inside, in this thread.

    Yields:
        A `Trial`, which fills as layers are called.
    """
    before, _CURRENT.trial = _CURRENT.trial, Trial()
    try:
        yield _CURRENT.trial
    finally:
        _CURRENT.trial = before
