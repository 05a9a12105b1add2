"""Correlated noise of an optimizer: its chain, and how its steps are counted.

**Mechanism.** Sums x_t of clipped gradients, noise of the multiplier z, and the
strategy C of `noise.chain`: step t releases x_t + z C_clip (C^-1 n)_t with
independent normals n. Adjacency: one example added or removed. The unit is an
example, in steps that are as many apart as there are parts; the sensitivity of
all rows that one of these steps moves is the clip norm, times the norm of a
column of C, at most 1. Under adaptive clip norms all of it holds of sums over
the deviations of their step. `docs/guarantee.md` has the proof.

The ledger counts a step as one, and the first of a chain as as many as there
are parts: see `accounting.CyclicPoissonSampling`.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import compilation
from tf_dpfp import counting
from tf_dpfp import low_rank
from tf_dpfp import noise as noise_lib
from tf_dpfp.accounting import banded
from tf_dpfp.optimizers import clipped_gradients as clipped_lib
from tf_dpfp.optimizers import held_carriers
from tf_dpfp.optimizers import release as release_lib


class Correlation:
    """Noise that is correlated over the steps of a `fit`, or is not.

    A plain Python object, so that nothing tracks the noises of earlier steps.

    Args:
        ledger: The ledger that counts the steps.
    """

    def __init__(self, ledger: counting.Ledger):
        self._ledger = ledger
        self._chain: noise_lib.NoiseChain | None = None
        self._frames = held_carriers.Frames()
        self._claim: counting.Claim | None = None

    def take(self, bands: int | None) -> None:
        """Takes the number of bands.

        Args:
            bands: The number; 1: noise is independent. `None`: not known yet.
        """
        if self._chain is None and bands is not None and bands > 1:
            self._chain = noise_lib.NoiseChain(bands)
            self._ledger.call_before(self._before_step)

    def _before_step(self, located: counting.Located) -> None:
        # An evaluation is no step, and has a noise of its own.
        evaluates = isinstance(located.claim.sampling, accounting.EveryExample)
        if self._chain is not None and not evaluates:
            self._chain.before_step(located.claim.parts > 0)

    def build(self) -> None:
        """Makes what the chain keeps; in the scope of a strategy, if any."""
        if self._chain is not None:
            self._chain.build()

    @contextlib.contextmanager
    def opened(self, steps: int) -> Iterator[None]:
        """Begins a chain for the steps that this thread is to take.

        Args:
            steps: Their number, as far as it is known: for the coefficients
                alone.

        Raises:
            RuntimeError: If another one is open.
        """
        claim = counting.to_come(self._ledger)
        assert self._chain is not None and claim is not None
        strategy = banded.coefficients(self._chain.bands, steps)
        with self._chain.opened(strategy):
            self._claim = claim
            yield

    @property
    def pending(self) -> list[accounting.LedgerEntry]:
        """Lists what the next step counts as, beside itself."""
        if self._chain is None or not self._chain.is_fresh:
            return []
        assert self._claim is not None
        return [self._claim.entry(self._claim.parts - 1)]

    def count_step(
        self,
        release: counting.Release,
        clipped: clipped_lib.ClippedGradients,
        carriers: Sequence[low_rank.Carriers | None] = (),
    ) -> "Turned | None":
        """Counts a step, and gives it its turn; part of the compiled step.

        Args:
            release: The release that its noise is drawn by.
            clipped: The clipped sums.
            carriers: Carriers of each variable, or `None`; empty: of none.

        Returns:
            What makes the noise of its draws; `None`: noise is independent.
        """
        ledger, chain = self._ledger, self._chain
        if chain is None:
            ledger.count_step(
                release, clipped.stamp, clipped.counted_batch_size
            )
            return None
        has_part = clipped.part is not None
        rows = ledger.rows_of(release, clipped.stamp, has_part)
        parts = counting.parts_of(rows)
        turn = chain.turn(parts, clipped.part, _layout(clipped))
        ledger.count_in(
            rows,
            clipped.counted_batch_size,
            tf.where(turn.begins, parts - 1, tf.zeros_like(parts)),
        )
        turning = {}
        if any(own is not None for own in carriers):
            turning = self._frames.turn(clipped.variables, carriers)
        return Turned(chain, turn, turning)


@dataclasses.dataclass(frozen=True)
class Turned:
    """A step of a chain that has its turn: what makes its noise.

    Attributes:
        chain: The chain.
        turn: The turn of the step.
        turning: What earlier noise of kernels with carriers goes through.
    """

    chain: noise_lib.NoiseChain
    turn: noise_lib.Turn
    turning: Mapping[int, Any]

    def __call__(
        self, normals: tf.Tensor, sizes: Mapping[int, int]
    ) -> tf.Tensor:
        """Makes the noise of one draw; see `NoiseChain.correlated`.

        Args:
            normals: Independent normals.
            sizes: How many of them each variable has, by its position.
        """
        change = held_carriers.change_of(self.turning, sizes)
        first = next(iter(sizes))
        return self.chain.correlated(normals, self.turn, first, change)

    def guarded(self, draws: release_lib.Draws) -> release_lib.Draws:
        """Returns draws whose every number is NaN if the step is not due.

        Args:
            draws: The noise of this replica, of sums and of counts.
        """
        return dataclasses.replace(draws, share=draws.share * self.turn.guard)


def _layout(clipped: clipped_lib.ClippedGradients) -> tuple:
    """Describes which numbers share which draw, and how they are clipped.

    Weights are named by themselves: amid a `fit` others of the same shape may
    be trained in their place. A clip norm that adapts is a tensor: what is kept
    are noises of deviation 1, which a step multiplies by the deviations of its
    own clip norms. Devices are numbered: replicas, each with its own, must find
    the same.
    """
    devices = list(dict.fromkeys(group.device for group in clipped.groups))
    return (
        compilation.target(),
        compilation.has_accelerator(),
        tuple(
            (
                devices.index(group.device),
                _fixed(group.clip_norm),
                index,
                id(clipped.variables[index]),
                tuple(total.shape),
            )
            for group in clipped.groups
            for index in group.members
            if (total := clipped.sums[index]) is not None
        ),
    )


def _fixed(clip_norm: float | tf.Tensor) -> float | None:
    return None if tf.is_tensor(clip_norm) else clip_norm
