import math

import numpy as np
import pytest
from scipy import stats

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp.sampling import batching
from tf_dpfp.sampling import stratified


@pytest.mark.parametrize("epsilon", [0.3, 2.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_frequencies(epsilon, classes):
    count = 40_000
    y = np.full(count, 1, np.int32)
    found = tf_dpfp.representations.randomize_labels(y, epsilon, classes)
    keep = math.exp(epsilon) / (math.exp(epsilon) + classes - 1)
    expected = np.full(classes, (1 - keep) / (classes - 1))
    expected[1] = keep
    assert found.keep_probability == pytest.approx(keep)
    observed = np.bincount(found.values, minlength=classes)
    assert stats.chisquare(observed, expected * count).pvalue > 1e-4
    # What the probabilities cost is the epsilon that is accounted for.
    ratio = math.log(keep / expected[0])
    assert ratio == pytest.approx(epsilon)
    assert 1.0 / found.entry.noise_multiplier == pytest.approx(epsilon)
    assert found.values.dtype == np.int32


def test_each_randomisation_is_a_release_of_its_own():
    y = np.arange(4)
    one, two = (
        tf_dpfp.representations.randomize_labels(y, 1.0, 4) for _ in range(2)
    )
    assert one.entry != two.entry
    assert not one.entry.seeded
    assert one.entry.sampling.num_classes == 4
    seeded = [
        tf_dpfp.representations.randomize_labels(y, 1.0, 4, seed=1)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(seeded[0].values, seeded[1].values)
    assert seeded[0].entry.seeded
    assert isinstance(one.entry, accounting.LedgerEntry)
    # Not by numbers that anyone can draw again.
    y = np.zeros(64, np.int64)
    one, two = (
        tf_dpfp.representations.randomize_labels(y, 0.1, 4) for _ in range(2)
    )
    assert one.values.tolist() != two.values.tolist()


class _Uniform:
    """A generator whose numbers are all the same."""

    def __init__(self, value):
        self.value = value

    def random(self, size):
        return np.full(size, self.value)

    def integers(self, low, high, size):
        return np.full(size, low)


@pytest.mark.parametrize("epsilon", [1.0, 36.0, 60.0, 699.0])
def test_no_epsilon_keeps_every_label(monkeypatch, epsilon):
    y = np.array([0, 1, 2])
    change = 1 / (1 + math.exp(epsilon) / 2)
    for value, changed in ((0.0, True), (change, False), (0.99, False)):
        monkeypatch.setattr(
            np.random, "default_rng", lambda _, value=value: _Uniform(value)
        )
        found = tf_dpfp.representations.randomize_labels(y, epsilon, 3).values
        assert found.tolist() == ([1, 2, 0] if changed else [0, 1, 2])


def test_columns_keep_their_shape():
    y = np.zeros((7, 1), np.int64)
    assert tf_dpfp.representations.randomize_labels(y, 1.0, 2).values.shape == (
        7,
        1,
    )


@pytest.mark.parametrize(
    "y, epsilon, classes, message",
    [
        ([0, 1], 0.0, 2, "epsilon"),
        ([0, 1], math.inf, 2, "epsilon"),
        ([0, 1], math.nan, 2, "epsilon"),
        ([0, 1], 700.0, 2, "`epsilon` must be a finite number above 0 and"),
        ([0, 1], "1.0", 2, "`epsilon` must be a finite number"),
        ([0, 1], True, 2, "`epsilon` must be a finite number"),
        ([0, 1], 1.0, 1, "num_classes"),
        ([0, 1], 1.0, 2.0, "`num_classes` must be an integer of at least 2"),
        ([0, 1], 1.0, True, "`num_classes` must be an integer of at least 2"),
        ([0, 2], 1.0, 2, "from 0 to 1"),
        ([0, -1], 1.0, 2, "from 0 to 1"),
        ([0.0, 1.0], 1.0, 2, "integers"),
        ([[0, 1], [1, 0]], 1.0, 2, "one class for each example"),
    ],
)
def test_refusals(y, epsilon, classes, message):
    with pytest.raises(ValueError, match=message):
        tf_dpfp.representations.randomize_labels(np.array(y), epsilon, classes)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64"])
def test_every_class_has_a_number_in_labels_of_a_small_type(dtype):
    labels = np.zeros(20_000, dtype)
    noised = tf_dpfp.representations.randomize_labels(labels, 0.1, 1000, seed=1)
    values = noised.values
    assert values.min() == 0 and values.max() == 999
    assert (values.dtype == dtype) == (np.iinfo(dtype).max >= 999)


def test_labels_and_batches_of_one_seed_draw_by_other_coins():
    """Who sees the labels, and knows the true ones, knows their coins."""
    size, share, found = 2000, 0.05, []
    labels = np.repeat([0, 1], size // 2)
    for seed in range(200):
        noised = tf_dpfp.representations.randomize_labels(
            labels, 1.0, 2, seed=seed
        )
        strata = [np.flatnonzero(noised.values == each) for each in (0, 1)]
        rng = np.random.default_rng(next(batching.seeds(seed)))
        drawn = stratified.draw(rng, strata, [int(share * size), 1])
        # Coins of labels that were changed are low, and so were the places of
        # those who were drawn by the same coins.
        first = strata[0][: len(strata[0]) // 4]
        changed = noised.values[:50] != labels[:50]
        found.append((changed.sum(), np.isin(first, drawn).sum()))
    assert abs(np.corrcoef(np.transpose(found))[0, 1]) < 0.3
