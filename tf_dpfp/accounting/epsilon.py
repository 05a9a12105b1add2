r"""Epsilon of a ledger, and the number of steps that a budget still allows.

Releases compose by their Renyi divergences (RDP), or by their privacy loss
distributions (PLD) where all are sums under add-or-remove-one or zero-out
adjacency. Both are upper bounds. Only proved amplification counts: Poisson
sampling for sums, sampling without replacement for representations, and none
for unknown sampling, which under add-or-remove-one counts with twice the
sensitivity (`LedgerEntry.sensitivity`).

Steps of a search are those of one of its runs: their sum is the divergence of
a run, and the search has that of `searches.Search.rdp`, by RDP under both
accountants.

**Overflow.** Steps of statically padded batches may drop surplus examples. Let
`M` be the mechanism that never drops and `M'` the one that ran. Drawn with the
same randomness they differ with probability at most
`tau = sum(steps * overflow_probability)`, so for any event `S`, if `M` is
`(epsilon, d)`-DP:

    P[M'(D) in S] <= P[M(D) in S] + tau
                  <= e^epsilon P[M(D') in S] + d + tau
                  <= e^epsilon P[M'(D') in S] + d + (1 + e^epsilon) tau.

The result is the least epsilon (to within 1e-9, from above) with
`d + (1 + e^epsilon) tau <= delta`, where `M` is `(epsilon, d)`-DP; infinity if
there is none.

Reference:
    - [Renyi differential privacy](https://arxiv.org/abs/1702.07476)
    - [Renyi differential privacy of the sampled Gaussian
      mechanism](https://arxiv.org/abs/1908.10530)
    - [Connect the dots: tighter discrete approximations of privacy loss
      distributions](https://arxiv.org/abs/2207.04380)
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence

from tf_dpfp import arguments
from tf_dpfp.accounting import composition
from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import losses
from tf_dpfp.accounting import persons
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import sums
from tf_dpfp.accounting import table
from tf_dpfp.late_imports import rdp

ACCOUNTANTS = ("rdp", "pld")

# The PLD accountant convolves with FFTs in float64. Below this delta their
# rounding is no longer small beside the tail that is measured.
MIN_PLD_DELTA = 1e-10

# No training takes more steps than this; `max_steps` searches no further.
STEP_LIMIT = 2**40

# With more kinds of steps, a bound stands in for the RDP of each, which takes
# a third of a second for a rate that was not met before.
MOST_EXACT = 32

_OVERFLOW_ITERATIONS = 1000
_OVERFLOW_TOLERANCE = 1e-9


def compute_epsilon(
    entries: Iterable[entries_lib.LedgerEntry],
    delta: float,
    accountant: str = "rdp",
    adjacency: releases.Adjacency | None = None,
    examples_per_user: int | None = None,
) -> float:
    """Computes epsilon of everything that ran.

    Neighbouring data sets differ by one example added or removed. If any entry
    releases representations or labels, they differ in what one example is
    instead (replace-one), for everything that ran. The value is an upper bound
    with either accountant. Representations and labels are composed by RDP
    under both, and so is a ledger with a search.

    Args:
        entries: Ledger entries, in any order.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` (fast enough for every batch) or `"pld"` (tighter,
            takes seconds). PLD never returns more than RDP.
        adjacency: Adjacency of the guarantee; by default that of
            `adjacency_of(entries)`.
        examples_per_user: Bound on the examples that one person has in the
            data, for the epsilon of a whole person; see `persons`. It is
            tight by RDP, and by PLD too from dp_accounting 0.5 on; before,
            RDP stands in. `None`: of one example.

    Returns:
        Epsilon: 0.0 if nothing ran, infinity if a step protects nothing
        (`LedgerEntry.is_bare`).

    Raises:
        ValueError: If an argument is out of range, or nothing is proved about
            a release under `adjacency`, or for several examples.

    Example:

    >>> sampling = samplings.PoissonSampling(256 / 60_000)
    >>> ran = entries_lib.LedgerEntry(sampling, 1.1, steps=14_062)
    >>> round(compute_epsilon([ran], delta=1e-5), 2)
    2.6
    """
    delta = check_delta(delta, accountant)
    ran = tuple(entry for entry in table.merge(entries) if entry.steps)
    adjacency = _check_adjacency(adjacency, ran)
    examples = persons.check_examples(examples_per_user) or 1
    if examples > 1:
        persons.check_entries(ran, adjacency)
    if not ran:
        return 0.0
    if any(entry.is_bare for entry in ran):
        return math.inf
    if examples_per_user is None and persons.units_differ(ran):
        return math.inf
    curve = functools.partial(
        _epsilon_without_overflow, ran, accountant, adjacency, examples
    )
    tau = math.fsum(map(overflow_probability, ran))
    return float(_add_overflow(curve, delta, tau) if tau else curve(delta))


def max_steps(
    entries: Iterable[entries_lib.LedgerEntry],
    step: Iterable[entries_lib.LedgerEntry],
    epsilon: float,
    delta: float,
    accountant: str = "rdp",
) -> int:
    """Computes the number of further steps that a budget allows.

    Args:
        entries: Ledger entries of what ran so far.
        step: Ledger entries of one further step.
        epsilon: Budget, above 0.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` or `"pld"`.

    Returns:
        The greatest number of further steps that keeps epsilon at or below the
        budget, at most `STEP_LIMIT`; 0 if the budget is already spent.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> sampling = samplings.UnknownSampling()
    >>> step = entries_lib.LedgerEntry(sampling, noise_multiplier=50.0, steps=1)
    >>> max_steps([], [step], epsilon=2.0, delta=1e-5)
    135
    """
    epsilon = check_epsilon(epsilon)
    delta = check_delta(delta, accountant)
    spent, step = table.merge(entries), table.merge(step)

    def after(steps: int, accountant: str) -> float:
        further = [
            dataclasses.replace(entry, steps=entry.steps * steps)
            for entry in step
        ]
        return compute_epsilon([*spent, *further], delta, accountant)

    first = after(1, accountant)
    if not first <= epsilon:
        return 0
    steps = _greatest(lambda n: after(n, "rdp") <= epsilon, low=1)
    if accountant == "rdp":
        return steps
    # PLD is never above RDP, so its search begins at the result of RDP.
    return _greatest_by_few(
        lambda n: after(n, accountant), epsilon, (1, first), steps
    )


def check_delta(delta: float, accountant: str) -> float:
    """Checks a delta for an accountant.

    Args:
        delta: Probability with which the guarantee may fail.
        accountant: Name of the accountant.

    Returns:
        Delta as a Python float.

    Raises:
        ValueError: If the accountant is unknown, or cannot work at this delta.
    """
    arguments.one_of("accountant", accountant, ACCOUNTANTS)
    delta = arguments.number(
        "delta",
        delta,
        above=0.0,
        below=1.0,
        hint="It should be well below one over the number of examples.",
    )
    if accountant == "pld":
        arguments.number(
            "delta",
            delta,
            least=MIN_PLD_DELTA,
            hint="Below, accountant 'pld' is not exact. Use accountant 'rdp'.",
        )
    return delta


def check_epsilon(epsilon: float) -> float:
    """Checks a privacy budget.

    Args:
        epsilon: Budget.

    Returns:
        Epsilon as a Python float.

    Raises:
        ValueError: If it is not finite and above 0.
    """
    return arguments.number("epsilon", epsilon, above=0.0)


def _check_adjacency(
    adjacency: releases.Adjacency | None,
    entries: Sequence[entries_lib.LedgerEntry],
) -> releases.Adjacency:
    """Checks an adjacency against entries, or chooses it by them."""
    covering = entries_lib.adjacency_of(entries)
    if adjacency is None:
        return covering
    arguments.one_of("adjacency", adjacency, list(releases.Adjacency))
    replace_one = releases.Adjacency.REPLACE_ONE
    if covering is replace_one and adjacency is not replace_one:
        raise ValueError(
            "Representations and labels are protected by replace-one "
            f"adjacency only. Received: adjacency={adjacency}"
        )
    return adjacency


def _greatest(allowed: Callable[[int], bool], low: int) -> int:
    """Finds the greatest allowed count of at least `low`, by bisection."""
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


def _greatest_by_few(
    epsilon_after: Callable[[int], float],
    budget: float,
    begin: tuple[int, float],
    low: int,
) -> int:
    """Finds what `_greatest` does, by the few epsilons that lines point to.

    Args:
        epsilon_after: Epsilon of a count, which grows with it.
        budget: What is allowed.
        begin: A count that is allowed, and its epsilon.
        low: A count of at least that, where the search begins.

    Returns:
        The greatest allowed count of at least `low`, and at most `STEP_LIMIT`.
    """
    known = dict([begin])

    def is_allowed(count: int) -> bool:
        if count not in known:
            known[count] = epsilon_after(count)
        return known[count] <= budget

    high = low
    while is_allowed(high):
        if high >= STEP_LIMIT:
            return STEP_LIMIT
        low, most = high, min(2 * high, STEP_LIMIT)
        # The first count that is too many, where the line is right.
        high = min(max(_met_by(known, budget, most) + 1, low + 1), most)
    step = 1
    while high - low > 1:
        middle = _met_by(known, budget, (low + high) // 2)
        middle = min(max(middle, low + 1), high - 1)
        # Next to it is what bounds the answer from the other side.
        beside = middle + (step if is_allowed(middle) else -step)
        for count in (middle, beside):
            if low < count < high:
                low, high = (count, high) if is_allowed(count) else (low, count)
        step *= 4
    return low


def _met_by(known: dict[int, float], budget: float, otherwise: int) -> int:
    """Returns where a line through the epsilons next to a budget meets it."""
    near = sorted(known.items(), key=lambda item: abs(item[1] - budget))[:2]
    (a, of_a), (b, of_b) = min(near), max(near)
    if not of_a < of_b < math.inf:
        return otherwise
    return math.floor(
        min(b + (budget - of_b) * (b - a) / (of_b - of_a), STEP_LIMIT)
    )


def overflow_probability(entry: entries_lib.LedgerEntry) -> float:
    """Bounds the probability that any step of an entry drops examples.

    Args:
        entry: The entry.

    Returns:
        The bound; it may be above 1.
    """
    if not isinstance(entry.sampling, samplings.PoissonSampling):
        return 0.0
    # That of any of the runs of a search: at most the sum over all of them.
    runs = entry.search.expected_runs if entry.search else 1
    return runs * entry.steps * entry.sampling.overflow_probability


def _add_overflow(
    curve: Callable[[float], float], delta: float, tau: float
) -> float:
    """Finds the least epsilon of at least `curve(delta - (1 + e^epsilon) tau)`.

    The bound grows with epsilon, so iteration from below climbs to the least
    solution. Every finite result was checked to be one; where the search gives
    up, infinity is a true bound as well.
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
    adjacency: releases.Adjacency,
    examples: int,
    delta: float,
) -> float:
    """Computes epsilon as if no step had dropped surplus examples."""
    quick = len(entries) > MOST_EXACT
    total = composition.composed_rdp(entries, adjacency, examples, quick)
    by_rdp = rdp.compute_epsilon(sums.orders(), total, delta)[0]
    if accountant == "rdp" or delta < MIN_PLD_DELTA or math.isinf(by_rdp):
        return by_rdp
    if adjacency is releases.Adjacency.REPLACE_ONE:
        return by_rdp
    if any(entry.search for entry in entries):
        return by_rdp
    # Both are upper bounds, so the lesser is one, and RDP stands where PLD has
    # cut off the tail (infinity) or cannot be computed (extreme parameters).
    try:
        interval = losses.pld_interval(entries, adjacency, examples, by_rdp)
        composed = losses.compose_pld(entries, adjacency, examples, interval)
        return min(by_rdp, composed.get_epsilon(delta))
    except (ArithmeticError, ValueError):
        return by_rdp
