import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tests.low_rank import strong_carriers
from tf_dpfp import low_rank

SEED = tf.constant([3, 4])


def _starts(rank, seed=SEED, rows=40, columns=25):
    numbers = low_rank.normals((rows + columns) * rank, seed)
    return low_rank.Carriers(
        tf.reshape(numbers[: rows * rank], [rows, rank]),
        tf.reshape(numbers[rows * rank :], [columns, rank]),
    )


def _target(kind):
    rng = np.random.default_rng(0)
    target = rng.normal(size=(40, 25))
    if kind == "zero":
        target = np.zeros_like(target)
    elif kind == "tiny":
        target = target * 1e-37
    elif kind == "huge":
        target = target * 1e37
    elif kind == "rank one":
        target = np.outer(target[:, 0], target[0])
    elif kind == "one row":
        target[1:] = 0.0
    elif kind == "nan":
        target[3, 4] = np.nan
    elif kind == "inf":
        target[3, 4] = np.inf
    return tf.constant(target, tf.float32)


def _assert_orthonormal(basis, rows, rank):
    basis = basis.numpy().astype(np.float64)
    assert basis.shape == (rows, rank)
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=2e-6)


@pytest.mark.parametrize("rank", [1, 4, 24])
@pytest.mark.parametrize(
    "kind",
    ["full", "zero", "tiny", "huge", "rank one", "one row", "nan", "inf"],
)
def test_carriers_are_orthonormal_whatever_the_target(kind, rank):
    left, right = low_rank.leading_carriers(_target(kind), _starts(rank))
    _assert_orthonormal(left, 40, rank)
    _assert_orthonormal(right, 25, rank)


def test_the_power_method_finds_the_leading_directions(monkeypatch):
    strong_carriers.patch(monkeypatch)
    rng = np.random.default_rng(1)
    u, _ = np.linalg.qr(rng.normal(size=(40, 25)))
    v, _ = np.linalg.qr(rng.normal(size=(25, 25)))
    sizes = 3.0 ** -np.arange(25)
    target = tf.constant((u * sizes) @ v.T * 1e-4, tf.float32)
    left, right = low_rank.leading_carriers(target, _starts(4))
    for found, true in ((left, u), (right, v)):
        overlap = np.linalg.svd(found.numpy().T @ true[:, :4])[1]
        np.testing.assert_allclose(overlap, 1.0, atol=1e-4)


def test_one_round_catches_a_target_of_low_rank_whole():
    rng = np.random.default_rng(2)
    target = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 25))
    target = target.astype(np.float32)
    left, right = low_rank.leading_carriers(tf.constant(target), _starts(3))
    left, right = left.numpy(), right.numpy()
    np.testing.assert_allclose(left @ (left.T @ target), target, atol=2e-5)
    np.testing.assert_allclose((target @ right) @ right.T, target, atol=2e-5)


def test_a_zero_target_gives_random_directions():
    found = [
        low_rank.leading_carriers(_target("zero"), _starts(2, seed))
        for seed in (SEED, SEED, SEED + 1)
    ]
    for side in (0, 1):
        first, again, other = (carriers[side].numpy() for carriers in found)
        np.testing.assert_array_equal(first, again)
        assert np.max(np.abs(first.T @ other)) < 0.9
        # No axis of the coordinates: all numbers take part.
        assert np.max(np.abs(first)) < 0.9


def test_random_carriers_follow_their_seed():
    first, again, other = (
        low_rank.random_carriers(_starts(3, seed))
        for seed in (SEED, SEED, SEED + 1)
    )
    _assert_orthonormal(first.left, 40, 3)
    _assert_orthonormal(first.right, 25, 3)
    for side in (0, 1):
        np.testing.assert_array_equal(first[side], again[side])
        assert np.max(np.abs(first[side].numpy() - other[side].numpy())) > 0.1


def test_random_directions_are_those_of_normals():
    normals = low_rank.normals(400_000, SEED).numpy()
    scale = np.sqrt(0.5)
    assert stats.kstest(normals, stats.norm(0.0, scale).cdf).pvalue > 1e-4
    assert np.max(np.abs(normals)) < 5.5 * scale
    ends = [[-(2**31), 2**31 - 1, 2**31 - 1024, 0, -1, 1]]
    ends = low_rank.carriers._to_normals(tf.constant(ends)).numpy()
    assert np.all(np.isfinite(ends)) and np.all(ends != 0.0)


def test_carriers_compile_under_xla():
    def both(target):
        return low_rank.leading_carriers(
            target, _starts(3)
        ), low_rank.leading_carriers(target * 0.0, _starts(3))

    compiled = tf.function(both, jit_compile=True, autograph=False)
    draw = tf.function(low_rank.normals, jit_compile=True, autograph=False)
    np.testing.assert_allclose(
        draw(5001, SEED), low_rank.normals(5001, SEED), rtol=1e-4
    )
    target = _target("full")
    for carriers, eager in zip(compiled(target), both(target), strict=True):
        _assert_orthonormal(carriers.left, 40, 3)
        _assert_orthonormal(carriers.right, 25, 3)
        # The same numbers, so that it does not matter what a run resumes on.
        for a, b in zip(carriers, eager, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
