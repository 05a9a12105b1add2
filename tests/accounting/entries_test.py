import dataclasses
import math

import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings

_POISSON = samplings.PoissonSampling(0.1)


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
        with self.assertRaisesRegex(ValueError, "steps"):
            entries_lib.LedgerEntry(_POISSON, 1.0, steps)

    @parameterized.parameters("1.0", None, True, b"1", 1j)
    def test_refuses_noise_that_is_not_a_number(self, noise_multiplier):
        with self.assertRaisesRegex(ValueError, "noise_multiplier"):
            entries_lib.LedgerEntry(_POISSON, noise_multiplier, 1)

    @parameterized.parameters(0, 1, "sums", None, releases.Sums)
    def test_refuses_what_is_not_a_release(self, release):
        with self.assertRaisesRegex(ValueError, "`release` must be"):
            entries_lib.LedgerEntry(_POISSON, 1.0, 1, False, release)

    @parameterized.parameters(0.1, None, "poisson")
    def test_refuses_what_is_not_a_sampling(self, sampling):
        with self.assertRaisesRegex(ValueError, "sampling"):
            entries_lib.LedgerEntry(sampling, 1.0, 1)


if __name__ == "__main__":
    absltest.main()
