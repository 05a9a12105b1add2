"""A ledger in a Keras variable: what was released, and how often.

What ran is a small table: one row for each kind of step (sampling, noise
multiplier, what was released) with a count of its steps. It is one variable of
an optimizer or a layer, so every way of saving these saves the ledger, and
nothing restores half of it. The compiled step only adds to the count of the
current row; which row that is, is set from Python before training starts and
is never saved.
"""

import dataclasses
from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp.accounting import table

# The count stands behind the description; float64 counts exactly to 2^53.
_COUNT = table.WIDTH
TABLE_SHAPE = (table.MAX_ROWS, table.WIDTH + 1)


class Ledger:
    """Counts private steps by kind.

    Args:
        variable: Where the counts are: float64, zeros of `TABLE_SHAPE`.
        noise_multiplier: Part of every row written.
        seeded: Whether the noise comes from a seed; likewise.
        release: What the steps release, unless `open` says otherwise.
    """

    def __init__(
        self,
        variable: keras.Variable,
        noise_multiplier: float,
        seeded: bool,
        release: accounting.Release = accounting.Release.SUMS,
    ):
        self._noise_multiplier = noise_multiplier
        self._noise_seeded = seeded
        self._release = release
        self._table = variable
        self._opened: _Opened | None = None
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

    def describe(
        self, noise_multiplier: float, release: accounting.Release
    ) -> None:
        """Changes what is written of the steps that follow.

        Args:
            noise_multiplier: Part of every row written.
            release: What the steps release, unless `open` says otherwise.
        """
        self._noise_multiplier, self._release = noise_multiplier, release
        with tf.init_scope():
            self.open(accounting.UnknownSampling())

    def _watch_restores(self) -> None:
        """Keeps the greater counts, whichever way older ones come back.

        `assign` is what `set_weights` and Keras files use,
        `_restore_from_tensors` what `tf.train.Checkpoint` uses.
        """
        self._assign = self._table.assign
        for name in ("assign", "_restore_from_tensors"):
            method = self._keeping_greater(getattr(self._table, name))
            setattr(self._table, name, method)

    def _keeping_greater(self, method):
        def restore_and_keep(*args, **kwargs):
            if not tf.executing_eagerly():
                return method(*args, **kwargs)
            known = self.entries()
            result = method(*args, **kwargs)
            try:
                self.keep_greater(known)
            except ValueError:
                # What was written is no ledger.
                self._write(known)
                raise
            return result

        return restore_and_keep

    def entries(self) -> list[accounting.LedgerEntry]:
        """What ran so far; reads the counts from the device."""
        values = self._table.numpy().astype(np.float64)
        entries = table.decode_table(
            np.ascontiguousarray(values[:, :_COUNT]),
            values[:, _COUNT].astype(np.int64),
        )
        return [entry for entry in entries if entry.steps]

    def current(self) -> accounting.LedgerEntry:
        """The kind of the next step; its count is that of one step."""
        opened = self._opened or _Opened(accounting.UnknownSampling())
        return self._entry(opened, opened.draws)

    def _entry(self, opened: "_Opened", steps: int) -> accounting.LedgerEntry:
        release = opened.release
        return accounting.LedgerEntry(
            opened.sampling,
            self._noise_multiplier,
            steps,
            self._noise_seeded or opened.seeded,
            self._release if release is None else release,
        )

    def open(
        self,
        sampling: accounting.Sampling,
        seeded: bool = False,
        release: accounting.Release | None = None,
        draws: int = 1,
        rows: int | None = None,
    ) -> None:
        """Sets the kind of the steps that follow.

        Args:
            sampling: How their examples are chosen.
            seeded: Whether they are chosen by a seed.
            release: What they release; `None` for what the ledger was made
                with.
            draws: How many draws a step takes.
            rows: The batch size for which that holds. Batches of another are
                counted once, as of unknown sampling. `None`: any size.

        Raises:
            ValueError: If the table is full.
        """
        self._opened = _Opened(sampling, seeded, release, draws, rows)
        otherwise = self._opened
        if rows is not None:
            otherwise = _Opened(accounting.UnknownSampling(), seeded, release)
        values = self._table.numpy().astype(np.float64)
        current = self._row(values, self._entry(self._opened, 0))
        other = self._row(values, self._entry(otherwise, 0))
        self._assign(values)
        self._current.assign(
            [current, other, draws, otherwise.draws, rows or 0]
        )

    @staticmethod
    def _row(values: np.ndarray, kind: accounting.LedgerEntry) -> int:
        """The row of a kind of step, written if it is a new one."""
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
        """Counts what was released at once, outside of a step.

        Args:
            entry: What it is, with its count.
        """
        self._write(table.merge([*self.entries(), entry]))

    def total_steps(self) -> tf.Tensor:
        """How many steps of any kind were counted; int64, for a graph."""
        return tf.cast(
            tf.reduce_sum(tf.convert_to_tensor(self._table.value)[:, _COUNT]),
            tf.int64,
        )

    def ensure_open(self) -> None:
        """Opens the ledger for unknown sampling, if it is not open.

        One replica of several can't: it writes to all of them.
        """
        if self._opened is None:
            with tf.init_scope():
                self.open(accounting.UnknownSampling())

    def count_step(self, rows: tf.Tensor | int = 0) -> None:
        """Adds one step of the current kind; part of the compiled step.

        Args:
            rows: The size of its batch, where `open` was given one.
        """
        self.ensure_open()
        row, other, draws, other_draws, expected = tf.unstack(
            tf.convert_to_tensor(self._current)
        )
        as_opened = (expected == 0) | (expected == tf.cast(rows, tf.int64))
        row = tf.where(as_opened, row, other)
        count = tf.where(as_opened, draws, other_draws)
        row = tf.one_hot(row, table.MAX_ROWS, dtype=tf.float64)
        column = tf.one_hot(_COUNT, table.WIDTH + 1, dtype=tf.float64)
        self._table.assign_add(
            row[:, None] * column[None, :] * tf.cast(count, tf.float64)
        )

    def absorb(self, earlier: Iterable[accounting.LedgerEntry]) -> None:
        """Adds what ran under another optimizer on the same model.

        Args:
            earlier: The other ledger's entries.
        """
        self._write([*earlier, *self.entries()])

    def keep_greater(self, known: Iterable[accounting.LedgerEntry]) -> None:
        """Never counts fewer steps of a kind than were known before.

        Loading an older checkpoint takes weights back in time; what was
        released since then stays released.

        Args:
            known: The entries before the checkpoint was loaded.
        """
        counts = {_kind(e): e for e in self.entries()}
        for entry in known:
            key = _kind(entry)
            if key not in counts or counts[key].steps < entry.steps:
                counts[key] = entry
        self._write(counts.values())

    def _write(self, entries: Iterable[accounting.LedgerEntry]) -> None:
        rows, steps = table.encode_table(entries)
        self._assign(np.concatenate([rows, steps[:, None]], axis=1))
        # Rows may have moved: find the current one again.
        if self._opened is not None:
            self.open(**vars(self._opened))


@dataclasses.dataclass(frozen=True)
class _Opened:
    """The arguments of `Ledger.open`."""

    sampling: accounting.Sampling
    seeded: bool = False
    release: accounting.Release | None = None
    draws: int = 1
    rows: int | None = None


def _kind(entry: accounting.LedgerEntry) -> accounting.LedgerEntry:
    """The entry without its count."""
    return dataclasses.replace(entry, steps=0)
