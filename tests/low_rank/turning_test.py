"""Numbers of carriers in other carriers: the same, and never longer."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp import low_rank
from tf_dpfp.low_rank import matrices

ROWS, COLUMNS, RANK = 12, 9, 3
VIEW = matrices.MatrixView((ROWS, COLUMNS), (0, 1), 1)


def _basis(size, seed):
    normals = np.random.default_rng(seed).normal(size=(size, RANK))
    return tf.constant(np.linalg.qr(normals)[0], tf.float32)


def _carriers(seed, left_only=False):
    right = None if left_only else _basis(COLUMNS, seed + 1)
    return low_rank.Carriers(_basis(ROWS, seed), right)


def _numbers(left_only=False):
    size = RANK * (COLUMNS if left_only else ROWS + COLUMNS)
    return tf.constant(np.random.default_rng(9).normal(size=size), tf.float32)


@pytest.mark.parametrize("left_only", [False, True])
def test_carriers_of_one_space_say_the_same_of_the_kernel(left_only):
    before = _carriers(0, left_only)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(RANK, RANK)))[0]
    now = low_rank.Carriers(
        *[None if part is None else part @ turn for part in before]
    )
    numbers = _numbers(left_only)
    there = low_rank.turned(numbers, before, now, VIEW)
    np.testing.assert_allclose(
        low_rank.reconstruct(there, now, VIEW),
        low_rank.reconstruct(numbers, before, VIEW),
        atol=2e-3,  # A little less of it.
    )
    back = low_rank.turned(there, now, before, VIEW)
    np.testing.assert_allclose(back, numbers, atol=3e-3)


@pytest.mark.parametrize("factor", [1.0, 1.0 + 1e-5, 1.3, 40.0])
@pytest.mark.parametrize("same", [True, False])
def test_no_vector_gets_longer_whatever_the_carriers_are(factor, same):
    """Planted in place of orthonormal columns: longer and dependent ones."""
    first = _carriers(0)
    second = first if same else _carriers(5)
    skewed = second.left + (factor - 1.0) * second.left[:, :1]
    second = low_rank.Carriers(factor * skewed, factor * second.right)
    for before, now in ((first, second), (second, first), (second, second)):
        columns = [
            low_rank.turned(unit, before, now, VIEW)
            for unit in tf.unstack(tf.eye(RANK * (ROWS + COLUMNS)))
        ]
        norm = np.linalg.norm(np.stack(columns).astype(np.float64), 2)
        assert norm < 1.0
        if factor == 1.0 and (same or before is now):
            assert norm > 0.999
