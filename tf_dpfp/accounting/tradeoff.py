r"""Membership attacks that a ledger allows: their rates, and Gaussian DP.

An attack tells, from everything that was released, whether the data are one or
the other of two neighbours. It is right about the first with a true positive
rate, and wrong about the second with a false positive rate. Let `T(a)` be the
greatest true positive rate of any attack with false positive rate `a`.

**Gaussian mechanisms** that every example is in compose to one of distance
`mu^2 = sum 1 / noise^2`, and `T(a) = Phi(Phi^-1(a) + mu)`, exactly.

**From the privacy losses.** If for both orders of the neighbours the releases
are `(epsilon, d(epsilon))`-indistinguishable, then for every epsilon from 0

    T(a) <= d(epsilon) + e^epsilon a,
    T(a) <= 1 - e^-epsilon (1 - d(epsilon) - a),

the second from the true and false negatives. One `d` for both orders covers an
attack that looks for members, and one that looks for others.

**From Renyi divergences.** What an attack says is post-processing. So the
divergences of its two outcomes, in both orders, are at most those of the
releases: a true positive rate that would make one of them greater is none.

**Overflow** (see `epsilon`): what ran differs from what is computed with
probability at most tau on either data, so that `T'(a) <= T(a + tau) + tau`.

Reference:
    - Kairouz et al., 2015, [The composition theorem for differential
      privacy](https://arxiv.org/abs/1311.0776).
    - Dong, Roth and Su, 2022, [Gaussian differential
      privacy](https://arxiv.org/abs/1905.02383).
    - van Erven and Harremoes, 2014, [Renyi divergence and Kullback-Leibler
      divergence](https://arxiv.org/abs/1206.2459) (data processing).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from tf_dpfp import arguments
from tf_dpfp.accounting import composition
from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import losses
from tf_dpfp.accounting import persons
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import sums
from tf_dpfp.accounting import table
from tf_dpfp.late_imports import rdp
from tf_dpfp.late_imports import special

# False positive rates that are reported.
RATES = (0.001, 0.01, 0.1)

# Where steps are sampled, attacks with smaller errors are left out of mu: for
# them it would be that of all examples in every step.
LEAST_ERROR = 1e-6

# Epsilons at which the losses are read: beyond, e^epsilon a is above one.
_EPSILONS = np.linspace(0.0, -math.log(LEAST_ERROR), 1001)
# False positive rates at which mu is found.
_MU_POINTS = 801
_BISECTIONS = 40
# Above the rounding of the accountants at these rates.
_MARGIN = 1e-9

# The closed form is for these alone: others are left to the accountants.
_GAUSSIANS = (
    *(releases.Sums, releases.PersonSums, releases.ViewSums),
    *(releases.Representations, releases.PersonRepresentations),
    releases.Joint,
)
_SAMPLINGS = (
    samplings.PoissonSampling,
    samplings.UnknownSampling,
    samplings.WithoutReplacement,
)

# From false positive rates to the greatest true positive rates.
Curve: TypeAlias = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class MembershipAttacks:
    """Success of membership attacks that a ledger allows.

    Attributes:
        method: What the rates were computed from: `"gaussian"` (exact),
            `"pld"`, `"rdp"`, or `"none"`: nothing is protected.
        rates: Pairs of a false positive rate, and the greatest true positive
            rate of any attack that has it.
        mu: With this mu the training is Gaussian-DP; `None` if with none.
        is_exact: True if all releases are Gaussian mechanisms, of which `mu`
            is the distance: no lesser one holds for them.
        least_error: `mu` is about attacks with no error rate below this, of
            both kinds; 0 for all attacks.
    """

    method: str
    rates: tuple[tuple[float, float], ...]
    mu: float | None
    is_exact: bool = False
    least_error: float = 0.0


def membership_attacks(
    entries: Iterable[entries_lib.LedgerEntry],
    examples_per_user: int | None = None,
    accountant: str = "pld",
) -> MembershipAttacks:
    """Bounds the success of membership attacks on everything that ran.

    Neighbours are those of `compute_epsilon`. The rates hold for attacks that
    see all releases, know all other examples, and choose the one in question.

    Args:
        entries: Ledger entries, in any order.
        examples_per_user: Bound on the examples that one person has in the
            data, to ask whether the person is in them.
        accountant: `"pld"`, or `"rdp"` for greater rates in less time, which
            matters for persons. Where a figure is exact, neither is asked.

    Returns:
        The rates, never below the true ones, and mu.

    Raises:
        ValueError: If an argument is out of range, or nothing is proved for
            several examples.

    Example:

    >>> sampling = samplings.PoissonSampling(1.0)
    >>> ran = entries_lib.LedgerEntry(sampling, noise_multiplier=8.0, steps=4)
    >>> membership_attacks([ran]).mu
    0.25
    """
    found = curve_of(entries, examples_per_user, accountant)
    if found.curve is None:
        return unlimited()
    if found.mu is not None:
        return MembershipAttacks(
            found.method, _rates(found.curve), found.mu, True
        )
    mu = _least_mu(found.curve)
    return MembershipAttacks(
        found.method, _rates(found.curve), mu, least_error=LEAST_ERROR
    )


@dataclasses.dataclass(frozen=True)
class Found:
    """The function `T` of a ledger.

    Attributes:
        method: What it was computed from.
        curve: An upper bound of `T`; `None` if nothing is protected.
        mu: The distance of Gaussian mechanisms, where it is exact.
    """

    method: str
    curve: Curve | None
    mu: float | None = None


def curve_of(
    entries: Iterable[entries_lib.LedgerEntry],
    examples_per_user: int | None = None,
    accountant: str = "pld",
) -> Found:
    """Bounds the true positive rate of attacks at every false positive rate.

    Args:
        entries: Ledger entries, in any order.
        examples_per_user: As in `membership_attacks`.
        accountant: As in `membership_attacks`.

    Returns:
        The bound.

    Raises:
        ValueError: If an argument is out of range, or nothing is proved for
            several examples.
    """
    arguments.one_of("accountant", accountant, epsilon_lib.ACCOUNTANTS)
    ran = tuple(entry for entry in table.merge(entries) if entry.steps)
    adjacency = entries_lib.adjacency_of(ran)
    examples = persons.check_examples(examples_per_user) or 1
    if examples > 1:
        persons.check_entries(ran, adjacency)
    mixed = examples_per_user is None and persons.units_differ(ran)
    if mixed or any(entry.is_bare for entry in ran):
        return Found("none", None)
    tau = math.fsum(map(epsilon_lib.overflow_probability, ran))
    if all(_is_gaussian(entry, adjacency) for entry in ran):
        mu = _gaussian_mu(ran, adjacency, examples)
        curve = _with_overflow(lambda at: _gaussian_curve(at, mu), tau)
        return Found("gaussian", curve, None if tau else mu)
    by_losses = (
        accountant == "pld"
        and adjacency is not releases.Adjacency.REPLACE_ONE
        and all(map(has_losses, ran))
    )
    method, curve = _bounded_curve(ran, adjacency, examples, by_losses)
    return Found(method, _with_overflow(curve, tau))


def has_losses(entry: entries_lib.LedgerEntry) -> bool:
    """Tells if an entry is nothing but a number of equal steps.

    What else an entry may say of its steps, only divergences know of: neither
    losses nor a closed form are taken for it.

    Args:
        entry: The entry.
    """
    return entry == entries_lib.LedgerEntry(
        entry.sampling,
        entry.noise_multiplier,
        entry.steps,
        entry.seeded,
        entry.release,
    )


def unlimited() -> MembershipAttacks:
    """Returns what attacks may do where nothing is protected."""
    return MembershipAttacks("none", tuple((rate, 1.0) for rate in RATES), None)


def _rates(curve: Curve) -> tuple[tuple[float, float], ...]:
    found = curve(np.array(RATES))
    return tuple(zip(RATES, map(float, found), strict=True))


def _is_gaussian(
    entry: entries_lib.LedgerEntry, adjacency: releases.Adjacency
) -> bool:
    """Tells if steps are accounted for as Gaussians that all are in."""
    known = type(entry.release) in _GAUSSIANS and has_losses(entry)
    if not known or type(entry.sampling) not in _SAMPLINGS:
        return False
    if entry.release.has_representations:
        return entry.sampling.proved_rate == 1.0
    by_replacement = adjacency is releases.Adjacency.REPLACE_ONE
    return by_replacement or entry.sampling.proved_rate == 1.0


def _gaussian_mu(
    entries: Sequence[entries_lib.LedgerEntry],
    adjacency: releases.Adjacency,
    examples: int,
) -> float:
    def distance(entry: entries_lib.LedgerEntry) -> float:
        moved = persons.moved(entry, examples)
        return moved * entry.sensitivity(adjacency) / entry.noise_multiplier

    return math.sqrt(math.fsum(e.steps * distance(e) ** 2 for e in entries))


def _gaussian_curve(at: np.ndarray, mu: float) -> np.ndarray:
    return special.ndtr(special.ndtri(at) + mu)


def _with_overflow(curve: Curve, tau: float) -> Curve:
    if not tau:
        return curve
    return lambda at: np.minimum(curve(np.minimum(at + tau, 1.0)) + tau, 1.0)


def _bounded_curve(
    entries: tuple[entries_lib.LedgerEntry, ...],
    adjacency: releases.Adjacency,
    examples: int,
    by_losses: bool,
) -> tuple[str, Curve]:
    """Bounds `T` by the losses where they are known, else by divergences."""
    quick = len(entries) > epsilon_lib.MOST_EXACT
    divergences = composition.composed_rdp(entries, adjacency, examples, quick)
    if by_losses:
        # About where the curve is read: no rate is below this delta.
        near = rdp.compute_epsilon(sums.orders(), divergences, LEAST_ERROR)[0]
        try:
            interval = losses.pld_interval(entries, adjacency, examples, near)
            accountant = losses.compose_pld(
                entries, adjacency, examples, interval
            )
            deltas = np.asarray(accountant.get_delta(_EPSILONS))
        except (ArithmeticError, ValueError):
            pass  # Extreme parameters, as in `compute_epsilon`.
        else:
            return "pld", lambda at: _of_losses(at, deltas)
    return "rdp", lambda at: _of_divergences(at, divergences)


def _of_losses(at: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Bounds `T` from delta at each of `_EPSILONS`."""
    factors = np.exp(_EPSILONS)
    deltas = np.clip(deltas, 0.0, 1.0)
    positives = np.min(deltas + factors * at[:, None], axis=1)
    negatives = np.max((1.0 - deltas - at[:, None]) / factors, axis=1)
    found = np.minimum(positives, 1.0 - negatives) + _MARGIN
    return np.clip(found, at, 1.0)


def _of_divergences(at: np.ndarray, divergences: np.ndarray) -> np.ndarray:
    """Bounds `T` from the Renyi divergence at each order, by bisection."""
    orders = sums.orders()[:, None]
    limit = (orders - 1.0) * divergences[:, None]
    low = np.broadcast_to(at, (len(orders), len(at))).copy()
    high = np.ones_like(low)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        allowed = np.maximum(
            _log_moment(middle, at, orders), _log_moment(at, middle, orders)
        )
        allowed = allowed <= limit
        low = np.where(allowed, middle, low)
        high = np.where(allowed, high, middle)
    return np.clip(np.min(high, axis=0) + _MARGIN, at, 1.0)


def _log_moment(
    first: np.ndarray, second: np.ndarray, orders: np.ndarray
) -> np.ndarray:
    """Computes `order - 1` times the divergence of two coins."""
    with np.errstate(divide="ignore"):
        return np.logaddexp(
            orders * np.log(first) + (1.0 - orders) * np.log(second),
            orders * np.log1p(-first) + (1.0 - orders) * np.log1p(-second),
        )


def _least_mu(curve: Curve) -> float | None:
    """Finds a mu whose Gaussian allows as much, but for rare errors.

    `T` and that of the Gaussian rise. Between two points `T` is at most what
    it is at the right one, the Gaussian's at least what it is at the left one.
    """
    most = float(special.ndtri(1.0 - LEAST_ERROR))
    normal = np.linspace(-most, most, _MU_POINTS)
    found = np.minimum(curve(special.ndtr(normal)), 1.0 - LEAST_ERROR)
    needed = special.ndtri(found[1:]) - normal[:-1]
    mu = float(np.max(needed))
    return max(mu, 0.0) * (1.0 + _MARGIN) if math.isfinite(mu) else None
