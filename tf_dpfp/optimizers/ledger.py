"""The ledger of an optimizer: what was released, in a Keras variable.

What ran is a small table: one row for each kind of step (sampling and noise
multiplier) with a count of its steps. It is one optimizer variable, so every
way of saving an optimizer saves the ledger, and nothing restores half of it.
The compiled step only adds one to the count of the current row; which row
that is, is set from Python before training starts and is never saved.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp.accounting import ledger as table

# The count stands behind the description; float64 counts exactly to 2^53.
_COUNT = table.WIDTH


class Ledger:
    """Counts private steps by kind.

    Args:
        optimizer: The optimizer that owns the variable.
        noise_multiplier: Its noise multiplier, part of every row written.
        seeded: Whether its noise comes from a seed; likewise.
    """

    def __init__(self, optimizer, noise_multiplier: float, seeded: bool):
        self._noise_multiplier = noise_multiplier
        self._noise_seeded = seeded
        self._sampling_seeded = False
        self._sampling: accounting.Sampling | None = None
        self._table = optimizer.add_variable(
            shape=(table.MAX_ROWS, table.WIDTH + 1),
            initializer="zeros",
            dtype="float64",
            aggregation="only_first_replica",
            name="privacy_ledger",
        )
        with tf.init_scope():
            self._current = tf.Variable(
                -1, trainable=False, dtype=tf.int32, name="privacy_row"
            )
        self._watch_restores()

    def _watch_restores(self) -> None:
        """Makes `tf.train.Checkpoint` keep the greater counts, too.

        It restores variable by variable, past `load_own_variables`.
        """
        restore = self._table._restore_from_tensors

        def restore_and_keep(restored_tensors):
            known = self.entries()
            result = restore(restored_tensors)
            self.keep_greater(known)
            return result

        self._table._restore_from_tensors = restore_and_keep

    def entries(self) -> list[accounting.LedgerEntry]:
        """What ran so far; reads the counts from the device."""
        values = self._table.numpy().astype(np.float64)
        entries = table.decode_table(
            np.ascontiguousarray(values[:, :_COUNT]),
            values[:, _COUNT].astype(np.int64),
        )
        return [entry for entry in entries if entry.steps]

    def current(self) -> accounting.LedgerEntry:
        """The kind of the next step, with a count of zero."""
        sampling = self._sampling or accounting.UnknownSampling()
        return self._entry(sampling)

    def _entry(self, sampling: accounting.Sampling) -> accounting.LedgerEntry:
        seeded = self._noise_seeded or self._sampling_seeded
        return accounting.LedgerEntry(
            sampling, self._noise_multiplier, 0, seeded
        )

    def open(self, sampling: accounting.Sampling, seeded: bool = False) -> None:
        """Sets the kind of the steps that follow.

        Args:
            sampling: How their examples are chosen.
            seeded: Whether they are chosen by a seed.

        Raises:
            ValueError: If the table is full.
        """
        self._sampling_seeded = seeded
        wanted = table.encode(self._entry(sampling))
        values = self._table.numpy().astype(np.float64)
        free = [
            index
            for index, row in enumerate(values[:, :_COUNT])
            if np.array_equal(row, wanted) or not row.any()
        ]
        if not free:
            raise ValueError(
                f"The privacy ledger holds {table.MAX_ROWS} kinds of steps "
                "and is full. Use the same sampling and noise multiplier for "
                "longer, or start with a new model."
            )
        values[free[0], :_COUNT] = wanted
        self._table.assign(values)
        self._current.assign(free[0])
        self._sampling = sampling

    def total_steps(self) -> tf.Tensor:
        """How many steps of any kind were counted; int64, for a graph."""
        return tf.cast(
            tf.reduce_sum(tf.convert_to_tensor(self._table.value)[:, _COUNT]),
            tf.int64,
        )

    def count_step(self) -> None:
        """Adds one step of the current kind; part of the compiled step."""
        if self._sampling is None:
            with tf.init_scope():
                self.open(accounting.UnknownSampling())
        row = tf.one_hot(self._current, table.MAX_ROWS, dtype=tf.float64)
        column = tf.one_hot(_COUNT, table.WIDTH + 1, dtype=tf.float64)
        self._table.assign_add(row[:, None] * column[None, :])

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
        self._table.assign(np.concatenate([rows, steps[:, None]], axis=1))
        # Rows may have moved: find the current one again.
        if self._sampling is not None:
            self.open(self._sampling, self._sampling_seeded)


def _kind(entry: accounting.LedgerEntry) -> accounting.LedgerEntry:
    """The entry without its count."""
    return dataclasses.replace(entry, steps=0)
