"""The ledger as a table of numbers, for a variable of an optimizer or a layer.

A table has `MAX_ROWS` rows. A row describes a kind of step by `WIDTH` float64
values (float32 would not bring them back exactly). One int64 step count per
row stands beside them, and is all that changes from step to step.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import searches

# Columns of a row. Those that a kind of sampling does not use are zero; there
# are more of them for kinds with more parameters.
WIDTH = 8
_CODE, _NOISE_MULTIPLIER, _FIRST, _SECOND, _SEEDED, _RELEASE = range(6)
# Of a release with a number of its own, and of a sampling with a third one.
_OF_RELEASE, _THIRD = 6, 7
# Codes of releases are below. What is above is the search that the steps are
# of: versions that know of no searches find a release that they don't know.
_SEARCH = 64

# Most descriptions of one training: a new one begins only when the noise
# multiplier, the sampling or the release changes.
MAX_ROWS = 1024
# Of tables that this version saves, and of those that earlier ones did.
KNOWN_ROWS = (MAX_ROWS, 32)

# Codes are part of saved models: never reuse or renumber one.
# 0 stands for a row that is not in use.
_POISSON_CODE = 1
_UNKNOWN_CODE = 2
_WITHOUT_REPLACEMENT_CODE = 3
_EVERY_LABEL_CODE = 4
_CYCLIC_CODE = 5
_EVERY_EXAMPLE_CODE = 6

_RELEASES: dict[int, releases.Release] = {
    0: releases.Sums(),
    1: releases.Representations(releases.LABELS_PUBLIC),
    2: releases.Representations(releases.LABELS_RANDOMIZED),
    3: releases.Representations(releases.LABELS_UNDECLARED),
    4: releases.EndToEnd(),
    5: releases.Labels(),
    6: releases.Joint(releases.LABELS_PUBLIC),
    7: releases.Joint(releases.LABELS_RANDOMIZED),
    8: releases.Joint(releases.LABELS_UNDECLARED),
    20: releases.Evaluation(),
    21: releases.PersonEvaluation(),
}
# The number of examples of a person stands in the column of the release.
_PERSON_ROWS_LABELS = {
    30: releases.LABELS_PUBLIC,
    31: releases.LABELS_UNDECLARED,
}
_PERSON_ROWS_CODES = {labels: c for c, labels in _PERSON_ROWS_LABELS.items()}
_RELEASE_CODES = {release: code for code, release in _RELEASES.items()}
# The number of examples of a person stands there, too.
_PERSON_SUMS_CODE = 10
# And the number of bands.
_BANDED_SUMS_CODE = 11
# And the number of views of an example.
_VIEW_SUMS_CODE = 12
# The number of bands, and `_OF_PERSONS` times that of examples of a person.
_BANDED_PERSON_SUMS_CODE = 13
_OF_PERSONS = 2**20


def encode(entry: entries_lib.LedgerEntry) -> np.ndarray:
    """Encodes the description of an entry, without its steps.

    Args:
        entry: The entry.

    Returns:
        A float64 array of shape `(WIDTH,)`. Equal descriptions give equal
        rows.

    Raises:
        ValueError: If the entry's sampling or release has no code.
    """
    row = np.zeros(WIDTH, dtype=np.float64)
    row[_NOISE_MULTIPLIER] = entry.noise_multiplier
    row[_SEEDED] = float(entry.seeded)
    row[[_RELEASE, _OF_RELEASE]] = _encode_release(entry.release)
    row[[_CODE, _FIRST, _SECOND]] = _encode_sampling(entry.sampling)
    row[_RELEASE] += _SEARCH * (entry.search.packed() if entry.search else 0)
    row[_THIRD] = getattr(entry.sampling, "parts", 0)
    return row


def decode(row: np.ndarray, steps: int) -> entries_lib.LedgerEntry:
    """Decodes a row and its step count.

    Args:
        row: Result of `encode`.
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
    unused = row[_THIRD] != 0.0 and row[_CODE] != _CYCLIC_CODE
    if not np.all(np.isfinite(row)) or unused:
        raise ValueError(f"Not a ledger row: {row.tolist()}.")
    return entries_lib.LedgerEntry(
        sampling=_decode_sampling(row),
        noise_multiplier=float(row[_NOISE_MULTIPLIER]),
        steps=steps,
        seeded=bool(row[_SEEDED]),
        search=_decode_search(row),
        release=_decode_release(row),
    )


def encode_table(
    entries: Iterable[entries_lib.LedgerEntry],
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes a whole ledger.

    Args:
        entries: Entries in any order. Equal descriptions are merged.

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
    """Decodes a ledger that `encode_table` wrote.

    Args:
        rows: float64 of shape `(MAX_ROWS, WIDTH)`, or `(32, WIDTH)` from an
            earlier version.
        steps: Integers, one for each row.

    Returns:
        The entries of the rows in use, in their order.

    Raises:
        ValueError: If the table was not written by `encode_table`, or steps
            were counted in a row that describes nothing.
    """
    rows, steps = np.asarray(rows), np.asarray(steps)
    known = [(count, WIDTH) for count in KNOWN_ROWS]
    if rows.shape not in known or steps.shape != rows.shape[:1]:
        raise ValueError(
            f"A ledger table must have rows of shape ({MAX_ROWS}, {WIDTH}) and "
            f"steps of shape ({MAX_ROWS},). Received: {rows.shape} and "
            f"{steps.shape}."
        )
    # Skip rows without any number only: damage must not make steps disappear.
    used = np.flatnonzero((steps != 0) | (rows != 0.0).any(axis=1))
    return [decode(rows[index], steps[index]) for index in used]


def merge(
    entries: Iterable[entries_lib.LedgerEntry],
) -> list[entries_lib.LedgerEntry]:
    """Merges entries of equal description by adding their steps.

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
        if isinstance(entry.release, releases.Labels):
            steps = min(steps, 1)
        totals[kind] = steps
    return [
        dataclasses.replace(kind, steps=steps) for kind, steps in totals.items()
    ]


def _encode_sampling(
    sampling: samplings.Sampling,
) -> tuple[float, float, float]:
    """Returns the code of a kind of sampling and its two parameters."""
    match sampling:
        case samplings.CyclicPoissonSampling(rate, overflow):
            return _CYCLIC_CODE, rate, overflow
        case samplings.PoissonSampling(rate, overflow):
            return _POISSON_CODE, rate, overflow
        case samplings.UnknownSampling(population, batch_size):
            # Sizes are at least 1, so 0 can stand for an unknown one.
            return _UNKNOWN_CODE, population or 0, batch_size or 0
        case samplings.WithoutReplacement(population, sample_size):
            return _WITHOUT_REPLACEMENT_CODE, population, sample_size
        case samplings.EveryLabel(num_classes, identity):
            return _EVERY_LABEL_CODE, num_classes, identity
        case samplings.EveryExample():
            return _EVERY_EXAMPLE_CODE, 0.0, 0.0
        case _:
            raise ValueError(f"Unknown kind of sampling: {sampling!r}.")


def _decode_sampling(row: np.ndarray) -> samplings.Sampling:
    first, second = float(row[_FIRST]), float(row[_SECOND])
    if row[_CODE] == _POISSON_CODE:
        return samplings.PoissonSampling(first, second)
    if row[_CODE] == _CYCLIC_CODE and row[_THIRD].is_integer():
        return samplings.CyclicPoissonSampling(first, second, int(row[_THIRD]))
    if row[_CODE] not in (
        _UNKNOWN_CODE,
        _WITHOUT_REPLACEMENT_CODE,
        _EVERY_LABEL_CODE,
        _EVERY_EXAMPLE_CODE,
    ):
        raise _unknown("code", row[_CODE])
    if row[_CODE] == _EVERY_EXAMPLE_CODE:
        if first or second:
            raise ValueError(f"Not a ledger row: {row.tolist()}.")
        return samplings.EveryExample()
    if not (first.is_integer() and second.is_integer()):
        raise ValueError(f"Not a ledger row: {row.tolist()}.")
    counts = int(first), int(second)
    if row[_CODE] == _WITHOUT_REPLACEMENT_CODE:
        return samplings.WithoutReplacement(*counts)
    if row[_CODE] == _EVERY_LABEL_CODE:
        return samplings.EveryLabel(*counts)
    return samplings.UnknownSampling(counts[0] or None, counts[1] or None)


def _encode_release(release: releases.Release) -> tuple[float, float]:
    """Returns the code of a kind of release and its parameter."""
    if isinstance(release, releases.PersonSums):
        return _PERSON_SUMS_CODE, release.max_examples
    if isinstance(release, releases.PersonRepresentations):
        return _PERSON_ROWS_CODES[release.labels], release.max_examples
    if isinstance(release, releases.BandedPersonSums):
        if max(release.bands, release.max_examples) >= _OF_PERSONS:
            raise ValueError(
                f"A ledger row holds numbers below {_OF_PERSONS}. Received: "
                f"release={release!r}"
            )
        both = release.bands + _OF_PERSONS * release.max_examples
        return _BANDED_PERSON_SUMS_CODE, both
    if isinstance(release, releases.BandedSums):
        return _BANDED_SUMS_CODE, release.bands
    if isinstance(release, releases.ViewSums):
        return _VIEW_SUMS_CODE, release.views
    if release not in _RELEASE_CODES:
        raise ValueError(f"Unknown kind of release: {release!r}.")
    return _RELEASE_CODES[release], 0.0


def _decode_release(row: np.ndarray) -> releases.Release:
    code, parameter = float(row[_RELEASE]) % _SEARCH, float(row[_OF_RELEASE])
    if code == _PERSON_SUMS_CODE and parameter.is_integer():
        return releases.PersonSums(int(parameter))
    if code in _PERSON_ROWS_LABELS and parameter.is_integer():
        labels = _PERSON_ROWS_LABELS[int(code)]
        return releases.PersonRepresentations(labels, int(parameter))
    if code == _BANDED_SUMS_CODE and parameter.is_integer():
        return releases.BandedSums(int(parameter))
    if code == _BANDED_PERSON_SUMS_CODE and parameter.is_integer():
        max_examples, bands = divmod(int(parameter), _OF_PERSONS)
        return releases.BandedPersonSums(bands, max_examples)
    if code == _VIEW_SUMS_CODE and parameter.is_integer():
        return releases.ViewSums(int(parameter))
    if parameter:
        raise ValueError(f"Not a ledger row: {row.tolist()}.")
    # A float finds an equal integer in a dict; 1.5 finds none.
    if code not in _RELEASES:
        raise _unknown("release", code)
    return _RELEASES[int(code)]


def _decode_search(row: np.ndarray) -> searches.Search | None:
    code = float(row[_RELEASE])
    try:
        return searches.Search.unpacked(code // _SEARCH)
    except ValueError as error:
        raise _unknown("release", code) from error


def _unknown(what: str, code: float) -> ValueError:
    return ValueError(
        f"Unknown {what} {code:g} in a ledger row. It may come from a newer "
        "version of tf_dpfp: update, so that no step goes uncounted."
    )
