"""Carriers that are kept from step to step, for correlated noise.

Noise of earlier steps can be taken back only in directions that the carriers
of a step still have. So with correlated noise carriers stay for some steps
(`HeldCarriers`), and when they turn, earlier noise turns along (`Frames`).

Carriers are made of weights, and so of what was released: however long they
are kept, they are known before a batch is looked at. They are plain variables,
which no file holds: earlier noise is in none, either.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp import low_rank
from tf_dpfp import noise as noise_lib
from tf_dpfp.distribute import replicas
from tf_dpfp.keras_private import variables as keras_variables


class _Kept:
    """Variables with the carriers of kernels; each replica has its own."""

    def __init__(self):
        self._carriers: dict[int, tuple[tf.Variable, ...]] = {}

    def __deepcopy__(self, memo) -> "_Kept":
        return type(self)()

    def __reduce__(self):
        return type(self), ()

    def read(self, kernel: keras.Variable) -> low_rank.Carriers:
        """Reads the carriers of a kernel; zeros before they are kept."""
        left, *right = map(tf.identity, self._of(kernel))
        return low_rank.Carriers(left, right[0] if right else None)

    def keep(self, kernel: keras.Variable, carriers: low_rank.Carriers) -> None:
        """Keeps the carriers of a kernel."""
        parts = [part for part in carriers if part is not None]
        for kept, part in zip(self._of(kernel), parts, strict=True):
            kept.assign(part)

    def _of(self, kernel: keras.Variable) -> tuple[tf.Variable, ...]:
        def make() -> None:
            with keras_variables.made_eagerly():
                if id(kernel) not in self._carriers:
                    self._carriers[id(kernel)] = tuple(
                        replicas.own_variable(np.zeros(shape, np.float32))
                        for shape in low_rank.shapes_of_carriers(kernel)
                    )

        if id(kernel) not in self._carriers:
            replicas.make_together(make)
        return self._carriers[id(kernel)]


class HeldCarriers(_Kept):
    """Carriers that are computed anew every so many steps."""

    def __init__(self):
        super().__init__()
        self._age: tf.Variable = None

    def current(
        self,
        kernels: Sequence[keras.Variable],
        steps: int,
        compute: Callable[[], Sequence[low_rank.Carriers]],
    ) -> list[low_rank.Carriers]:
        """Returns the carriers of the next step.

        Args:
            kernels: The kernels that have carriers.
            steps: For how many steps carriers stay.
            compute: Computes the carriers of all kernels as they are now.

        Returns:
            The carriers of each.
        """
        if not all(replicas.has_own(kernel.value) for kernel in kernels):
            return list(compute())  # For a trial, outside of replicas.
        for kernel in kernels:
            self._of(kernel)

        def anew() -> tf.Tensor:
            for kernel, carriers in zip(kernels, compute(), strict=True):
                self.keep(kernel, carriers)
            return tf.constant(0)

        is_due = tf.equal(self._made_age() % steps, 0)
        # A kernel that was frozen until now has none yet.
        for kernel in kernels:
            is_due |= tf.reduce_all(tf.equal(self.read(kernel).left, 0.0))
        tf.cond(is_due, anew, lambda: tf.constant(0))
        return [self.read(kernel) for kernel in kernels]

    def after_step(self) -> None:
        """Counts a step."""
        self._made_age().assign_add(1)

    def _made_age(self) -> tf.Variable:
        def make() -> None:
            with keras_variables.made_eagerly():
                if self._age is None:
                    self._age = replicas.own_variable(np.zeros((), np.int64))

        if self._age is None:
            replicas.make_together(make)
        return self._age


@dataclasses.dataclass(frozen=True)
class _Turning:
    """A kernel whose carriers may turn with a step."""

    kernel: keras.Variable
    before: low_rank.Carriers
    now: low_rank.Carriers

    @property
    def happens(self) -> tf.Tensor:
        return tf.reduce_any(
            [
                tf.reduce_any(tf.not_equal(a, b))
                for a, b in zip(self.before, self.now, strict=True)
                if a is not None
            ]
        )

    def __call__(self, numbers: tf.Tensor) -> tf.Tensor:
        view = low_rank.marked_view(self.kernel)
        return low_rank.turned(numbers, self.before, self.now, view)


class Frames(_Kept):
    """The carriers that noise of earlier steps is kept in."""

    def turn(
        self,
        variables: Sequence[keras.Variable],
        carriers: Sequence[low_rank.Carriers | None],
    ) -> dict[int, _Turning]:
        """Turns to the carriers of a step; part of the step, once.

        Args:
            variables: The trainable variables.
            carriers: Carriers of the step, or `None`.

        Returns:
            By positions of kernels, what their earlier noise is to go through.
        """
        turning = {}
        for index, (variable, now) in enumerate(
            zip(variables, carriers, strict=True)
        ):
            if now is not None:
                turning[index] = _Turning(variable, self.read(variable), now)
                self.keep(variable, now)
        return turning


def change_of(
    turning: Mapping[int, _Turning], sizes: Mapping[int, int]
) -> noise_lib.Change | None:
    """Returns what the earlier noise of one draw goes through.

    Args:
        turning: Result of `Frames.turn`.
        sizes: How many numbers of each variable the draw has, in order, by the
            variables' positions.

    Returns:
        The change; `None` if there are no carriers among them.
    """
    mine = [turning[index] for index in sizes if index in turning]
    if not mine:
        return None

    def apply(noise: tf.Tensor) -> tf.Tensor:
        pieces = tf.split(noise, list(sizes.values()))
        return tf.concat(
            [
                turning[index](piece) if index in turning else piece
                for index, piece in zip(sizes, pieces, strict=True)
            ],
            axis=0,
        )

    happens = tf.reduce_any([each.happens for each in mine])
    return noise_lib.Change(happens, apply)
