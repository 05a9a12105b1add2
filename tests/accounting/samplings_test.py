import math

import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from tf_dpfp.accounting import samplings


class PoissonSamplingTest(parameterized.TestCase):
    @parameterized.parameters(5e-324, 0.25, 1, np.float32(0.5))
    def test_keeps_a_valid_rate_as_python_float(self, rate):
        sampling = samplings.PoissonSampling(rate)
        self.assertIs(type(sampling.sampling_rate), float)
        self.assertEqual(sampling.sampling_rate, float(rate))

    @parameterized.parameters(0.0, -0.1, 1.0000001, math.nan, math.inf)
    def test_refuses_a_rate_outside_its_range(self, rate):
        with self.assertRaisesRegex(ValueError, "sampling_rate"):
            samplings.PoissonSampling(rate)

    @parameterized.parameters(-1e-9, 1.1, math.nan, math.inf)
    def test_refuses_an_overflow_outside_its_range(self, overflow):
        with self.assertRaisesRegex(ValueError, "overflow_probability"):
            samplings.PoissonSampling(0.1, overflow)

    def test_keeps_a_valid_overflow_as_python_float(self):
        sampling = samplings.PoissonSampling(0.1, np.float32(0.5))
        self.assertIs(type(sampling.overflow_probability), float)

    def test_tells_batches_that_are_formed_by_position(self):
        # One example left out moves others there, and nowhere else.
        kinds = {
            samplings.PoissonSampling: False,
            samplings.UnknownSampling: True,
            samplings.WithoutReplacement: False,
            samplings.EveryLabel: False,
        }
        for kind, by_position in kinds.items():
            self.assertIs(kind.by_position, by_position)

    @parameterized.parameters("0.1", None, True, [[0.1, 0.2]])
    def test_refuses_what_is_not_a_number(self, rate):
        with self.assertRaisesRegex(ValueError, "sampling_rate"):
            samplings.PoissonSampling(rate)


class UnknownSamplingTest(parameterized.TestCase):
    def test_needs_to_know_nothing(self):
        sampling = samplings.UnknownSampling()
        self.assertIsNone(sampling.population)
        self.assertIsNone(sampling.batch_size)

    def test_takes_numpy_integers(self):
        sampling = samplings.UnknownSampling(np.int64(10), np.int32(2))
        self.assertEqual(sampling, samplings.UnknownSampling(10, 2))

    @parameterized.parameters(0, -1, 2**53 + 1)
    def test_refuses_a_size_outside_its_range(self, size):
        with self.assertRaisesRegex(ValueError, "population"):
            samplings.UnknownSampling(population=size)
        with self.assertRaisesRegex(ValueError, "batch_size"):
            samplings.UnknownSampling(batch_size=size)

    @parameterized.parameters(10.0, "10", True)
    def test_refuses_a_size_that_is_not_an_integer(self, size):
        with self.assertRaisesRegex(ValueError, "population"):
            samplings.UnknownSampling(population=size)


class WithoutReplacementTest(parameterized.TestCase):
    def test_rate_is_the_share_of_the_population(self):
        sampling = samplings.WithoutReplacement(np.int64(8), 2)
        self.assertEqual(sampling.sampling_rate, 0.25)
        self.assertEqual(sampling.proved_rate, 0.25)
        self.assertEqual(samplings.WithoutReplacement(3, 3).proved_rate, 1.0)

    @parameterized.parameters((0, 1), (5, 0), (5, 6), (2**53 + 1, 1))
    def test_refuses_numbers_outside_their_range(self, population, size):
        with self.assertRaisesRegex(ValueError, "population|sample_size"):
            samplings.WithoutReplacement(population, size)

    @parameterized.parameters(2.0, "2", None, True)
    def test_refuses_a_size_that_is_not_an_integer(self, size):
        with self.assertRaisesRegex(ValueError, "sample_size"):
            samplings.WithoutReplacement(9, size)


class EveryLabelTest(parameterized.TestCase):
    @parameterized.parameters((1, 0), (3, -1), (2.0, 0), (3, "7"))
    def test_refuses_numbers_outside_their_range(self, classes, identity):
        with self.assertRaisesRegex(ValueError, "num_classes|identity"):
            samplings.EveryLabel(classes, identity)


class ProvedRateTest(absltest.TestCase):
    def test_nothing_is_claimed_that_is_not_proved(self):
        self.assertEqual(samplings.PoissonSampling(0.25, 0.5).proved_rate, 0.25)
        self.assertEqual(samplings.UnknownSampling(100, 1).proved_rate, 1.0)
        self.assertEqual(samplings.EveryLabel(3, 7).proved_rate, 1.0)
