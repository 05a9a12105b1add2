"""Rows that pass a noised threshold: the law of noise that is never drawn."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tf_dpfp import noise

LEAST_P = 1e-6


def _key(number):
    return tf.constant(number, tf.uint64)


@tf.function
def _untouched(draws, num_rows, threshold):
    def draw(number):
        rows = noise.passing_of(
            num_rows, threshold, tf.bitcast(number, tf.uint64)
        )
        return tf.scatter_nd(rows[:, None], tf.ones_like(rows), [num_rows])

    return tf.map_fn(draw, draws, fn_output_signature=tf.int64)


@pytest.mark.parametrize("threshold", [-1.5, 0.0, 1.0, 2.5])
def test_each_row_of_no_count_passes_by_itself(threshold):
    num_rows, draws = 40, 4000
    passed = _untouched(tf.range(draws, dtype=tf.int64), num_rows, threshold)
    passed = passed.numpy()
    assert passed.max() == 1
    chance = stats.norm.sf(threshold)
    # How many pass is binomial, not merely right in the mean.
    numbers = passed.sum(axis=1)
    values = np.arange(num_rows + 1)
    expected = draws * stats.binom.pmf(values, num_rows, chance)
    common = expected > 10
    counts = np.bincount(numbers, minlength=num_rows + 1)
    groups = [*counts[common], counts[~common].sum()]
    wanted = [*expected[common], expected[~common].sum()]
    assert stats.chisquare(groups, wanted).pvalue > LEAST_P
    # The first rows, the last and all between.
    for row in passed.T:
        p = stats.binomtest(int(row.sum()), draws, chance).pvalue
        assert p > LEAST_P
    # Neighbours know nothing of each other.
    both = int((passed[:, 1:] & passed[:, :-1]).sum())
    pairs = draws * (num_rows - 1)
    deviation = np.sqrt(pairs * chance**2 * (1 - chance**2) * 3)
    assert abs(both - pairs * chance**2) < 6 * deviation


def test_no_row_and_every_row_can_pass():
    assert noise.passing_of(1000, 40.0, _key(1)).shape == (0,)
    np.testing.assert_array_equal(
        noise.passing_of(1000, -40.0, _key(1)), np.arange(1000)
    )
    assert noise.passing_probability(0.0) == 0.5


def test_rare_rows_pass_in_large_tables_in_ascending_order():
    threshold = 4.0
    chance = stats.norm.sf(threshold)
    rows = noise.passing_of(10**8, threshold, _key(3)).numpy()
    assert np.all(np.diff(rows) > 0) and 0 <= rows[0] and rows[-1] < 10**8
    p = stats.binomtest(len(rows), 10**8, chance).pvalue
    assert p > LEAST_P
    assert stats.kstest(rows / 10**8, "uniform").pvalue > LEAST_P


def test_a_draw_that_falls_short_goes_on(monkeypatch):
    drawn = []
    original = noise.passing._uniforms

    def few(size, key, draw=0):
        drawn.append(draw)
        return original(5, key, draw)

    monkeypatch.setattr(noise.passing, "_uniforms", few)
    rows = noise.passing_of(10**4, 2.0, _key(4)).numpy()
    assert len(drawn) > 10 and len(set(map(int, drawn))) == len(drawn)
    p = stats.binomtest(len(rows), 10**4, stats.norm.sf(2.0)).pvalue
    assert p > LEAST_P
    # No gap is that of an earlier draw again.
    gaps = np.diff(rows)
    assert not np.array_equal(gaps[:5], gaps[5:10])


@pytest.mark.parametrize("key", [_key(7), noise.SecureKey()])
def test_rows_with_a_count_pass_as_if_they_were_noised(key):
    if isinstance(key, noise.SecureKey):
        pytest.importorskip("cryptography")
    threshold, draws = 1.5, 40_000
    for count in (0.0, 0.7, 1.5, 3.0, 9.0, np.inf):
        counts = tf.fill([draws], tf.constant(count, tf.float64))
        passed = int(np.sum(noise.passes(counts, threshold, key)))
        chance = stats.norm.cdf(count - threshold)
        assert stats.binomtest(passed, draws, chance).pvalue > LEAST_P
        # A count of the deviation beside it would not pass for it.
        if 0.0 < count < 9.0:
            wrong = stats.norm.cdf(1.1 * count - threshold)
            assert stats.binomtest(passed, draws, wrong).pvalue < LEAST_P


def test_secure_rows_pass_by_the_same_law():
    pytest.importorskip("cryptography")
    key = noise.SecureKey()
    first, second = (noise.passing_of(10**5, 2.0, key) for _ in range(2))
    for rows in (first, second):
        p = stats.binomtest(len(rows), 10**5, stats.norm.sf(2.0)).pvalue
        assert p > LEAST_P
    assert not np.array_equal(first, second)


def test_coins_lie_above_zero_and_may_be_one(monkeypatch):
    for word, expected in ((0, 2.0**-53), (-1, 1.0)):
        monkeypatch.setattr(
            noise.passing.tf.raw_ops,
            "StatelessRandomUniformFullIntV2",
            lambda word=word, **_: tf.constant([word], tf.int64),
        )
        assert noise.passing._uniforms(1, _key(0)).numpy() == expected
