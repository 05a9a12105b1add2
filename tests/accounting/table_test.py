import dataclasses

import hypothesis
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies as st

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import table

_COUNTS = st.integers(1, 2**53)
_POISSON = st.builds(
    samplings.PoissonSampling,
    st.floats(0.0, 1.0, exclude_min=True),
    st.floats(0.0, 1.0),
)
_UNKNOWN = st.builds(
    samplings.UnknownSampling, st.none() | _COUNTS, st.none() | _COUNTS
)
_ENTRIES = st.builds(
    entries_lib.LedgerEntry,
    _POISSON | _UNKNOWN,
    st.floats(0.0, allow_infinity=False),
    st.integers(0, 2**40),
)

# Sampling and noise multiplier of the rows that were saved.
_POISSON_ROW = (samplings.PoissonSampling(0.5, 0.25), 1.5)
_UNKNOWN_ROW = (samplings.UnknownSampling(100, None), 1.5)
_DRAWN_ROW = (samplings.WithoutReplacement(200, 5), 2.0)
_LABELS_ROW = (samplings.EveryLabel(3, 7), 0.5)
_EVERY_ROW = (samplings.EveryExample(), 20.0)


def _entry(steps=1, noise_multiplier=1.0, rate=0.5):
    return entries_lib.LedgerEntry(
        samplings.PoissonSampling(rate), noise_multiplier, steps
    )


class LedgerTest(parameterized.TestCase):
    @hypothesis.given(_ENTRIES)
    def test_row_comes_back_exactly(self, entry):
        row = table.encode(entry)
        self.assertEqual(row.shape, (table.WIDTH,))
        self.assertEqual(row.dtype, np.float64)
        self.assertEqual(table.decode(row, entry.steps), entry)

    @hypothesis.given(_ENTRIES, _ENTRIES)
    def test_rows_are_equal_when_descriptions_are(self, one, two):
        same = (one.sampling, one.noise_multiplier) == (
            two.sampling,
            two.noise_multiplier,
        )
        rows_equal = np.array_equal(table.encode(one), table.encode(two))
        self.assertEqual(rows_equal, same)

    @hypothesis.given(st.lists(_ENTRIES, max_size=8))
    def test_table_comes_back_merged(self, entries):
        rows, steps = table.encode_table(entries)
        self.assertEqual(rows.shape, (table.MAX_ROWS, table.WIDTH))
        self.assertEqual((rows.dtype, steps.dtype), (np.float64, np.int64))
        self.assertEqual(table.decode_table(rows, steps), table.merge(entries))

    def test_merge_adds_steps_and_keeps_the_order(self):
        merged = table.merge(
            [_entry(3, 2.0), _entry(1), _entry(4, 2.0), _entry(5, rate=0.25)]
        )
        self.assertEqual(
            merged, [_entry(7, 2.0), _entry(1), _entry(5, rate=0.25)]
        )

    def test_merge_keeps_overflow_apart(self):
        padded = entries_lib.LedgerEntry(
            samplings.PoissonSampling(0.5, 1e-9), 1.0, 2
        )
        self.assertEqual(table.merge([_entry(), padded]), [_entry(), padded])

    def test_merge_keeps_noise_apart_however_close(self):
        entries = [_entry(1, 1.0), _entry(1, np.nextafter(1.0, 2.0))]
        self.assertEqual(table.merge(entries), entries)

    def test_codes_of_saved_models_do_not_change(self):
        np.testing.assert_array_equal(
            table.encode(
                entries_lib.LedgerEntry(
                    samplings.PoissonSampling(0.5, 0.25), 1.5, 9
                )
            ),
            [1, 1.5, 0.5, 0.25, 0, 0, 0, 0],
        )
        np.testing.assert_array_equal(
            table.encode(
                entries_lib.LedgerEntry(
                    samplings.UnknownSampling(100, None), 1.5, 9
                )
            ),
            [2, 1.5, 100, 0, 0, 0, 0, 0],
        )

    @parameterized.parameters(
        ([1, 1.5, 0.5, 0.25, 0, 0, 0, 0], _POISSON_ROW, releases.Sums()),
        ([2, 1.5, 100, 0, 0, 0, 0, 0], _UNKNOWN_ROW, releases.Sums()),
        (
            [3, 2.0, 200, 5, 0, 1, 0, 0],
            _DRAWN_ROW,
            releases.Representations("public"),
        ),
        (
            [3, 2.0, 200, 5, 0, 2, 0, 0],
            _DRAWN_ROW,
            releases.Representations("randomized"),
        ),
        (
            [3, 2.0, 200, 5, 0, 3, 0, 0],
            _DRAWN_ROW,
            releases.Representations("undeclared"),
        ),
        ([3, 2.0, 200, 5, 0, 4, 0, 0], _DRAWN_ROW, releases.EndToEnd()),
        ([4, 0.5, 3, 7, 0, 5, 0, 0], _LABELS_ROW, releases.Labels()),
        ([6, 20.0, 0, 0, 0, 20, 0, 0], _EVERY_ROW, releases.Evaluation()),
        ([6, 20.0, 0, 0, 0, 21, 0, 0], _EVERY_ROW, releases.PersonEvaluation()),
        ([3, 2.0, 200, 5, 0, 6, 0, 0], _DRAWN_ROW, releases.Joint("public")),
        (
            [3, 2.0, 200, 5, 0, 7, 0, 0],
            _DRAWN_ROW,
            releases.Joint("randomized"),
        ),
        (
            [3, 2.0, 200, 5, 0, 8, 0, 0],
            _DRAWN_ROW,
            releases.Joint("undeclared"),
        ),
        (
            [2, 1.5, 100, 0, 0, 4, 0, 0],
            _UNKNOWN_ROW,
            releases.EndToEnd(),
        ),
    )
    def test_rows_of_version_0_1_keep_their_meaning(
        self, values, description, release
    ):
        # Numbers as they stand in saved models, not as `encode` writes them.
        for seeded in (False, True):
            row = np.array(values, np.float64)
            row[4] = seeded
            entry = entries_lib.LedgerEntry(*description, 3, seeded, release)
            self.assertEqual(table.decode(row, 3), entry)
            np.testing.assert_array_equal(table.encode(entry), row)

    @parameterized.parameters(-1.0, 0.5, 9.0, 1e9)
    def test_unknown_release_is_refused(self, code):
        row = table.encode(_entry())
        row[5] = code
        with self.assertRaisesRegex(ValueError, "Unknown release"):
            table.decode(row, 1)

    @parameterized.parameters(0.0, 7.0, -1.0, 1.5, 99.0)
    def test_unknown_code_is_refused(self, code):
        row = table.encode(_entry())
        row[0] = code
        with self.assertRaisesRegex(ValueError, "Unknown code"):
            table.decode(row, 1)

    @parameterized.parameters(
        (1, np.nan), (1, -1.0), (1, np.inf), (2, 0.0), (2, 2.0), (3, np.nan)
    )
    def test_damaged_value_is_refused(self, column, value):
        row = table.encode(_entry())
        row[column] = value
        with self.assertRaises(ValueError):
            table.decode(row, 1)

    @parameterized.parameters(6, 7)
    def test_value_in_an_unused_column_is_refused(self, column):
        row = table.encode(_entry())
        row[column] = 1.0
        with self.assertRaisesRegex(ValueError, "Not a ledger row"):
            table.decode(row, 1)

    @parameterized.parameters(2, 3)
    def test_sampling_without_numbers_has_none(self, column):
        row = np.array([6, 20.0, 0, 0, 0, 20, 0, 0], np.float64)
        row[column] = 1.0
        with self.assertRaisesRegex(ValueError, "Not a ledger row"):
            table.decode(row, 1)

    def test_seeded_steps_are_a_kind_of_their_own(self):
        plain = _entry()
        seeded = dataclasses.replace(plain, seeded=True)
        self.assertEqual(table.merge([plain, seeded]), [plain, seeded])
        row = table.encode(seeded)
        self.assertEqual(table.decode(row, seeded.steps), seeded)

    def test_fractional_size_is_refused(self):
        row = table.encode(
            entries_lib.LedgerEntry(samplings.UnknownSampling(10, 2), 1.0, 1)
        )
        row[2] = 10.5
        with self.assertRaisesRegex(ValueError, "Not a ledger row"):
            table.decode(row, 1)

    def test_row_of_another_precision_is_refused(self):
        with self.assertRaisesRegex(ValueError, "float64"):
            table.decode(table.encode(_entry()).astype(np.float32), 1)

    def test_row_of_another_width_is_refused(self):
        with self.assertRaisesRegex(ValueError, "shape"):
            table.decode(table.encode(_entry())[:-1], 1)

    def test_negative_steps_are_refused(self):
        rows, steps = table.encode_table([_entry()])
        steps[0] = -1
        with self.assertRaisesRegex(ValueError, "steps"):
            table.decode_table(rows, steps)

    def test_steps_without_a_description_are_refused(self):
        rows, steps = table.encode_table([_entry()])
        rows[0] = 0.0
        with self.assertRaisesRegex(ValueError, "Unknown code"):
            table.decode_table(rows, steps)

    def test_table_of_another_size_is_refused(self):
        rows, steps = table.encode_table([_entry()])
        with self.assertRaisesRegex(ValueError, "shape"):
            table.decode_table(rows[:-1], steps[:-1])

    def test_too_many_descriptions_are_refused(self):
        entries = [_entry(1, 1.0 + i) for i in range(table.MAX_ROWS)]
        table.encode_table(entries)
        with self.assertRaisesRegex(ValueError, "1025 ran"):
            table.encode_table([*entries, _entry(1, 0.5)])


def _rows_of_persons(count):
    return releases.PersonRepresentations("public", count)


@pytest.mark.parametrize(
    "kind", [releases.PersonSums, releases.ViewSums, _rows_of_persons]
)
def test_sums_of_joined_rows_keep_their_number(kind):
    entries = [
        entries_lib.LedgerEntry(
            samplings.PoissonSampling(0.25, 1e-12),
            1.5,
            7,
            release=kind(count),
        )
        for count in (1, 64)
    ]
    assert table.decode_table(*table.encode_table(entries)) == entries
    row = table.encode(entries[0])
    for column, wrong in ((5, 0.0), (6, 0.0), (6, 1.5), (6, -1.0)):
        damaged = row.copy()
        damaged[column] = wrong
        with pytest.raises(ValueError):
            table.decode(damaged, 1)
