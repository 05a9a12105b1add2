"""Quick answers to "within the budget?" against epsilon itself."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tf_dpfp import accounting
from tf_dpfp.accounting import calibration
from tf_dpfp.accounting import sums
from tf_dpfp.accounting import within

DELTA = 1e-5
SETTINGS = [
    (1e-4, 0.5),
    (0.001, 1.0),
    (0.01, 0.3),
    (0.3, 2.0),
    (0.9, 0.3),
    (0.3, 50.0),
    (0.2, 1e-7),
]


@pytest.mark.parametrize(("rate", "noise"), SETTINGS)
def test_the_lower_bound_is_one_and_near(rate, noise):
    exact = sums.sampled_rdp(rate, noise)
    least = sums.least_sampled_rdp(rate, noise)
    assert np.all(least <= exact)
    assert np.all(least > 0.0)
    integer = [order.is_integer() and noise > 1e-6 for order in sums.orders()]
    np.testing.assert_allclose(least[integer], exact[integer], rtol=1e-4)


@pytest.mark.parametrize(("rate", "noise"), SETTINGS)
def test_one_order_alone_is_that_of_all(rate, noise):
    for index in (0, 1, 20, 77, 98, 120, 155):
        at = sums.sampled_rdp_at(rate, noise, float(sums.orders()[index]))
        assert at == pytest.approx(
            sums.sampled_rdp(rate, noise)[index], rel=1e-12
        )


def _entry(rate, noise, steps, overflow=0.0, release=None):
    sampling = accounting.PoissonSampling(rate, overflow)
    release = accounting.Sums() if release is None else release
    return accounting.LedgerEntry(sampling, noise, steps, release=release)


@hypothesis.settings(max_examples=6, deadline=None)
@hypothesis.given(
    st.floats(1e-4, 1.0),
    st.floats(0.3, 30.0),
    st.integers(1, 5000),
    st.sampled_from([0.0, 1e-15, 1e-9, 1e-6]),
    st.sampled_from([0.98, 0.9999, 1.0001, 1.02]),
)
def test_answers_are_those_of_epsilon(rate, noise, steps, overflow, factor):
    ran = [_entry(rate, noise, steps, overflow), _entry(0.01, 3.0, 100)]
    epsilon = accounting.compute_epsilon(ran, DELTA)
    hypothesis.assume(np.isfinite(epsilon) and epsilon > 1e-3)
    assert within.is_within(ran, factor * epsilon, DELTA) == (factor > 1.0)


def test_answers_of_other_kinds_of_steps():
    for ran in (
        [],
        [_entry(0.1, 0.0, 5)],
        [
            accounting.LedgerEntry(
                accounting.WithoutReplacement(100, 8),
                2.0,
                9,
                release=accounting.Representations("public"),
            ),
            _entry(0.1, 2.0, 30),
        ],
        [accounting.LedgerEntry(accounting.UnknownSampling(), 9.0, 4)],
        [_entry(k / 1000, 1.0, 3) for k in range(1, 40)],
    ):
        epsilon = accounting.compute_epsilon(ran, DELTA)
        assert within.is_within(ran, 1e9, DELTA) == np.isfinite(epsilon)
        if epsilon > 0.0 and np.isfinite(epsilon):
            assert within.is_within(ran, 1.0001 * epsilon, DELTA)
            assert not within.is_within(ran, 0.9999 * epsilon, DELTA)


def _by_bisection(released, epsilon, tolerance):
    """Bisects on epsilon itself, the way in which calibration began."""

    def sufficient(noise):
        return accounting.compute_epsilon(released(noise), DELTA) <= epsilon

    low, high = 0.0, 1.0
    while not sufficient(high):
        low, high = high, 2.0 * high
    while high - low > tolerance:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if sufficient(middle) else (middle, high)
    return high


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps", "overflow"),
    [
        (3.0, 0.25, 400, 0.0),
        (1.0, 0.01, 600, 1e-15),
        (8.0, 0.004, 5000, 0.0),
        (0.2, 1.0, 3, 0.0),
    ],
)
def test_calibration_finds_the_same_with_few_divergences(
    epsilon, rate, steps, overflow, monkeypatch
):
    computed, series = [], sums._series_rdp
    monkeypatch.setattr(
        sums,
        "_series_rdp",
        lambda q, z, at: [computed.append(len(at)), series(q, z, at)][1],
    )

    def released(noise):
        return [_entry(rate, noise, steps, overflow)]

    found = accounting.calibrate_noise_multiplier(
        epsilon, DELTA, rate, steps, overflow_probability=overflow
    )
    quick = sum(computed)
    sums.sampled_rdp.cache_clear()
    computed.clear()
    expected = _by_bisection(released, epsilon, 1e-4)
    assert found == pytest.approx(expected, abs=1e-9)
    assert quick <= 0.25 * sum(computed)


def test_the_accountant_has_the_last_word(monkeypatch):
    monkeypatch.setattr(within, "is_within", lambda entries, *_: True)
    found = calibration.least_noise(
        lambda noise: [_entry(1.0, noise, 1)], 1.0, DELTA, tolerance=0.5
    )
    assert accounting.compute_epsilon([_entry(1.0, found, 1)], DELTA) <= 1.0
