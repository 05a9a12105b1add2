"""Neighbouring data sets in small: what a draw shows of them, measured."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp.sampling import stratified

RUNS = 20_000
SAMPLE, NOISE = 2, 2.0
# Two examples of another label, then those of the replaced one's.
OTHERS = np.array([[0.7], [-0.2], [-1.0], [-1.0], [-1.0], [-1.0]], np.float32)
STRATA, COUNTS = [np.arange(2), np.arange(2, 7)], [1, SAMPLE]


def _released(replaced, rng):
    """The rows of many draws, as the sampler and the layer make them."""
    x = np.concatenate([OTHERS, [[replaced]]]).astype(np.float32)
    drawn = np.stack(
        [stratified.draw(rng, STRATA, COUNTS) for _ in range(RUNS)]
    )
    layer = tf_dpfp.DPRepresentationClip(1.0, NOISE, labels="public")
    rows = layer(tf.constant(x[drawn.ravel()]), training=True)
    return rows.numpy().reshape(RUNS, 1 + SAMPLE)


def _log_density(rows, replaced):
    """Of the rows of the replaced one's label, over all ordered draws."""
    points = [*OTHERS[2:, 0], replaced]
    orders = list(itertools.permutations(points, SAMPLE))
    densities = [
        np.prod(stats.norm.pdf(rows[:, 1:], order, NOISE), axis=1)
        for order in orders
    ]
    return np.log(np.mean(densities, axis=0))


@pytest.mark.parametrize("exchanged", [False, True])
def test_the_best_distinguisher_is_within_epsilon_and_delta(exchanged):
    rng = np.random.default_rng(0)
    one, two = (-1.0, 1.0) if exchanged else (1.0, -1.0)
    rows = {value: _released(value, rng) for value in (one, two)}
    loss = {
        value: _log_density(r, one) - _log_density(r, two)
        for value, r in rows.items()
    }
    entry = accounting.LedgerEntry(
        accounting.WithoutReplacement(5, SAMPLE),
        NOISE,
        1,
        release=accounting.Representations("public"),
    )
    unsampled = accounting.LedgerEntry(
        accounting.UnknownSampling(),
        NOISE,
        1,
        release=accounting.Representations("public"),
    )
    spent = []
    for delta in (0.02, 0.05, 0.1):
        epsilon = accounting.compute_epsilon([entry], delta)
        # Neyman and Pearson: the greatest gap is at this threshold.
        hits = [int(np.sum(loss[value] > epsilon)) for value in (one, two)]
        least = stats.binomtest(hits[0], RUNS).proportion_ci(0.998).low
        most = stats.binomtest(hits[1], RUNS).proportion_ci(0.998).high
        assert least - math.exp(epsilon) * most <= delta
        spent.append(epsilon)
        assert epsilon < accounting.compute_epsilon([unsampled], delta)
    # It is no empty bound: with the noise of a quarter it would be broken.
    quieter = accounting.LedgerEntry(
        entry.sampling, 4 * NOISE, 1, release=entry.release
    )
    epsilon = accounting.compute_epsilon([quieter], 0.02)
    hits = [np.mean(loss[value] > epsilon) for value in (one, two)]
    assert hits[0] - math.exp(epsilon) * hits[1] > 0.04
