"""Renyi divergences of ledger entries, composed: steps, and whole searches."""

import functools
from collections.abc import Iterable

import numpy as np

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import persons
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import representations
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import searches
from tf_dpfp.accounting import sums


def composed_rdp(
    entries: Iterable[entries_lib.LedgerEntry],
    adjacency: releases.Adjacency,
    examples: int = 1,
    quick: bool = False,
) -> np.ndarray:
    """Computes the RDP of everything that ran, rounded up.

    Args:
        entries: Everything that ran.
        adjacency: Adjacency of the guarantee.
        examples: Number of examples of a person.
        quick: True for a bound that takes about a millisecond an entry.

    Returns:
        An upper bound at each of `sums.orders()`.
    """
    by_search: dict[searches.Search | None, np.ndarray] = {}
    for entry in entries:
        of_step = rdp_of_entry(entry, adjacency, examples, quick)
        so_far = by_search.get(entry.search, np.zeros_like(of_step))
        by_search[entry.search] = so_far + entry.rounds * of_step
    total = np.zeros_like(sums.orders())
    for search, found in by_search.items():
        total += found if search is None else search.rdp(sums.orders(), found)
    return total


def rdp_of_entry(
    entry: entries_lib.LedgerEntry,
    adjacency: releases.Adjacency,
    examples: int,
    quick: bool,
) -> np.ndarray:
    """Computes the RDP of one release at each order, rounded up.

    Args:
        entry: The entry.
        adjacency: Adjacency of the guarantee.
        examples: Number of examples of a person.
        quick: True for a bound that takes about a millisecond.

    Returns:
        An upper bound at each of `sums.orders()`.
    """
    if examples > 1:
        return persons.step_rdp(entry, adjacency, examples, quick)
    noise_multiplier, rate = entry.noise_multiplier, entry.sampling.proved_rate
    if isinstance(entry.sampling, samplings.EveryLabel):
        return representations.randomized_response_rdp(
            noise_multiplier, entry.sampling.num_classes, _order_tuple()
        )
    noise_multiplier /= entry.sensitivity(adjacency)
    if entry.release.has_representations:
        if isinstance(entry.sampling, samplings.PoissonSampling):
            # Rows show who was drawn.
            return representations.shown_rdp(
                rate, noise_multiplier, _order_tuple()
            )
        by_draws = (
            representations.quick_sampled_rdp
            if quick
            else representations.sampled_rdp
        )
        return by_draws(rate, noise_multiplier, _order_tuple())
    if adjacency is releases.Adjacency.REPLACE_ONE:
        # Amplification of sums is proved for examples that are there or not.
        rate = 1.0
    if quick:
        return sums.quick_sampled_rdp(rate, noise_multiplier)
    return sums.sampled_rdp(rate, noise_multiplier)


@functools.cache
def _order_tuple() -> tuple[float, ...]:
    return tuple(sums.orders().tolist())
