"""The noise that a release adds: of every size, and in shares."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tests import helpers
from tf_dpfp import clipping
from tf_dpfp import compilation
from tf_dpfp import optimizers
from tf_dpfp.optimizers import release

# Both ways to draw noise: by itself, and together with others.
SHAPES = [(300, 300), (150, 20), (1000,)]
CLIP_NORMS = (0.3, 2.0)
KEY = tf.constant(123, tf.int64)


def _clipped(replicas=1):
    """Sums of zero in two groups: the second has the first and last."""
    return optimizers.ClippedGradients(
        sums=[tf.zeros(shape) for shape in SHAPES],
        variables=[keras.Variable(np.zeros(s, np.float32)) for s in SHAPES],
        groups=[
            clipping.Group("a", (1,), CLIP_NORMS[0], 3000),
            clipping.Group("b", (0, 2), CLIP_NORMS[1], 91000),
        ],
        regularization=[None] * 3,
        replicas=replicas,
    )


@pytest.mark.parametrize("share", [1.0, 0.5, 0.5**0.5])
@pytest.mark.parametrize("noise_multiplier", [1e-4, 0.05, 0.4, 1.0, 7.0])
def test_a_share_of_the_stated_noise_at_every_multiplier(
    noise_multiplier, share
):
    released = release.add_noise(
        _clipped(), noise_multiplier, "global", release.Draws(KEY, 0, share)
    )
    sensitivity = np.linalg.norm(CLIP_NORMS)
    for noise in released:
        helpers.assert_normal(
            noise, noise_multiplier * sensitivity * share, (0.7, 1.4)
        )


def test_only_a_multiplier_of_zero_adds_nothing():
    draws = release.Draws(KEY, 0, 1.0)
    for total in release.add_noise(_clipped(), 0.0, "global", draws):
        assert not np.any(total)
    for total in release.add_noise(_clipped(), 1e-6, "global", draws):
        assert np.all(total != 0.0)


@pytest.mark.parametrize("secure", [False, True])
def test_no_digit_leaves_that_noise_does_not_reach(secure):
    # Noise ends at some digit; those of a float64 sum behind it are its own.
    sums = [tf.random.normal(shape, dtype=tf.float64) for shape in SHAPES]
    clipped = dataclasses.replace(_clipped(), sums=sums)
    draws = release.Draws(KEY, 0, 1.0, secure)
    for released in release.add_noise(clipped, 1.0, "global", draws):
        assert released.dtype == tf.float64
        np.testing.assert_array_equal(released, np.float32(released))


@pytest.mark.parametrize("replicas", [1, 4])
def test_the_shares_of_all_replicas_are_the_whole_noise(replicas, monkeypatch):
    totals = [0.0] * len(SHAPES)
    for replica in range(replicas):
        monkeypatch.setattr(
            release.replicas, "index", lambda replica=replica: replica
        )
        draws = release.draws_of(KEY, _clipped(replicas))
        assert draws.share == pytest.approx(replicas**-0.5)
        released = release.add_noise(_clipped(replicas), 0.4, "global", draws)
        totals = [a + b for a, b in zip(totals, released, strict=True)]
    for total in totals:
        helpers.assert_normal(
            total, 0.4 * np.linalg.norm(CLIP_NORMS), (0.7, 1.4)
        )


def _many(count):
    """Sums of zero, of many variables of different sizes, in two groups."""
    shapes = [(50 + i, 9) for i in range(count)]
    halves = range(0, count, 2), range(1, count, 2)
    return optimizers.ClippedGradients(
        sums=[tf.zeros(shape) for shape in shapes],
        variables=[keras.Variable(np.zeros(s, np.float32)) for s in shapes],
        groups=[
            clipping.Group(name, tuple(half), clip_norm, 9000)
            for name, half, clip_norm in zip(
                "ab", halves, CLIP_NORMS, strict=True
            )
        ],
        regularization=[None] * count,
    )


def _for_xla(count):
    """The release of many sums as traced for XLA, and its random draws."""

    sums = _many(count)

    def noised(key):
        with compilation.tracing_for(compilation.Target.XLA):
            return release.add_noise(
                sums, 1.0, "global", release.Draws(key, 0, 1.0)
            )

    function = tf.function(noised, jit_compile=True, autograph=False)
    graph = function.get_concrete_function(KEY).graph
    types = [op.type for op in graph.get_operations()]
    drawn = sum(t.startswith("StatelessRandom") for t in types)
    return function, drawn, len(types)


def test_xla_draws_the_noise_of_many_tensors_at_once():
    function, drawn, operations = _for_xla(40)
    assert drawn == 1
    # A handful for each tensor, where a draw of its own takes two dozen.
    assert operations < 40 * 12
    noises = function(KEY)
    deviation = np.linalg.norm(CLIP_NORMS)
    for noise in noises:  # Six standard errors and more.
        assert abs(np.std(noise) / deviation - 1) < 0.21
    numbers = np.concatenate([np.ravel(noise) for noise in noises])
    helpers.assert_normal(numbers, deviation, (0.7, 1.4))
    assert len(np.unique(numbers)) > 0.99 * len(numbers)
    pairs = zip(noises, noises[1:], strict=False)
    for one, other in pairs:
        both = np.ravel(one), np.ravel(other)[: np.size(one)]
        assert abs(stats.pearsonr(*both)[0]) < 6 / np.size(one) ** 0.5
    assert not np.array_equal(noises[0], function(KEY + 2**32)[0])


def test_a_draw_for_xla_has_a_limit(monkeypatch):
    monkeypatch.setattr(release, "_FUSED_DRAW", 2000)
    keys = []
    key = release.Draws.key
    monkeypatch.setattr(
        release.Draws,
        "key",
        lambda self, tensor: keys.append(tensor) or key(self, tensor),
    )
    function, drawn, _ = _for_xla(10)
    # 450 to 531 numbers each, 2451 and 2455 in the two groups.
    assert drawn == 3 == len(set(keys)) == len(keys)
    noises = function(KEY)
    numbers = np.concatenate([np.ravel(noise) for noise in noises])
    assert len(np.unique(numbers)) > 0.99 * len(numbers)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_gradient_is_a_mean_of_what_was_released_and_what_is_added(dtype):
    variable = keras.Variable(np.zeros((2, 1)), dtype=dtype)
    total, extra = tf.constant([[6.0], [3.0]]), tf.constant([[0.5], [0.0]])
    divisor = tf.constant(3.0)
    for given, found in (
        ((total, None), [[2.0], [1.0]]),
        ((total, extra), [[2.5], [1.0]]),
        ((None, extra), [[0.5], [0.0]]),
    ):
        gradient = release.finish(*given, divisor, variable)
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(gradient, found)
    assert release.finish(None, None, divisor, variable) is None
    rows = tf.IndexedSlices(total, tf.constant([4, 7]), tf.constant([9, 1]))
    found = release.finish(rows, None, divisor, variable)
    assert found.values.dtype == dtype
    np.testing.assert_array_equal(found.values, [[2.0], [1.0]])
    np.testing.assert_array_equal(found.indices, [4, 7])


def test_clipped_sums_are_not_shown():
    secret = 123.4375
    sums = [tf.fill(shape, secret) for shape in SHAPES]
    clipped = dataclasses.replace(_clipped(), sums=sums)
    assert str(secret) not in repr(clipped)
    assert "private" in repr(clipped)
