"""Lower bounds on epsilon from what attacks got right. Pure statistics.

Two kinds of evidence:

- *Many runs, one canary.* Trainings with and without it are told apart by a
  threshold on a score. Its error rates, bounded by Clopper and Pearson, bound
  epsilon from below.
- *Many canaries, each in or out by a fair coin of its own.* Some of the coins
  are guessed from the outcome. More right guesses than a mechanism of some
  epsilon allows refute that epsilon, even if all canaries were in one run.

Every bound here holds with the confidence that is asked for: it exceeds the
true epsilon with at most the remaining probability. Nothing is chosen by the
data that are counted, unless the choice is paid for.

Reference:
    - Clopper and Pearson, 1934, "The use of confidence or fiducial limits".
    - Kairouz et al., 2015, "The composition theorem for differential
      privacy", [arXiv 1311.0776](https://arxiv.org/abs/1311.0776).
    - Steinke et al., 2023, "Privacy auditing with one (1) training run",
      [arXiv 2305.08846](https://arxiv.org/abs/2305.08846).
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def check_confidence(confidence: float) -> None:
    """Raises `ValueError` unless it is a probability to be confident with.

    Args:
        confidence: The confidence.

    Raises:
        ValueError: If it is not above 0 and below 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(
            "`confidence` is above 0 and below 1, such as 0.95. Received: "
            f"confidence={confidence!r}"
        )


def check_delta(delta: float) -> None:
    """Raises `ValueError` unless delta can be that of a guarantee.

    Args:
        delta: Delta.

    Raises:
        ValueError: If it is not in [0, 1).
    """
    if not 0.0 <= delta < 1.0:
        raise ValueError(
            f"`delta` is at least 0 and below 1. Received: delta={delta!r}"
        )


def greatest_rate(
    count: int | np.ndarray, trials: int, error: float
) -> float | np.ndarray:
    """Clopper and Pearson's upper bound on a probability.

    Args:
        count: How many of the trials it happened in.
        trials: Number of independent trials.
        error: Probability with which the bound may be too low.

    Returns:
        The bound; 1 where it happened in all trials.

    Raises:
        ValueError: If there were no trials.
    """
    if trials < 1:
        raise ValueError(
            f"A rate needs at least one trial. Received: trials={trials!r}"
        )
    count = np.asarray(count)
    bound = stats.beta.ppf(
        1.0 - error, count + 1, np.maximum(trials - count, 1)
    )
    return np.where(count >= trials, 1.0, bound)[()]


def epsilon_of_rates(
    false_positive_rate: float | np.ndarray,
    false_negative_rate: float | np.ndarray,
    delta: float,
) -> float | np.ndarray:
    """The least epsilon of a mechanism that admits a test so good.

    Of two neighbouring inputs, a test of an (epsilon, delta)-private outcome
    has `1 - fnr <= e^epsilon fpr + delta`, and the same with the two swapped.

    Args:
        false_positive_rate: Probability of "in" where it is out.
        false_negative_rate: Probability of "out" where it is in.
        delta: Delta.

    Returns:
        Epsilon, at least 0; infinity where the rates need it.
    """
    fpr = np.asarray(false_positive_rate, np.float64)
    fnr = np.asarray(false_negative_rate, np.float64)

    def one_way(found, missed):
        gain = np.maximum(1.0 - delta - missed, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            # 0 / 0: the test never says "in", and tells nothing.
            return np.where(gain > 0.0, np.log(gain / found), 0.0)

    both = np.maximum(one_way(fpr, fnr), one_way(fnr, fpr))
    return np.maximum(both, 0.0)[()]


def epsilon_of_counts(
    false_positives: int | np.ndarray,
    without: int,
    false_negatives: int | np.ndarray,
    included: int,
    delta: float,
    confidence: float = 0.95,
) -> float | np.ndarray:
    """Bounds epsilon from below, by a test's errors in many runs.

    The test must have been fixed before these runs were looked at. Each error
    rate gets half of the error probability.

    Args:
        false_positives: Runs without the canary that the test called "in".
        without: Runs without the canary.
        false_negatives: Runs with the canary that the test called "out".
        included: Runs with the canary.
        delta: Delta.
        confidence: Probability with which the bound holds, at least.

    Returns:
        The bound, at least 0.

    Raises:
        ValueError: If an argument is outside its range.
    """
    check_delta(delta)
    check_confidence(confidence)
    error = (1.0 - confidence) / 2.0
    return epsilon_of_rates(
        greatest_rate(false_positives, without, error),
        greatest_rate(false_negatives, included, error),
        delta,
    )


def best_threshold(
    scores: Sequence[float] | np.ndarray,
    included: Sequence[bool] | np.ndarray,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """The threshold of the greatest bound on these runs.

    The bound it promises is not one: to be measured on other runs.

    Args:
        scores: A score for each run, greater where the canary seems in.
        included: Whether it was in.
        delta: Delta.
        confidence: That of the bound to be found later.

    Returns:
        The threshold: "in" is said above it.

    Raises:
        ValueError: If there are no runs with, or none without the canary.
    """
    scores, included = checked_scores(scores, included)
    inside, outside = np.sort(scores[included]), np.sort(scores[~included])
    distinct = np.unique(scores)
    # Halved before they are added: scores may be as large as floats are.
    thresholds = distinct[:-1] / 2.0 + distinct[1:] / 2.0
    if not len(thresholds):
        return float(distinct[0])
    bounds = epsilon_of_counts(
        len(outside) - np.searchsorted(outside, thresholds, side="right"),
        len(outside),
        np.searchsorted(inside, thresholds, side="right"),
        len(inside),
        delta,
        confidence,
    )
    best = np.flatnonzero(bounds == np.max(bounds))
    return float(thresholds[best[len(best) // 2]])


def many_runs_epsilon(
    scores: Sequence[float] | np.ndarray,
    included: Sequence[bool] | np.ndarray,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """Bounds epsilon from below, by runs with and without one canary.

    Every second run of each kind chooses the threshold, the others alone are
    counted: what is counted has chosen nothing, so the bound needs no
    correction.

    Args:
        scores: A score for each run, greater where the canary seems in. Runs
            must be independent of each other.
        included: Whether it was in.
        delta: Delta.
        confidence: Probability with which the bound holds, at least.

    Returns:
        The bound, at least 0.

    Raises:
        ValueError: If an argument is outside its range, or there are fewer
            than two runs of a kind.
    """
    check_delta(delta)
    check_confidence(confidence)
    scores, included = checked_scores(scores, included, least=2)
    choosing = np.zeros(len(scores), bool)
    for kind in (True, False):
        choosing[np.flatnonzero(included == kind)[::2]] = True
    threshold = best_threshold(
        scores[choosing], included[choosing], delta, confidence
    )
    scores, included = scores[~choosing], included[~choosing]
    found = scores > threshold
    return float(
        epsilon_of_counts(
            np.count_nonzero(found & ~included),
            np.count_nonzero(~included),
            np.count_nonzero(~found & included),
            np.count_nonzero(included),
            delta,
            confidence,
        )
    )


def checked_scores(
    scores: Sequence[float] | np.ndarray,
    included: Sequence[bool] | np.ndarray,
    least: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of scores and coins, of one length and finite."""
    scores = np.asarray(scores, np.float64).reshape(-1)
    included = np.asarray(included).reshape(-1)
    if included.dtype != bool:
        raise ValueError(
            "`included` holds booleans: was the canary in? Received an array "
            f"of {included.dtype}."
        )
    if len(scores) != len(included):
        raise ValueError(
            f"There are {len(scores)} scores for {len(included)} entries of "
            "`included`. Give one score for each."
        )
    if not np.all(np.isfinite(scores)):
        raise ValueError(
            f"{np.sum(~np.isfinite(scores))} of {len(scores)} scores are not "
            "finite. Give such outcomes a score of the scale's end."
        )
    if min(np.sum(included), np.sum(~included)) < least:
        raise ValueError(
            f"Needed are at least {least} with the canary and as many "
            f"without. Received: {np.sum(included)} with, "
            f"{np.sum(~included)} without."
        )
    return scores, included
