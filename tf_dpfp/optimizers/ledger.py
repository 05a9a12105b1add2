"""The ledger of an optimizer: what was released, in Keras variables.

What ran is a small table: one row for each kind of step (sampling and noise
multiplier) and a count of steps for each row. Both are optimizer variables,
so every way of saving an optimizer saves the ledger. The compiled step only
adds one to the count of the current row; which row that is, is set from
Python before training starts and is never saved.
"""

from typing import Iterable

import numpy as np
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp.accounting import ledger as table


class Ledger:
    """Counts private steps by kind.

    Args:
        optimizer: The optimizer that owns the variables.
        noise_multiplier: Its noise multiplier, part of every row written.
    """

    def __init__(self, optimizer, noise_multiplier: float):
        self._noise_multiplier = noise_multiplier
        self._rows = optimizer.add_variable(
            shape=(table.MAX_ROWS, table.WIDTH),
            initializer="zeros",
            dtype="float64",
            aggregation="only_first_replica",
            name="privacy_rows",
        )
        self._steps = optimizer.add_variable(
            shape=(table.MAX_ROWS,),
            initializer="zeros",
            dtype="int64",
            aggregation="only_first_replica",
            name="privacy_steps",
        )
        with tf.init_scope():
            self._current = tf.Variable(
                -1, trainable=False, dtype=tf.int32, name="privacy_row"
            )

    def entries(self) -> list[accounting.LedgerEntry]:
        """What ran so far; reads the counts from the device."""
        entries = table.decode_table(
            self._rows.numpy().astype(np.float64), self._steps.numpy()
        )
        return [entry for entry in entries if entry.steps]

    def current(self) -> accounting.LedgerEntry:
        """The kind of the next step, with a count of zero."""
        self._ensure_open()
        row = int(self._current.numpy())
        return table.decode(self._rows.numpy()[row].astype(np.float64), 0)

    def open(self, sampling: accounting.Sampling) -> None:
        """Sets the kind of the steps that follow.

        Args:
            sampling: How their examples are chosen.

        Raises:
            ValueError: If the table is full.
        """
        wanted = table.encode(
            accounting.LedgerEntry(sampling, self._noise_multiplier, 0)
        )
        rows = self._rows.numpy()
        for index, row in enumerate(rows):
            if np.array_equal(row, wanted) or not row.any():
                rows[index] = wanted
                break
        else:
            raise ValueError(
                f"The privacy ledger holds {table.MAX_ROWS} kinds of steps "
                "and is full. Use the same sampling and noise multiplier for "
                "longer, or start with a new model."
            )
        self._rows.assign(rows)
        self._current.assign(index)

    def count_step(self) -> None:
        """Adds one step of the current kind; part of the compiled step."""
        self._ensure_open()
        self._steps.assign_add(
            tf.one_hot(self._current, table.MAX_ROWS, dtype=tf.int64)
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
        counts = {(e.sampling, e.noise_multiplier): e for e in self.entries()}
        for entry in known:
            key = (entry.sampling, entry.noise_multiplier)
            if key not in counts or counts[key].steps < entry.steps:
                counts[key] = entry
        self._write(counts.values())

    def _write(self, entries: Iterable[accounting.LedgerEntry]) -> None:
        rows, steps = table.encode_table(entries)
        self._rows.assign(rows)
        self._steps.assign(steps)
        # Rows may have moved: say anew what the next step is.
        self._current.assign(-1)

    def _ensure_open(self) -> None:
        with tf.init_scope():
            if int(self._current.numpy()) < 0:
                self.open(accounting.UnknownSampling())
