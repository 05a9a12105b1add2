"""Lower bounds on epsilon from the successes of attacks. Pure statistics.

Two kinds of evidence:

- *Many runs, one canary.* A threshold on a score separates trainings with the
  canary from trainings without. Its error rates, bounded by Clopper and
  Pearson, bound epsilon from below.
- *Many canaries, each included by its own fair coin* (`one_run`). An attack
  guesses some of the coins from the outcome. More right guesses than a
  mechanism of some epsilon allows refute that epsilon, even if all canaries
  were in one run.

Every bound holds with the given confidence: it exceeds the true epsilon with
at most the remaining probability. The counted data choose nothing, unless the
choice is paid for.

Reference:
    - Clopper and Pearson, 1934, "The use of confidence or fiducial limits".
    - Kairouz et al., 2015, "The composition theorem for differential
      privacy", [arXiv 1311.0776](https://arxiv.org/abs/1311.0776).
    - Steinke et al., 2023, "Privacy auditing with one (1) training run",
      [arXiv 2305.08846](https://arxiv.org/abs/2305.08846).
"""

from collections.abc import Sequence

import numpy as np

from tf_dpfp import arguments
from tf_dpfp.late_imports import stats


def check_confidence(confidence: float) -> float:
    """Checks a confidence.

    Args:
        confidence: Probability with which a bound holds.

    Returns:
        The confidence as a Python float.

    Raises:
        ValueError: If it is not above 0 and below 1.
    """
    return arguments.number(
        "confidence",
        confidence,
        above=0.0,
        below=1.0,
        hint="0.95 is usual.",
    )


def check_delta(delta: float) -> float:
    """Checks the delta of a guarantee.

    Args:
        delta: Probability with which the guarantee may fail.

    Returns:
        Delta as a Python float.

    Raises:
        ValueError: If it is not in [0, 1).
    """
    return arguments.number("delta", delta, least=0.0, below=1.0)


def greatest_rate(
    count: int | np.ndarray, trials: int, error: float
) -> float | np.ndarray:
    """Computes Clopper and Pearson's upper bound on a probability.

    Args:
        count: Number of trials in which the event happened.
        trials: Number of independent trials.
        error: Probability with which the bound may be too low.

    Returns:
        The bound; 1 if the event happened in all trials.

    Raises:
        ValueError: If there were no trials.
    """
    trials = arguments.positive_integer("trials", trials)
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
    """Computes the least epsilon that allows a test with these error rates.

    A test of the outcome of an (epsilon, delta)-private mechanism on two
    neighbouring inputs has `1 - fnr <= e^epsilon fpr + delta`, and the same
    with the inputs exchanged.

    Args:
        false_positive_rate: Probability of the answer "in" for an input
            without the canary.
        false_negative_rate: Probability of the answer "out" for an input with
            the canary.
        delta: Delta of the guarantee.

    Returns:
        Epsilon, at least 0; infinity if no finite epsilon allows these rates.
    """
    fpr = np.asarray(false_positive_rate, np.float64)
    fnr = np.asarray(false_negative_rate, np.float64)

    def one_way(found, missed):
        gain = np.maximum(1.0 - delta - missed, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            # 0 / 0: the answer is never "in", and reveals nothing.
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
    """Bounds epsilon from below by the errors of a test in many runs.

    The test must be fixed before anybody looks at these runs. Each error rate
    gets half of the error probability.

    Args:
        false_positives: Number of runs without the canary and with the answer
            "in".
        without: Number of runs without the canary.
        false_negatives: Number of runs with the canary and with the answer
            "out".
        included: Number of runs with the canary.
        delta: Delta of the guarantee.
        confidence: Least probability with which the bound holds.

    Returns:
        The bound, at least 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> bound = epsilon_of_counts(5, 1000, 400, 1000, delta=1e-5)
    >>> round(float(bound), 2)
    3.89
    """
    delta, confidence = check_delta(delta), check_confidence(confidence)
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
    """Chooses the threshold with the greatest bound on these runs.

    That bound is no valid one, for the same runs chose the threshold. Other
    runs must measure it.

    Args:
        scores: One score per run, greater for a canary that seems included.
        included: Booleans, `True` for runs with the canary.
        delta: Delta of the guarantee.
        confidence: Confidence of the later bound.

    Returns:
        The threshold. Scores above it mean "in".

    Raises:
        ValueError: If all runs or no runs have the canary.
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
    """Bounds epsilon from below by runs with and without one canary.

    Every second run of each kind chooses the threshold, and only the others
    are counted. Counted runs have chosen nothing, so the bound needs no
    correction.

    Args:
        scores: One score per run, greater for a canary that seems included.
            Runs must be independent of each other.
        included: Booleans, `True` for runs with the canary.
        delta: Delta of the guarantee.
        confidence: Least probability with which the bound holds.

    Returns:
        The bound, at least 0.

    Raises:
        ValueError: If an argument is out of range, or there are fewer than two
            runs of a kind.
    """
    delta, confidence = check_delta(delta), check_confidence(confidence)
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
            int(np.count_nonzero(found & ~included)),
            int(np.count_nonzero(~included)),
            int(np.count_nonzero(~found & included)),
            int(np.count_nonzero(included)),
            delta,
            confidence,
        )
    )


def checked_scores(
    scores: Sequence[float] | np.ndarray,
    included: Sequence[bool] | np.ndarray,
    least: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Checks scores and coins, and returns them as arrays of one length.

    Args:
        scores: Finite numbers.
        included: As many booleans.
        least: Least number of entries with, and without, the canary.

    Returns:
        `(scores, included)`, flat arrays of float64 and bool.

    Raises:
        ValueError: If they are anything else.
    """
    scores = np.asarray(scores, np.float64).reshape(-1)
    included = np.asarray(included).reshape(-1)
    if included.dtype != bool:
        raise ValueError(
            "`included` must be an array of booleans, `True` where the canary "
            f"was included. Received: dtype={included.dtype}"
        )
    if len(scores) != len(included):
        raise ValueError(
            "`scores` and `included` must have the same length. Received: "
            f"{len(scores)} scores for {len(included)} entries of `included`"
        )
    if not np.all(np.isfinite(scores)):
        raise ValueError(
            "`scores` must be finite: give other outcomes the least or the "
            f"greatest score. Received: {np.sum(~np.isfinite(scores))} of "
            f"{len(scores)} scores are not finite"
        )
    if min(np.sum(included), np.sum(~included)) < least:
        raise ValueError(
            f"At least {least} scores with the canary and {least} without are "
            f"needed. Received: {np.sum(included)} with, {np.sum(~included)} "
            "without"
        )
    return scores, included
