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
    """Returns what a table lacks of another one; for a graph.

    Args:
        table: The table, of `TABLE_SHAPE`.
        other: The other one, of the same type. Its kinds of steps may stand in
            any rows.

    Returns:
        What to add to it: counts of kinds that it has, and in free rows those
        that it has not. Where there are too few of them a count becomes
        infinite, which whoever reads the table refuses.
    """
    kinds, counts = other[:, :COUNT], other[:, COUNT]
    same = _same_kinds(table[:, :COUNT], kinds)
    is_known = tf.reduce_any(same, axis=0)
    row = tf.argmax(same, axis=0, output_type=tf.int32)
    # NaN is more than nothing as little as zero is.
    is_new = ~is_known & (counts > 0.0) & tf.math.is_finite(counts)
    is_free = tf.reduce_all(table[:, :COUNT] == 0.0, axis=1)
    free = tf.argsort(tf.cast(~is_free, tf.int32), stable=True)
    order = tf.maximum(tf.cumsum(tf.cast(is_new, tf.int32)) - 1, 0)
    has_place = order < tf.reduce_sum(tf.cast(is_free, tf.int32))
    row = tf.where(is_new & has_place, tf.gather(free, order), row)

    more = counts - tf.where(is_known, tf.gather(table[:, COUNT], row), 0.0)
    is_more = (is_known | is_new) & (more > 0.0) & tf.math.is_finite(more)
    more = tf.where(is_more, more, 0.0)
    more = tf.where(is_new & ~has_place, tf.cast(np.inf, more.dtype), more)
    written = tf.where((is_new & has_place)[:, None], kinds, 0.0)
    return tf.math.unsorted_segment_sum(
        tf.concat([written, more[:, None]], axis=1), row, table.shape[0]
    )


def _same_kinds(kinds: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Tells for every row of one table if every row of another is the same."""
    same = tf.ones([kinds.shape[0], others.shape[0]], tf.bool)
    # Column by column: all at once would take as many times the memory.
    for mine, other in zip(
        tf.unstack(kinds, axis=1), tf.unstack(others, axis=1), strict=True
    ):
        same &= mine[:, None] == other[None, :]
    return same


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
