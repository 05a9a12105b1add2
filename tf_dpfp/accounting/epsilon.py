"""Epsilon of what ran, and how many steps a budget still allows."""

import contextlib
import dataclasses
import functools
import logging as std_logging
import math
from collections.abc import Callable, Iterable, Iterator

import dp_accounting
import numpy as np
from absl import logging
from dp_accounting import pld
from dp_accounting import rdp

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import events
from tf_dpfp.accounting import representations
from tf_dpfp.accounting import table

ACCOUNTANTS = ("rdp", "pld")

# The PLD accountant convolves with FFTs in float64. Below this delta their
# rounding is no longer small beside the tail that is being measured.
MIN_PLD_DELTA = 1e-10

# No training takes more steps than this; `max_steps` searches no further.
STEP_LIMIT = 2**40

# Rounding of the logarithm of the RDP moment, measured below 3e-13 against
# 40-digit quadrature. Added, so that rounding never lowers epsilon: with tiny
# sampling rates the moment itself is that small.
_MOMENT_ROUNDING = 1e-12

# Noise beyond this is accounted for as this much (which is never less
# epsilon): squares of larger values overflow.
_MAX_NOISE_MULTIPLIER = 1e9

# With less noise than this no amplification is claimed: dp_accounting's series
# would meet infinities, and may then never end.
_MIN_SAMPLED_NOISE_MULTIPLIER = 1e-6

# PLD grid, the epsilon up to which it is that fine, and the most points one
# step may take on it.
_PLD_INTERVAL = 1e-4
_PLD_FINE_EPSILON = 50.0
_PLD_POINTS = 2e6

_OVERFLOW_ITERATIONS = 1000
_OVERFLOW_TOLERANCE = 1e-9


def compute_epsilon(
    entries: Iterable[entries_lib.LedgerEntry],
    delta: float,
    accountant: str = "rdp",
) -> float:
    r"""Computes the epsilon of everything that ran.

    Neighbouring data sets are those of which one has one example more. If rows
    or labels were released, they are those that differ in what one example is
    (`entries_lib.replaces_one`), for everything that ran: sums then count with
    twice the sensitivity and without amplification. Only what is proved
    counts: Poisson sampling amplifies sums, sampling without replacement rows,
    unknown sampling nothing. The value is an upper bound with either
    accountant; rows and labels are composed by RDP under both.

    Steps of statically padded batches may drop surplus examples. Let `M` be
    the mechanism that never drops and `M'` the one that ran. Drawn with the
    same randomness they differ with probability at most
    `tau = sum(steps * overflow_probability)`, so for any event `S`, if `M` is
    `(epsilon, d)`-DP:

        P[M'(D) in S] <= P[M(D) in S] + tau
                      <= e^epsilon P[M(D') in S] + d + tau
                      <= e^epsilon P[M'(D') in S] + d + (1 + e^epsilon) tau.

    What is returned is the least epsilon (to within 1e-9, from above) with
    `d + (1 + e^epsilon) tau <= delta`, where `M` is `(epsilon, d)`-DP; infinity
    when there is none.

    Args:
        entries: What ran, in any order.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` (fast enough for every batch) or `"pld"` (tighter,
            seconds). The latter never returns more than the former.

    Returns:
        Epsilon: 0.0 when nothing ran, infinity when a step protects nothing
        (`LedgerEntry.is_bare`).

    Raises:
        ValueError: If `delta` or `accountant` is not one of the above.

    Reference:
        - [Renyi differential privacy](https://arxiv.org/abs/1702.07476)
        - [Renyi differential privacy of the sampled Gaussian
          mechanism](https://arxiv.org/abs/1908.10530)
        - [Connect the dots: tighter discrete approximations of privacy loss
          distributions](https://arxiv.org/abs/2207.04380)
    """
    check_delta(delta, accountant)
    ran = tuple(entry for entry in table.merge(entries) if entry.steps)
    if not ran:
        return 0.0
    if any(entry.is_bare for entry in ran):
        return math.inf
    curve = functools.partial(_epsilon_without_overflow, ran, accountant)
    tau = math.fsum(map(_overflow_probability, ran))
    return float(_add_overflow(curve, delta, tau) if tau else curve(delta))


def max_steps(
    entries: Iterable[entries_lib.LedgerEntry],
    step: Iterable[entries_lib.LedgerEntry],
    epsilon: float,
    delta: float,
    accountant: str = "rdp",
) -> int:
    """Computes how many further steps the budget allows.

    Args:
        entries: What ran so far.
        step: What one further step releases.
        epsilon: The budget, above 0.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` or `"pld"`.

    Returns:
        The greatest number of further steps with which epsilon is still at
        most `epsilon`, at most `STEP_LIMIT`; 0 if the budget is spent already.

    Raises:
        ValueError: If an argument is outside its range.
    """
    check_epsilon(epsilon)
    check_delta(delta, accountant)
    spent = table.merge(entries)

    step = table.merge(step)

    def within_budget(steps: int, accountant: str) -> bool:
        further = [
            dataclasses.replace(entry, steps=entry.steps * steps)
            for entry in step
        ]
        return compute_epsilon([*spent, *further], delta, accountant) <= epsilon

    if not within_budget(1, accountant):
        return 0
    steps = _greatest(lambda n: within_budget(n, "rdp"), low=1)
    if accountant == "rdp":
        return steps
    # PLD is never above RDP, so what RDP allows is where the search begins.
    return _greatest(lambda n: within_budget(n, accountant), low=steps)


def check_delta(delta: float, accountant: str) -> None:
    """Raises `ValueError` unless the accountant can work at this delta.

    Args:
        delta: Probability with which the guarantee may fail.
        accountant: Name of the accountant.

    Raises:
        ValueError: If the accountant is unknown, or delta outside its range.
    """
    if accountant not in ACCOUNTANTS:
        raise ValueError(
            f"accountant must be one of {ACCOUNTANTS}. Received: "
            f"{accountant!r}."
        )
    if not 0.0 < delta < 1.0:
        raise ValueError(
            "delta must be above 0 and below 1, and should be well below one "
            f"over the number of examples. Received: {delta}."
        )
    if accountant == "pld" and delta < MIN_PLD_DELTA:
        raise ValueError(
            f"accountant 'pld' is not exact for delta below {MIN_PLD_DELTA}. "
            f"Received: {delta}. Use accountant 'rdp'."
        )


def check_epsilon(epsilon: float) -> None:
    """Raises `ValueError` unless epsilon can be a budget.

    Args:
        epsilon: The budget.

    Raises:
        ValueError: If it is not finite and above 0.
    """
    if not 0.0 < epsilon < math.inf:
        raise ValueError(
            f"epsilon must be finite and above 0. Received: {epsilon}."
        )


def _greatest(allowed: Callable[[int], bool], low: int) -> int:
    """Returns the greatest allowed count of at least `low`, by bisection."""
    high = low
    while allowed(high):
        if high >= STEP_LIMIT:
            return STEP_LIMIT
        low, high = high, min(2 * high, STEP_LIMIT)
    while high - low > 1:
        middle = (low + high) // 2
        if allowed(middle):
            low = middle
        else:
            high = middle
    return low


def _overflow_probability(entry: entries_lib.LedgerEntry) -> float:
    if isinstance(entry.sampling, entries_lib.PoissonSampling):
        return entry.steps * entry.sampling.overflow_probability
    return 0.0


def _add_overflow(
    curve: Callable[[float], float], delta: float, tau: float
) -> float:
    """Solves `epsilon >= curve(delta - (1 + e^epsilon) tau)` for the least.

    The right-hand side grows with epsilon, so iterating it from below climbs
    to the least solution. Every value returned has been checked to be one;
    where the search gives up, infinity is true as well.
    """
    epsilon = curve(delta)
    for _ in range(_OVERFLOW_ITERATIONS):
        # Beyond 700 the exponential overflows; no finite delta pays for it.
        spent = tau * (1.0 + math.exp(epsilon)) if epsilon < 700 else math.inf
        if spent >= delta:
            return math.inf
        needed = curve(delta - spent)
        if needed <= epsilon:
            return epsilon
        epsilon = needed + _OVERFLOW_TOLERANCE * (1.0 + needed)
    return math.inf


def _epsilon_without_overflow(
    entries: tuple[entries_lib.LedgerEntry, ...],
    accountant: str,
    delta: float,
) -> float:
    """Returns epsilon as if no step had dropped surplus examples."""
    replaces_one = entries_lib.replaces_one(entries)
    total = sum(
        entry.steps * _rdp_of_entry(entry, replaces_one) for entry in entries
    )
    by_rdp = rdp.compute_epsilon(_orders(), total, delta)[0]
    if accountant == "rdp" or delta < MIN_PLD_DELTA or math.isinf(by_rdp):
        return by_rdp
    if replaces_one:
        return by_rdp
    # Both are upper bounds, so the lesser is one, and RDP stands where PLD has
    # cut off the tail (infinity) or cannot be computed (extreme parameters).
    try:
        composed = _compose_pld(entries, _pld_interval(entries, by_rdp))
        return min(by_rdp, composed.get_epsilon(delta))
    except (ArithmeticError, ValueError):
        return by_rdp


def _rdp_of_entry(
    entry: entries_lib.LedgerEntry, replaces_one: bool
) -> np.ndarray:
    """Returns the RDP of one release at each order, rounded up."""
    rate = events.proved_sampling_rate(entry.sampling)
    if entry.release is entries_lib.Release.LABELS:
        return representations.randomized_response_rdp(
            entry.noise_multiplier, entry.sampling.num_classes, _order_tuple()
        )
    if entry.release.is_rows:
        # The bound is on half of what a replaced row may move.
        noise_multiplier = min(
            entry.noise_multiplier / 2.0, _MAX_NOISE_MULTIPLIER
        )
        return representations.sampled_rows_rdp(
            rate, noise_multiplier, _order_tuple()
        )
    if replaces_one:
        return _rdp_of_step(1.0, entry.noise_multiplier / 2.0)
    return _rdp_of_step(rate, entry.noise_multiplier)


@functools.cache
def _order_tuple() -> tuple[float, ...]:
    return tuple(_orders().tolist())


@functools.cache
def _orders() -> np.ndarray:
    return rdp.RdpAccountant().orders


@functools.lru_cache(maxsize=1024)
def _rdp_of_step(sampling_rate: float, noise_multiplier: float) -> np.ndarray:
    """Returns the RDP of one step at each order, rounded up.

    A Poisson-sampled Gaussian is never less private than the Gaussian itself,
    so the latter's exact RDP stands in for orders at which the numerical one
    fails (extreme parameters; dp_accounting also drops orders whose series
    converges slowly).
    """
    noise_multiplier = min(noise_multiplier, _MAX_NOISE_MULTIPLIER)
    with np.errstate(all="ignore"):
        vector = _orders() / 2.0 / noise_multiplier / noise_multiplier
        if (
            sampling_rate < 1.0
            and noise_multiplier >= _MIN_SAMPLED_NOISE_MULTIPLIER
        ):
            sampled = _sampled_rdp(sampling_rate, noise_multiplier)
            # fmin takes the other value where one is NaN.
            vector = np.fmin(sampled, vector)
    # The cache hands out this very array.
    vector.setflags(write=False)
    return vector


def _sampled_rdp(sampling_rate: float, noise_multiplier: float) -> np.ndarray:
    """Returns dp_accounting's RDP, rounded up, and infinity where it fails."""
    event = dp_accounting.PoissonSampledDpEvent(
        sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    try:
        with _silence_dropped_orders():
            vector = rdp.RdpAccountant().compose(event).rdp
    except (ArithmeticError, ValueError):
        return np.full_like(_orders(), np.inf)
    vector = np.maximum(vector, 0.0)
    return vector + _MOMENT_ROUNDING * (1.0 / (_orders() - 1.0) + vector)


@functools.lru_cache(maxsize=8)
def _compose_pld(
    entries: tuple[entries_lib.LedgerEntry, ...], interval: float
) -> pld.PLDAccountant:
    return pld.PLDAccountant(value_discretization_interval=interval).compose(
        events.compose_events(entries)
    )


def _pld_interval(
    entries: tuple[entries_lib.LedgerEntry, ...], epsilon: float
) -> float:
    """Returns a grid that is fine where epsilon matters.

    PLDs are rounded pessimistically, so any grid gives an upper bound; the
    fine one would need gigabytes for an epsilon in the thousands, or for next
    to no noise.
    """
    least_noise = min(entry.noise_multiplier for entry in entries)
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


@contextlib.contextmanager
def _silence_dropped_orders() -> Iterator[None]:
    """Hides dp_accounting's warning about each order it drops.

    Leaving out an order can only raise epsilon, and `_rdp_of_step` fills the
    gap with a bound that holds; the user has nothing to do about it.
    """

    def keep(record: std_logging.LogRecord) -> bool:
        return "failed to converge" not in str(record.msg)

    logger = logging.get_absl_logger()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
