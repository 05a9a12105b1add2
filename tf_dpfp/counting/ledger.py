"""A ledger in a Keras variable: what was released, and how often.

What ran is a small table: one row for each kind of step (sampling, noise
multiplier, kind of release) with a count of its steps. It is one variable of
an optimizer or a layer, so every way of saving these saves the ledger, and
nothing restores half of it. The compiled step only adds to the count of the
current row. The current row is set from Python before training starts and is
never saved.

The ledger knows no noise multiplier of its own: every row is written from the
`Release` that the step draws its noise by, and a step that draws by another is
refused.

Steps of several threads add to the counts at any time, and Python threads open
the ledger beside them. So the table is only ever added to, but by restores: a
new row is the difference to an empty one, and rows stay where they are.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp.accounting import table
from tf_dpfp.counting.release import Release
from tf_dpfp.keras_private import variables as keras_variables

# The count stands behind the description; float64 counts exactly to 2^53.
_COUNT = table.WIDTH
TABLE_SHAPE = (table.MAX_ROWS, table.WIDTH + 1)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """The arguments of `Ledger.open`."""

    release: Release
    sampling: accounting.Sampling
    seeded: bool = False
    draws: int = 1
    batch_size: int | None = None

    def entry(self, steps: int) -> accounting.LedgerEntry:
        """Returns the ledger entry of the steps."""
        return accounting.LedgerEntry(
            self.sampling,
            self.release.noise_multiplier,
            steps,
            self.seeded or self.release.seeded,
            self.release.kind,
        )

    def of_other_sizes(self) -> "_Opened":
        """Returns what batches of any other size are counted as."""
        if self.batch_size is None:
            return self
        return _Opened(self.release, accounting.UnknownSampling(), self.seeded)


class Ledger:
    """Counts private steps by kind.

    Args:
        variable: Variable of the counts: float64, zeros of `TABLE_SHAPE`.
    """

    def __init__(self, variable: keras.Variable):
        self._table = variable
        # Of opening and of writing rows; steps don't wait for it.
        self._lock = threading.RLock()
        self._opened: _Opened | None = None
        # Of the steps that were traced; a compiled one draws by it for good.
        self._drawn: Release | None = None
        with tf.init_scope():
            # The current row, the one for batches of other sizes, what is
            # counted for a step in each, and the size (0: any). TensorFlow
            # keeps int32 variables on the CPU, where a step that XLA compiles
            # for a GPU can't reach them.
            self._current = tf.Variable(
                [-1, -1, 1, 1, 0],
                trainable=False,
                dtype=tf.int64,
                name="privacy_row",
            )
        self._watch_restores()

    def _watch_restores(self) -> None:
        """Keeps the greater counts, whichever way older ones come back.

        `set_weights` and Keras files use `assign`; `tf.train.Checkpoint` has a
        way of its own.
        """
        self._assign = self._table.assign
        self._table.assign = self._keeping_greater(self._assign)
        keras_variables.wrap_restores(self._table, self._keeping_greater)

    def _keeping_greater(self, restore: Callable[..., Any]):
        def restore_and_keep(*args, **kwargs):
            if not tf.executing_eagerly():
                return restore(*args, **kwargs)
            with self._lock:
                known = self.entries()
                result = restore(*args, **kwargs)
                try:
                    self.keep_greater(known)
                except ValueError:
                    # The restored numbers are no ledger.
                    self._assign(np.zeros(TABLE_SHAPE))
                    self._write(self._values(), known)
                    raise
                return result

        return restore_and_keep

    def _values(self) -> np.ndarray:
        return self._table.numpy().astype(np.float64)

    def entries(self) -> list[accounting.LedgerEntry]:
        """Reads what ran so far; takes the counts from the device."""
        return _decoded(self._values())

    def next_entry(self, release: Release) -> accounting.LedgerEntry:
        """Returns the entry that the next step adds to.

        Args:
            release: The release of the step.

        Returns:
            The entry; its count is that of one step.

        Raises:
            RuntimeError: If the ledger is open for another noise.
        """
        opened = self._opened_for(release)
        return opened.entry(opened.draws)

    def open(
        self,
        release: Release,
        sampling: accounting.Sampling,
        seeded: bool = False,
        draws: int = 1,
        batch_size: int | None = None,
    ) -> None:
        """Sets the kind of the steps that follow.

        Args:
            release: Release of a step, with its noise.
            sampling: Sampling of the examples of a step.
            seeded: True if they are chosen by a seed.
            draws: Number of draws in a step.
            batch_size: The batch size for which that holds. Batches of another
                are counted once, as of unknown sampling. `None`: any size.

        Raises:
            ValueError: If the table is full.
            RuntimeError: If steps draw another noise.
        """
        with self._lock:
            _require_same(self._drawn, release)
            opened = _Opened(release, sampling, seeded, draws, batch_size)
            self._opened = opened
            self._find_rows(opened)

    def _find_rows(self, opened: _Opened) -> None:
        """Points the compiled step to the rows of what is opened."""
        otherwise = opened.of_other_sizes()
        values = self._values()
        before = values.copy()
        current = self._row(values, opened.entry(0))
        other = self._row(values, otherwise.entry(0))
        self._add(values - before)
        self._current.assign(
            [
                current,
                other,
                opened.draws,
                otherwise.draws,
                opened.batch_size or 0,
            ]
        )

    @staticmethod
    def _row(values: np.ndarray, kind: accounting.LedgerEntry) -> int:
        """Finds the row of a kind of step; writes it if it is a new one."""
        wanted = table.encode(kind)
        for index, row in enumerate(values[:, :_COUNT]):
            if np.array_equal(row, wanted) or not row.any():
                values[index, :_COUNT] = wanted
                return index
        raise ValueError(
            f"The privacy ledger holds {table.MAX_ROWS} kinds of steps "
            "and is full. Use the same sampling and noise multiplier for "
            "longer, or start with a new model."
        )

    def add(self, entry: accounting.LedgerEntry) -> None:
        """Counts a release outside of a step.

        Args:
            entry: The release, with its count.
        """
        self.absorb([entry])

    def total_steps(self) -> tf.Tensor:
        """Adds up the steps of every kind; int64, for a graph."""
        return tf.cast(
            tf.reduce_sum(tf.convert_to_tensor(self._table.value)[:, _COUNT]),
            tf.int64,
        )

    def ensure_open(self, release: Release) -> None:
        """Opens the ledger for unknown sampling, if it is not open.

        One replica of several can't: it writes to all of them.

        Args:
            release: The release of the steps that follow.
        """
        if self._opened is not None:
            return
        with self._lock, tf.init_scope():
            if self._opened is None:  # No other thread was faster.
                self.open(release, accounting.UnknownSampling())

    def _opened_for(self, release: Release) -> _Opened:
        """Returns what is opened; refuses another noise than is counted."""
        if self._opened is None:
            return _Opened(release, accounting.UnknownSampling())
        _require_same(release, self._opened.release)
        return self._opened

    def count_step(
        self, release: Release, batch_size: tf.Tensor | int = 0
    ) -> None:
        """Adds one step of the current kind; part of the compiled step.

        Args:
            release: The release that the noise of this step is drawn by.
            batch_size: The size of its batch, where `open` was given one.

        Raises:
            RuntimeError: If the ledger is open for another noise.
        """
        self.ensure_open(release)
        self._opened_for(release)
        self._drawn = release
        row, other, draws, other_draws, expected = tf.unstack(
            tf.convert_to_tensor(self._current)
        )
        if tf.is_tensor(batch_size):
            batch_size = tf.cast(batch_size, tf.int64)
        as_opened = (expected == 0) | (expected == batch_size)
        row = tf.where(as_opened, row, other)
        count = tf.where(as_opened, draws, other_draws)
        row = tf.one_hot(row, table.MAX_ROWS, dtype=tf.float64)
        column = tf.one_hot(_COUNT, table.WIDTH + 1, dtype=tf.float64)
        keras_variables.add_atomically(
            self._table,
            row[:, None] * column[None, :] * tf.cast(count, tf.float64),
        )

    def absorb(self, earlier: Iterable[accounting.LedgerEntry]) -> None:
        """Adds the ledger of another optimizer on the same model.

        Args:
            earlier: The other ledger's entries.
        """
        with self._lock:
            values = self._values()
            self._write(values, table.merge([*earlier, *_decoded(values)]))

    def keep_greater(self, known: Iterable[accounting.LedgerEntry]) -> None:
        """Raises counts to those that were known before.

        Loading an older checkpoint takes weights back in time; what was
        released since then stays released.

        Args:
            known: The entries before the checkpoint was loaded.
        """
        with self._lock:
            values = self._values()
            counts = {_kind(e): e for e in table.merge(_decoded(values))}
            for entry in known:
                key = _kind(entry)
                if key not in counts or counts[key].steps < entry.steps:
                    counts[key] = entry
            self._write(values, counts.values())

    def _write(
        self, values: np.ndarray, entries: Iterable[accounting.LedgerEntry]
    ) -> None:
        """Brings counts to those of the entries; never takes a row away.

        Args:
            values: The table, as it was when the entries were made of it.
            entries: The entries, one for each kind.
        """
        written = values.copy()
        written[:, _COUNT] = 0.0
        for entry in entries:
            written[self._row(written, entry), _COUNT] = entry.steps
        self._add(written - values)
        # A restored table has rows in another order: find the current one.
        if self._opened is not None:
            self._find_rows(self._opened)

    def _add(self, difference: np.ndarray) -> None:
        if difference.any():
            keras_variables.add_atomically(self._table, difference)


def _decoded(values: np.ndarray) -> list[accounting.LedgerEntry]:
    """Decodes the table; leaves out kinds of which no step ran."""
    # Counts that are not finite become negative, and are refused.
    with np.errstate(invalid="ignore"):
        steps = values[:, _COUNT].astype(np.int64)
    entries = table.decode_table(
        np.ascontiguousarray(values[:, :_COUNT]), steps
    )
    return [entry for entry in entries if entry.steps]


def _require_same(drawn: Release | None, counted: Release) -> None:
    """Refuses to count another noise than is drawn."""
    if drawn is not None and drawn.noise != counted.noise:
        raise RuntimeError(
            "The noise of a step and its row in the privacy ledger must come "
            "from the same release. Compile the model with a new optimizer, or "
            f"make a new layer. Received: noise={drawn}, ledger={counted}"
        )


def _kind(entry: accounting.LedgerEntry) -> accounting.LedgerEntry:
    """Returns the entry without its count."""
    return dataclasses.replace(entry, steps=0)
