"""Calibration of the noise multiplier to a privacy budget."""

import math
from collections.abc import Callable, Sequence

from tf_dpfp import arguments
from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import persons
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import within

# A budget that this much noise does not meet is not met by noise at all.
_MAX_NOISE_MULTIPLIER = 1e8
_MOST_TRIALS = 40


def calibrate_noise_multiplier(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    accountant: str = "rdp",
    overflow_probability: float = 0.0,
    tolerance: float = 1e-4,
) -> float:
    """Computes the least noise multiplier that keeps DP-SGD within a budget.

    Args:
        epsilon: Budget, above 0.
        delta: Probability with which the guarantee may fail, in (0, 1).
        sampling_rate: Rate of the Poisson sampling, in (0, 1]. Batches of an
            ordinary pipeline take twice the noise multiplier of rate 1.
        steps: Number of optimizer updates, at least 1.
        accountant: `"rdp"`, or `"pld"` for less noise at the same budget.
        overflow_probability: Upper bound on the probability that a step drops
            surplus examples, as in `PoissonSampling`.
        tolerance: Greatest distance of the result from the least sufficient
            noise multiplier.

    Returns:
        A noise multiplier with which epsilon is at most the budget.

    Raises:
        ValueError: If an argument is out of range, or no noise multiplier
            meets the budget.

    Example:

    >>> noise_multiplier = calibrate_noise_multiplier(
    ...     epsilon=8.0, delta=1e-5, sampling_rate=0.04, steps=2000
    ... )
    >>> round(noise_multiplier, 2)
    1.36
    """
    sampling = samplings.PoissonSampling(sampling_rate, overflow_probability)
    steps = arguments.positive_integer("steps", steps)

    def released(noise_multiplier: float) -> list[entries_lib.LedgerEntry]:
        return [entries_lib.LedgerEntry(sampling, noise_multiplier, steps)]

    return least_noise(released, epsilon, delta, accountant, tolerance)


def least_noise(
    released: Callable[[float], Sequence[entries_lib.LedgerEntry]],
    epsilon: float,
    delta: float,
    accountant: str = "rdp",
    tolerance: float = 1e-4,
) -> float:
    """Computes the least noise multiplier that keeps any training in a budget.

    Args:
        released: Function from a noise multiplier to the ledger entries of the
            training.
        epsilon: Budget, above 0.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` or `"pld"`.
        tolerance: Greatest distance of the result from the least sufficient
            noise multiplier.

    Returns:
        A noise multiplier with which epsilon is at most the budget.

    Raises:
        ValueError: If an argument is out of range, no noise multiplier meets
            the budget, or steps of examples and of persons are mixed.
    """
    epsilon = epsilon_lib.check_epsilon(epsilon)
    delta = epsilon_lib.check_delta(delta, accountant)
    tolerance = arguments.number("tolerance", tolerance, above=0.0, below=1.0)

    def quickly(noise_multiplier: float) -> bool:
        return within.is_within(released(noise_multiplier), epsilon, delta)

    def exactly(noise_multiplier: float, accountant: str) -> bool:
        found = epsilon_lib.compute_epsilon(
            released(noise_multiplier), delta, accountant
        )
        return found <= epsilon

    low, high = 0.0, 1.0
    persons.refuse_mixed(released(high))
    while not quickly(high):
        # Asked early once, for each trial may take its time.
        beyond = high == 16.0 and not quickly(_MAX_NOISE_MULTIPLIER)
        if beyond or high >= _MAX_NOISE_MULTIPLIER:
            raise ValueError(_out_of_reach(released(high), epsilon, delta))
        low, high = high, 2.0 * high
    high = _least(quickly, low, high, tolerance)
    # The accountant itself has the last word.
    while not exactly(high, "rdp"):
        high = max(high + tolerance, high * (1.0 + 1e-9))
    if accountant == "rdp":
        return high
    # PLD needs somewhat less noise than RDP, never more.
    low = 0.9 * high
    while exactly(low, accountant):
        low, high = 0.9 * low, low
    return _least(
        lambda noise: exactly(noise, accountant), low, high, tolerance
    )


def noise_within(
    released: Callable[[float], Sequence[entries_lib.LedgerEntry]],
    epsilon: float,
    delta: float,
    accountant: str = "rdp",
    precision: float = 1e-3,
) -> float:
    """Computes a noise multiplier that fills a budget, and never exceeds it.

    `least_noise` is exact to a tolerance of the noise, this to one of epsilon:
    it takes a few epsilons, which matters for accountant `"pld"`.

    Args:
        released: Function from a noise multiplier to the ledger entries of the
            training.
        epsilon: Budget, above 0.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` or `"pld"`.
        precision: Greatest part of the budget that is left.

    Returns:
        A noise multiplier with which epsilon is at most the budget, and at
        least `1 - precision` of it where any noise reaches that.

    Raises:
        ValueError: If an argument is out of range, or no noise multiplier
            meets the budget.
    """
    high = least_noise(released, epsilon, delta)
    low, power = 0.0, 1.5

    def epsilon_of(noise: float) -> float:
        return epsilon_lib.compute_epsilon(released(noise), delta, accountant)

    found, least, target = (
        epsilon_of(high),
        1.0 - precision,
        1.0 - precision / 2,
    )
    for _ in range(_MOST_TRIALS):
        if found >= least * epsilon:
            break
        # Epsilon is about a power of the noise.
        trial = high * (max(found, 0.1 * epsilon) / target / epsilon) ** (
            1.0 / power
        )
        if not low < trial < high:
            trial = 0.5 * (low + high)
        value = epsilon_of(trial)
        if 0.0 < found < value < math.inf:
            slope = math.log(value / found) / math.log(high / trial)
            power = min(max(slope, 0.2), 20.0)
        if value <= epsilon:
            high, found = trial, value
        else:
            low = trial
    return high


def _out_of_reach(
    entries: Sequence[entries_lib.LedgerEntry], epsilon: float, delta: float
) -> str:
    described = ", ".join(
        f"{entry.steps} steps with {entry.sampling}" for entry in entries
    )
    return (
        f"No noise multiplier up to {_MAX_NOISE_MULTIPLIER:g} reaches epsilon "
        f"{epsilon} at delta {delta} in {described}. Allow a larger epsilon or "
        "delta, fewer steps, or a padded batch that overflows less often."
    )


def _least(
    sufficient: Callable[[float], bool],
    low: float,
    high: float,
    tolerance: float,
) -> float:
    """Bisects between an insufficient and a sufficient noise multiplier.

    Returns:
        The last value that was found sufficient, within `tolerance` of one
        that was not.
    """
    while high - low > tolerance:
        middle = 0.5 * (low + high)
        # Large noise multipliers lie further apart than the tolerance.
        if not low < middle < high:
            break
        if sufficient(middle):
            high = middle
        else:
            low = middle
    return high
