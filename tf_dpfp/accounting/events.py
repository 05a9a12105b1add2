"""Ledger entries as `dp_accounting` events."""

from collections.abc import Iterable

import dp_accounting

from tf_dpfp.accounting import mechanisms


def entry_event(entry: mechanisms.LedgerEntry) -> dp_accounting.DpEvent:
    """Returns the event of one ledger entry.

    Overflow of padded batches is not part of the event: it is an additive
    term on delta, which `compute_epsilon` adds.

    Args:
        entry: The entry.

    Returns:
        `NoOpDpEvent` for zero steps, `NonPrivateDpEvent` for steps without
        noise, else the (Poisson-sampled) Gaussian composed `entry.steps`
        times.

    Raises:
        TypeError: If the entry's sampling is of an unknown kind.
    """
    if entry.steps == 0:
        return dp_accounting.NoOpDpEvent()
    if entry.noise_multiplier == 0.0:
        return dp_accounting.NonPrivateDpEvent()
    gaussian = dp_accounting.GaussianDpEvent(entry.noise_multiplier)
    rate = proved_sampling_rate(entry.sampling)
    if rate < 1.0:
        gaussian = dp_accounting.PoissonSampledDpEvent(rate, gaussian)
    return dp_accounting.SelfComposedDpEvent(gaussian, entry.steps)


def compose_events(
    entries: Iterable[mechanisms.LedgerEntry],
) -> dp_accounting.DpEvent:
    """Returns the composition of the events of all entries.

    Args:
        entries: What ran, in any order.

    Returns:
        A `ComposedDpEvent`, or `NoOpDpEvent` when nothing ran.
    """
    ran = [entry_event(entry) for entry in entries if entry.steps > 0]
    if not ran:
        return dp_accounting.NoOpDpEvent()
    return dp_accounting.ComposedDpEvent(ran)


def proved_sampling_rate(sampling: mechanisms.Sampling) -> float:
    """Returns the Poisson rate that is proved, 1 when none is.

    Args:
        sampling: How examples were chosen.

    Returns:
        The probability with which, at most, an example is in a step.

    Raises:
        TypeError: If the sampling is of an unknown kind.
    """
    match sampling:
        case mechanisms.PoissonSampling():
            return sampling.sampling_rate
        case mechanisms.UnknownSampling():
            return 1.0
        case _:
            raise TypeError(f"Unknown kind of sampling: {sampling!r}.")
