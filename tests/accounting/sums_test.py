"""RDP of Poisson-sampled sums against quadrature and published vectors."""

import decimal
import logging
import math
from unittest import mock

import numpy as np
from absl.testing import parameterized
from scipy import stats

from tf_dpfp.accounting import sums


def _sampled_moment_rdp(rate, noise_multiplier, order):
    """RDP of one sampled Gaussian step by quadrature.

    The trapezoidal rule converges exponentially on an analytic integrand that
    vanishes at both ends. Subtracting one keeps small moments exact.
    """
    x = np.arange(
        -40.0 * noise_multiplier,
        40.0 * noise_multiplier + order,
        noise_multiplier / 100.0,
    )
    log_ratio = np.logaddexp(
        np.log1p(-rate), np.log(rate) + (2 * x - 1) / (2 * noise_multiplier**2)
    )
    log_density = stats.norm.logpdf(x, scale=noise_multiplier)
    terms = np.where(
        order * log_ratio < 1.0,
        np.exp(log_density) * np.expm1(order * np.minimum(log_ratio, 1.0)),
        np.exp(log_density + order * log_ratio) - np.exp(log_density),
    )
    moment = math.fsum(terms) * noise_multiplier / 100.0
    return math.log1p(moment) / (order - 1)


def _exact_rdp(rate, noise_multiplier, order):
    """RDP at an integer order by the binomial sum, to 60 digits."""
    with decimal.localcontext(prec=60):
        q, s = decimal.Decimal(rate), decimal.Decimal(noise_multiplier)
        moment = sum(
            math.comb(order, k)
            * (1 - q) ** (order - k)
            * q**k
            * (k * (k - 1) / (2 * s * s)).exp()
            for k in range(order + 1)
        )
        return moment.ln() / (order - 1)


class SampledRdpTest(parameterized.TestCase):
    @parameterized.product(
        rate=(1e-3, 1e-6, 1e-8, 1e-10), noise_multiplier=(0.7, 1.0, 5.0)
    )
    def test_rounding_never_lowers_a_tiny_moment(self, rate, noise_multiplier):
        # dp_accounting's own figures are below the truth, or below zero, here.
        computed = sums.sampled_rdp(rate, noise_multiplier)
        for order in (2, 3, 8, 32):
            (index,) = np.flatnonzero(sums.orders() == order)
            self.assertGreaterEqual(
                decimal.Decimal(float(computed[index])),
                _exact_rdp(rate, noise_multiplier, order),
            )

    def test_orders_whose_series_fails_keep_the_other_bounds(self):
        gaussian = sums.orders() / 2 / 2.0**2
        for failure in (np.nan, np.inf, 1e300):
            series = 0.5 * gaussian
            series[::3] = failure
            sums.sampled_rdp.cache_clear()
            with mock.patch.object(sums, "_series_rdp", return_value=series):
                computed = sums.sampled_rdp(0.1, 2.0)
            expected = np.where(series < 1e6, series, gaussian)
            expected = np.fmin(expected, sums.quick_sampled_rdp(0.1, 2.0))
            np.testing.assert_allclose(computed, expected, rtol=1e-15)
        sums.sampled_rdp.cache_clear()

    @parameterized.parameters(ValueError, ZeroDivisionError, OverflowError)
    def test_a_series_that_raises_leaves_the_other_bounds(self, error):
        exact = sums.sampled_rdp(0.1, 2.0)
        sums.sampled_rdp.cache_clear()
        with mock.patch.object(
            sums.rdp.RdpAccountant, "compose", side_effect=error
        ):
            computed = sums.sampled_rdp(0.1, 2.0)
        sums.sampled_rdp.cache_clear()
        gaussian = sums.orders() / 2 / 2.0**2
        np.testing.assert_allclose(
            computed,
            np.fmin(gaussian, sums.quick_sampled_rdp(0.1, 2.0)),
            rtol=1e-15,
        )
        self.assertTrue(np.all(computed >= exact * (1.0 - 1e-11)))

    @parameterized.parameters(
        (0.01, 1.0), (0.05, 0.8), (0.5, 0.5), (1e-3, 0.5), (0.9, 0.8), (1e-6, 1)
    )
    def test_step_is_never_below_quadrature(self, rate, noise_multiplier):
        orders = sums.orders()
        computed = sums.sampled_rdp(rate, float(noise_multiplier))
        for order in (1.1, 1.9, 2.0, 3.5, 10.9, 20.0):
            if (order / noise_multiplier) ** 2 > 1000.0:
                continue  # The moment itself is beyond float64.
            index = int(np.argmin(np.abs(orders - order)))
            exact = _sampled_moment_rdp(rate, noise_multiplier, orders[index])
            self.assertGreaterEqual(computed[index], exact)
            self.assertLessEqual(
                computed[index], order / (2 * noise_multiplier**2) * (1 + 1e-12)
            )
            if order in (2.0, 20.0):
                np.testing.assert_allclose(
                    computed[index], exact, rtol=1e-9, atol=2e-12
                )

    def test_gaussian_step_is_exact(self):
        orders = sums.orders()
        np.testing.assert_allclose(
            sums.sampled_rdp(1.0, 1.7),
            orders / (2 * 1.7**2),
            rtol=1e-15,
        )

    def test_step_against_published_vector(self):
        # dp_accounting's rdp_privacy_accountant_test.py.
        orders = sums.orders()
        computed = 50 * sums.sampled_rdp(0.01, 2.5)
        for order, expected in (
            (1.5, 6.70579741e-4),
            (2.5, 1.08548710e-3),
            (5.0, 2.18075656e-3),
            (50.0, 2.38460375e-2),
        ):
            index = int(np.argmin(np.abs(orders - order)))
            # The fractional ones were rounded up.
            self.assertLessEqual(computed[index], expected * (1 + 1e-6))
            if order.is_integer():
                np.testing.assert_allclose(computed[index], expected, rtol=1e-6)

    @parameterized.parameters((1.0, 2.0), (0.9999, 0.3), (0.02, 1.0))
    def test_one_order_alone_has_the_same_bound(self, rate, noise_multiplier):
        whole = sums.sampled_rdp(rate, noise_multiplier)
        for order, bound in zip(sums.orders(), whole, strict=True):
            alone = sums.sampled_rdp_at(rate, noise_multiplier, float(order))
            np.testing.assert_allclose(alone, bound, rtol=1e-12)

    def test_cached_vectors_cannot_be_changed(self):
        for rate in (0.5, 1.0):
            with self.assertRaises(ValueError):
                sums.sampled_rdp(rate, 3.0)[0] = 0.0

    def test_failing_series_leaves_the_gaussian_bound(self):
        # A rate so small, noise so low, that squares under- and overflow.
        for noise in (1e-200, 1e-160, 1e200):
            with self.subTest(noise):
                vector = sums.sampled_rdp(0.3, noise)
                self.assertFalse(np.any(np.isnan(vector)))
                self.assertTrue(np.all(vector > 0.0))
                self.assertGreater(sums.sampled_rdp_at(0.3, noise, 2.0), 0.0)
                quick = sums.quick_sampled_rdp(0.3, noise)
                self.assertFalse(np.any(np.isnan(quick)))
                self.assertTrue(np.all(quick > 0.0))

    def test_series_that_would_never_end_are_not_begun(self):
        for noise in (5e-324, 1e-160, 1e-155, 1e-100, 1e-7):
            for rate in (5e-324, 1e-3, 0.5, 1.0 - 1e-16):
                sums.sampled_rdp(rate, noise)

    def test_dropped_orders_are_not_logged(self):
        logger = logging.getLogger("absl")
        filters = list(logger.filters)
        sums.sampled_rdp.cache_clear()
        with self.assertNoLogs(logger, "WARNING"):
            sums.sampled_rdp(0.05, 0.8)
        self.assertEqual(logger.filters, filters)

    def test_only_that_message_is_silenced(self):
        logger = logging.getLogger("absl")
        with self.assertLogs(logger, "WARNING") as logs:
            with sums._silence_dropped_orders():
                logger.warning("series failed to converge with q=%f", 0.1)
                logger.warning("another")
        self.assertLen(logs.records, 1)
        self.assertEqual(logs.records[0].msg, "another")
