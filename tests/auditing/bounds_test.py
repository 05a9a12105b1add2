"""Bounds against exact sums, and their coverage in simulations."""

import math

import numpy as np
import pytest
from scipy import optimize
from scipy import stats

from tf_dpfp.auditing import bounds
from tf_dpfp.auditing import one_run

SIMULATIONS = 1000


def gaussian_epsilon(mu, delta):
    """Epsilon of telling N(0, 1) from N(mu, 1), by the closed form."""

    def excess(epsilon):
        return (
            stats.norm.cdf(mu / 2 - epsilon / mu)
            - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
            - delta
        )

    return optimize.brentq(excess, 0.0, 60.0) if excess(0.0) > 0 else 0.0


@pytest.mark.parametrize(
    "count, trials", [(0, 10), (3, 10), (10, 10), (7, 900)]
)
def test_greatest_rate_is_the_one_that_clopper_and_pearson_solve_for(
    count, trials
):
    bound = bounds.greatest_rate(count, trials, 0.03)
    if count == trials:
        assert bound == 1.0
    else:
        assert stats.binom.cdf(count, trials, bound) == pytest.approx(0.03)


def test_epsilon_of_rates_is_that_of_randomised_response_and_of_gaussians():
    flip = 1 / (1 + math.exp(1.3))
    assert bounds.epsilon_of_rates(flip, flip, 0.0) == pytest.approx(1.3)
    # The best threshold of a Gaussian attains its epsilon, at any delta.
    for mu, delta in [(1.0, 1e-3), (0.5, 0.1), (2.0, 1e-5)]:
        epsilon = gaussian_epsilon(mu, delta)
        threshold = mu / 2 + epsilon / mu
        found = bounds.epsilon_of_rates(
            stats.norm.sf(threshold), stats.norm.cdf(threshold, mu), delta
        )
        assert found == pytest.approx(epsilon)
        # Turned around, the same test: "out" instead of "in".
        assert found == pytest.approx(
            bounds.epsilon_of_rates(
                stats.norm.cdf(threshold, mu), stats.norm.sf(threshold), delta
            )
        )


def test_epsilon_of_rates_at_the_ends():
    assert bounds.epsilon_of_rates(0.0, 0.5, 0.0) == math.inf
    assert bounds.epsilon_of_rates(0.0, 1.0, 0.0) == 0.0
    assert bounds.epsilon_of_rates(0.5, 0.5, 0.0) == 0.0
    # Worse than guessing is the same test turned around, not a negative one.
    assert bounds.epsilon_of_rates(0.9, 0.9, 0.0) == 0.0
    assert bounds.epsilon_of_rates(0.0, 1 - 1e-3, 1e-3) == 0.0


def test_epsilon_of_counts_uses_upper_bounds_of_both_rates():
    fpr = stats.beta.ppf(0.975, 4, 97)
    fnr = stats.beta.ppf(0.975, 21, 180)
    expected = max(math.log((0.99 - fnr) / fpr), math.log((0.99 - fpr) / fnr))
    assert bounds.epsilon_of_counts(3, 100, 20, 200, 0.01) == pytest.approx(
        expected
    )
    # Perfect on 500 runs of each kind: limited by their number.
    perfect = bounds.epsilon_of_counts(0, 500, 0, 500, 0.0)
    assert math.log(500 / 4) < perfect < math.log(500 / 3)


def gaussian(rng, included, mu):
    return included * mu + rng.normal(size=len(included))


def randomised_response(rng, included, epsilon, reveal=0.0):
    """Flips coins; with probability `reveal` shows one for sure."""
    flipped = rng.random(len(included)) < 1 / (1 + math.exp(epsilon))
    scores = np.where(included ^ flipped, 1.0, -1.0)
    shown = rng.random(len(included)) < reveal
    return np.where(shown, np.where(included, 2.0, -2.0), scores)


MECHANISMS = {
    # Name: (how to draw scores, the true epsilon, at this delta).
    "nothing": (lambda r, c: gaussian(r, c, 0.0), 0.0, 0.0),
    "response": (lambda r, c: randomised_response(r, c, 1.0), 1.0, 0.0),
    "revealing": (
        lambda r, c: randomised_response(r, c, 1.0, 1e-3),
        1.0,
        1e-3,
    ),
    # Nothing, except for some coins that are plain to see.
    "lottery": (lambda r, c: randomised_response(r, c, 0.0, 0.03), 0.0, 0.03),
    "gaussian": (
        lambda r, c: gaussian(r, c, 1.0),
        gaussian_epsilon(1.0, 0.1),
        0.1,
    ),
    "clear": (
        lambda r, c: gaussian(r, c, 6.0),
        gaussian_epsilon(6.0, 1e-5),
        1e-5,
    ),
}
BOUNDS = {
    "many_runs": bounds.many_runs_epsilon,
    "one_run": one_run.one_run_epsilon,
}


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("bound", BOUNDS)
def test_the_truth_is_exceeded_no_more_often_than_promised(bound, mechanism):
    draw, epsilon, delta = MECHANISMS[mechanism]
    rng = np.random.default_rng(1)
    exceeded = 0
    for _ in range(SIMULATIONS):
        included = rng.integers(0, 2, 200).astype(bool)
        found = BOUNDS[bound](draw(rng, included), included, delta)
        # A bound of zero on an epsilon of zero is no excess.
        exceeded += found > epsilon
    assert exceeded <= 0.05 * SIMULATIONS


@pytest.mark.parametrize(
    "bound, mechanism, least",
    [
        ("many_runs", "response", 0.9),
        ("one_run", "response", 0.9),
        ("many_runs", "revealing", 0.9),
        ("many_runs", "gaussian", 0.85),
    ],
)
def test_a_large_audit_comes_near_the_truth(bound, mechanism, least):
    draw, epsilon, delta = MECHANISMS[mechanism]
    rng = np.random.default_rng(2)
    included = rng.integers(0, 2, 40_000).astype(bool)
    found = BOUNDS[bound](draw(rng, included), included, delta)
    assert least * epsilon < found <= epsilon


def test_many_runs_counts_only_runs_that_chose_nothing():
    # The runs that choose are told apart by nothing, the others perfectly:
    # all runs together would give a bound.
    included = np.arange(400) % 2 == 0
    choosing = np.arange(400) % 4 < 2
    scores = np.where(choosing, 0.0, np.where(included, 1.0, 2.0))
    assert bounds.many_runs_epsilon(scores, included, 0.0) == 0.0
    turned = np.where(choosing, included * 1.0, 0.0)
    assert bounds.many_runs_epsilon(turned, included, 0.0) == 0.0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([0.0, 1.0], [True]), "2 scores for 1"),
        (([0.0, math.nan, 1, 2], [True, False] * 2), "1 of 4 scores are not"),
        (([0.0, 1.0], [1, 0]), "array of booleans"),
        (([0.0, 1.0, 2.0], [True, False, True]), "2 with, 1 without"),
    ],
)
def test_scores_that_can_not_be_counted_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bounds.many_runs_epsilon(*arguments, 1e-5)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="confidence=1.0"):
        bounds.epsilon_of_counts(0, 5, 0, 5, 0.0, confidence=1.0)
    with pytest.raises(ValueError, match="delta=1.0"):
        bounds.epsilon_of_counts(0, 5, 0, 5, 1.0)
    with pytest.raises(ValueError, match="trials=0"):
        bounds.epsilon_of_counts(0, 0, 0, 5, 0.0)
