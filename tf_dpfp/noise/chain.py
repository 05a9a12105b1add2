"""Correlated noise: noise of a step that takes back part of earlier noise.

With z for the independent normals of a step, its noise is

    w_t = (z_t - c_1 w_(t-1) - ... - c_(b-1) w_(t-b+1)) / c_0,

so that C w = z with C lower-triangular, Toeplitz, with b bands. The last b - 1
noises are kept, in deviations, whatever a step multiplies them by.

**What must hold for a guarantee** (see `accounting.releases.BandedSums`): the
columns of C have norm at most 1, and an example is in one of b steps in a row.
So a chain counts its steps, and a step whose batch is not from the part whose
turn it is fails, or, where XLA compiles it, releases NaN alone, and the chain
fails at its end. A chain begins with no earlier noise; the
same noises in two chains would be noise that two releases share, so nothing
but the process that drew them has them: they are plain variables, like the key
of the noise (`noise.keys`), which no file, checkpoint or copy holds. In a
process that was forked a chain begins anew.

A step that claims no part has independent noise, and leaves the chain as it is.

**Replicas.** Each of R replicas filters normals of its own, and keeps its own
noises and its own place in the chain. The recursion is linear, so shares of
`1 / sqrt(R)` add up to C w = z of one device, for all steps together.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from tf_dpfp.distribute import replicas
from tf_dpfp.keras_private import variables as keras_variables
from tf_dpfp.noise.keys import this_process

# Larger draws are computed in one pass over the earlier noises, by XLA.
_IN_ONE_PASS = 2**16
_NOT_DUE = (
    "The batch is not from the part of the data whose turn it is, or other "
    "weights are trained than in the steps before. With correlated noise "
    "batches must come in order, and weights be frozen between two `fit`s."
)
_STEPS, _FIRST, _LAYOUT, _MISSED = range(4)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One step's place in a chain.

    Attributes:
        factors: Coefficient of each of the earlier noises that are kept; zero
            for those of an earlier chain, and in a step without a part.
        scale: One over c_0; 1 in a step without a part.
        slot: Where the noise of the step is kept; beyond the last: nowhere.
        layout: Name of the draws of the step.
        begins: True if the step is the first of its chain.
        guard: Factor of all noise of the step: 1, or NaN if it is not due and
            XLA, which knows no assertions, runs it.
    """

    factors: tf.Tensor
    scale: tf.Tensor
    slot: tf.Tensor
    layout: int
    begins: tf.Tensor
    guard: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Change:
    """Other coordinates in which a step counts the numbers of a draw.

    Attributes:
        happens: True if they are others than those of the step before.
        apply: Takes earlier noise to the new coordinates: linear, and of norm
            at most 1, so that no column of C gets longer.
    """

    happens: tf.Tensor
    apply: Callable[[tf.Tensor], tf.Tensor]

    def made_to(self, kept: Sequence[tf.Variable]) -> None:
        """Makes it to the noises that are kept."""

        def assign() -> tf.Tensor:
            for variable in kept:
                variable.assign(self.apply(tf.identity(variable)))
            return tf.constant(0)

        tf.cond(self.happens, assign, lambda: tf.constant(0))


class NoiseChain:
    """Correlates the noise of the steps of one training at a time.

    A plain Python object, so that neither Keras nor `tf.train.Checkpoint`
    tracks the noises that it keeps.

    Args:
        bands: Number of bands, at least 2.
    """

    def __init__(self, bands: int):
        self.bands = bands
        self._lock = threading.Lock()
        self._is_open = False
        self._begun = False
        self._process: object = None
        self._coefficients: tf.Variable = None
        self._state: tf.Variable = None
        self._layouts: dict[Hashable, int] = {}
        self._kept: dict[tuple[int, int], list[tf.Variable]] = {}

    def __deepcopy__(self, memo) -> "NoiseChain":
        """Returns a chain without noises: a copy must not go on with them."""
        return NoiseChain(self.bands)

    def __reduce__(self):
        return NoiseChain, (self.bands,)

    def build(self) -> None:
        """Makes the variables of the chain's place; not in a second trace."""
        if self._state is None:
            replicas.make_together(self._make_state)

    def _make_state(self) -> None:
        with self._lock, keras_variables.made_eagerly():
            if self._state is None:
                self._coefficients = replicas.own_variable(
                    np.zeros(self.bands, np.float32)
                )
                self._state = replicas.own_variable(np.zeros(4, np.int64))

    @contextlib.contextmanager
    def opened(self, coefficients: Sequence[float]) -> Iterator[None]:
        """Begins a chain; it ends with the context.

        Args:
            coefficients: Those of a column of C, of norm at most 1.

        Raises:
            ValueError: If their norm is above 1, or there are too many.
            RuntimeError: If a chain is open, or, at its end, steps that XLA
                compiled were not due.
        """
        first = _checked(coefficients, self.bands)
        with self._lock:
            if self._is_open:
                raise RuntimeError(
                    "Another `fit` with the same optimizer is running, and "
                    "steps of two trainings can't share correlated noise. Run "
                    "one after the other."
                )
            self._is_open = True
        try:
            self.build()
            self._begin_anew()
            with tf.init_scope():
                replicas.assign_to_all(self._coefficients, first)
            yield
            self._check_turns()
        finally:
            try:
                self._forget()
            finally:
                self._is_open = False

    def _begin_anew(self) -> None:
        with tf.init_scope():
            replicas.assign_to_all(self._state, np.zeros(4, np.int64))
        self._begun = False
        self._process = this_process()

    def _check_turns(self) -> None:
        """Tells of steps that were not due and did not fail, under XLA."""
        with tf.init_scope():
            if int(self._state.numpy()[_MISSED]):
                raise RuntimeError(
                    f"{_NOT_DUE} Nothing but NaN was released since, for XLA "
                    "can't stop a step."
                )

    def _forget(self) -> None:
        """Clears the noises: nobody needs them any more."""
        with tf.init_scope():
            for variables in self._kept.values():
                for variable in variables:
                    zeros = tf.zeros(variable.shape)
                    replicas.assign_to_all(variable, zeros)

    @property
    def is_fresh(self) -> bool:
        """True if a chain is open and no step of it was taken yet.

        In a process that was forked the next step begins another one.
        """
        if not self._is_open:
            return False
        if self._process is not this_process():
            return True
        if not self._begun:
            self._begun = int(self._state.numpy()[_STEPS]) > 0
        return not self._begun

    def before_step(self, by_parts: bool) -> None:
        """Checks a step before it runs; begins anew in a forked process.

        Args:
            by_parts: True if its batch is claimed to be drawn by parts.

        Raises:
            RuntimeError: If it is another step than those of an open chain.
        """
        if self._is_open and not by_parts:
            raise RuntimeError(
                "While `fit` runs with correlated noise, no other step of its "
                "optimizer may be taken: by a callback, in another thread or "
                "in a `fit` inside. Take it before or after."
            )
        forked = self._state is not None and self._process is not None
        if forked and self._process is not this_process():
            self._begin_anew()

    def turn(
        self, parts: tf.Tensor, part: tf.Tensor | None, layout: Hashable
    ) -> Turn:
        """Takes the turn of one step; part of the step, once.

        Args:
            parts: Number of parts that the step is claimed to be drawn from
                in turn; 0: none is claimed, and its noise is independent.
            part: The part that its batch was drawn from; `None`: unknown,
                then `parts` is 0.
            layout: Description of the draws of the step.

        Returns:
            The turn. Under `parts` of 0 it leaves the chain as it is.
        """
        self.build()
        number = self._layouts.setdefault(layout, len(self._layouts) + 1)
        parts = tf.cast(parts, tf.int64)
        part = tf.cast(0 if part is None else part, tf.int64)
        in_chain = parts > 0
        state = tf.identity(self._state)
        steps = state[_STEPS]
        begins = in_chain & (steps == 0)
        place = tf.stack([tf.constant(0, tf.int64), part, number, 0])
        known = tf.where(begins, place, state)
        due = (known[_FIRST] + steps) % tf.maximum(parts, 1)
        as_due = (due == part) & (known[_LAYOUT] == number)
        as_due = (as_due & (known[_MISSED] == 0)) | ~in_chain
        check = _checked_turn(as_due, part, due)
        with tf.control_dependencies([] if check is None else [check]):
            missed = tf.stack([0, 0, 0, tf.cast(~as_due, tf.int64)])
            one = tf.constant([1, 0, 0, 0], tf.int64) + missed
            further = one + tf.where(begins, place, tf.zeros_like(place))
            self._state.assign_add(
                tf.where(in_chain, further, tf.zeros_like(further))
            )
            # The noise is made of it, so nothing is released before the check.
            steps = tf.identity(steps)
        kept = self.bands - 1
        lags = (steps - 1 - tf.range(kept, dtype=tf.int64)) % kept + 1
        used = (lags <= steps) & in_chain
        coefficients = tf.identity(self._coefficients)
        return Turn(
            factors=tf.where(used, tf.gather(coefficients, lags), 0.0),
            scale=tf.where(in_chain, 1.0 / coefficients[0], 1.0),
            slot=tf.cast(tf.where(in_chain, steps % kept, kept), tf.int32),
            layout=number,
            begins=begins,
            # XLA leaves assertions out, in what it compiles unasked, too.
            guard=tf.where(as_due, 1.0, np.nan),
        )

    def correlated(
        self,
        normals: tf.Tensor,
        turn: Turn,
        draw: int,
        change: Change | None = None,
    ) -> tf.Tensor:
        """Makes a step's noise of independent normals, and keeps it.

        Args:
            normals: float32, `(size,)`, of deviation 1.
            turn: The turn of the step.
            draw: Number of the draw in the step.
            change: What its numbers now stand for; `None`: the same as ever.

        Returns:
            The noise, of the same shape.
        """
        kept = self._kept_of(turn.layout, draw, normals.shape[0])
        if change is not None:
            change.made_to(kept)
        values = [tf.identity(variable) for variable in kept]
        if normals.shape[0] >= _IN_ONE_PASS:
            noise = _compiled(normals, turn.factors, turn.scale, values)
        else:
            noise = _filtered(normals, turn.factors, turn.scale, values)

        def keep(variable: tf.Variable):
            def assign() -> tf.Tensor:
                variable.assign(noise)
                return tf.constant(0)

            return assign

        tf.switch_case(turn.slot, [*map(keep, kept), lambda: tf.constant(0)])
        return noise

    def _kept_of(self, layout: int, draw: int, size: int) -> list[tf.Variable]:
        def make() -> None:
            with self._lock, keras_variables.made_eagerly():
                if (layout, draw) not in self._kept:
                    self._kept[layout, draw] = [
                        replicas.own_variable(tf.zeros([size]))
                        for _ in range(self.bands - 1)
                    ]

        if (layout, draw) not in self._kept:
            replicas.make_together(make)
        return self._kept[layout, draw]


def _checked_turn(
    as_due: tf.Tensor, part: tf.Tensor, due: tf.Tensor
) -> tf.Operation | None:
    """Stops a step whose turn it is not; `None` if it goes on, eagerly."""
    return tf.debugging.Assert(
        as_due, [f"{_NOT_DUE} Received: part", part, "due", due]
    )


def _filtered(
    normals: tf.Tensor,
    factors: tf.Tensor,
    scale: tf.Tensor,
    earlier: Sequence[tf.Tensor],
) -> tf.Tensor:
    for factor, noise in zip(
        tf.unstack(factors, len(earlier)), earlier, strict=True
    ):
        normals -= factor * noise
    return normals * scale


_compiled = tf.function(_filtered, jit_compile=True, autograph=False)


def _checked(coefficients: Sequence[float], bands: int) -> np.ndarray:
    """Checks coefficients, as the float32 numbers that are used.

    Raises:
        ValueError: If noise with them would be less than is counted.
    """
    found = np.zeros(bands, np.float32)
    found[: len(coefficients)] = coefficients
    norm = float(np.linalg.norm(found.astype(np.float64)))
    if not (norm <= 1.0 and found[0] > 0.0):
        raise ValueError(
            "The columns of a strategy for correlated noise must have norm at "
            "most 1, and begin with a number above 0: more noise would be "
            f"counted than is drawn. Received: norm {norm}"
        )
    return found
