"""Ledgers as rows of numbers, as files hold them."""

import numpy as np
import pytest

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import ledger_rows
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import table


def _entry(steps, noise_multiplier=1.0, rate=0.5, seeded=False):
    return entries_lib.LedgerEntry(
        samplings.PoissonSampling(rate), noise_multiplier, steps, seeded
    )


ENTRIES = [_entry(1), _entry(5, 2.0), _entry(7, 1.0, 0.25, True)]


def test_what_is_written_is_read():
    rows = ledger_rows.encode_rows(ENTRIES)
    assert rows.shape == (3, table.WIDTH + 1)
    assert ledger_rows.decode_rows(rows) == ENTRIES
    # As h5py, JSON and older tables hand them out.
    assert ledger_rows.decode_rows(rows.tolist()) == ENTRIES
    padded = np.concatenate([rows[:1], np.zeros((4, rows.shape[1])), rows[1:]])
    assert ledger_rows.decode_rows(padded) == ENTRIES


def test_equal_kinds_are_added_up():
    rows = ledger_rows.encode_rows([_entry(3), _entry(5, 2.0), _entry(4)])
    assert ledger_rows.decode_rows(rows) == [_entry(7), _entry(5, 2.0)]


def test_nothing_is_no_row():
    rows = ledger_rows.encode_rows([])
    assert rows.shape == (0, table.WIDTH + 1)
    assert ledger_rows.decode_rows(rows) == []
    assert ledger_rows.decode_rows(ledger_rows.encode_rows([_entry(0)])) == []


@pytest.mark.parametrize("count", [np.nan, np.inf, -1.0])
def test_a_count_that_is_none_is_refused(count):
    rows = ledger_rows.encode_rows(ENTRIES)
    rows[1, -1] = count
    with pytest.raises(ValueError, match="Not a count"):
        ledger_rows.decode_rows(rows)


@pytest.mark.parametrize(
    "shape", [(3, table.WIDTH), (3, table.WIDTH + 2), (table.WIDTH + 1,)]
)
def test_rows_of_another_width_are_refused(shape):
    with pytest.raises(ValueError, match="columns"):
        ledger_rows.decode_rows(np.ones(shape))


def test_a_row_that_is_no_entry_is_refused():
    rows = ledger_rows.encode_rows(ENTRIES)
    rows[0, :-1] = 77.0
    with pytest.raises(ValueError):
        ledger_rows.decode_rows(rows)


def test_what_is_missing_is_of_each_kind():
    wanted = [_entry(3), _entry(5, 2.0), _entry(2)]
    assert ledger_rows.missing(wanted, []) == [_entry(5), _entry(5, 2.0)]
    counted = [_entry(4), _entry(9, 2.0)]
    assert ledger_rows.missing(wanted, counted) == [_entry(1)]
    assert ledger_rows.missing(wanted, [_entry(5), _entry(5, 2.0)]) == []
    # Another kind, however many steps of it.
    other = [_entry(99, seeded=True)]
    assert ledger_rows.missing([_entry(3)], other) == [_entry(3)]


def test_the_greater_count_of_each_kind_is_taken():
    first, second = [_entry(3), _entry(5, 2.0)], [_entry(4), _entry(1, 2.0)]
    for one, two in (first, second), (second, first):
        found = {
            e.noise_multiplier: e.steps
            for e in ledger_rows.greater(iter(one), iter(two))
        }
        assert found == {1.0: 4, 2.0: 5}
