"""Guesses of canaries against the theorem, in fractions."""

import fractions
import math

import numpy as np
import pytest

from tf_dpfp.auditing import one_run


def exact_p_value(canaries, guesses, correct, odds, delta):
    """The theorem in fractions; odds are e^epsilon."""
    q = fractions.Fraction(odds) / (1 + fractions.Fraction(odds))
    mass = [
        math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k)
        for k in range(guesses + 1)
    ]

    def tail(least):
        return sum(mass[max(least, 0) :], fractions.Fraction(0))

    beta = tail(correct)
    alpha = max((tail(correct - i) - beta) / i for i in range(1, canaries + 1))
    return min(1, beta + 2 * canaries * fractions.Fraction(delta) * alpha)


@pytest.mark.parametrize(
    "canaries, guesses, correct, odds, delta",
    [
        (10, 10, 9, 2, "1/1000"),
        (30, 12, 12, 3, "1/10000"),
        (25, 20, 13, 1, "1/100"),
        (8, 8, 8, 2, "0"),
        (40, 5, 0, 2, "1/10"),
    ],
)
def test_one_run_p_value_is_the_theorem(
    canaries, guesses, correct, odds, delta
):
    exact = exact_p_value(canaries, guesses, correct, odds, delta)
    found = one_run.one_run_p_value(
        canaries,
        guesses,
        correct,
        math.log(odds),
        float(fractions.Fraction(delta)),
    )
    assert found == pytest.approx(float(exact), rel=1e-9)


def test_epsilon_of_guesses_is_where_the_p_value_crosses():
    bound = one_run.epsilon_of_guesses(1000, 200, 180, 1e-5, 0.95)
    assert 1.5 < bound < math.log(180 / 20)
    p_value = one_run.one_run_p_value(1000, 200, 180, bound, 1e-5)
    assert p_value == pytest.approx(0.05, rel=1e-6) and p_value <= 0.05
    assert one_run.epsilon_of_guesses(1000, 200, 100, 1e-5) == 0.0
    # More right, more canaries to have failed by delta, a greater delta.
    assert one_run.epsilon_of_guesses(1000, 200, 185, 1e-5) > bound
    assert one_run.epsilon_of_guesses(9000, 200, 180, 1e-5) < bound
    assert one_run.epsilon_of_guesses(1000, 200, 180, 1e-3) < bound


def test_ties_do_not_follow_the_order_of_the_coins():
    # Constant scores tell nothing, in whatever order the canaries come.
    for included in (np.arange(2000) < 1000, np.arange(2000) >= 1000):
        assert one_run.one_run_epsilon(np.zeros(2000), included, 0.0) < 0.1


def test_given_guess_counts_are_kept_to():
    rng = np.random.default_rng(3)
    included = rng.integers(0, 2, 1000).astype(bool)
    scores = rng.normal(3.0 * included)
    order = np.argsort(scores)
    correct = np.sum(included[order[-60:]]) + np.sum(~included[order[:40]])
    assert one_run.one_run_epsilon(
        scores, included, 1e-6, guesses=[(60, 40)]
    ) == one_run.epsilon_of_guesses(1000, 100, int(correct), 1e-6)
    assert one_run.one_run_epsilon(scores, included, 1e-6, guesses=[]) == 0.0
    with pytest.raises(ValueError, match="can't be made of 1000 canaries"):
        one_run.one_run_epsilon(scores, included, 0.0, guesses=[(900, 200)])
    with pytest.raises(ValueError, match="can't be made of 1000 canaries"):
        one_run.one_run_epsilon(scores, included, 0.0, guesses=[(20, -2)])


def test_more_right_guesses_than_guesses_are_refused():
    with pytest.raises(ValueError, match="correct=6, guesses=5"):
        one_run.one_run_p_value(10, 5, 6, 1.0, 0.0)
