import collections
import itertools

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp import sampling
from tf_dpfp.sampling import stratified

N = 60
X = np.arange(N, dtype=np.float32)[:, None]
Y = np.array([0] * 30 + [1] * 20 + [2] * 10)


def _sampler(x=X, y=Y, labels="public", **kwargs):
    kwargs = {"draw_size": 12, "draws": 3, **kwargs}
    return tf_dpfp.representations.stratified_batches(
        x, y, labels=labels, **kwargs
    )


def _draws(dataset, size=12):
    """The draws of a data set: the indices of their examples, and labels."""
    for x, y in dataset:
        indices = x.numpy()[:, 0].astype(int)
        for start in range(0, len(indices), size):
            end = start + size
            yield indices[start:end], y.numpy()[start:end]


def test_every_draw_has_the_same_number_of_each_label_and_no_example_twice():
    dataset = _sampler(steps_per_epoch=40)
    assert dataset.element_spec == (
        tf.TensorSpec([36, 1], tf.float32),
        tf.TensorSpec([36], tf.int64),
    )
    count = 0
    for indices, labels in _draws(dataset):
        assert len(set(indices)) == 12
        np.testing.assert_array_equal(labels, Y[indices])
        np.testing.assert_array_equal(np.bincount(labels), [6, 4, 2])
        count += 1
    assert count == 40 * 3


def test_what_the_ledger_is_told():
    info = sampling.sampling_of(_sampler())
    assert info.sampling == accounting.WithoutReplacement(30, 6)
    assert (info.draws, info.capacity, info.population) == (3, 36, N)
    assert info.steps_per_epoch == round(60 / 36)
    assert not info.seeded and info.labels is None
    assert sampling.sampling_of(_sampler().map(lambda x, y: (x, y))) is None
    # Of uneven shares, the label that is drawn most often.
    info = sampling.sampling_of(_sampler(draw_size=7))
    assert info.sampling == accounting.WithoutReplacement(30, 4)


def test_examples_and_pairs_of_a_label_are_drawn_equally_often():
    rng = np.random.default_rng(0)
    strata, counts = [np.arange(5), np.arange(5, 8)], [3, 1]
    runs = 6000
    ordered = collections.Counter()
    singles = collections.Counter()
    for _ in range(runs):
        drawn = stratified.draw(rng, strata, counts)
        ordered[tuple(drawn[:3])] += 1
        singles[drawn[3]] += 1
    # All ordered draws are equally likely: the subset, and its order.
    outcomes = list(itertools.permutations(range(5), 3))
    assert set(ordered) <= set(outcomes)
    observed = [ordered[outcome] for outcome in outcomes]
    assert stats.chisquare(observed).pvalue > 1e-4
    assert stats.chisquare([singles[i] for i in (5, 6, 7)]).pvalue > 1e-4


def test_draws_of_a_batch_and_of_iterations_are_independent():
    dataset = _sampler(draw_size=6, steps_per_epoch=300, draws=2)
    drawn = [indices[5] for indices, _ in _draws(dataset, 6)]
    pairs = np.zeros((10, 10))
    for one, two in zip(drawn[::2], drawn[1::2], strict=True):
        pairs[one - 50, two - 50] += 1
    # The same example is in both as often as chance has it.
    same = np.trace(pairs)
    assert stats.binomtest(int(same), 300, 0.1).pvalue > 1e-4
    again = [indices[5] for indices, _ in _draws(dataset, 6)]
    assert drawn != again


def test_a_seed_repeats_the_draws_and_is_told():
    one, two = _sampler(seed=3), _sampler(seed=3)
    assert sampling.sampling_of(one).seeded
    for (a, _), (b, _) in zip(_draws(one), _draws(two), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("total", [1, 5, 9, 23, 60])
@pytest.mark.parametrize("sizes", [[30, 20, 10], [57, 2, 1], [20, 20, 20]])
def test_shares_have_the_least_greatest_rate(sizes, total):
    counts = stratified.shares(sizes, total)
    assert sum(counts) == total
    assert all(0 <= c <= s for c, s in zip(counts, sizes, strict=True))
    greatest = max(c / s for c, s in zip(counts, sizes, strict=True))
    # Any other share has a rate as great: brute force over all of them.
    ranges = [range(size + 1) for size in sizes]
    for other in itertools.product(*ranges):
        if sum(other) == total:
            rate = max(c / s for c, s in zip(other, sizes, strict=True))
            assert rate >= greatest - 1e-12


def test_randomised_labels_are_the_strata():
    y = tf_dpfp.representations.randomize_labels(Y, 1.0, 3)
    dataset = _sampler(y=y, labels=None)
    for indices, labels in _draws(dataset):
        np.testing.assert_array_equal(labels, y.values[indices])
    assert sampling.sampling_of(dataset).labels == y.entry


def test_map_fn_keeps_the_claim():
    dataset = _sampler(map_fn=lambda x, y: (x * 2.0, tf.one_hot(y, 3)))
    assert dataset.element_spec[1].shape == (36, 3)
    assert sampling.sampling_of(dataset) is not None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"labels": None}, "Declare them public"),
        ({"labels": "private"}, "Declare them public"),
        ({"draw_size": 2}, "takes none of the 10 examples of label 2"),
        ({"draw_size": 61}, "without replacement.*Received: draw_size=61"),
        ({"draw_size": 0}, "`draw_size` must be an integer of at least 1"),
        ({"draw_size": True}, "`draw_size` must be an integer"),
        ({"draws": 1.5}, "`draws` must be an integer"),
        ({"draws": "2"}, "`draws` must be an integer"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be an integer"),
        ({"cache": 1}, "`cache` must be True or False"),
        ({"labels": np.array("public")}, "Declare them public"),
        ({"y": Y[:-1]}, "`x` has 60 examples and `y` 59"),
        ({"y": Y.astype(float)}, "Labels must be integers"),
        ({"y": Y.astype(str)}, "Labels must be integers.*np.unique"),
        ({"y": np.eye(3)[Y]}, "argmax"),
        ({"x": tf.data.Dataset.from_tensor_slices((X, Y))}, "inputs only"),
        ({"map_fn": lambda x, y: (x, y, y)}, r"must return \(x, y\)"),
        ({"map_fn": lambda x, y: (x[:5], y)}, "one entry per example"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        _sampler(**arguments)


def test_drawn_batches_are_not_examples():
    with pytest.raises(ValueError, match="already consists of drawn"):
        _sampler(x=_sampler())
    with pytest.raises(ValueError, match="was randomised"):
        _sampler(y=tf_dpfp.representations.randomize_labels(Y, 1.0, 3))


def test_calibration_meets_the_budget_and_not_more():
    y = tf_dpfp.representations.randomize_labels(Y, 1.0, 3)
    for labels, batches in (
        ([], _sampler(steps_per_epoch=5)),
        ([y.entry], _sampler(y=y, labels=None, steps_per_epoch=5)),
    ):
        noise = tf_dpfp.representations.calibrate_representation(
            batches, epsilon=4.0, delta=1e-5, epochs=3
        )

        def spent(noise, batches=batches, labels=labels):
            rows = accounting.LedgerEntry(
                sampling.sampling_of(batches).sampling,
                noise,
                3 * 5 * 3,
                release=accounting.Representations("public"),
            )
            return accounting.compute_epsilon([rows, *labels], 1e-5)

        assert spent(noise) <= 4.0 < spent(noise - 2e-4)
    with pytest.raises(ValueError, match="No noise multiplier"):
        # The labels alone cost as much.
        tf_dpfp.representations.calibrate_representation(
            batches, epsilon=0.5, delta=1e-9, epochs=3
        )
    with pytest.raises(ValueError, match="stratified_batches"):
        tf_dpfp.representations.calibrate_representation(
            batches.take(1), epsilon=4.0, delta=1e-5, epochs=3
        )
