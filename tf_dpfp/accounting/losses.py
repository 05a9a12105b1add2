"""Privacy loss distributions of a ledger, and the grid that they are on."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import events
from tf_dpfp.accounting import persons
from tf_dpfp.accounting import releases
from tf_dpfp.late_imports import pld

# PLD grid, the epsilon up to which it is that fine, and the most points that
# one step may take on it.
_PLD_INTERVAL = 1e-4
_PLD_FINE_EPSILON = 50.0
_PLD_POINTS = 2e6


@functools.lru_cache(maxsize=8)
def compose_pld(
    entries: tuple[entries_lib.LedgerEntry, ...],
    adjacency: releases.Adjacency,
    examples: int,
    interval: float,
) -> pld.PLDAccountant:
    """Composes the privacy loss distributions of entries.

    Args:
        entries: Entries of steps that ran, merged; sums with noise.
        adjacency: Add-or-remove-one or zero-out.
        examples: Number of examples of a person.
        interval: Grid of the losses; see `pld_interval`.

    Returns:
        The accountant, which holds the composition.

    Raises:
        ValueError: If a distribution can't be computed.
    """
    # An example zeroed out is to its step one that is not there, so the pair
    # of distributions is that of add-or-remove under both adjacencies.
    return pld.PLDAccountant(value_discretization_interval=interval).compose(
        persons.compose_events(entries, adjacency, examples)
        if examples > 1
        else events.compose_events(entries, adjacency)
    )


def pld_interval(
    entries: Sequence[entries_lib.LedgerEntry],
    adjacency: releases.Adjacency,
    examples: int,
    epsilon: float,
) -> float:
    """Chooses a grid that is fine where epsilon matters.

    PLDs are rounded pessimistically, so any grid gives an upper bound; the
    fine one would need gigabytes for an epsilon in the thousands, or for next
    to no noise.

    Args:
        entries: Entries of steps that ran.
        adjacency: Adjacency of the guarantee.
        examples: Number of examples of a person.
        epsilon: About where the distribution is read.

    Returns:
        The distance of neighbouring losses.
    """
    least_noise = min(
        entry.noise_multiplier / entry.sensitivity(adjacency) / examples
        for entry in entries
    )
    # Mean loss of one full step and ten standard deviations above it.
    widest_loss = 0.5 / least_noise / least_noise + 10.0 / least_noise
    interval = max(
        _PLD_INTERVAL,
        _PLD_INTERVAL * epsilon / _PLD_FINE_EPSILON,
        widest_loss / _PLD_POINTS,
    )
    # Few distinct grids keep epsilon regular in its arguments.
    doublings = math.ceil(math.log2(interval / _PLD_INTERVAL))
    return _PLD_INTERVAL * 2.0**doublings
