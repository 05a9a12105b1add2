"""Conversion of ledger entries to `dp_accounting` events."""

from __future__ import annotations

from collections.abc import Iterable

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import searches
from tf_dpfp.late_imports import dp_accounting


def entry_event(
    entry: entries_lib.LedgerEntry, adjacency: releases.Adjacency | None = None
) -> dp_accounting.DpEvent:
    """Converts one ledger entry to an event, of one run if it is of a search.

    Overflow of padded batches is not part of the event: it is an additive
    term on delta, which `compute_epsilon` adds.

    Args:
        entry: The entry.
        adjacency: Adjacency of the guarantee; by default that of the entry's
            release. No amplification by Poisson sampling is proved under
            replace-one.

    Returns:
        `NoOpDpEvent` for zero steps, `NonPrivateDpEvent` for an entry that
        protects nothing, `UnsupportedDpEvent` for randomised labels
        (`compute_epsilon` has their exact RDP), else the (sampled) Gaussian,
        composed `entry.rounds` times: once for each step, of correlated noise
        once for each step that one example may be in.

    Raises:
        ValueError: If nothing is proved about the release under `adjacency`.
    """
    if entry.rounds == 0:
        return dp_accounting.NoOpDpEvent()
    if entry.is_bare:
        return dp_accounting.NonPrivateDpEvent()
    if isinstance(entry.release, releases.Labels):
        return dp_accounting.UnsupportedDpEvent()
    if adjacency is None:
        adjacency = entry.release.adjacency
    gaussian = dp_accounting.GaussianDpEvent(
        entry.noise_multiplier / entry.sensitivity(adjacency)
    )
    match entry.sampling:
        case samplings.WithoutReplacement() as sampling:
            gaussian = dp_accounting.SampledWithoutReplacementDpEvent(
                sampling.population, sampling.sample_size, gaussian
            )
        case samplings.PoissonSampling(rate) if (
            rate < 1.0 and adjacency is not releases.Adjacency.REPLACE_ONE
        ):
            gaussian = dp_accounting.PoissonSampledDpEvent(rate, gaussian)
    return dp_accounting.SelfComposedDpEvent(gaussian, entry.rounds)


def compose_events(
    entries: Iterable[entries_lib.LedgerEntry],
    adjacency: releases.Adjacency | None = None,
) -> dp_accounting.DpEvent:
    """Composes the events of all entries.

    Args:
        entries: Everything that ran, in any order.
        adjacency: Adjacency of the guarantee; by default that of
            `adjacency_of(entries)`.

    Returns:
        A `ComposedDpEvent`, or `NoOpDpEvent` if nothing ran.

    Example:

    >>> sampling = samplings.PoissonSampling(0.01)
    >>> ran = entries_lib.LedgerEntry(sampling, noise_multiplier=1.1, steps=500)
    >>> compose_events([ran]).events[0].count
    500
    """
    ran = [entry for entry in entries if entry.steps > 0]
    if not ran:
        return dp_accounting.NoOpDpEvent()
    if adjacency is None:
        adjacency = entries_lib.adjacency_of(ran)
    by_search: dict[searches.Search | None, list[dp_accounting.DpEvent]] = {}
    for entry in ran:
        event = entry_event(entry, adjacency)
        by_search.setdefault(entry.search, []).append(event)
    composed = by_search.pop(None, [])
    for search, events in by_search.items():
        if search is not None:
            composed.append(search.event(dp_accounting.ComposedDpEvent(events)))
    return dp_accounting.ComposedDpEvent(composed)
