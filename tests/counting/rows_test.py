"""What a ledger lacks of another table, in a graph."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp.counting import rows


def _table(*numbered):
    """Makes a table of rows of `(row, kind, steps)`."""
    made = np.zeros(rows.TABLE_SHAPE)
    for row, kind, steps in numbered:
        made[row, : rows.COUNT] = kind
        made[row, rows.COUNT] = steps
    return made


def _counts(table):
    return {
        float(kind): float(steps)
        for kind, steps in table[:, [0, rows.COUNT]]
        if kind
    }


def _raised(table, other, jit_compile=False):
    lacking = tf.function(
        rows.lacking, autograph=False, jit_compile=jit_compile
    )
    return table + lacking(tf.constant(table), tf.constant(other)).numpy()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_kinds_are_found_in_whatever_rows_they_stand(jit_compile):
    table = _table((0, 1.0, 5.0), (2, 2.0, 7.0))
    other = _table((0, 3.0, 4.0), (1, 2.0, 9.0), (2, 1.0, 2.0), (5, 4.0, 1.0))
    found = _raised(table, other, jit_compile)
    assert _counts(found) == {1.0: 5.0, 2.0: 9.0, 3.0: 4.0, 4.0: 1.0}
    # Steps that were compiled add to the rows where they are.
    assert found[0, 0] == 1.0 and found[2, 0] == 2.0
    assert _counts(_raised(found, other, jit_compile)) == _counts(found)


def test_nothing_is_taken_over_of_what_is_no_count():
    table = _table((0, 1.0, 5.0))
    other = _table((0, 1.0, np.nan), (1, 2.0, np.inf), (2, 3.0, -1.0))
    np.testing.assert_array_equal(_raised(table, other), table)


def test_a_full_table_that_lacks_a_kind_is_refused():
    kinds = [(row, row + 1.0, 1.0) for row in range(rows.TABLE_SHAPE[0])]
    found = _raised(_table(*kinds), _table((0, 1e4, 3.0)))
    assert np.isinf(found[:, rows.COUNT]).any()
    with pytest.raises(ValueError):
        rows.decoded(found)
