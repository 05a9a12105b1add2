import dataclasses
import math

import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from tf_dpfp.accounting import entries as entries_lib

_POISSON = entries_lib.PoissonSampling(0.1)


class PoissonSamplingTest(parameterized.TestCase):
    @parameterized.parameters(5e-324, 0.25, 1, np.float32(0.5))
    def test_keeps_a_valid_rate_as_python_float(self, rate):
        sampling = entries_lib.PoissonSampling(rate)
        self.assertIs(type(sampling.sampling_rate), float)
        self.assertEqual(sampling.sampling_rate, float(rate))

    @parameterized.parameters(0.0, -0.1, 1.0000001, math.nan, math.inf)
    def test_refuses_a_rate_outside_its_range(self, rate):
        with self.assertRaisesRegex(ValueError, "sampling_rate"):
            entries_lib.PoissonSampling(rate)

    @parameterized.parameters(-1e-9, 1.1, math.nan, math.inf)
    def test_refuses_an_overflow_outside_its_range(self, overflow):
        with self.assertRaisesRegex(ValueError, "overflow_probability"):
            entries_lib.PoissonSampling(0.1, overflow)

    @parameterized.parameters("0.1", None, True, [[0.1, 0.2]])
    def test_refuses_what_is_not_a_number(self, rate):
        with self.assertRaisesRegex(TypeError, "sampling_rate"):
            entries_lib.PoissonSampling(rate)


class UnknownSamplingTest(parameterized.TestCase):
    def test_needs_to_know_nothing(self):
        sampling = entries_lib.UnknownSampling()
        self.assertIsNone(sampling.population)
        self.assertIsNone(sampling.batch_size)

    def test_takes_numpy_integers(self):
        sampling = entries_lib.UnknownSampling(np.int64(10), np.int32(2))
        self.assertEqual(sampling, entries_lib.UnknownSampling(10, 2))

    @parameterized.parameters(0, -1, 2**53 + 1)
    def test_refuses_a_size_outside_its_range(self, size):
        with self.assertRaisesRegex(ValueError, "population"):
            entries_lib.UnknownSampling(population=size)
        with self.assertRaisesRegex(ValueError, "batch_size"):
            entries_lib.UnknownSampling(batch_size=size)

    @parameterized.parameters(10.0, "10", True)
    def test_refuses_a_size_that_is_not_an_integer(self, size):
        with self.assertRaisesRegex(TypeError, "population"):
            entries_lib.UnknownSampling(population=size)


class LedgerEntryTest(parameterized.TestCase):
    def test_is_frozen_and_comparable(self):
        entry = entries_lib.LedgerEntry(_POISSON, np.float32(1.5), np.int64(3))
        self.assertEqual(entry, entries_lib.LedgerEntry(_POISSON, 1.5, 3))
        self.assertLen({entry, entries_lib.LedgerEntry(_POISSON, 1.5, 3)}, 1)
        with self.assertRaises(dataclasses.FrozenInstanceError):
            entry.steps = 4

    def test_writes_negative_zero_noise_as_zero(self):
        entry = entries_lib.LedgerEntry(_POISSON, -0.0, 1)
        self.assertEqual(math.copysign(1.0, entry.noise_multiplier), 1.0)

    @parameterized.parameters(-1e-9, -1.0, math.nan, math.inf, -math.inf)
    def test_refuses_noise_outside_its_range(self, noise_multiplier):
        with self.assertRaisesRegex(ValueError, "noise_multiplier"):
            entries_lib.LedgerEntry(_POISSON, noise_multiplier, 1)

    @parameterized.parameters(-1, 2**53 + 1)
    def test_refuses_steps_outside_their_range(self, steps):
        with self.assertRaisesRegex(ValueError, "steps"):
            entries_lib.LedgerEntry(_POISSON, 1.0, steps)

    @parameterized.parameters(1.0, "1", None, True, math.nan)
    def test_refuses_steps_that_are_not_an_integer(self, steps):
        with self.assertRaisesRegex(TypeError, "steps"):
            entries_lib.LedgerEntry(_POISSON, 1.0, steps)

    @parameterized.parameters(0.1, None, "poisson")
    def test_refuses_what_is_not_a_sampling(self, sampling):
        with self.assertRaisesRegex(TypeError, "sampling"):
            entries_lib.LedgerEntry(sampling, 1.0, 1)


if __name__ == "__main__":
    absltest.main()
