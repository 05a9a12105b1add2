"""Counts are binomial to the last digit, where a float is not."""

import math

import numpy as np
import pytest
from scipy import stats

from tf_dpfp.sampling import binomial
from tf_dpfp.sampling.binomial import BinomialCounts

CASES = [
    (0, 0.5),
    (0, 1.0),
    (1, 1.0),
    (7, 1.0),
    (1, 0.5),
    (9, 5e-324),
    (9, 1 - 2**-53),
    (40, 0.5),
    (150, 0.3),
    (400, 0.05),
    (900, 1e-3),
    (300, 0.77),
]


def _excess(population, rate, counted):
    """Total variation distance of a table from a law, over its bound."""
    least, weights = binomial._weights(*counted)
    total, table = sum(weights), dict(enumerate(weights, least))
    drawn, whole = rate.as_integer_ratio()
    # In integers over one denominator: fractions would be reduced each time.
    denominator, distance = whole**population, 0
    for k in range(population + 1):
        left = (whole - drawn) ** (population - k)
        exact = math.comb(population, k) * drawn**k * left
        distance += abs(table.pop(k, 0) * denominator - exact * total)
    distance += sum(table.values()) * denominator
    bound = 2 * total * denominator * len(weights) ** 2
    return (distance * 2**127) / bound


@pytest.mark.parametrize("population, rate", CASES)
def test_the_table_is_the_binomial_distribution(population, rate):
    assert _excess(population, rate, (population, rate)) <= 1


@pytest.mark.parametrize(
    "other",
    [
        (400, math.nextafter(0.05, 1)),
        (400, math.nextafter(0.05, 0)),
        (401, 0.05),
        (399, 0.05),
    ],
)
def test_the_nearest_other_distribution_is_told_apart(other):
    assert _excess(400, 0.05, other) > 1


def test_a_table_is_as_long_as_the_spread_and_not_as_the_population():
    least, weights = binomial._weights(10**8, 1e-5)
    deviation = math.sqrt(1000)
    assert len(weights) < 28 * deviation
    assert least < 1000 - 12 * deviation
    assert least + len(weights) > 1000 + 12 * deviation


class _Bytes:
    """A generator whose next bytes are known."""

    def __init__(self, value):
        self.value = value

    def bytes(self, length):
        return self.value.to_bytes(length, "little")


def test_each_unit_of_weight_has_its_share_of_the_random_bits():
    counts = BinomialCounts(3, 0.5)  # Weights 1 : 3 : 3 : 1.
    edges = [0, 2**253, 2**255, 2**255 + 2**254 + 2**253, 2**256]
    for count, (first, end) in enumerate(
        zip(edges[:-1], edges[1:], strict=True)
    ):
        # Thirds of a power of 2 are rounded, by a unit of weight at most.
        for value in (first + 2**128, end - 2**128):
            assert counts.draw(_Bytes(value)) == count
    assert counts.draw(_Bytes(0)) == 0
    assert counts.draw(_Bytes(2**256 - 1)) == 3


def _p_value(drawn, population, rate):
    law = stats.binom(population, rate)
    edges = np.unique(law.ppf(np.linspace(0, 1, 31)[1:-1]))
    expected = np.diff(np.concatenate([[0], law.cdf(edges), [1]]))
    observed = np.bincount(
        np.searchsorted(edges, drawn), minlength=len(expected)
    )
    return stats.chisquare(observed, expected * len(drawn)).pvalue


@pytest.mark.parametrize("population, rate", [(10**8, 1e-6), (50, 0.6)])
def test_draws_follow_the_distribution(population, rate):
    rng = np.random.default_rng(1)
    counts = BinomialCounts(population, rate)
    drawn = [counts.draw(rng) for _ in range(20000)]
    assert _p_value(drawn, population, rate) > 1e-4
    # One more or less on average for every hundred is noticed.
    wrong = BinomialCounts(population, rate * 1.01)
    drawn = [wrong.draw(rng) for _ in range(20000)]
    assert _p_value(drawn, population, rate) < 1e-7
    fixed = np.full(20000, round(population * rate))
    assert _p_value(fixed, population, rate) < 1e-7
