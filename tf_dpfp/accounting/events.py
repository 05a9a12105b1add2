"""Ledger entries as `dp_accounting` events."""

from collections.abc import Iterable

import dp_accounting

from tf_dpfp.accounting import entries as entries_lib


def entry_event(
    entry: entries_lib.LedgerEntry, replaces_one: bool = False
) -> dp_accounting.DpEvent:
    """Returns the event of one ledger entry.

    Overflow of padded batches is not part of the event: it is an additive
    term on delta, which `compute_epsilon` adds.

    Args:
        entry: The entry.
        replaces_one: Whether neighbours differ in what one example is, not in
            whether it is there. It moves sums by twice the clip bound, and
            nothing is proved for them about Poisson sampling.

    Returns:
        `NoOpDpEvent` for zero steps, `NonPrivateDpEvent` for what protects
        nothing, `UnsupportedDpEvent` for randomised labels (`dp_accounting`
        has none), else the (sampled) Gaussian composed `entry.steps` times.

    Raises:
        TypeError: If the entry's sampling is of an unknown kind.
    """
    if entry.steps == 0:
        return dp_accounting.NoOpDpEvent()
    if entry.is_bare:
        return dp_accounting.NonPrivateDpEvent()
    if entry.release is entries_lib.Release.LABELS:
        return dp_accounting.UnsupportedDpEvent()
    halved = replaces_one or entry.release.is_rows
    gaussian = dp_accounting.GaussianDpEvent(
        entry.noise_multiplier / 2.0 if halved else entry.noise_multiplier
    )
    match entry.sampling:
        case entries_lib.WithoutReplacement() as sampling:
            gaussian = dp_accounting.SampledWithoutReplacementDpEvent(
                sampling.population, sampling.sample_size, gaussian
            )
        case entries_lib.PoissonSampling() as sampling:
            if sampling.sampling_rate < 1.0 and not replaces_one:
                gaussian = dp_accounting.PoissonSampledDpEvent(
                    sampling.sampling_rate, gaussian
                )
        case _:
            pass
    return dp_accounting.SelfComposedDpEvent(gaussian, entry.steps)


def compose_events(
    entries: Iterable[entries_lib.LedgerEntry],
) -> dp_accounting.DpEvent:
    """Returns the composition of the events of all entries.

    Args:
        entries: What ran, in any order.

    Returns:
        A `ComposedDpEvent`, or `NoOpDpEvent` when nothing ran.
    """
    entries = [entry for entry in entries if entry.steps > 0]
    replaces_one = entries_lib.replaces_one(entries)
    ran = [entry_event(entry, replaces_one) for entry in entries]
    if not ran:
        return dp_accounting.NoOpDpEvent()
    return dp_accounting.ComposedDpEvent(ran)


def proved_sampling_rate(sampling: entries_lib.Sampling) -> float:
    """Returns the rate of sampling that is proved, 1 when none is.

    Args:
        sampling: How examples were chosen.

    Returns:
        The probability with which, at most, an example is in a step.

    Raises:
        TypeError: If the sampling is of an unknown kind.
    """
    match sampling:
        case entries_lib.PoissonSampling() | entries_lib.WithoutReplacement():
            return sampling.sampling_rate
        case entries_lib.UnknownSampling() | entries_lib.EveryLabel():
            return 1.0
        case _:
            raise TypeError(f"Unknown kind of sampling: {sampling!r}.")
