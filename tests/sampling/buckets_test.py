"""Few batch sizes: which ones, and that padding is all that they add."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tf_dpfp
from tf_dpfp import sampling
from tf_dpfp.sampling import buckets

POPULATION = 60000


def _mean_size(sizes, population, rate):
    drawn = np.arange(population + 1)
    largest = sizes[-1]
    padded = -(-drawn // largest) * largest
    for size in reversed(sizes):
        padded[: size + 1] = size
    return float((stats.binom.pmf(drawn, population, rate) * padded).sum())


@pytest.mark.parametrize(
    ("expected", "count"), [(32, 4), (256, 2), (2048, 1), (16384, 1)]
)
def test_few_sizes_hold_all_draws_with_little_padding(expected, count):
    rate = expected / POPULATION
    sizes = sampling.bucket_sizes(POPULATION, rate)
    assert len(sizes) == count and list(sizes) == sorted(set(sizes))
    assert all(size % 8 == 0 for size in sizes)
    assert stats.binom.sf(sizes[-1], POPULATION, rate) <= 1e-6
    mean = _mean_size(sizes, POPULATION, rate)
    assert expected < mean <= 1.15 * expected


@pytest.mark.parametrize("steps", [1, 30, 200, 10**6])
@pytest.mark.parametrize("expected", [32, 256, 2048])
def test_a_size_is_worth_its_compilation(expected, steps):
    rate = expected / POPULATION
    sizes = sampling.bucket_sizes(POPULATION, rate, steps=steps)
    assert stats.binom.sf(sizes[-1], POPULATION, rate) <= 1e-6

    def cost(sizes):
        """Mean cost by simulated trainings, in steps of the expected size."""
        rng = np.random.default_rng(0)
        total = 0.0
        for _ in range(60):
            drawn = rng.binomial(POPULATION, rate, min(steps, 2000))
            places = np.searchsorted(sizes, drawn)
            used = np.asarray([*sizes, 2 * sizes[-1]])[places]
            compiled = len(sizes) if steps > 2000 else len(set(places))
            total += steps * np.mean(used) / expected
            total += buckets._COMPILATION_ON_CPUS * compiled
        return total / 60

    # Against one size, and against those of unknown lengths.
    for others in (sizes[-1:], sampling.bucket_sizes(POPULATION, rate)):
        assert cost(sizes) <= 1.01 * cost(others)
    if steps == 10**6:
        assert _mean_size(sizes, POPULATION, rate) <= 1.15 * expected


def test_compilations_cost_more_steps_of_a_faster_device(monkeypatch):
    rate = 32 / POPULATION
    on_cpu = sampling.bucket_sizes(POPULATION, rate, steps=400)
    monkeypatch.setattr(buckets.compilation, "has_accelerator", lambda: True)
    faster = sampling.bucket_sizes(POPULATION, rate, steps=400)
    assert len(faster) <= len(on_cpu)
    means = [_mean_size(s, POPULATION, rate) for s in (on_cpu, faster)]
    assert means[0] < means[1]


@pytest.mark.parametrize(
    ("population", "rate"), [(1, 1.0), (5, 0.1), (20, 1.0), (10**7, 1e-7)]
)
def test_any_rate_has_sizes(population, rate):
    sizes = sampling.bucket_sizes(population, rate, multiple=3)
    assert 1 <= len(sizes) <= 4 and all(size % 24 == 0 for size in sizes)
    assert stats.binom.sf(sizes[-1], population, rate) <= 1e-6


def test_huge_batches_have_sizes_soon():
    sizes = sampling.bucket_sizes(10**8, 0.01)
    assert len(sizes) == 1 and sizes[-1] < 1.01e6


@pytest.mark.parametrize(
    ("drawn", "size"), [(0, 8), (1, 8), (8, 8), (9, 16), (40, 40), (41, 80)]
)
def test_a_draw_goes_into_the_smallest_size_that_holds_it(drawn, size):
    found = buckets._size_for(tf.constant(drawn), (8, 16, 40))
    assert int(found) == size


def _batches(**kwargs):
    x = np.arange(1, 101, dtype=np.float32)
    return tf_dpfp.poisson_batches(
        x, -x, expected_batch_size=20, steps_per_epoch=12, seed=3, **kwargs
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_the_draws_are_those_without_padding(weighted):
    kwargs = {"sample_weight": np.full(100, 0.5)} if weighted else {}
    batches = _batches(**kwargs)
    padded = sampling.in_buckets(batches, sampling.sampling_of(batches))
    assert padded.cardinality() == batches.cardinality()
    # Every iteration draws anew: this is the first one of another data set.
    drawn = list(_batches(**kwargs).as_numpy_iterator())
    sizes = set()
    for plain, more in zip(drawn, padded.as_numpy_iterator(), strict=True):
        count = len(plain[0])
        x, y, weight = more
        np.testing.assert_array_equal(x[:count], plain[0])
        np.testing.assert_array_equal(y[:count], plain[1])
        np.testing.assert_array_equal(weight[:count], 0.5 if weighted else 1)
        for tensor in more:
            np.testing.assert_array_equal(tensor[count:], 0)
        sizes.add(len(x))
    assert len(sizes) <= 4 < len({len(plain[0]) for plain in drawn})


def test_nothing_is_padded_twice_or_without_a_weight_for_it():
    static = _batches(padded="static")
    assert sampling.in_buckets(static, sampling.sampling_of(static)) is static
    alone = tf_dpfp.poisson_batches(np.ones(9), expected_batch_size=3)
    assert sampling.in_buckets(alone, sampling.sampling_of(alone)) is alone


def test_padded_batches_claim_nothing_by_themselves():
    batches = _batches()
    padded = sampling.in_buckets(batches, sampling.sampling_of(batches))
    assert sampling.sampling_of(padded) is None
