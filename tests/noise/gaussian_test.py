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


def test_keys_of_steps_tensors_and_replicas_are_all_different():
    source = noise.NoiseSource()
    keys = [
        int(source.key_of(source_key, tensor, replica).numpy())
        for source_key in [source.next_step() for _ in range(6)]
        for tensor in (0, 1, 2, 2**20 - 1)
        for replica in (0, 1, 2**12 - 1)
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("seed", [None, 5])
def test_steps_and_replicas_are_as_far_apart_as_there_are_tensors(seed):
    key = noise.NoiseSource.key_of(tf.constant(0, tf.int64), 7, 3)
    assert int(key) == 3 * 2**20 + 7
    source = noise.NoiseSource(seed)
    first, second = (
        int(source.next_step(tf.constant(step, tf.int64))) for step in (4, 5)
    )
    assert (second - first) % 2**64 == 2**12 * 2**20


@pytest.mark.parametrize("replicas", [1, 2])
def test_outside_of_its_replica_only_one_replica_draws(replicas):
    devices = [f"CPU:{i}" for i in range(replicas)]
    source = noise.NoiseSource()
    with tf.distribute.MirroredStrategy(devices).scope():
        source.build()
        if replicas == 1:
            assert int(source.next_step()) != int(source.next_step())
            return
        with pytest.raises(RuntimeError, match="belongs to one replica"):
            source.next_step()


def test_unseeded_sources_differ_and_ignore_the_iteration():
    a, b = noise.NoiseSource(), noise.NoiseSource()
    assert a.next_step().numpy() != b.next_step().numpy()
    # A restored optimizer would count from the same iteration again.
    iteration = tf.constant(3, tf.int64)
    steps = {int(a.next_step(iteration).numpy()) for _ in range(5)}
    assert len(steps) == 5


def test_a_seed_reproduces_each_step():
    a, b = noise.NoiseSource(seed=7), noise.NoiseSource(seed=7)
    other = noise.NoiseSource(seed=8)
    keys = [[], [], []]
    for iteration in range(4):
        step = tf.constant(iteration, tf.int64)
        for source, found in zip((a, b, other), keys, strict=True):
            found.append(int(source.next_step(step).numpy()))
    assert keys[0] == keys[1]
    assert len(set(keys[0] + keys[2])) == 8
    # The noise of a step that is resumed, and of no other one.
    resumed = noise.NoiseSource(seed=7)
    assert int(resumed.next_step(tf.constant(2, tf.int64))) == keys[0][2]
    assert int(a.next_step(tf.constant(3, tf.int64))) not in keys[0]
    assert int(resumed.next_step(tf.constant(9, tf.int64))) not in keys[0]


def test_the_key_is_fresh_inside_a_compiled_step():
    source = noise.NoiseSource()

    @tf.function
    def step():
        return noise.gaussian_noise(
            [5], 1.0, source.key_of(source.next_step(), 0)
        )

    drawn = {tuple(step().numpy().tolist()) for _ in range(6)}
    assert len(drawn) == 6


@pytest.mark.parametrize("tensor", [-1, 2**20])
def test_tensors_out_of_range_are_refused(tensor):
    with pytest.raises(ValueError, match="at most 1048576 tensors"):
        noise.NoiseSource.key_of(tf.constant(0, tf.int64), tensor)


def test_checkpoints_do_not_see_the_source():
    source = noise.NoiseSource()
    source.next_step()
    assert not isinstance(source, tf.__internal__.tracking.Trackable)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("deviation", [1e-30, 1e-20, 1e-10, 1e10, 1e30])
def test_no_scale_is_lost(path, deviation):
    size = 100_000 if path == "compiled" else 10_000
    sample = _draw([size], 3, path, deviation) / np.float64(deviation)
    np.testing.assert_allclose(sample, _draw([size], 3, path), rtol=1e-5)
    assert np.std(sample) == pytest.approx(1.0, rel=0.05)
