"""Lower bounds on epsilon from canaries that are included by fair coins.

Reference:
    Steinke et al., 2023, "Privacy auditing with one (1) training run",
    [arXiv 2305.08846](https://arxiv.org/abs/2305.08846), Theorem 5.2.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from tf_dpfp.auditing import bounds
from tf_dpfp.late_imports import stats

# Shares of the canaries that are guessed (in, out).
_GUESSED_SHARES = (
    (1 / 2, 1 / 2),
    (1 / 8, 1 / 8),
    (1 / 32, 1 / 32),
    (1 / 4, 0.0),
    (1 / 16, 0.0),
    (1 / 64, 0.0),
)
_BISECTIONS = 50
_GREATEST_EPSILON = 700.0  # Beyond it the exponential overflows.


def one_run_p_value(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    """Bounds the probability of so many right guesses under privacy.

    A fair coin includes each canary; an attack guesses some coins from the
    outcome of an (epsilon, delta)-private training. Let `B` be binomial with
    `guesses` trials and probability `e^epsilon / (1 + e^epsilon)`. At least
    `correct` guesses are right with probability at most

        P[B >= correct]
            + 2 canaries delta max_i (P[correct > B >= correct - i] / i).

    Args:
        canaries: Number of canaries (coins); of all runs together if each run
            has coins of its own.
        guesses: Number of guessed coins, fixed beforehand.
        correct: Number of right guesses.
        epsilon: Epsilon of the inclusion of one canary.
        delta: Delta of the inclusion of one canary.

    Returns:
        A p-value: the bound on the probability, at most 1.

    Raises:
        ValueError: If the numbers contradict each other.

    Reference:
        Steinke et al., 2023, arXiv 2305.08846, Theorem 5.2.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            "`correct` must be at most `guesses`, and `guesses` at most "
            f"`canaries`. Received: correct={correct}, guesses={guesses}, "
            f"canaries={canaries}"
        )
    delta = bounds.check_delta(delta)
    probability = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, probability))
    if delta > 0.0 and correct > 0:
        fewer = np.arange(1, correct + 1)
        # P[correct > B >= correct - i]: summed, for tails would cancel.
        missing = np.cumsum(
            stats.binom.pmf(correct - fewer, guesses, probability)
        )
        tail += 2.0 * canaries * delta * float(np.max(missing / fewer))
    return min(tail, 1.0)


@functools.lru_cache(maxsize=4096)
def epsilon_of_guesses(
    canaries: int,
    guesses: int,
    correct: int,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """Computes the greatest epsilon that so many right guesses refute.

    Args:
        canaries: Number of canaries (coins).
        guesses: Number of guessed coins, fixed beforehand.
        correct: Number of right guesses.
        delta: Delta of the guarantee.
        confidence: Least probability with which the bound holds.

    Returns:
        A lower bound on epsilon, at least 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> round(epsilon_of_guesses(1000, 200, 180, delta=1e-5), 2)
    1.8
    """
    confidence = bounds.check_confidence(confidence)

    def refuted(epsilon):
        return (
            one_run_p_value(canaries, guesses, correct, epsilon, delta)
            <= 1.0 - confidence
        )

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high) and high < _GREATEST_EPSILON:
        low, high = high, min(2.0 * high, _GREATEST_EPSILON)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def one_run_epsilon(
    scores: Sequence[float] | np.ndarray,
    included: Sequence[bool] | np.ndarray,
    delta: float,
    confidence: float = 0.95,
    guesses: Sequence[tuple[int, int]] | None = None,
) -> float:
    """Bounds epsilon from below by canaries that fair coins included.

    Guesses "in" for the canaries with the greatest scores, and "out" for those
    with the least. The number of guesses is not chosen by their success: each
    pair in `guesses` gets its share of the error probability (Bonferroni), and
    the result is the greatest of their bounds.

    Args:
        scores: One score per canary, greater for a canary that seems included:
            any functions of the released values, dependent or not.
        included: Booleans, the coin of each canary.
        delta: Delta of the guarantee.
        confidence: Least probability with which the bound holds.
        guesses: Pairs of numbers of guesses, "in" and "out". Six pairs by
            default, from all canaries to one in 64.

    Returns:
        The bound, at least 0.

    Raises:
        ValueError: If an argument is out of range.
    """
    delta = bounds.check_delta(delta)
    confidence = bounds.check_confidence(confidence)
    scores, included = bounds.checked_scores(scores, included, least=0)
    total = len(scores)
    if guesses is None:
        guesses = sorted(
            {(int(total * a), int(total * b)) for a, b in _GUESSED_SHARES}
        )
    guesses = [pair for pair in guesses if sum(pair) > 0]
    for count_in, count_out in guesses:
        if min(count_in, count_out) < 0 or count_in + count_out > total:
            raise ValueError(
                f"{count_in} guesses of 'in' and {count_out} of 'out' can't "
                f"be made of {total} canaries. Received: guesses={guesses}"
            )
    if not guesses:
        return 0.0
    # A fixed shuffle breaks ties, for positions may depend on the coins.
    shuffled = np.random.default_rng(0).permutation(total)
    order = shuffled[np.argsort(scores[shuffled], kind="stable")]
    ordered = included[order]
    each = 1.0 - (1.0 - confidence) / len(guesses)
    return max(
        epsilon_of_guesses(
            total,
            count_in + count_out,
            int(
                np.sum(ordered[total - count_in :])
                + np.sum(~ordered[:count_out])
            ),
            delta,
            each,
        )
        for count_in, count_out in guesses
    )
