"""The ledger as plain numbers, so that an optimizer can keep it in variables.

A table of `MAX_ROWS` rows describes what ran; a row is `WIDTH` float64 values
(float32 would not bring them back exactly), and beside the rows stands one
int64 step count each, which is all that changes from step to step.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from tf_dpfp.accounting import entries as entries_lib

# Columns of a row. Those a kind of sampling does not use are zero, and wide
# enough for kinds with more parameters.
WIDTH = 8
_CODE, _NOISE_MULTIPLIER, _FIRST, _SECOND, _SEEDED, _RELEASE = range(6)

# Distinct descriptions one training may have: a new one begins only when the
# noise multiplier or the sampling changes.
MAX_ROWS = 32

# Codes are part of saved models: never reuse or renumber one.
EMPTY_CODE = 0
_POISSON_CODE = 1
_UNKNOWN_CODE = 2
_WITHOUT_REPLACEMENT_CODE = 3
_EVERY_LABEL_CODE = 4


def encode(entry: entries_lib.LedgerEntry) -> np.ndarray:
    """Returns the description of an entry, without its steps, as numbers.

    Args:
        entry: The entry to describe.

    Returns:
        A float64 array of shape `(WIDTH,)`. Equal descriptions give equal
        rows.

    Raises:
        TypeError: If the entry's sampling is of an unknown kind.
    """
    row = np.zeros(WIDTH, dtype=np.float64)
    row[_NOISE_MULTIPLIER] = entry.noise_multiplier
    row[_SEEDED] = float(entry.seeded)
    row[_RELEASE] = float(entry.release)
    match entry.sampling:
        case entries_lib.PoissonSampling() as sampling:
            row[_CODE] = _POISSON_CODE
            row[_FIRST] = sampling.sampling_rate
            row[_SECOND] = sampling.overflow_probability
        case entries_lib.UnknownSampling() as sampling:
            row[_CODE] = _UNKNOWN_CODE
            # Sizes are at least 1, which leaves 0 to mean that none is known.
            row[_FIRST] = sampling.population or 0
            row[_SECOND] = sampling.batch_size or 0
        case entries_lib.WithoutReplacement() as sampling:
            row[_CODE] = _WITHOUT_REPLACEMENT_CODE
            row[_FIRST] = sampling.population
            row[_SECOND] = sampling.sample_size
        case entries_lib.EveryLabel() as sampling:
            row[_CODE] = _EVERY_LABEL_CODE
            row[_FIRST] = sampling.num_classes
            row[_SECOND] = sampling.identity
        case _:
            raise TypeError(f"Unknown kind of sampling: {entry.sampling!r}.")
    return row


def decode(row: np.ndarray, steps: int) -> entries_lib.LedgerEntry:
    """Returns the entry that a row and its step count stand for.

    Args:
        row: What `encode` returned.
        steps: Number of steps of the entry.

    Returns:
        The entry, exactly as it was.

    Raises:
        ValueError: If the row was not written by `encode`.
    """
    row = np.asarray(row)
    if row.shape != (WIDTH,) or row.dtype != np.float64:
        raise ValueError(
            f"A ledger row must be float64 of shape ({WIDTH},). Received: "
            f"{row.dtype} of shape {row.shape}."
        )
    if not np.all(np.isfinite(row)) or np.any(row[_RELEASE + 1 :] != 0.0):
        raise ValueError(f"Not a ledger row: {row.tolist()}.")
    return entries_lib.LedgerEntry(
        sampling=_decode_sampling(row),
        noise_multiplier=float(row[_NOISE_MULTIPLIER]),
        steps=steps,
        seeded=bool(row[_SEEDED]),
        release=_decode_release(row),
    )


def encode_table(
    entries: Iterable[entries_lib.LedgerEntry],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a whole ledger as numbers.

    Args:
        entries: What ran. Equal descriptions are joined.

    Returns:
        `(rows, steps)`: float64 of shape `(MAX_ROWS, WIDTH)` and int64 of
        shape `(MAX_ROWS,)`. Unused rows are zero.

    Raises:
        ValueError: If there are more than `MAX_ROWS` descriptions.
    """
    merged = merge(entries)
    if len(merged) > MAX_ROWS:
        raise ValueError(
            f"The ledger holds {MAX_ROWS} kinds of step; {len(merged)} ran. "
            "Change the noise multiplier or the sampling less often."
        )
    rows = np.zeros((MAX_ROWS, WIDTH), dtype=np.float64)
    steps = np.zeros(MAX_ROWS, dtype=np.int64)
    for index, entry in enumerate(merged):
        rows[index] = encode(entry)
        steps[index] = entry.steps
    return rows, steps


def decode_table(
    rows: np.ndarray, steps: np.ndarray
) -> list[entries_lib.LedgerEntry]:
    """Returns the ledger that `encode_table` wrote.

    Args:
        rows: float64 of shape `(MAX_ROWS, WIDTH)`.
        steps: Integers of shape `(MAX_ROWS,)`.

    Returns:
        The entries of the rows in use, in their order.

    Raises:
        ValueError: If the table was not written by `encode_table`, or steps
            were counted in a row that describes nothing.
    """
    rows, steps = np.asarray(rows), np.asarray(steps)
    if rows.shape != (MAX_ROWS, WIDTH) or steps.shape != (MAX_ROWS,):
        raise ValueError(
            f"A ledger table must have rows of shape ({MAX_ROWS}, {WIDTH}) and "
            f"steps of shape ({MAX_ROWS},). Received: {rows.shape} and "
            f"{steps.shape}."
        )
    entries = []
    for row, count in zip(rows, steps, strict=True):
        # Only a row that is empty through and through may be passed over: a
        # damaged one must not make steps disappear.
        if count == 0 and not np.any(row):
            continue
        entries.append(decode(row, count))
    return entries


def merge(
    entries: Iterable[entries_lib.LedgerEntry],
) -> list[entries_lib.LedgerEntry]:
    """Joins entries of equal description by adding their steps.

    Args:
        entries: Entries in any order.

    Returns:
        One entry for each description, in the order of first appearance.
    """
    totals: dict[entries_lib.LedgerEntry, int] = {}
    for entry in entries:
        kind = dataclasses.replace(entry, steps=0)
        steps = totals.get(kind, 0) + entry.steps
        # Labels that were randomised once were released once.
        if entry.release is entries_lib.Release.LABELS:
            steps = min(steps, 1)
        totals[kind] = steps
    return [
        dataclasses.replace(kind, steps=steps) for kind, steps in totals.items()
    ]


def _decode_release(row: np.ndarray) -> entries_lib.Release:
    if row[_RELEASE] not in tuple(entries_lib.Release):
        raise ValueError(
            f"Unknown release {row[_RELEASE]:g} in a ledger row. It may come "
            "from a newer version of tf_dpfp: update, so that no step goes "
            "uncounted."
        )
    return entries_lib.Release(int(row[_RELEASE]))


def _decode_sampling(row: np.ndarray) -> entries_lib.Sampling:
    first, second = float(row[_FIRST]), float(row[_SECOND])
    if row[_CODE] == _POISSON_CODE:
        return entries_lib.PoissonSampling(first, second)
    if row[_CODE] in (
        _UNKNOWN_CODE,
        _WITHOUT_REPLACEMENT_CODE,
        _EVERY_LABEL_CODE,
    ):
        if not (first.is_integer() and second.is_integer()):
            raise ValueError(f"Not a ledger row: {row.tolist()}.")
        first, second = int(first), int(second)
        if row[_CODE] == _WITHOUT_REPLACEMENT_CODE:
            return entries_lib.WithoutReplacement(first, second)
        if row[_CODE] == _EVERY_LABEL_CODE:
            return entries_lib.EveryLabel(first, second)
        return entries_lib.UnknownSampling(first or None, second or None)
    raise ValueError(
        f"Unknown code {row[_CODE]:g} in a ledger row. It may come from a "
        "newer version of tf_dpfp: update, so that no step goes uncounted."
    )
