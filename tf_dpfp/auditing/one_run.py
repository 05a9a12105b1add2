"""Lower bounds on epsilon from canaries that are in or out by fair coins."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from tf_dpfp.auditing import bounds

# Shares of the canaries that are guessed: of all, some (in, out).
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
    """Computes how likely so many right guesses are under a claimed epsilon.

    Each canary is in or out by a fair coin; from the outcome some coins are
    guessed. With `B` binomial of `guesses` trials with probability
    `e^epsilon / (1 + e^epsilon)`, at least `correct` are right with
    probability of at most

        P[B >= correct]
            + 2 canaries delta max_i (P[correct > B >= correct - i] / i).

    Args:
        canaries: Number of canaries (coins), those of all runs together if
            each run has coins of its own.
        guesses: How many of them were guessed, a number fixed beforehand.
        correct: How many guesses were right.
        epsilon: Epsilon of the inclusion of one canary.
        delta: Its delta.

    Returns:
        The bound on the probability, at most 1.

    Raises:
        ValueError: If the numbers contradict each other.

    Reference:
        Steinke et al., 2023, arXiv 2305.08846, Theorem 5.2.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            "`correct` is at most `guesses`, which is at most `canaries`. "
            f"Received: correct={correct}, guesses={guesses}, "
            f"canaries={canaries}"
        )
    bounds.check_delta(delta)
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
        canaries: As in `one_run_p_value`.
        guesses: Likewise.
        correct: Likewise.
        delta: Delta.
        confidence: Probability with which the bound holds, at least.

    Returns:
        A lower bound on epsilon, at least 0.

    Raises:
        ValueError: If an argument is outside its range.
    """
    bounds.check_confidence(confidence)

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
    """Bounds epsilon from below, by canaries that are in by fair coins.

    The canaries of the greatest scores are guessed to be in, those of the
    least to be out. How many to guess is not chosen by what was right: each of
    `guesses` gets its share of the error probability (Bonferroni), and the
    greatest of their bounds is returned.

    Args:
        scores: A score for each canary, greater where it seems in: functions
            of what the training released, in any way dependent.
        included: Its coin.
        delta: Delta.
        confidence: Probability with which the bound holds, at least.
        guesses: Pairs, how many to guess in and how many out. By default six,
            from all canaries to one in 64.

    Returns:
        The bound, at least 0.

    Raises:
        ValueError: If an argument is outside its range.
    """
    bounds.check_delta(delta)
    bounds.check_confidence(confidence)
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
                f"be made of {total} canaries. Change `guesses`."
            )
    if not guesses:
        return 0.0
    # Ties are broken by a fixed shuffle, for positions may know the coins.
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
            float(delta),
            each,
        )
        for count_in, count_out in guesses
    )
