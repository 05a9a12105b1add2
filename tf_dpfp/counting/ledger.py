"""A ledger in a Keras variable: what was released, and how often.

What ran is a small table: one row for each kind of step (sampling, noise
multiplier, kind of release) with a count of its steps. It is one variable of
an optimizer or a layer, so every way of saving these saves the ledger, and
nothing restores half of it. The compiled step only adds to the count of one
row: that of the claim that came with its batch (`claims`), else that of
unknown sampling.

The ledger knows no noise multiplier of its own: every row is written from the
`Release` that the step draws its noise by, and a step that draws by another is
refused.

Steps of several threads add to the counts at any time, and Python threads write
rows beside them. So the table is only ever added to: a new row is the
difference to an empty one, what is restored is the difference to what is
known, and a row stays where it is.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import compilation
from tf_dpfp.counting import agreement
from tf_dpfp.counting import claims
from tf_dpfp.counting import origin as origin_lib
from tf_dpfp.counting import restores
from tf_dpfp.counting import rows as rows_lib
from tf_dpfp.counting.release import Release
from tf_dpfp.keras_private import call_time
from tf_dpfp.keras_private import variables as keras_variables

# Name under which files hold a ledger once more, whatever they restore.
MARKER = "tf_dpfp_ledger"
_ROWS = tf.TensorSpec([6], tf.int64)
Entry: TypeAlias = accounting.LedgerEntry
# Called with the claim of the step that follows.
BeforeStep: TypeAlias = Callable[[claims.Located], None]


class Ledger:
    """Counts private steps by kind.

    Args:
        variable: Variable of the counts: float64, zeros of `rows.TABLE_SHAPE`.
    """

    def __init__(self, variable: keras.Variable):
        self._table = variable
        self.origin = origin_lib.Origin()
        self._is_closed = False  # Another ledger goes on with its counts.
        # Of writing rows; steps don't wait for it.
        self._lock = threading.RLock()
        # By release: where steps of which nothing is claimed are counted.
        self._unclaimed: dict[Release, claims.Located] = {}
        # Of the steps that were traced; a compiled one draws by it for good.
        self._drawn: Release | None = None
        self._called_before: list[BeforeStep] = []
        restores.watch(variable, self._restore, self._restore_in_graph)

    def _restore(self, value: Any) -> None:
        """Adds what a saved table has beyond what is known.

        Args:
            value: The table, also of an earlier version.

        Raises:
            ValueError: If the numbers are no ledger; nothing is changed.
        """
        if keras.ops.is_tensor(value) or isinstance(value, keras.Variable):
            value = keras.ops.convert_to_numpy(value)
        self.keep_greater(rows_lib.decoded(np.asarray(value, np.float64)))

    def _restore_in_graph(self, value: Any) -> None:
        now = tf.convert_to_tensor(self._table.value)
        lacking = rows_lib.lacking(now, tf.cast(value, now.dtype))
        keras_variables.add_atomically(self._table, lacking)

    def _values(self) -> np.ndarray:
        return self._table.numpy().astype(np.float64)

    def entries(self) -> list[Entry]:
        """Reads what ran so far; takes the counts from the device."""
        return rows_lib.decoded(self._values())

    @property
    def is_traced(self) -> bool:
        """True if a step was traced: its noise can't change any more."""
        return self._drawn is not None

    def next_entry(self, release: Release) -> Entry:
        """Returns the entry that the next step adds to.

        Args:
            release: The release of the step.

        Returns:
            The entry; its count is that of one step.

        Raises:
            RuntimeError: If the ledger counts another noise.
        """
        agreement.require_same(self._drawn, release)
        claim = claims.to_come(self) or claims.Claim(release)
        agreement.require_same(release, claim.release)
        return claim.entry(claim.draws)

    def locate(self, claim: claims.Claim) -> claims.Located:
        """Finds the rows of the steps of a claim; writes those that are new.

        Args:
            claim: The claim.

        Returns:
            The claim with its rows, which stay where they are.

        Raises:
            ValueError: If the table is full.
            RuntimeError: If steps draw another noise.
        """
        agreement.require_same(self._drawn, claim.release)
        return self._located(claim)

    def _located(self, claim: claims.Claim) -> claims.Located:
        otherwise = claim.of_other_sizes()
        with self._lock:
            values = self._values()
            before = values.copy()
            rows = [
                rows_lib.row_of(values, claim.entry(0)),
                rows_lib.row_of(values, otherwise.entry(0)),
            ]
            self._add(values - before)
        rows += [claim.draws, otherwise.draws, claim.batch_size or 0]
        rows.append(claim.parts)
        return claims.Located(claim, tf.constant(rows, tf.int64))

    def add(self, entry: Entry) -> None:
        """Counts a release outside of a step.

        Args:
            entry: The release, with its count.
        """
        self.absorb([entry])

    def count_now(self, claim: claims.Claim) -> None:
        """Counts one release that is made outside of a step, before it is.

        It has a noise of its own, whatever the steps draw.

        Args:
            claim: Kind of the release.

        Raises:
            ValueError: If the table is full; nothing is counted then.
        """
        self._tell(self._located(claim))
        self.absorb([claim.entry(claim.draws)])

    def total_steps(self) -> tf.Tensor:
        """Adds up the steps of every kind; int64, for a graph."""
        return tf.cast(
            tf.reduce_sum(
                tf.convert_to_tensor(self._table.value)[:, rows_lib.COUNT]
            ),
            tf.int64,
        )

    def ensure_open(self, release: Release) -> None:
        """Writes the row of steps of which nothing is claimed.

        One replica of several can't: it writes to all of them.

        Args:
            release: The release of the steps that follow.
        """
        if release in self._unclaimed:
            return
        with self._lock, tf.init_scope():
            self._unclaimed[release] = self.locate(claims.Claim(release))

    def claimed_batch_size(self) -> int | None:
        """Returns the batch size of the claim that this thread has now."""
        located = claims.of_thread(self)
        return None if located is None else located.claim.batch_size

    def check_claimed(self, release: Release) -> None:
        """Refuses a step for others than its batches are claimed for.

        Args:
            release: The release of the step.

        Raises:
            RuntimeError: If this thread claims batches of persons or of views,
                and the step is of examples, or the reverse.
        """
        located = claims.of_thread(self)
        if located is not None:
            agreement.require_same_unit(release, located.claim.release)

    def stamp(self, release: Release) -> claims.Stamp:
        """Stamps a batch with the claim of the thread that steps on it.

        In a compiled step that is the thread that calls it, in every call.

        Args:
            release: The release of the step.

        Returns:
            The stamp; pass it to `count_step`.
        """
        self.ensure_open(release)

        def rows() -> tf.Tensor:
            # At every call of a compiled step, before any of it runs.
            compilation.keep_float32_products()
            located = claims.of_thread(self) or self._unclaimed[release]
            agreement.require_same_unit(release, located.claim.release)
            self._tell(located)
            return located.rows

        told = tuple(self._called_before)
        return claims.Stamp(
            self, call_time.value(rows, _ROWS, key=(self, release)), told
        )

    def _tell(self, located: claims.Located) -> None:
        agreement.require_open(self._is_closed)
        for function in tuple(self._called_before):
            function(located)

    def call_before(self, function: BeforeStep) -> Callable[[], None]:
        """Has Python called before each step, a compiled one included.

        When its batch is stamped; or when the step is taken, if that was
        before, or another step was taken on that stamp. A compiled function is
        taken for one step, though it may take several.

        Args:
            function: Called with the claim of the step, in its thread.

        Returns:
            Function that ends it.
        """
        self._called_before.append(function)
        return lambda: self._called_before.remove(function)

    def count_step(
        self,
        release: Release,
        stamp: claims.Stamp | None = None,
        batch_size: tf.Tensor | int = 0,
    ) -> None:
        """Adds one step; part of the compiled step.

        Args:
            release: The release that the noise of this step is drawn by.
            stamp: The claim of its batch; `None`, or one that was used: none.
            batch_size: The size of its batch, where a claim has one.

        Raises:
            RuntimeError: If the ledger counts another noise, or the claim is
                for examples where the step is for persons.
        """
        self.count_in(self.rows_of(release, stamp), batch_size)

    def rows_of(
        self,
        release: Release,
        stamp: claims.Stamp | None = None,
        has_part: bool = False,
    ) -> tf.Tensor:
        """Returns the rows that a step is counted in; part of the step.

        Args:
            release: The release that the noise of this step is drawn by.
            stamp: The claim of its batch; `None`, or one that was used: none.
            has_part: True if its batch says from which part of the data it was
                drawn. Nothing is claimed by parts for a batch that does not.

        Returns:
            See `claims.Located`; pass it to `count_in`.

        Raises:
            RuntimeError: If the ledger counts another noise, or the claim is
                for examples where the step is for persons.
        """
        agreement.require_open(self._is_closed)
        agreement.require_same(self._drawn, release)
        located = claims.of_thread(self)
        if located is not None:
            agreement.require_same(release, located.claim.release)
        self.check_claimed(release)
        self.ensure_open(release)
        self._drawn = release
        rows = None if stamp is None else stamp.take(self)
        if stamp is None or rows is None:
            return self._without_claim(release)
        if tf.executing_eagerly():
            for function in stamp.tell(tuple(self._called_before)):
                function(self._unclaimed[release])
        if has_part:
            return rows
        unclaimed = self._unclaimed[release].rows
        return tf.where(claims.parts_of(rows) > 0, unclaimed, rows)

    def _without_claim(self, release: Release) -> tf.Tensor:
        """Returns the rows of a step whose batch has no stamp that is good."""

        def rows() -> tf.Tensor:
            located = self._unclaimed[release]
            self._tell(located)
            return located.rows

        return call_time.value(rows, _ROWS, key=(self, release, "unclaimed"))

    def count_in(
        self,
        rows: tf.Tensor,
        batch_size: tf.Tensor | int = 0,
        further: tf.Tensor | int = 0,
    ) -> None:
        """Adds one step to one of its rows; part of the compiled step.

        Args:
            rows: Result of `rows_of`.
            batch_size: The size of its batch, where a claim has one.
            further: Number of steps that it counts as, beside one.
        """
        row, other, draws, other_draws, expected, _ = tf.unstack(rows)
        if tf.is_tensor(batch_size):
            batch_size = tf.cast(batch_size, tf.int64)
        as_claimed = (expected == 0) | (expected == batch_size)
        row = tf.where(as_claimed, row, other)
        count = tf.where(as_claimed, draws, other_draws)
        count += tf.cast(further, tf.int64)
        keras_variables.add_at(
            self._table,
            tf.stack([row, tf.constant(rows_lib.COUNT, tf.int64)]),
            tf.cast(count, tf.float64),
        )

    def close(self, closed: bool = True) -> None:
        """Refuses further steps, if any was begun: another ledger counts."""
        self._is_closed = closed and bool(self._unclaimed)

    def absorb(self, earlier: Sequence[Entry], elsewhere: bool = False) -> None:
        """Adds the ledger of another optimizer on the same model.

        Args:
            earlier: The other ledger's entries.
            elsewhere: True if they were not counted in this process.
        """
        if elsewhere:
            self.origin.add_elsewhere(earlier)
        with self._lock:
            values = self._values()
            counted = rows_lib.decoded(values)
            self._write(values, accounting.merge([*earlier, *counted]))

    def keep_greater(self, known: Iterable[Entry]) -> None:
        """Raises counts to those that are known otherwise.

        Loading an older checkpoint takes weights back in time; what was
        released since then stays released.

        Args:
            known: Entries of the same training.
        """
        with self._lock:
            values = self._values()
            counted = rows_lib.decoded(values)
            lacking = accounting.missing(known, counted)
            self._write(values, accounting.merge([*counted, *lacking]))
            self.origin.add_elsewhere(lacking)

    def _write(self, values: np.ndarray, entries: Iterable[Entry]) -> None:
        """Brings counts to those of the entries; never takes a row away.

        Args:
            values: The table, as it was when the entries were made of it.
            entries: The entries, one for each kind.
        """
        written = values.copy()
        written[:, rows_lib.COUNT] = 0.0
        for entry in entries:
            written[rows_lib.row_of(written, entry), rows_lib.COUNT] = (
                entry.steps
            )
        self._add(written - values)

    def _add(self, difference: np.ndarray) -> None:
        if difference.any():
            keras_variables.add_atomically(self._table, difference)
