r"""Epsilon of persons with several examples, where examples were sampled.

Neighbours differ by one person, with all of up to k examples. Each of them is
in a step by a coin of its own, so the number that is drawn is binomial, and i
of them move the sum by at most i clip norms. With mu for the clip norm over
the standard deviation of the noise, the step is dominated, in both directions,
by

    P = sum_i Binomial(k, q)(i) N(i mu, 1)   against   Q = N(0, 1),

a mixture of Gaussians: what each set of drawn examples adds is a vector, and
the worst case has all of them in one direction. With r = dP / dQ,

    r(y) = sum_i Binomial(k, q)(i) exp(i mu y - i^2 mu^2 / 2),

the Renyi moments are `E_Q[r^o]` and, with the data sets exchanged,
`E_Q[r^(1 - o)]`. Steps of unknown sampling have no coins: k examples move them
by k times as much as one.

Reference:
    - [Privacy amplification for matrix
      mechanisms](https://arxiv.org/abs/2310.15526) (mixtures of Gaussians)
    - [Fine-tuning large language models with user-level differential
      privacy](https://arxiv.org/abs/2407.07737) (groups of sampled examples)
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from tf_dpfp import arguments
from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import sums
from tf_dpfp.late_imports import dp_accounting
from tf_dpfp.late_imports import special
from tf_dpfp.late_imports import stats

# With more the quadrature takes minutes.
_MOST_EXAMPLES = 1000
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
# Distance of the ends of the quadrature from every peak, in deviations.
_BEYOND = 12.0
# With more, the moments are astronomical, and no amplification is claimed.
_MAX_EXPONENT = 100.0
_MOMENT_ROUNDING = 1e-12
# Orders at which many kinds of steps are computed; between them a bound.
_ANCHORS = (1.5, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def has_mixtures() -> bool:
    """Whether dp_accounting has mixtures of Gaussians: from 0.5 on."""
    return hasattr(dp_accounting.dp_event, "MixtureOfGaussiansDpEvent")


def check_examples(examples_per_user: int | None) -> int | None:
    """Checks a bound on the number of examples of a person.

    Args:
        examples_per_user: The bound; `None` for the unit of the ledger.

    Returns:
        A Python int, or `None`.

    Raises:
        ValueError: If it is not a positive integer, or too great.
    """
    if examples_per_user is None:
        return None
    return arguments.integer(
        "examples_per_user",
        examples_per_user,
        least=1,
        most=_MOST_EXAMPLES,
        hint="It bounds the examples that one person has in the data.",
    )


def check_entries(
    entries: Iterable[entries_lib.LedgerEntry],
    adjacency: releases.Adjacency,
) -> None:
    """Refuses entries of which nothing is proved for several examples.

    Args:
        entries: Everything that ran.
        adjacency: Adjacency of the guarantee.

    Raises:
        ValueError: If so.
    """
    if adjacency is releases.Adjacency.REPLACE_ONE:
        raise ValueError(
            "Persons with several examples are accounted for only where "
            "examples are added or removed, and representations and labels "
            "are protected by replace-one adjacency. Leave "
            "`examples_per_user` out: the guarantee is for one example, or for "
            "one person where persons were drawn."
        )
    for entry in entries:
        of_example = entry.release.unit == "example"
        if of_example and isinstance(entry.release, releases.BandedSums):
            raise ValueError(
                "With correlated noise the examples of a person may be in "
                "steps that share noise, of which nothing is proved for "
                "several of them. Leave `examples_per_user` out, or draw by "
                "person: cyclic_poisson_batches(users=...). Received: "
                f"{entry.release!r}"
            )
        overflow = getattr(entry.sampling, "overflow_probability", 0.0)
        if overflow and of_example:
            raise ValueError(
                "Batches with padded='static' may drop surplus examples, with "
                "a probability that is known for one example more, not for "
                "all of a person. Leave `examples_per_user` out, or train on "
                f"batches with padded=None. Received: {entry.sampling!r}"
            )


def units_differ(entries: Iterable[entries_lib.LedgerEntry]) -> bool:
    """Tells if some steps protect examples, and others persons.

    Nothing is proved of them together, unless a person has a bounded number of
    examples: a step of examples may have any number of a person's, and to add
    one example to a person moves a step of persons by up to twice the clip
    norm.

    Args:
        entries: Everything that ran.
    """
    return len({entry.release.unit for entry in entries if entry.steps}) > 1


def refuse_mixed(entries: Iterable[entries_lib.LedgerEntry]) -> None:
    """Refuses a budget of steps of examples and of persons together.

    Args:
        entries: Everything that ran, or is to run.

    Raises:
        ValueError: If units differ, so that no noise is within any budget.
    """
    entries = [entry for entry in entries if entry.steps]
    if not units_differ(entries):
        return
    kinds = sorted({type(entry.release).__name__ for entry in entries})
    raise ValueError(
        "Some of the steps protect examples, and others persons: nothing is "
        "proved of both together, and no noise brings them within a budget. "
        "Give evaluations `users=` as the batches, or leave it out of both. "
        f"Received: releases of {kinds}"
    )


def step_rdp(
    entry: entries_lib.LedgerEntry,
    adjacency: releases.Adjacency,
    examples: int,
    quick: bool,
) -> np.ndarray:
    """Computes the RDP of one step for all examples of a person.

    Args:
        entry: The step; noised sums of clipped gradients.
        adjacency: Add-or-remove-one or zero-out, of a person.
        examples: Greatest number of examples of a person.
        quick: True for a bound that takes less time.

    Returns:
        An upper bound at each of `sums.orders()`.
    """
    noise = entry.noise_multiplier / entry.sensitivity(adjacency)
    rate = entry.sampling.proved_rate
    by_coins = isinstance(entry.sampling, samplings.PoissonSampling)
    examples = moved(entry, examples)
    if examples == 1 or not by_coins:
        of_one = sums.quick_sampled_rdp if quick else sums.sampled_rdp
        return of_one(rate, noise / examples)
    return _sampled_rdp(rate, noise, examples, quick)


def moved(entry: entries_lib.LedgerEntry, examples: int) -> int:
    """Returns how many parts of a step a person moves.

    Args:
        entry: The step.
        examples: Greatest number of examples of a person.
    """
    # A step of persons has one part of each, whatever examples there are.
    return 1 if entry.release.unit == "person" else examples


@functools.lru_cache(maxsize=1024)
def _sampled_rdp(
    rate: float, noise_multiplier: float, examples: int, quick: bool
) -> np.ndarray:
    orders = sums.orders()
    # Of all examples in every step.
    whole = sums.sampled_rdp(1.0, noise_multiplier / examples)
    if rate == 1.0:
        return whole
    at = np.array([*_ANCHORS, orders.max()]) if quick else orders
    with np.errstate(all="ignore"):
        unsampled = at / 2.0 * (examples / noise_multiplier) ** 2
        found = np.array(
            [_rdp_at(o, rate, noise_multiplier, examples) for o in at]
        )
        found = np.fmin(found, unsampled)
        if quick:
            found = sums.along_chords(at, (at - 1.0) * found, orders)
        vector = np.fmin(found, whole)
    # The cache hands out this very array.
    vector.setflags(write=False)
    return vector


def _rdp_at(
    order: float, rate: float, noise_multiplier: float, examples: int
) -> float:
    """Computes the RDP at one order; infinity where it is not tried."""
    shift = 1.0 / noise_multiplier
    slope = examples * shift
    if not order * slope <= _MAX_EXPONENT:
        return np.inf
    log_weights = stats.binom.logpmf(np.arange(examples + 1), examples, rate)
    moments = [
        _log_moment(order, log_weights, shift, -_BEYOND, order * slope),
        _log_moment(1.0 - order, log_weights, shift, -order * slope, 0.0),
    ]
    found = max(*moments, 0.0) / (order - 1.0)
    return found + _MOMENT_ROUNDING * (1.0 / (order - 1.0) + found)


def _log_moment(
    power: float,
    log_weights: np.ndarray,
    shift: float,
    low: float,
    high: float,
) -> float:
    """Computes the logarithm of `E[r(y)^power]` for a standard normal y.

    The derivative of `log r` is between 0 and k mu. So the logarithm of the
    integrand rises by at least `_BEYOND` per unit below the interval, and
    falls by as much above: what is left out is below its ends over that.

    Args:
        power: The power.
        log_weights: Logarithms of the probabilities of 0 to k examples.
        shift: The distance mu of one example.
        low: Every peak is above, or the interval begins there.
        high: Every peak is below.

    Returns:
        An upper bound, up to the error of the quadrature.
    """
    start, end = min(low, 0.0) - _BEYOND, max(high, 0.0) + _BEYOND
    examples = len(log_weights) - 1
    slope = examples * shift
    # Panels in which neither the Gaussian nor the power of r varies much; the
    # zeros of r are at a distance of pi / mu from the line.
    width = min(0.5, 1.0 / shift, 1.0 / (slope * np.sqrt(abs(power) + 1.0)))
    panels = int(np.ceil((end - start) / width))
    width = (end - start) / panels
    left = start + width * np.arange(panels)
    y = (left[:, None] + 0.5 * width * (_NODES + 1.0)).ravel()
    y = np.concatenate([y, [start, end]])
    log_r = np.full_like(y, -np.inf)
    for i in range(examples + 1):
        step = i * shift
        log_r = np.logaddexp(
            log_r, log_weights[i] + step * y - 0.5 * step * step
        )
    values = power * log_r - 0.5 * y * y - 0.5 * np.log(2.0 * np.pi)
    weights = np.tile(0.5 * width * _WEIGHTS, panels)
    inside = special.logsumexp(values[:-2], b=weights)
    beyond = special.logsumexp(values[-2:]) - np.log(_BEYOND)
    return float(np.logaddexp(inside, beyond))


def compose_events(
    entries: Iterable[entries_lib.LedgerEntry],
    adjacency: releases.Adjacency,
    examples: int,
) -> dp_accounting.DpEvent:
    """Composes the events of all entries, for all examples of a person.

    Args:
        entries: Steps that release noised sums of clipped gradients.
        adjacency: Add-or-remove-one or zero-out, of a person.
        examples: Greatest number of examples of a person, above 1.

    Returns:
        A `ComposedDpEvent`.

    Raises:
        ValueError: If dp_accounting has no mixtures of Gaussians.
    """
    return dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(
                _step_event(entry, adjacency, examples), entry.rounds
            )
            for entry in entries
        ]
    )


def _step_event(
    entry: entries_lib.LedgerEntry,
    adjacency: releases.Adjacency,
    examples: int,
) -> dp_accounting.DpEvent:
    noise = entry.noise_multiplier / entry.sensitivity(adjacency)
    rate = entry.sampling.proved_rate
    by_coins = isinstance(entry.sampling, samplings.PoissonSampling)
    examples = moved(entry, examples)
    if rate == 1.0 or not by_coins:
        return dp_accounting.GaussianDpEvent(noise / examples)
    if examples == 1:
        return dp_accounting.PoissonSampledDpEvent(
            rate, dp_accounting.GaussianDpEvent(noise)
        )
    if not has_mixtures():
        raise ValueError(
            "This version of dp_accounting has no mixtures of Gaussians."
        )
    counts = np.arange(examples + 1)
    return dp_accounting.dp_event.MixtureOfGaussiansDpEvent(
        noise, counts, stats.binom.pmf(counts, examples, rate)
    )
