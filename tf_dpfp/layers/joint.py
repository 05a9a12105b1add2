"""Steps that release rows and, of the same examples, a noised gradient.

Inside of such a step a `DPRepresentationClip` lets the gradient through, for
whoever takes the step clips and noises it, and counts the rows as well: the two
are one release of one draw.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class JointStep:
    """A step that is being taken.

    Attributes:
        noise: Whether rows get noise: not where a model is only tried.
        inputs: Input of every call of such a layer.
    """

    noise: bool
    inputs: list[tf.Tensor] = dataclasses.field(default_factory=list)


class _Current(threading.local):
    step: JointStep | None = None


_CURRENT = _Current()


def current() -> JointStep | None:
    """The joint step that this thread is in."""
    return _CURRENT.step


@contextlib.contextmanager
def joint_step(noise: bool = True) -> Iterator[list[tf.Tensor]]:
    """Takes a joint step inside, in this thread.

    Whoever enters clips and noises the gradient of everything below the layers,
    and counts their rows together with it.

    Args:
        noise: Whether rows get noise.

    Yields:
        A list that fills with the inputs of the layers.
    """
    step = JointStep(noise)
    before, _CURRENT.step = _CURRENT.step, step
    try:
        yield step.inputs
    finally:
        _CURRENT.step = before
