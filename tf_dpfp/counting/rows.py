"""The table of a ledger as numbers: descriptions of steps and their counts."""

import dataclasses

import numpy as np
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp.accounting import table

# The count stands behind the description; float64 counts exactly to 2^53.
COUNT = table.WIDTH
TABLE_SHAPE = (table.MAX_ROWS, table.WIDTH + 1)


def kind(entry: accounting.LedgerEntry) -> accounting.LedgerEntry:
    """Returns the entry without its count."""
    return dataclasses.replace(entry, steps=0)


def row_of(values: np.ndarray, entry: accounting.LedgerEntry) -> int:
    """Finds the row of a kind of step; writes it if it is a new one.

    Args:
        values: The table, of `TABLE_SHAPE`.
        entry: An entry of the kind; its count does not matter.

    Returns:
        The index of the row.

    Raises:
        ValueError: If the kind is new and the table is full.
    """
    wanted = table.encode(entry)
    rows = values[:, :COUNT]
    found = np.flatnonzero((rows == wanted).all(axis=1))
    if not len(found):
        found = np.flatnonzero(~rows.any(axis=1))
    if not len(found):
        raise ValueError(
            f"The privacy ledger holds {table.MAX_ROWS} kinds of steps "
            "and is full. Use the same sampling and noise multiplier for "
            "longer, or start with a new model."
        )
    values[found[0], :COUNT] = wanted
    return int(found[0])


def lacking(table: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Returns what a table lacks of another one, row by row; for a graph.

    Args:
        table: The table, of `TABLE_SHAPE`.
        other: The other one, of the same type.

    Returns:
        What to add to it. A row of another kind of step stays as it is.
    """
    kinds = table[:, :COUNT]
    same = tf.reduce_all(kinds == other[:, :COUNT], axis=1, keepdims=True)
    free = tf.reduce_all(kinds == 0.0, axis=1, keepdims=True)
    missing = other - table
    missing = tf.where(tf.math.is_finite(missing), missing, 0.0)
    return tf.where(
        same, tf.maximum(missing, 0.0), tf.where(free, missing, 0.0)
    )


def decoded(values: np.ndarray) -> list[accounting.LedgerEntry]:
    """Decodes a table; leaves out kinds of which no step ran.

    Args:
        values: The table, of `TABLE_SHAPE` or of an earlier version.

    Returns:
        One entry for each kind.

    Raises:
        ValueError: If the numbers are no ledger.
    """
    if values.ndim != 2 or values.shape[1] != COUNT + 1:
        raise ValueError(
            f"A privacy ledger has {COUNT + 1} columns. Received: a table of "
            f"shape {values.shape}"
        )
    # Counts that are not finite become negative, and are refused.
    with np.errstate(invalid="ignore"):
        steps = values[:, COUNT].astype(np.int64)
    entries = table.decode_table(np.ascontiguousarray(values[:, :COUNT]), steps)
    return [entry for entry in entries if entry.steps]
