"""Release of a sparse table: who passes, and with what noise."""

import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tf_dpfp
from tests import helpers
from tf_dpfp import clipping
from tf_dpfp.optimizers import release
from tf_dpfp.optimizers import row_release

ROWS, WIDTH = 50, 4
SPARSE = tf_dpfp.Sparse(
    "items", threshold=2.0, contribution_share=0.36, contribution_clip=0.5
)
LEAST_P = 1e-6


def _total(seed=0):
    """Row 9 named twice, row 3 without a contribution."""
    rng = np.random.default_rng(seed)
    rows = np.array([9, 40, 3, 9, 17])
    return clipping.RowSums(
        tf.constant(rows, tf.int64),
        tf.constant(rng.normal(size=(5, WIDTH)), tf.float32),
        tf.constant([1.5, 0.5, 0.0, 1.0, 6.0], tf.float64),
    )


def _keys(number):
    return tuple(
        tf.bitcast(tf.constant(3 * number + i, tf.int64), tf.uint64)
        for i in range(3)
    )


def _release(noise_multiplier=1.2, sparse=SPARSE):
    return row_release.row_release_of(sparse, noise_multiplier)


def _alone(rows, *table):
    return rows.released_alone(row_release.Table(*table))


@tf.function
def _passed(draws):
    def draw(number):
        keys = [tf.bitcast(3 * number + i, tf.uint64) for i in range(3)]
        found = _alone(_release(), _total(), ROWS, 1.0, keys)
        ones = tf.ones_like(found.indices)
        return tf.scatter_nd(found.indices[:, None], ones, [ROWS])

    return tf.map_fn(draw, draws, fn_output_signature=tf.int64)


def test_the_budget_is_split_as_the_settings_say():
    rows = _release()
    # sigma / sqrt(0.36) = 2, of a sensitivity of 0.5; sigma / sqrt(0.64).
    assert rows.deviation == pytest.approx(2.0 * 0.5, rel=1e-12)
    assert rows.noise_multiplier == pytest.approx(1.5, rel=1e-12)
    joint = math.hypot(0.5 / rows.deviation, 1 / rows.noise_multiplier)
    assert 1 / joint == pytest.approx(1.2, rel=1e-12)
    assert row_release.row_release_of(None, 1.2) is None


def test_every_row_passes_by_the_law_of_its_count():
    draws = 2000
    passed = _passed(tf.range(draws, dtype=tf.int64)).numpy()
    # No row twice, whether it was touched or not.
    assert passed.max() == 1
    counts = np.zeros(ROWS)
    counts[[9, 40, 17]] = 2.5, 0.5, 6.0
    # As if counts were noised: of sensitivity 0.5, multiplier 2.
    chances = stats.norm.sf((2.0 * 1.0 - counts) / 1.0)
    for row, chance in enumerate(chances):
        number = int(passed[:, row].sum())
        assert stats.binomtest(number, draws, chance).pvalue > LEAST_P, row
    # And row by row by itself: what passes beside row 9 tells nothing of it.
    others = passed[:, np.arange(ROWS) != 9].sum(axis=1)
    with_it, without = others[passed[:, 9] == 1], others[passed[:, 9] == 0]
    assert stats.ttest_ind(with_it, without).pvalue > LEAST_P


def test_rows_come_in_ascending_order_with_their_sums():
    rows = _release(sparse=tf_dpfp.Sparse("items", threshold=-40.0))
    total = _total()
    found = _alone(rows, total, ROWS, 0.0, _keys(5))
    np.testing.assert_array_equal(found.indices, np.arange(ROWS))
    wanted = np.zeros((ROWS, WIDTH), np.float32)
    np.add.at(wanted, total.rows.numpy(), total.values.numpy())
    np.testing.assert_allclose(found.values, wanted, rtol=1e-6)
    some = _alone(_release(), total, ROWS, 0.0, _keys(6))
    assert np.all(np.diff(some.indices) > 0)
    np.testing.assert_allclose(
        some.values, wanted[some.indices.numpy()], rtol=1e-6
    )


def test_noise_is_on_every_row_that_is_released():
    rows = _release(sparse=tf_dpfp.Sparse("items", threshold=-40.0))
    num_rows = 15_000
    found = _alone(rows, _total(), num_rows, 0.3, _keys(7))
    untouched = np.setdiff1d(np.arange(num_rows), [9, 40, 3, 17])
    noise = found.values.numpy()[untouched]
    helpers.assert_normal(noise, 0.3, (0.94, 1.06))
    touched = [
        _alone(rows, _total(), ROWS, 0.3, _keys(n)).values.numpy()[17]
        for n in range(10, 400)
    ]
    value = _total().values.numpy()[4]
    helpers.assert_normal(np.array(touched) - value, 0.3, (0.6, 1.6))


def test_without_noise_every_row_with_a_contribution_passes():
    rows = _release(noise_multiplier=0.0)
    found = _alone(rows, _total(), ROWS, 0.0, _keys(8))
    assert {9, 40, 17} <= set(found.indices.numpy())


def test_numbers_of_no_row_name_none():
    # As dense sums drop them: -1 for padding, in a rule of one's own.
    total = clipping.RowSums(
        tf.constant([-1, ROWS, 7, -ROWS], tf.int64),
        tf.ones([4, WIDTH]),
        tf.constant([1.0, 1.0, 1.0, 0.0], tf.float64),
    )
    for threshold, expected in ((39.0, [7]), (-40.0, range(ROWS))):
        sparse = tf_dpfp.Sparse("items", threshold=threshold)
        found = _alone(_release(1e-3, sparse), total, ROWS, 0.0, _keys(9))
        np.testing.assert_array_equal(found.indices, list(expected))


def test_no_two_draws_of_a_step_share_a_key():
    draws = release.Draws(tf.constant(77, tf.int64), 0, 1.0)
    variables = 5
    keys = [draws.key(variables).numpy()]  # Of counts of adaptive clip norms.
    keys += [draws.key(index).numpy() for index in range(variables)]
    for index in range(variables):
        of_rows = release._keys_of_rows(draws, index, variables)
        assert of_rows[0].numpy() == draws.key(index).numpy()
        keys += [key.numpy() for key in of_rows[1:]]
    assert len(set(keys)) == 1 + 3 * variables
