"""Epsilon of ledgers with many kinds of steps: a bound, found quickly."""

import time

import numpy as np
import pytest

from tf_dpfp import accounting
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import representations
from tf_dpfp.accounting import sums

ORDERS = tuple(sums.orders().tolist())
SETTINGS = [(0.001, 1.0), (0.01, 0.5), (0.3, 2.0), (0.9, 0.3), (0.5, 100.0)]


@pytest.mark.parametrize(("rate", "noise"), SETTINGS)
def test_the_quick_bound_of_sums_is_one_and_exact_at_integers(rate, noise):
    exact = sums.sampled_rdp(rate, noise)
    quick = sums.quick_sampled_rdp(rate, noise)
    assert np.all(quick >= exact * (1.0 - 1e-11))
    integer = [o.is_integer() for o in ORDERS]
    np.testing.assert_allclose(quick[integer], exact[integer], rtol=1e-9)
    # Convexity allows no more than the divergence of the next integer order.
    assert np.all(quick[:-1] <= np.maximum.accumulate(quick[::-1])[::-1][:-1])


def test_chords_stand_in_for_fractional_orders_that_fail(monkeypatch):
    # As versions of dp_accounting drop them whose series converges slowly.
    series = sums._series_rdp

    def integers_only(rate, noise, at):
        return np.where(at % 1.0 == 0.0, series(rate, noise, at), np.inf)

    expected = sums.sampled_rdp(0.31, 2.1)
    sums.sampled_rdp.cache_clear()
    monkeypatch.setattr(sums, "_series_rdp", integers_only)
    found = sums.sampled_rdp(0.31, 2.1)
    sums.sampled_rdp.cache_clear()
    quick = sums.quick_sampled_rdp(0.31, 2.1)
    np.testing.assert_allclose(found, quick, rtol=1e-11)
    assert np.all(found >= expected * (1.0 - 1e-11))
    # Not far above, though the Gaussian is several times that.
    assert np.all(found[5:] <= 1.3 * expected[5:])
    assert found[20] == pytest.approx(
        sums.sampled_rdp_at(0.31, 2.1, ORDERS[20]), rel=1e-11
    )


@pytest.mark.parametrize(("rate", "noise"), SETTINGS)
def test_the_quick_bound_of_draws_is_one(rate, noise):
    exact = representations.sampled_rdp(rate, noise, ORDERS)
    quick = representations.quick_sampled_rdp(rate, noise, ORDERS)
    finite = np.isfinite(exact)
    assert np.all(quick[finite] >= exact[finite] * (1.0 - 1e-11))
    for anchor in (2.0, 8.0, 63.0, max(ORDERS)):
        at = ORDERS.index(anchor)
        assert quick[at] == pytest.approx(exact[at], rel=1e-9)


def test_nothing_is_said_above_the_greatest_order():
    with pytest.raises(ValueError, match="greatest order"):
        sums.along_chords(
            np.array([2.0, 4.0]), np.array([1.0, 3.0]), np.array([5.0])
        )


def _kinds(count, sampling, release):
    return [
        accounting.LedgerEntry(sampling(k), 1.0 + k / 1000, 5, release=release)
        for k in range(1, count + 1)
    ]


def _poisson(count):
    return _kinds(
        count,
        lambda k: accounting.PoissonSampling(k / 20_000),
        accounting.Sums(),
    )


def test_a_few_kinds_are_exact_and_more_are_bounded(monkeypatch):
    entries = _poisson(6)
    exact = accounting.compute_epsilon(entries, 1e-5)
    monkeypatch.setattr(epsilon_lib, "MOST_EXACT", 5)
    bound = accounting.compute_epsilon(entries, 1e-5)
    assert exact <= bound * (1.0 + 1e-9)
    assert bound <= 1.02 * exact


@pytest.mark.parametrize("kind", ["sums", "representations"])
def test_a_thousand_kinds_take_seconds(kind):
    entries = _poisson(1000)
    if kind == "representations":
        entries = _kinds(
            1000,
            lambda k: accounting.WithoutReplacement(20_000, k),
            accounting.Representations("public"),
        )
    start = time.process_time()
    assert 0.0 < accounting.compute_epsilon(entries, 1e-5) < np.inf
    assert time.process_time() - start < 10.0
