"""Answer to "is a training within a budget?", without its epsilon.

A search for the least noise multiplier asks this for every candidate, and each
has Renyi divergences that nothing else needs. Those of Poisson-sampled sums
take milliseconds at each of 90 fractional orders. So they are bounded from both
sides first, by those at integer orders: most questions are answered then, and
the others by the few orders that can still decide.

The answer is that of `compute_epsilon`, which stays the one definition of
epsilon.
"""

import math
from collections.abc import Iterable

import numpy as np

from tf_dpfp.accounting import composition
from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import persons
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import sums
from tf_dpfp.accounting import table
from tf_dpfp.late_imports import rdp

# Above the rounding of epsilon where steps may overflow.
_MARGIN = 1e-8


def is_within(
    entries: Iterable[entries_lib.LedgerEntry], epsilon: float, delta: float
) -> bool:
    """Tells if accountant `"rdp"` finds at most an epsilon.

    Args:
        entries: Everything that ran, or is to run.
        epsilon: The budget.
        delta: Probability with which the guarantee may fail, in (0, 1).

    Returns:
        True if `compute_epsilon` is at most `epsilon`.
    """
    ran = tuple(entry for entry in table.merge(entries) if entry.steps)
    if persons.units_differ(ran):
        return False
    many = len(ran) > epsilon_lib.MOST_EXACT
    if many or any(entry.is_bare for entry in ran):
        return epsilon_lib.compute_epsilon(ran, delta) <= epsilon
    tau = math.fsum(map(epsilon_lib.overflow_probability, ran))
    if not tau:
        return _is_reached(ran, epsilon, delta)
    # Overflow never lowers epsilon, and it costs at most as much delta as at
    # the budget itself.
    if not _is_reached(ran, epsilon, delta):
        return False
    left = delta - tau * (1.0 + math.exp(min(epsilon, 700.0)))
    less = epsilon - _MARGIN * (1.0 + epsilon)
    if left > 0.0 and less > 0.0 and _is_reached(ran, less, left):
        return True
    return epsilon_lib.compute_epsilon(ran, delta) <= epsilon


def _is_reached(
    entries: tuple[entries_lib.LedgerEntry, ...], epsilon: float, delta: float
) -> bool:
    """Tells if some order gives at most an epsilon, without overflow."""
    adjacency = entries_lib.adjacency_of(entries)
    # Steps, rate and noise multiplier of what takes its time.
    slow: list[tuple[int, float, float]] = []
    known = composition.composed_rdp(
        [entry for entry in entries if entry.search], adjacency
    )
    for entry in entries:
        if entry.search:
            continue
        if _is_slow(entry, adjacency):
            noise = entry.noise_multiplier / entry.sensitivity(adjacency)
            slow.append((entry.rounds, entry.sampling.proved_rate, noise))
        else:
            known += entry.rounds * composition.rdp_of_entry(
                entry, adjacency, examples=1, quick=False
            )
    least = known + sum(n * sums.least_sampled_rdp(q, z) for n, q, z in slow)
    at_best = [
        rdp.compute_epsilon([order], [value], delta)[0]
        for order, value in zip(sums.orders(), least, strict=True)
    ]
    # Those that leave most room first.
    for index in np.argsort(at_best):
        if at_best[index] > epsilon:
            return False
        order = float(sums.orders()[index])
        total = known[index] + sum(
            n * sums.sampled_rdp_at(q, z, order) for n, q, z in slow
        )
        if rdp.compute_epsilon([order], [total], delta)[0] <= epsilon:
            return True
    return False


def _is_slow(
    entry: entries_lib.LedgerEntry, adjacency: releases.Adjacency
) -> bool:
    return (
        isinstance(entry.sampling, samplings.PoissonSampling)
        and entry.sampling.proved_rate < 1.0
        and not entry.release.has_representations
        and adjacency is not releases.Adjacency.REPLACE_ONE
    )
