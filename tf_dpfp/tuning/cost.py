"""Cost of a run: ledger entries that no run of a search goes beyond.

A search is accounted for as runs of one mechanism: draw a candidate, train it,
score it. Whatever candidate is drawn, that mechanism has at most the divergence
of the worst one, at every order, for a mixture over a candidate that hangs on
no data is no worse than its worst part. The worst is made up row by row: the
least noise, the greatest rate and the most steps of any candidate, for each
kind of release. A Gaussian of less noise, more steps or a greater rate of
Poisson sampling dominates, under every adjacency and for every number of
examples of a person: an example that is drawn at a lower rate is drawn at the
greater one, and then kept by a second coin, which looks at no data.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from tf_dpfp import accounting

Entries = Sequence[accounting.LedgerEntry]


def worst(candidates: Iterable[Entries]) -> list[accounting.LedgerEntry]:
    """Returns entries that are no less than those of any candidate.

    Args:
        candidates: What one run of each candidate releases.

    Returns:
        One entry for each kind of release and sampling.
    """
    found: dict[tuple, accounting.LedgerEntry] = {}
    for entries in candidates:
        for key, entry in _by_kind(entries).items():
            known = found.get(key)
            if known is None:
                found[key] = entry
            else:
                steps = max(known.steps, entry.steps)
                found[key] = _either(known, entry, steps)
    return list(found.values())


def is_within(entries: Entries, bound: Entries) -> bool:
    """Tells if entries are no more than others, row by row.

    Args:
        entries: What a run released.
        bound: Result of `worst`.
    """
    return set(worst([bound, entries])) == set(bound)


def _by_kind(entries: Entries) -> dict[tuple, accounting.LedgerEntry]:
    """Joins the entries of one run that are of one kind."""
    found: dict[tuple, accounting.LedgerEntry] = {}
    for entry in entries:
        if not entry.steps:
            continue
        key = _kind(entry)
        known = found.get(key)
        if known is not None:
            entry = _either(known, entry, known.steps + entry.steps)
        found[key] = entry
    return found


def _kind(entry: accounting.LedgerEntry) -> tuple:
    """Returns what is never joined: entries of both kinds add up."""
    sampling = entry.sampling
    # Others, which may be subclasses, are joined only if they are the same.
    sampled = type(sampling) in (
        accounting.PoissonSampling,
        accounting.UnknownSampling,
    )
    return (
        entry.release,
        type(sampling) if sampled else sampling,
        entry.seeded,
        entry.search,
    )


def _either(
    one: accounting.LedgerEntry, other: accounting.LedgerEntry, steps: int
) -> accounting.LedgerEntry:
    """Returns an entry that dominates both, of one kind."""
    return dataclasses.replace(
        one,
        sampling=_greater_sampling(one.sampling, other.sampling),
        noise_multiplier=min(one.noise_multiplier, other.noise_multiplier),
        steps=steps,
    )


def _greater_sampling(
    one: accounting.Sampling, other: accounting.Sampling
) -> accounting.Sampling:
    if one == other:
        return one
    if isinstance(one, accounting.PoissonSampling):
        assert isinstance(other, accounting.PoissonSampling)
        return dataclasses.replace(
            one,
            sampling_rate=max(one.sampling_rate, other.sampling_rate),
            overflow_probability=max(
                one.overflow_probability, other.overflow_probability
            ),
        )
    if isinstance(one, accounting.UnknownSampling):
        # The sizes change no guarantee.
        return accounting.UnknownSampling()
    return one
