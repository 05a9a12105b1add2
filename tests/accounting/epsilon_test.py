"""Epsilon against published figures, closed forms and quadrature."""

import math
import time

import dp_accounting
import hypothesis
import numpy as np
from absl.testing import parameterized
from dp_accounting import rdp
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings

_EXAMPLES = hypothesis.settings(max_examples=20, deadline=None)
_RATES = st.floats(1e-5, 1.0)
_NOISES = st.floats(0.4, 20.0)
_DELTAS = st.floats(-9.0, -2.0).map(lambda power: 10.0**power)
_STEPS = st.integers(1, 10_000)


def _poisson(rate, noise_multiplier, steps, overflow=0.0):
    return entries_lib.LedgerEntry(
        samplings.PoissonSampling(rate, overflow), noise_multiplier, steps
    )


def _by_dp_accounting(rate, noise_multiplier, steps, delta):
    accountant = rdp.RdpAccountant()
    accountant.compose(
        dp_accounting.PoissonSampledDpEvent(
            rate, dp_accounting.GaussianDpEvent(noise_multiplier)
        ),
        steps,
    )
    return accountant.get_epsilon(delta)


def _unknown(noise_multiplier, steps):
    return entries_lib.LedgerEntry(
        samplings.UnknownSampling(), noise_multiplier, steps
    )


def _gaussian_delta(epsilon, mu):
    """Balle and Wang 2018, Theorem 8, with mu = sensitivity / std."""
    return stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(
        epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)
    )


def _gaussian_epsilon(delta, mu):
    if _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    return optimize.brentq(
        lambda epsilon: _gaussian_delta(epsilon, mu) - delta, 0.0, 600.0
    )


class PublishedFiguresTest(parameterized.TestCase):
    # TF-Privacy's analysis/compute_dp_sgd_privacy_test.py, Opacus's
    # tests/accountants_test.py and JAX-Privacy's accounting.py.
    @parameterized.parameters(
        (1.3, 150 / 60000, 6000, 1e-5, 0.7242234026, 0.64011),
        (1.0, 100 / 100000, 30000, 1e-7, 1.4154988495, 1.09820),
        (0.7, 0.01, 120, 1e-5, 3.2391922, 2.4612381),
        (0.7, 1.0, 2, 1e-5, 10.8602036, 10.1224946),
        (1.0, 64 / 10000, 782, 1e-6, 1.61639, 1.19865),
        (1.5, 0.04, 2250, 1e-5, 7.32911117, 6.76879),
        (3.0, 0.1, 512, 1e-6, None, 3.76969),
        (1.1, 256 / 60000, 14062, 1e-5, 2.5966, 2.3817),
        (0.8, 0.05, 100, 1e-6, 7.666, 6.73063),
        (1.5, 0.05, 1000, 1e-6, 6.668, 6.19970),
        (2.0, 0.001, 20000, 1e-6, 0.3227, 0.29671),
        (0.8, 0.001, 100, 1e-6, 1.371, 0.260),
    )
    def test_sampled_gaussian(self, noise, rate, steps, delta, by_rdp, by_pld):
        entries = [_poisson(rate, noise, steps)]
        if by_rdp is not None:
            np.testing.assert_allclose(
                epsilon_lib.compute_epsilon(entries, delta),
                by_rdp,
                # Versions of dp_accounting round the series of fractional
                # orders up by up to this much.
                rtol=1e-3,
            )
        np.testing.assert_allclose(
            epsilon_lib.compute_epsilon(entries, delta, "pld"),
            by_pld,
            rtol=2e-4 if by_pld > 0.5 else 2e-3,
        )

    def test_integer_order_figures_to_all_digits(self):
        # Found at orders 19 and 13, where no series is cut off.
        np.testing.assert_allclose(
            epsilon_lib.compute_epsilon([_poisson(0.0025, 1.3, 6000)], 1e-5),
            0.7242234026,
            rtol=1e-8,
        )
        np.testing.assert_allclose(
            epsilon_lib.compute_epsilon([_poisson(0.001, 1.0, 30000)], 1e-7),
            1.4154988495,
            rtol=1e-8,
        )

    def test_figure_at_a_small_fractional_order(self):
        # Published as 22.6248601, which rounds up the series of order 1.7.
        epsilon = epsilon_lib.compute_epsilon([_poisson(0.01, 0.35, 120)], 1e-5)
        self.assertBetween(epsilon, 22.59703, 22.62487)
        np.testing.assert_allclose(
            epsilon_lib.compute_epsilon(
                [_poisson(0.01, 0.35, 120)], 1e-5, "pld"
            ),
            18.6977407,
            rtol=1e-5,
        )

    def test_sampled_gaussian_at_low_noise(self):
        # dp_accounting's pld_privacy_accountant_test.py: delta(1) = 0.15594.
        np.testing.assert_allclose(
            epsilon_lib.compute_epsilon(
                [_poisson(0.2, 0.5, 3)], 0.15594, "pld"
            ),
            1.0,
            atol=1e-3,
        )


class ClosedFormTest(parameterized.TestCase):
    @parameterized.parameters(
        (1.0, 1, 1e-5),
        (4.2246789, 1, 1e-6),
        (5.0, 100, 1e-5),
        (2.0, 1000, 1e-3),
        (50.0, 10, 1e-9),
    )
    def test_exact_gaussian_is_below_pld_is_below_rdp(
        self, noise, steps, delta
    ):
        # An example left out moves each fixed batch by two clip norms.
        exact = _gaussian_epsilon(delta, 2.0 * math.sqrt(steps) / noise)
        by_pld = epsilon_lib.compute_epsilon(
            [_unknown(noise, steps)], delta, "pld"
        )
        by_rdp = epsilon_lib.compute_epsilon([_unknown(noise, steps)], delta)
        self.assertLessEqual(exact, by_pld + 1e-9)
        self.assertLess(by_pld, exact + 2e-3 + 1e-3 * exact)
        self.assertLessEqual(by_pld, by_rdp)

    def test_convolved_pld_is_above_the_exact_gaussian_at_small_delta(self):
        # At a rate next to one the PLD is composed by FFT, yet the mechanism
        # is the Gaussian up to 1e-9 in total variation.
        for delta in (1e-5, 1e-8, epsilon_lib.MIN_PLD_DELTA):
            exact = _gaussian_epsilon(2 * delta, math.sqrt(100) / 20.0)
            by_pld = epsilon_lib.compute_epsilon(
                [_poisson(1.0 - 1e-13, 20.0, 100)], delta, "pld"
            )
            self.assertGreaterEqual(by_pld, exact)

    def test_analytic_gaussian_figures(self):
        # mu = 1: delta(1) = 0.1269367; and (1, 1e-6) needs sigma 4.2246789.
        # Fixed batches have sensitivity 2, so noise of the multiplier's half.
        for entry, delta in (
            (_unknown(2.0 * math.sqrt(3.0), 3), 0.1269367),
            (_unknown(2.0 * 4.2246789, 1), 1e-6),
            (_poisson(1.0, 4.2246789, 1), 1e-6),
        ):
            np.testing.assert_allclose(
                epsilon_lib.compute_epsilon([entry], delta, "pld"),
                1.0,
                atol=5e-4,
            )

    @_EXAMPLES
    @hypothesis.given(_NOISES, _STEPS, _DELTAS)
    def test_rdp_of_gaussian_is_the_best_order_of_the_formula(
        self, noise, steps, delta
    ):
        # Canonne, Kamath and Steinke 2020, Proposition 12.
        orders = rdp.RdpAccountant().orders
        # Sensitivity 2 of fixed batches: its square is 4.
        formula = (
            4 * orders * steps / (2 * noise**2)
            + np.log1p(-1 / orders)
            - np.log(delta * orders) / (orders - 1)
        )
        computed = epsilon_lib.compute_epsilon([_unknown(noise, steps)], delta)
        self.assertLessEqual(computed, max(0.0, formula.min()) + 1e-9)
        exact = 0.0
        if 4 * steps / noise**2 < 500:
            exact = _gaussian_epsilon(delta, 2 * math.sqrt(steps) / noise)
        self.assertGreaterEqual(computed, exact - 1e-9)

    def test_split_noise_composes_like_one_release(self):
        # Two Gaussians of sqrt(2) sigma are one of sigma.
        np.testing.assert_allclose(
            epsilon_lib.compute_epsilon([_unknown(math.sqrt(2.0), 2)], 1e-5),
            epsilon_lib.compute_epsilon([_unknown(1.0, 1)], 1e-5),
            rtol=1e-12,
        )

    def test_agrees_with_the_accountants_of_dp_accounting(self):
        entries = [_poisson(0.02, 1.2, 300), _unknown(30.0, 5)]
        event = dp_accounting.ComposedDpEvent(
            [
                dp_accounting.SelfComposedDpEvent(
                    dp_accounting.PoissonSampledDpEvent(
                        0.02, dp_accounting.GaussianDpEvent(1.2)
                    ),
                    300,
                ),
                # Of fixed batches with noise multiplier 30, sensitivity 2.
                dp_accounting.SelfComposedDpEvent(
                    dp_accounting.GaussianDpEvent(15.0), 5
                ),
            ]
        )
        for name, accountant in (
            ("rdp", dp_accounting.rdp.RdpAccountant()),
            ("pld", dp_accounting.pld.PLDAccountant()),
        ):
            np.testing.assert_allclose(
                epsilon_lib.compute_epsilon(entries, 1e-5, name),
                accountant.compose(event).get_epsilon(1e-5),
                rtol=1e-7,
            )


class AdjacencyTest(parameterized.TestCase):
    def test_fixed_batches_by_hand(self):
        # 100 Gaussians of multiplier 50: mu is 2 sqrt(100) / 50 where an
        # example moves others, and half of that where it is zeroed out.
        adjacency = releases.Adjacency
        for kind, mu in (
            (None, 0.4),
            (adjacency.ADD_OR_REMOVE_ONE, 0.4),
            (adjacency.ZERO_OUT, 0.2),
        ):
            np.testing.assert_allclose(
                epsilon_lib.compute_epsilon(
                    [_unknown(50.0, 100)], 1e-5, "pld", kind
                ),
                _gaussian_epsilon(1e-5, mu),
                rtol=2e-3,
            )
        # By replacement, RDP alone; it is the same Gaussian.
        self.assertEqual(
            epsilon_lib.compute_epsilon(
                [_unknown(50.0, 100)], 1e-5, "rdp", adjacency.REPLACE_ONE
            ),
            epsilon_lib.compute_epsilon([_unknown(50.0, 100)], 1e-5),
        )

    def test_zero_out_keeps_poisson_sampling(self):
        for accountant in epsilon_lib.ACCOUNTANTS:
            self.assertEqual(
                epsilon_lib.compute_epsilon(
                    [_poisson(0.1, 2.0, 50)],
                    1e-5,
                    accountant,
                    releases.Adjacency.ZERO_OUT,
                ),
                epsilon_lib.compute_epsilon(
                    [_poisson(0.1, 2.0, 50)], 1e-5, accountant
                ),
            )

    def test_labels_are_replaced_only(self):
        labels = entries_lib.LedgerEntry(
            samplings.EveryLabel(3, 7), 1.0, 1, release=releases.Labels()
        )
        for kind in releases.Adjacency:
            if kind is releases.Adjacency.REPLACE_ONE:
                continue
            with self.assertRaisesRegex(ValueError, "replace-one"):
                epsilon_lib.compute_epsilon([labels], 1e-5, "rdp", kind)

    @parameterized.parameters("zero_out", 1, True)
    def test_bad_adjacency_is_refused(self, adjacency):
        with self.assertRaisesRegex(ValueError, "adjacency"):
            epsilon_lib.compute_epsilon([], 1e-5, "rdp", adjacency)

    def test_steps_of_fixed_batches_cost_four_times_as_many(self):
        # steps / noise^2 is what counts, and half the noise is four of it.
        step = [_unknown(50.0, 1)]
        plain = [_poisson(1.0, 50.0, 1)]
        self.assertEqual(
            epsilon_lib.max_steps([], step, 2.0, 1e-5),
            epsilon_lib.max_steps([], plain, 2.0, 1e-5) // 4,
        )


class PropertiesTest(parameterized.TestCase):
    @_EXAMPLES
    # 66.283 and 66.285.
    @hypothesis.example(0.875, 1.0, 97, 0.01, 1.0, 0.96875, 1, 0.01)
    @hypothesis.given(
        rate=_RATES,
        noise=_NOISES,
        steps=_STEPS,
        delta=_DELTAS,
        by=st.floats(1.0, 3.0),
        share=st.floats(0.01, 1.0),
        more=_STEPS,
        other=_DELTAS,
    )
    def test_it_moves_as_it_must(
        self, rate, noise, steps, delta, by, share, more, other
    ):
        def epsilon(rate=rate, noise=noise, steps=steps, delta=delta):
            return epsilon_lib.compute_epsilon(
                [_poisson(rate, noise, steps)], delta
            )

        here = epsilon()
        self.assertLessEqual(here, epsilon(steps=steps + more))
        # More noise and a lower rate never raise it; above 50 they do by
        # dp_accounting, which leaves out orders there, and no further.
        for setting in (rate, noise * by), (rate * share, noise):
            found, most = epsilon(*setting), here * (1 + 1e-6) + 1e-6
            if found > max(most, 50.0):
                known = _by_dp_accounting(*setting, steps, delta)
                most = known * (1 + 1e-9)
            self.assertLessEqual(found, most)
        at_less, at_more = (epsilon(delta=d) for d in sorted((delta, other)))
        self.assertLessEqual(at_more, at_less)
        # Sampling is worth something only when it is proved. A fixed batch may
        # lose an example and gain another: half the noise.
        ordinary = samplings.UnknownSampling(population=10**6, batch_size=1)
        unproved = epsilon_lib.compute_epsilon(
            [entries_lib.LedgerEntry(ordinary, noise, steps)], delta
        )
        self.assertEqual(unproved, epsilon(rate=1.0, noise=noise / 2.0))
        self.assertLessEqual(here, unproved)

    @hypothesis.settings(max_examples=4, deadline=None)
    @hypothesis.given(
        st.floats(1e-4, 0.3), st.floats(0.7, 5.0), st.integers(1, 2000)
    )
    def test_pld_is_never_above_rdp_and_grows_with_steps(
        self, rate, noise, steps
    ):
        by_pld, later = (
            epsilon_lib.compute_epsilon([_poisson(rate, noise, n)], 1e-5, "pld")
            for n in (steps, steps + 100)
        )
        self.assertLessEqual(
            by_pld,
            epsilon_lib.compute_epsilon([_poisson(rate, noise, steps)], 1e-5),
        )
        self.assertLessEqual(by_pld, later + 1e-6)

    def test_order_and_splitting_of_entries_do_not_matter(self):
        entries = [_poisson(0.1, 1.0, 10), _unknown(9.0, 1)]
        split = [_unknown(9.0, 1), _poisson(0.1, 1.0, 4), _poisson(0.1, 1.0, 6)]
        for accountant in epsilon_lib.ACCOUNTANTS:
            self.assertAlmostEqual(
                epsilon_lib.compute_epsilon(entries, 1e-5, accountant),
                epsilon_lib.compute_epsilon(iter(split), 1e-5, accountant),
                places=9,
            )

    @parameterized.parameters(*epsilon_lib.ACCOUNTANTS)
    def test_no_noise_is_no_privacy(self, accountant):
        entries = [_poisson(1e-9, 0.0, 1), _poisson(0.1, 1.0, 10)]
        self.assertEqual(
            epsilon_lib.compute_epsilon(entries, 1e-5, accountant), math.inf
        )

    @parameterized.parameters(*epsilon_lib.ACCOUNTANTS)
    def test_nothing_run_costs_nothing(self, accountant):
        for entries in ([], [_poisson(0.1, 0.0, 0)], [_unknown(1.0, 0)]):
            self.assertEqual(
                epsilon_lib.compute_epsilon(entries, 1e-5, accountant), 0.0
            )

    @parameterized.product(
        noise=(1e-200, 1e-10, 1e-3, 1e6),
        rate=(5e-324, 1e-6, 1.0 - 1e-10, 1.0),
        accountant=epsilon_lib.ACCOUNTANTS,
    )
    def test_extreme_parameters_give_a_bound(self, noise, rate, accountant):
        epsilon = epsilon_lib.compute_epsilon(
            [_poisson(rate, noise, 1000)], 1e-5, accountant
        )
        self.assertFalse(math.isnan(epsilon))
        # The example is seen at all with probability 1000 * rate at most.
        if 1000 * rate > 2e-5 and noise < 1.0:
            self.assertGreater(epsilon, 100.0)

    @parameterized.parameters(0.0, 1.0, -1e-5, 2.0, math.nan, math.inf)
    def test_delta_outside_its_range_is_refused(self, delta):
        with self.assertRaisesRegex(ValueError, "delta"):
            epsilon_lib.compute_epsilon([], delta)

    def test_unknown_accountant_is_refused(self):
        for name in ("RDP", "prv", None):
            with self.assertRaisesRegex(ValueError, "accountant"):
                epsilon_lib.compute_epsilon([], 1e-5, name)

    def test_pld_is_refused_where_its_rounding_matters(self):
        with self.assertRaisesRegex(ValueError, "Use accountant 'rdp'"):
            epsilon_lib.compute_epsilon([_unknown(1.0, 1)], 1e-11, "pld")
        self.assertGreater(
            epsilon_lib.compute_epsilon([_unknown(1.0, 1)], 1e-11), 0.0
        )

    def test_is_fast_enough_for_every_batch(self):
        entries = [_poisson(0.01, 1.0, 1), _poisson(0.02, 1.1, 100)]
        epsilon_lib.compute_epsilon(entries, 1e-5)
        times = []
        for steps in range(1, 50):
            start = time.perf_counter()
            epsilon_lib.compute_epsilon(
                [_poisson(0.01, 1.0, steps), entries[1]], 1e-5
            )
            times.append(time.perf_counter() - start)
        # The least time: the machine may be busy with something else.
        self.assertLess(min(times), 1e-3)


class OverflowTest(parameterized.TestCase):
    @parameterized.parameters(1e-15, 1e-12, 1e-11, 5e-11, 1e-10)
    def test_is_the_least_solution(self, overflow):
        delta, tau = 1e-5, 1000 * overflow
        clean = [_poisson(0.01, 1.0, 1000)]
        epsilon = epsilon_lib.compute_epsilon(
            [_poisson(0.01, 1.0, 1000, overflow)], delta
        )

        def holds(candidate):
            left = delta - tau * (1 + math.exp(candidate))
            return (
                left > 0
                and epsilon_lib.compute_epsilon(clean, left) <= candidate
            )

        self.assertTrue(holds(epsilon))
        start = epsilon_lib.compute_epsilon(clean, delta)
        self.assertGreater(epsilon, start)
        for candidate in np.linspace(start, epsilon - 1e-7, 20):
            self.assertFalse(holds(candidate))

    @parameterized.parameters(1e-9, 1e-8, 1e-3, 1.0)
    def test_is_infinite_when_it_costs_more_than_delta(self, overflow):
        clean = [_poisson(0.01, 1.0, 1000)]
        entries = [_poisson(0.01, 1.0, 1000, overflow)]
        for accountant in epsilon_lib.ACCOUNTANTS:
            self.assertEqual(
                epsilon_lib.compute_epsilon(entries, 1e-5, accountant), math.inf
            )
        # No candidate would have done.
        for candidate in np.linspace(0.0, 20.0, 60):
            left = 1e-5 - 1000 * overflow * (1 + math.exp(candidate))
            if left > 0:
                self.assertGreater(
                    epsilon_lib.compute_epsilon(clean, left), candidate
                )

    def test_covers_a_mechanism_that_really_drops(self):
        # One step, rate one, room for no example at all with probability
        # `tau`: the output is then pure noise whatever the data. Worst case
        # of the bound's first inequality, with a delta that is known exactly.
        tau, noise = 1e-4, 1.0
        entry = _poisson(1.0, noise, 1, overflow=tau)
        delta = 2e-3
        epsilon = epsilon_lib.compute_epsilon([entry], delta, "pld")
        x = np.linspace(-12.0, 13.0, 400_001)
        with_example = (1 - tau) * stats.norm.pdf(x, 1.0, noise) + (
            tau * stats.norm.pdf(x, 0.0, noise)
        )
        without = stats.norm.pdf(x, 0.0, noise)
        width = x[1] - x[0]
        for one, two in ((with_example, without), (without, with_example)):
            true_delta = width * np.sum(
                np.maximum(one - math.exp(epsilon) * two, 0.0)
            )
            self.assertLessEqual(true_delta, delta)

    def test_adds_up_over_entries_and_steps(self):
        apart = [
            _poisson(0.01, 1.0, 400, 1e-11),
            _poisson(0.01, 1.0, 600, 2e-11),
        ]
        together = [_poisson(0.01, 1.0, 1000, 1.6e-11)]
        self.assertAlmostEqual(
            epsilon_lib.compute_epsilon(apart, 1e-5),
            epsilon_lib.compute_epsilon(together, 1e-5),
            places=7,
        )

    def test_zero_changes_nothing(self):
        self.assertEqual(
            epsilon_lib.compute_epsilon([_poisson(0.1, 2.0, 50, 0.0)], 1e-5),
            epsilon_lib.compute_epsilon([_poisson(0.1, 2.0, 50)], 1e-5),
        )

    def test_huge_epsilon_does_not_overflow(self):
        self.assertEqual(
            epsilon_lib.compute_epsilon(
                [_poisson(1.0, 0.01, 100, 1e-300)], 1e-5
            ),
            math.inf,
        )


def _max_steps(entries, sampling, noise_multiplier, *budget):
    step = entries_lib.LedgerEntry(sampling, noise_multiplier, 1)
    return epsilon_lib.max_steps(entries, [step], *budget)


class MaxStepsTest(parameterized.TestCase):
    def test_published_count(self):
        # JAX-Privacy's accounting.py: 155 steps for epsilon 2.
        self.assertEqual(
            _max_steps(
                [], samplings.PoissonSampling(0.1), 3.0, 2.0, 1e-6, "pld"
            ),
            155,
        )

    @_EXAMPLES
    @hypothesis.given(
        _RATES, _NOISES, st.integers(0, 200), st.floats(0.1, 20.0), _DELTAS
    )
    def test_is_the_greatest_count_within_the_budget(
        self, rate, noise, done, budget, delta
    ):
        spent = [_poisson(0.01, 1.0, done)]
        sampling = samplings.PoissonSampling(rate)
        steps = _max_steps(spent, sampling, noise, budget, delta)

        def after(count):
            return epsilon_lib.compute_epsilon(
                [*spent, _poisson(rate, noise, count)], delta
            )

        if steps > 0:
            self.assertLessEqual(after(steps), budget)
        if steps < epsilon_lib.STEP_LIMIT:
            self.assertGreater(after(steps + 1), budget)

    @parameterized.parameters(0.5, 1.0, 1.3)
    def test_few_epsilons_find_what_bisection_finds(self, power):
        for last, low in ((1, 1), (2, 1), (407, 300), (10**7, 3 * 10**6)):
            asked = []

            def after(count):
                asked.append(count)  # noqa: B023
                return 0.3 + 1e-3 * count**power

            budget = after(last + 0.5)
            begin = (1, after(1))
            asked.clear()
            found = epsilon_lib._greatest_by_few(after, budget, begin, low)
            self.assertEqual(found, last)
            # What is returned is within the budget, and one more is not: seen,
            # and not concluded from a line.
            self.assertContainsSubset({last, last + 1}, {1, *asked})
            self.assertLessEqual(len(asked), 12)

    def test_few_epsilons_end_where_nothing_is_too_much_or_all_is(self):
        most = epsilon_lib._greatest_by_few(lambda _: 0.1, 1.0, (1, 0.1), 5)
        self.assertEqual(most, epsilon_lib.STEP_LIMIT)
        for last in (5, 70):
            found = epsilon_lib._greatest_by_few(
                lambda n, last=last: math.inf if n > last else 0.1,
                1.0,
                (1, 0.1),
                5,
            )
            self.assertEqual(found, last)

    def test_spent_budget_allows_nothing(self):
        sampling = samplings.PoissonSampling(0.01)
        spent = [_poisson(0.01, 1.0, 10**6)]
        self.assertEqual(_max_steps(spent, sampling, 1.0, 1.0, 1e-5), 0)

    def test_no_noise_allows_nothing(self):
        sampling = samplings.PoissonSampling(0.01)
        self.assertEqual(_max_steps([], sampling, 0.0, 100.0, 1e-5), 0)

    def test_search_is_bounded(self):
        sampling = samplings.PoissonSampling(1e-9)
        self.assertEqual(
            _max_steps([], sampling, 1e9, 1.0, 1e-5),
            epsilon_lib.STEP_LIMIT,
        )

    def test_overflow_is_paid_for(self):
        clean, padded = (
            _max_steps(
                [], samplings.PoissonSampling(0.01, overflow), 1.0, 2.0, 1e-5
            )
            for overflow in (0.0, 1e-10)
        )
        self.assertLess(padded, clean)
        self.assertGreater(padded, 0)

    @parameterized.parameters(0.0, -1.0, math.nan, math.inf)
    def test_bad_budget_is_refused(self, budget):
        with self.assertRaisesRegex(ValueError, "epsilon"):
            _max_steps([], samplings.PoissonSampling(0.01), 1.0, budget, 1e-5)

    def test_bad_noise_is_refused(self):
        with self.assertRaisesRegex(ValueError, "noise_multiplier"):
            _max_steps([], samplings.PoissonSampling(0.01), -1.0, 1.0, 1e-5)
