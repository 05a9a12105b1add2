import dataclasses
import math

import numpy as np
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

    @parameterized.parameters(
        (samplings.WithoutReplacement(10, 2), releases.Sums()),
        (_POISSON, releases.Representations("public")),
        (_POISSON, releases.Joint("public")),
        (samplings.EveryLabel(10, 0), releases.Sums()),
        (_POISSON, releases.Labels()),
    )
    def test_refuses_samplings_that_no_proof_covers(self, sampling, release):
        with self.assertRaisesRegex(ValueError, "can't be accounted for"):
            entries_lib.LedgerEntry(sampling, 1.0, 1, False, release)

    def test_is_of_secret_randomness_unless_it_is_said(self):
        self.assertIs(entries_lib.LedgerEntry(_POISSON, 1.0, 1).seeded, False)

    def test_a_removed_example_moves_others_between_fixed_batches(self):
        fixed = entries_lib.LedgerEntry(samplings.UnknownSampling(), 1.0, 1)
        drawn = entries_lib.LedgerEntry(_POISSON, 1.0, 1)
        adjacency = releases.Adjacency
        for entry, kind, expected in (
            (fixed, adjacency.ADD_OR_REMOVE_ONE, 2.0),
            (fixed, adjacency.REPLACE_ONE, 2.0),
            (fixed, adjacency.ZERO_OUT, 1.0),
            (drawn, adjacency.ADD_OR_REMOVE_ONE, 1.0),
            (drawn, adjacency.REPLACE_ONE, 2.0),
            (drawn, adjacency.ZERO_OUT, 1.0),
        ):
            self.assertEqual(entry.sensitivity(kind), expected)

    @parameterized.parameters(releases.Representations, releases.Joint)
    def test_representations_are_replaced_in_place_only(self, release):
        entry = entries_lib.LedgerEntry(
            samplings.UnknownSampling(), 1.0, 1, release=release("public")
        )
        adjacency = releases.Adjacency
        self.assertEqual(entry.sensitivity(adjacency.REPLACE_ONE), 2.0)
        for kind in (adjacency.ADD_OR_REMOVE_ONE, adjacency.ZERO_OUT):
            with self.assertRaisesRegex(ValueError, "Nothing is proved"):
                entry.sensitivity(kind)

    @parameterized.product(
        rows=(1, 4, 11, 12, 13), size=(1, 3, 4), shuffled=(False, True)
    )
    def test_batches_by_position_change_by_one_example_replaced(
        self, rows, size, shuffled
    ):
        order = np.arange(rows)
        if shuffled:
            order = np.random.default_rng(rows).permutation(rows)
        for left_out in range(rows):
            # Deletion of one row from a uniform order leaves a uniform one.
            shorter = order[order != left_out]
            for start in range(0, rows, size):
                one = set(order[start : start + size])
                other = set(shorter[start : start + size])
                self.assertLessEqual(len(one - other), 1)
                self.assertLessEqual(len(other - one), 1)
