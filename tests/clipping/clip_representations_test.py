import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tf_dpfp import clipping


def _norms(rows):
    flat = np.asarray(rows, np.float64).reshape(len(rows), -1)
    return np.linalg.norm(flat, axis=1)


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
        elements=st.floats(width=32),
    ),
    st.sampled_from([1e-10, 1e-3, 1.0, 37.5, 1e15]),
)
def test_no_row_is_longer_than_the_bound(tensor, clip_norm):
    clipped = clipping.clip_representations(
        tf.constant(tensor), clip_norm
    ).numpy()
    assert np.all(np.isfinite(clipped))
    assert np.all(_norms(clipped) <= clip_norm)
    finite = np.isfinite(tensor).all(axis=(1, 2))
    assert not clipped[~finite].any()


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e19, 1e38])
@pytest.mark.parametrize("size", [1, 768, 100_000])
def test_long_rows_become_as_long_as_the_bound(scale, size):
    rng = np.random.default_rng(0)
    rows = rng.uniform(-scale, scale, (3, size)).astype(np.float32)
    clip_norm = min(0.5 * _norms(rows / scale).min() * scale, 1e30)
    clipped = clipping.clip_representations(
        tf.constant(rows), clip_norm
    ).numpy()
    norms = _norms(clipped)
    assert np.all(norms <= clip_norm)
    np.testing.assert_allclose(norms, clip_norm, rtol=1e-4)
    # In the same direction.
    cosine = np.sum(
        clipped.astype(np.float64) / clip_norm * (rows / scale), axis=1
    ) / _norms(rows / scale)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-4)


def test_short_rows_stay_as_they_are():
    rows = np.array([[0.3, -0.4], [0.0, 0.0], [1e-20, 0.0]], np.float32)
    clipped = clipping.clip_representations(tf.constant(rows), 0.6).numpy()
    np.testing.assert_allclose(clipped, rows, rtol=1e-6)


def test_rows_know_nothing_of_each_other():
    rows = np.array([[3.0, 4.0], [np.nan, 1.0], [np.inf, 0.0], [0.3, 0.4]])
    clipped = clipping.clip_representations(tf.constant(rows), 1.0).numpy()
    assert clipped.dtype == np.float64
    np.testing.assert_allclose(
        clipped, [[0.6, 0.8], [0, 0], [0, 0], [0.3, 0.4]], rtol=1e-4
    )
    # All rows of examples without features are empty.
    empty = clipping.clip_representations(tf.zeros([2, 0]), 1.0)
    assert empty.shape == (2, 0)
