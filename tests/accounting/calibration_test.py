import math

import hypothesis
import numpy as np
from absl.testing import parameterized
from hypothesis import strategies as st

from tf_dpfp.accounting import calibration
from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import within


def _epsilon(noise, rate, steps, delta, accountant="rdp", overflow=0.0):
    sampling = samplings.PoissonSampling(rate, overflow)
    return epsilon_lib.compute_epsilon(
        [entries_lib.LedgerEntry(sampling, noise, steps)], delta, accountant
    )


class CalibrateTest(parameterized.TestCase):
    # Opacus's tests/accountants_test.py, and JAX-Privacy's accounting.py; PLD
    # figures lie up to 0.002 below the PRV ones of the former.
    @parameterized.parameters(
        (8.0, 1e-5, 0.04, 2250, "rdp", 1.41587),
        (8.0, 1e-5, 0.04, 2000, "rdp", 1.35624),
        (1.0, 1e-6, 0.1, 512, "pld", 9.66183),
    )
    def test_published_noise(
        self, epsilon, delta, rate, steps, accountant, expected
    ):
        noise = calibration.calibrate_noise_multiplier(
            epsilon, delta, rate, steps, accountant
        )
        np.testing.assert_allclose(noise, expected, atol=5e-4)
        self.assertLessEqual(
            _epsilon(noise, rate, steps, delta, accountant), epsilon
        )

    def test_examples_and_persons_have_no_noise_together(self):
        kinds = (releases.Sums(), releases.PersonSums(2))

        def released(noise):
            sampling = samplings.PoissonSampling(0.01)
            return [
                entries_lib.LedgerEntry(sampling, noise, 9, release=kind)
                for kind in kinds
            ]

        # As compute_epsilon, which is infinite for any noise.
        self.assertFalse(within.is_within(released(50.0), 8.0, 1e-5))
        for find in (calibration.least_noise, calibration.noise_within):
            with self.assertRaisesRegex(ValueError, "no noise brings them"):
                find(released, 8.0, 1e-5)

    def test_analytic_gaussian(self):
        # Balle and Wang's 4.2246789; the RDP accountant needs 4.530877.
        np.testing.assert_allclose(
            calibration.calibrate_noise_multiplier(1.0, 1e-6, 1.0, 1),
            4.530877,
            atol=2e-4,
        )
        by_pld = calibration.calibrate_noise_multiplier(
            1.0, 1e-6, 1.0, 1, "pld"
        )
        self.assertBetween(by_pld, 4.2246789, 4.2266)

    @hypothesis.settings(max_examples=4, deadline=None)
    @hypothesis.given(
        st.floats(0.05, 50.0),
        st.floats(-10.0, -2.0).map(lambda power: 10.0**power),
        st.floats(1e-5, 1.0),
        st.integers(1, 20_000),
    )
    def test_is_the_least_noise_within_the_budget(
        self, epsilon, delta, rate, steps
    ):
        noise = calibration.calibrate_noise_multiplier(
            epsilon, delta, rate, steps
        )
        self.assertLessEqual(_epsilon(noise, rate, steps, delta), epsilon)
        if noise > 1e-4:
            self.assertGreater(
                _epsilon(noise - 1.01e-4, rate, steps, delta), epsilon
            )

    def test_tolerance_is_kept(self):
        fine = calibration.calibrate_noise_multiplier(
            2.0, 1e-5, 0.01, 1000, tolerance=1e-8
        )
        coarse = calibration.calibrate_noise_multiplier(
            2.0, 1e-5, 0.01, 1000, tolerance=0.05
        )
        self.assertBetween(coarse - fine, -1e-8, 0.05)

    def test_overflow_asks_for_more_noise(self):
        clean = calibration.calibrate_noise_multiplier(2.0, 1e-5, 0.01, 1000)
        padded = calibration.calibrate_noise_multiplier(
            2.0, 1e-5, 0.01, 1000, overflow_probability=1e-10
        )
        self.assertGreater(padded, clean)
        self.assertLessEqual(
            _epsilon(padded, 0.01, 1000, 1e-5, overflow=1e-10), 2.0
        )

    def test_overflow_beyond_delta_is_refused(self):
        with self.assertRaisesRegex(ValueError, "No noise multiplier"):
            calibration.calibrate_noise_multiplier(
                2.0, 1e-5, 0.01, 1000, overflow_probability=1e-8
            )

    @parameterized.parameters(
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"sampling_rate": 1.1}, "sampling_rate"),
        ({"sampling_rate": math.nan}, "sampling_rate"),
        ({"steps": 0}, "steps"),
        ({"steps": -5}, "steps"),
        ({"accountant": "gdp"}, "accountant"),
        ({"overflow_probability": -0.1}, "overflow_probability"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"epsilon": "1.0"}, "epsilon"),
        ({"epsilon": True}, "epsilon"),
        ({"delta": "1e-5"}, "delta"),
        ({"sampling_rate": None}, "sampling_rate"),
        ({"steps": True}, "steps"),
        ({"steps": "10"}, "steps"),
        ({"accountant": None}, "accountant"),
        ({"tolerance": math.nan}, "tolerance"),
    )
    def test_bad_argument_is_refused(self, argument, message):
        arguments = {
            "epsilon": 1.0,
            "delta": 1e-5,
            "sampling_rate": 0.1,
            "steps": 10,
        }
        with self.assertRaisesRegex(ValueError, message):
            calibration.calibrate_noise_multiplier(**(arguments | argument))

    def test_fractional_steps_are_refused(self):
        with self.assertRaisesRegex(ValueError, "steps"):
            calibration.calibrate_noise_multiplier(1.0, 1e-5, 0.1, 10.5)
