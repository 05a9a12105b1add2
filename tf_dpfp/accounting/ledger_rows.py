"""Ledger entries as rows of numbers, for files.

Unlike the table of a variable (see `table`), an array of rows is as long as
the ledger: what a file holds is read without knowing the size of any table.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import table


def encode_rows(entries: Iterable[entries_lib.LedgerEntry]) -> np.ndarray:
    """Encodes entries, one row for each kind of step.

    Args:
        entries: Entries in any order. Equal descriptions are merged.

    Returns:
        A float64 array of shape `(kinds, WIDTH + 1)`; steps are the last
        column.
    """
    rows = [[*table.encode(e), float(e.steps)] for e in table.merge(entries)]
    return np.asarray(rows, np.float64).reshape(-1, table.WIDTH + 1)


def decode_rows(rows: np.ndarray) -> list[entries_lib.LedgerEntry]:
    """Decodes rows; leaves out kinds of which no step ran.

    Args:
        rows: Result of `encode_rows`, or a table with its counts beside it.

    Returns:
        The entries.

    Raises:
        ValueError: If the rows are no ledger.
    """
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or rows.shape[1] != table.WIDTH + 1:
        raise ValueError(
            f"Rows of a ledger have {table.WIDTH + 1} columns. Received: an "
            f"array of shape {rows.shape}."
        )
    entries = []
    for row in rows:
        if not row.any():
            continue
        if not (np.isfinite(row[-1]) and row[-1] >= 0):
            raise ValueError(f"Not a count of steps: {row[-1]}.")
        entries.append(table.decode(row[:-1], int(row[-1])))
    return [entry for entry in entries if entry.steps]


def missing(
    wanted: Iterable[entries_lib.LedgerEntry],
    counted: Iterable[entries_lib.LedgerEntry],
) -> list[entries_lib.LedgerEntry]:
    """Lists the steps that one ledger holds and another does not.

    Args:
        wanted: Entries of the first.
        counted: Entries of the second.

    Returns:
        The entries to add to the second, so that of every kind it holds at
        least as many steps as the first.
    """
    known = {_kind(entry): entry.steps for entry in table.merge(counted)}
    return [
        _with_steps(entry, entry.steps - known.get(_kind(entry), 0))
        for entry in table.merge(wanted)
        if entry.steps > known.get(_kind(entry), 0)
    ]


def greater(
    first: Iterable[entries_lib.LedgerEntry],
    second: Iterable[entries_lib.LedgerEntry],
) -> list[entries_lib.LedgerEntry]:
    """Takes the greater count of every kind of step.

    Args:
        first: Entries of one ledger.
        second: Entries of another of the same training.

    Returns:
        The entries.
    """
    first = list(first)
    return table.merge([*first, *missing(second, first)])


def _kind(entry: entries_lib.LedgerEntry) -> entries_lib.LedgerEntry:
    return _with_steps(entry, 0)


def _with_steps(
    entry: entries_lib.LedgerEntry, steps: int
) -> entries_lib.LedgerEntry:
    return dataclasses.replace(entry, steps=steps)
