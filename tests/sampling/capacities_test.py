"""Tests for `sampling.capacities`."""

import numpy as np
import pytest
from scipy import stats

from tf_dpfp.sampling import capacities


@pytest.mark.parametrize(
    "population, rate",
    [(1, 1.0), (7, 0.5), (60000, 2048 / 60000), (10**6, 1e-5), (50, 1e-12)],
)
def test_default_capacity_is_the_smallest_that_suffices(population, rate):
    capacity = capacities.default_capacity(population, rate)
    assert capacity % 8 == 0 and capacity >= 8

    # Summed term by term, smallest first, instead of by the tail function.
    def tail(rows):
        terms = stats.binom.logpmf(
            np.arange(rows + 1, population + 2), population + 1, rate
        )
        return np.exp(np.sort(terms)).sum()

    assert tail(capacity) <= 1e-15
    assert capacity == 8 or tail(capacity - 8) > 1e-15
    np.testing.assert_allclose(
        capacities.overflow_probability(population, rate, capacity),
        tail(capacity),
        rtol=1e-6,
        atol=1e-300,
    )


def test_the_overflow_bound_holds_for_the_neighbouring_data_set():
    bound = capacities.overflow_probability(10, 0.5, 10)
    assert bound == pytest.approx(0.5**11)
