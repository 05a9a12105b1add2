import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tests import helpers
from tf_dpfp import compilation
from tf_dpfp import noise

SIZE = 480_000
# Small tensors, large ones, and steps that XLA compiles take three paths.
PATHS = ("kernels", "compiled", "xla")
_SMALL = 30_000


def _draw(shape, key, path="kernels", deviation=1.0):
    def draw(key):
        return noise.gaussian_noise(shape, deviation, key)

    key = tf.constant(key, tf.uint64)
    if path == "xla":
        with compilation.tracing_for(compilation.Target.XLA):
            return tf.function(draw, jit_compile=True)(key).numpy()
    return draw(key).numpy()


def _sample(size, path, deviation=1.0):
    """Many numbers by one of the paths; the small ones under many keys."""
    if path != "kernels":
        return _draw([size], 17, path, deviation)
    draws = [
        _draw([_SMALL], key, path, deviation) for key in range(size // _SMALL)
    ]
    return np.concatenate(draws)


def assert_normal_with_std(sample, std):
    """A KS test that accepts `std` and rejects the scales next to it."""
    wrong = (0.98, 1.02, 1 / math.sqrt(2), math.sqrt(2), 0.5, 2.0)
    helpers.assert_normal(sample, std, wrong)


def test_totals_beyond_float32_are_not_told_from_those_at_its_limit():
    total = tf.constant([1e39, 3.5e38, -1e300, 1.0 / 3.0], tf.float64)
    drawn = tf.constant([-3e38, -3e38, 2e38, 1.0])
    found = noise.noised(total, drawn).numpy()
    most = np.finfo(np.float32).max
    expected = [most - 3e38, most - 3e38, 2e38 - most, np.float32(4.0 / 3.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float64
    assert found[3] == np.float32(found[3])


def _added(sizes, deviations, path):
    """Noise of one draw on zeros of several shapes."""

    def add(key):
        totals = [tf.zeros(size) for size in sizes]
        return noise.add_gaussians(totals, deviations, key)

    key = tf.constant(17, tf.uint64)
    if path == "xla":
        with compilation.tracing_for(compilation.Target.XLA):
            return tf.function(add, jit_compile=True)(key)
    return add(key)


# In one the halves meet inside of a tensor, in one between two, one is alone.
@pytest.mark.parametrize(
    "sizes",
    [
        [(30_001,), (7, 9_001), (1,), (50_000,)],
        [(200, 160), (32_000,)],
        [(63_001,)],
    ],
)
@pytest.mark.parametrize("path", ["kernels", "xla"])
def test_tensors_of_one_draw_share_no_number(sizes, path):
    deviations = [0.5, 3.7, 1.0, 8.0][: len(sizes)]
    found = _added(sizes, deviations, path)
    parts = [np.ravel(n) / d for n, d in zip(found, deviations, strict=True)]
    for noises, size, part in zip(found, sizes, parts, strict=True):
        assert noises.shape == size
        if part.size > 1:
            helpers.assert_normal(part, 1.0, (0.7, 1.4))
    numbers = np.concatenate(parts)
    assert len(np.unique(numbers)) > 0.99 * len(numbers)
    # Pairs share a radius: any order that lays one's members over each other's
    # squares would show here.
    squares = np.square(numbers) - 1.0
    for shift in (1, len(numbers) // 2, (len(numbers) + 1) // 2):
        both = squares[shift:], squares[: len(numbers) - shift]
        assert abs(np.mean(both[0] * both[1])) < 12 / len(both[0]) ** 0.5


@pytest.mark.parametrize("path", ["kernels", "xla"])
def test_noise_is_added_to_what_it_is_for(path):
    totals = [tf.constant([1e6, -2e6, 3e6]), tf.constant([[4e6], [5e6]])]

    def add(key):
        return noise.add_gaussians(totals, [0.5, 2.0], key)

    key = tf.constant(3, tf.uint64)
    if path == "xla":
        with compilation.tracing_for(compilation.Target.XLA):
            found = tf.function(add, jit_compile=True)(key)
    else:
        found = add(key)
    for given, noised in zip(totals, found, strict=True):
        assert noised.shape == given.shape
        difference = noised.numpy() - given.numpy()
        assert np.all(np.abs(difference) < 16)
        assert np.any(difference)


@pytest.mark.parametrize("path", PATHS)
def test_distribution_is_the_stated_normal(path):
    sample = _sample(SIZE, path, 3.7)
    assert sample.dtype == np.float32
    assert_normal_with_std(sample, 3.7)


@pytest.mark.parametrize("path", PATHS)
def test_numbers_know_nothing_of_each_other(path):
    size = _SMALL if path == "kernels" else SIZE
    sample = _draw([size], 17, path).astype(np.float64)
    # Box-Muller makes two numbers of every pair of words: one goes into the
    # first half, the other into the second.
    first, second = np.split(sample, 2)
    bound = 5.0 / math.sqrt(len(first))
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < bound
    for lag in (1, 2, 3, 4, 64):
        found = np.corrcoef(sample[:-lag], sample[lag:])[0, 1]
        assert abs(found) < bound, lag


@pytest.mark.parametrize("path", PATHS)
def test_tails(path):
    draws = 12_000_000
    sample = np.abs(_sample(draws, path))
    assert np.all(np.isfinite(sample))
    for threshold in (3.0, 4.5, 5.0):
        expected = draws * 2 * stats.norm.sf(threshold)
        found = np.count_nonzero(sample > threshold)
        assert abs(found - expected) < 5 * math.sqrt(expected) + 1, threshold


@pytest.mark.parametrize("shape", [[], [1], [3], [2, 3, 5], [7, 1], [0]])
def test_shapes(shape):
    for path in PATHS:
        assert list(_draw(shape, 1, path).shape) == shape


def test_equal_keys_only_give_equal_numbers():
    a, b = _draw([1001], 5), _draw([1001], 5)
    np.testing.assert_array_equal(a, b)
    seen = set(a.tolist())
    for key in (0, 4, 6, 2**32 + 5, 2**63, 2**64 - 1):
        other = _draw([1001], key)
        assert not seen & set(other.tolist()), key
        assert abs(np.corrcoef(a, other)[0, 1]) < 0.16


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("deviation", [1e-30, 1e-20, 1e-10, 1e10, 1e30])
def test_no_scale_is_lost(path, deviation):
    size = 100_000 if path == "compiled" else 10_000
    sample = _draw([size], 3, path, deviation) / np.float64(deviation)
    np.testing.assert_allclose(sample, _draw([size], 3, path), rtol=1e-5)
    assert np.std(sample) == pytest.approx(1.0, rel=0.05)
