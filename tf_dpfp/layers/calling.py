"""Kinds of calls that a layer can be in: ordinary, joint, or a trial.

In an ordinary call a `DPRepresentationClip` stops the gradient, adds noise and
counts. In a joint step it lets the gradient through and leaves the counting to
the optimizer, which releases the clipped gradient sums of the same examples. In
a trial it neither adds noise nor counts: it notes its input and returns a
constant, so that whatever still depends on the inputs did not come through it.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Release:
    """Tensors of one call of a `DPRepresentationClip`.

    Attributes:
        clipped: Clipped representations, one row for each example; private.
            Of persons, what is clipped jointly.
        noise: Noise that is added to them; `None` without any.
        output: Output of the layer.
        size: Number of rows.
        keys: Handles of the variables with the keys of the noise.
    """

    clipped: tf.Tensor
    noise: tf.Tensor | None
    output: tf.Tensor
    size: tf.Tensor | int = 0
    keys: Sequence[tf.Tensor] = ()


@dataclasses.dataclass(frozen=True)
class JointStep:
    """Step that releases representations and gradient sums together.

    Attributes:
        noise: True if representations get noise; False in a trial of the
            gradients.
    """

    noise: bool


@dataclasses.dataclass
class Trial:
    """Calls of the layers in a trial.

    Attributes:
        inputs: Input of every call, in the order of the calls.
        training: For every call, true if it was one of training.
    """

    inputs: list[tf.Tensor] = dataclasses.field(default_factory=list)
    training: list[bool] = dataclasses.field(default_factory=list)

    def stand_in(
        self, inputs: tf.Tensor, dtype: str, training: bool
    ) -> tf.Tensor:
        """Notes a call and returns a constant in place of its output.

        Args:
            inputs: Input of the layer.
            dtype: Type of the layer's output.
            training: True for a call of training.

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


class _Calling(threading.local):
    """Kind of the calls that this thread makes; ordinary if both are `None`."""

    joint: JointStep | None = None
    trial: Trial | None = None
    releases: list[Release] | None = None


_CALLING = _Calling()


def current_joint_step() -> JointStep | None:
    """Returns the joint step that this thread is in."""
    return _CALLING.joint


def current_trial() -> Trial | None:
    """Returns the trial that this thread is in."""
    return _CALLING.trial


def note(release: Release) -> None:
    """Notes a call for whoever watches the calls of this thread."""
    if _CALLING.releases is not None:
        _CALLING.releases.append(release)


@contextlib.contextmanager
def watched() -> Iterator[list[Release]]:
    """Watches the calls of the layers inside, in this thread.

    Yields:
        A list that fills with what they release.
    """
    releases: list[Release] = []
    with _replaced("releases", releases):
        yield releases


@contextlib.contextmanager
def joint_step(noise: bool = True) -> Iterator[list[Release]]:
    """Makes the layer calls inside part of a joint step, in this thread.

    The caller must clip and noise the gradients of all layers below, and count
    the representations together with them.

    Args:
        noise: Add noise to representations.

    Yields:
        A list that fills with what the layers release.
    """
    with _replaced("joint", JointStep(noise)), watched() as releases:
        yield releases


@contextlib.contextmanager
def trial() -> Iterator[Trial]:
    """Makes the layer calls inside part of a trial, in this thread.

    Yields:
        A `Trial`, which fills as layers are called.
    """
    running = Trial()
    with _replaced("trial", running):
        yield running


@contextlib.contextmanager
def _replaced(name: str, value: Any) -> Iterator[None]:
    before = getattr(_CALLING, name)
    setattr(_CALLING, name, value)
    try:
        yield
    finally:
        setattr(_CALLING, name, before)
