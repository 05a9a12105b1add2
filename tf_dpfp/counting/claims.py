"""Claims: how the batches of the steps of a thread are drawn.

A claim belongs to a batch that a sampler drew, not to the time at which a step
is taken. So a claim is announced for one thread, and holds for those of its
steps that are taken on such a batch: `fit` says of each of its own steps that
it is one. A step of a callback, or of another thread, has no claim, though
`fit` is running.

A compiled step asks for the claim of its thread at each call.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp.counting.release import Release
from tf_dpfp.keras_private import call_time

if TYPE_CHECKING:
    from tf_dpfp.counting.ledger import Ledger


@dataclasses.dataclass(frozen=True)
class Claim:
    """Kind of the steps on the batches of one sampler.

    Attributes:
        release: Release of a step, with its noise.
        sampling: Sampling of the examples of a step.
        seeded: True if they are chosen by a seed.
        draws: Number of draws in a batch.
        batch_size: The batch size for which that holds; steps on batches of
            another are of unknown sampling. `None`: any size.
    """

    release: Release
    sampling: accounting.Sampling = accounting.UnknownSampling()
    seeded: bool = False
    draws: int = 1
    batch_size: int | None = None

    @property
    def parts(self) -> int:
        """Number of parts that examples are drawn from in turn; 0 if none."""
        return getattr(self.sampling, "parts", 0)

    def entry(self, steps: int) -> accounting.LedgerEntry:
        """Returns the ledger entry of the steps."""
        return accounting.LedgerEntry(
            self.sampling,
            self.release.noise_multiplier,
            steps,
            self.seeded or self.release.seeded,
            self.release.kind,
        )

    def steps_of_training(self, steps: int) -> int:
        """Returns what steps in a row are counted as, all together.

        Args:
            steps: Number of steps.
        """
        return self.draws * steps + max(0, self.parts - 1)

    def of_other_sizes(self) -> "Claim":
        """Returns what batches of any other size are counted as.

        They may be made of a batch of the sampler, and hold an example once
        for every draw.
        """
        if self.batch_size is None:
            return self
        return Claim(
            self.release,
            accounting.UnknownSampling(),
            self.seeded,
            self.draws,
        )


@dataclasses.dataclass(frozen=True)
class Located:
    """A claim, and the rows of a ledger that its steps are counted in.

    Attributes:
        claim: The claim.
        rows: int64: the row, the row for batches of other sizes, what is
            counted for a step in each, the batch size (0: any), and the number
            of parts that examples are drawn from in turn (0: no parts).
    """

    claim: Claim
    rows: tf.Tensor


def parts_of(rows: tf.Tensor) -> tf.Tensor:
    """Returns in how many parts the data of a step are; 0 if in none.

    Args:
        rows: Result of `Ledger.rows_of`.
    """
    return rows[5]


@dataclasses.dataclass(frozen=True, eq=False)
class _Announced:
    """Claims that steps of a thread may have.

    Attributes:
        owner: Names the loop that draws the batches.
        claims: Claim by ledger.
        drawn: True if all steps of the thread are on drawn batches.
    """

    owner: Any
    claims: Mapping["Ledger", Located]
    drawn: bool


class _Thread(threading.local):
    """What is announced in this thread, and which of it holds now."""

    def __init__(self) -> None:
        self.announced: list[_Announced] = []
        self.on_drawn: _Announced | None = None


_THREAD = _Thread()


@contextlib.contextmanager
def announced(
    owner: Any, claims: Mapping["Ledger", Claim], drawn: bool = False
) -> Iterator[None]:
    """Announces claims of steps that this thread takes inside.

    Args:
        owner: Names the loop that draws the batches; see `on_drawn_batch`.
        claims: Claim by ledger.
        drawn: True if all steps inside are on batches that were drawn.

    Raises:
        ValueError: If a ledger is full.
        RuntimeError: If steps draw another noise than is claimed.
    """
    located = {ledger: ledger.locate(claims[ledger]) for ledger in claims}
    new = _Announced(owner, located, drawn)
    _THREAD.announced.append(new)
    try:
        yield
    finally:
        _THREAD.announced.remove(new)


@contextlib.contextmanager
def on_drawn_batch(owner: Any) -> Iterator[None]:
    """Says that the steps inside are on the batch that a loop drew.

    Args:
        owner: Name of the loop. Nothing is claimed unless its announcement is
            the last one of this thread.
    """
    last = _THREAD.announced[-1] if _THREAD.announced else None
    before = _THREAD.on_drawn
    _THREAD.on_drawn = last if last and last.owner == owner else None
    try:
        yield
    finally:
        _THREAD.on_drawn = before


@contextlib.contextmanager
def passed_to_replicas() -> Iterator[None]:
    """Hands what holds in this thread to the threads of eager replicas."""
    on_drawn = _THREAD.on_drawn
    with call_time.passed_to_replicas(on_drawn):
        yield


def _last(ledger: "Ledger") -> tuple[Located | None, bool]:
    """Returns the last claim of this thread, and if it holds now."""
    for last in reversed(_THREAD.announced):
        if ledger in last.claims:
            return last.claims[ledger], last.drawn or last is _THREAD.on_drawn
    given = None if _THREAD.announced else call_time.passed()
    if given is not None and ledger in given.claims:
        return given.claims[ledger], True
    return None, False


def announcement_of_fit() -> object:
    """Returns the announcement of the `fit` that this thread is in.

    Returns:
        `None` in a loop of the user's, whose steps say nothing of batches.
    """
    last = _THREAD.announced[-1] if _THREAD.announced else None
    return None if last is None or last.drawn else last


def announcement_of_step() -> object:
    """Returns the announcement of the step that this thread takes now.

    Returns:
        `None` if the step is not on a batch that a loop drew.
    """
    return _THREAD.on_drawn or call_time.passed()


def of_thread(ledger: "Ledger") -> Located | None:
    """Returns the claim of a step that this thread takes now.

    Args:
        ledger: The ledger that counts it.

    Returns:
        `None` if nothing is claimed.
    """
    located, holds = _last(ledger)
    return located if holds else None


def to_come(ledger: "Ledger") -> Claim | None:
    """Returns the claim of the next step on a drawn batch of this thread.

    Args:
        ledger: The ledger that counts it.

    Returns:
        `None` if none is announced.
    """
    located, _ = _last(ledger)
    return None if located is None else located.claim


class Stamp:
    """Claim of one batch, which travels with what was computed of it.

    It is good for one release: a second one of the same batch would not be of
    a second draw. So it is worth nothing in a function or loop that captures
    it, and may run often.

    Args:
        ledger: The ledger whose rows it names.
        rows: Rows of the ledger; see `Located`.
        told: Who was told of the step when the batch was stamped; see
            `Ledger.call_before`.
    """

    def __init__(
        self, ledger: "Ledger", rows: tf.Tensor, told: Iterable[Any] = ()
    ):
        self._ledger = ledger
        self._rows: tf.Tensor | None = rows
        self._graph = call_time.traced_graph()
        # One list for all copies: pieces of a batch are of one step.
        self._told = list(told)

    def tell(self, functions: Iterable[Any]) -> list[Any]:
        """Returns who has yet to be told of the step; they count as told.

        Args:
            functions: Those who want to know of each step.
        """
        new = [function for function in functions if function not in self._told]
        self._told += new
        return new

    def copy(self) -> "Stamp":
        """Returns the stamp of another replica's piece of the batch."""
        if self._rows is None:
            raise ValueError("The stamp was used already.")
        found = Stamp(self._ledger, self._rows)
        found._graph, found._told = self._graph, self._told
        return found

    def take(self, ledger: "Ledger") -> tf.Tensor | None:
        """Returns the rows, once.

        Args:
            ledger: The ledger that counts the step.

        Returns:
            The rows; `None` if the stamp was used, is of another ledger, or
            may be used again by what is being traced.
        """
        if ledger is not self._ledger or not call_time.runs_within(self._graph):
            return None
        rows, self._rows = self._rows, None
        return rows
