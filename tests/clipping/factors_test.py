import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tf_dpfp import clipping


def _factors(squared_norms, threshold, present=None):
    squared_norms = np.asarray(squared_norms, np.float32)
    if present is None:
        present = np.ones(squared_norms.shape, bool)
    return clipping.clip_factors(
        tf.constant(squared_norms), threshold, tf.constant(present)
    ).numpy()


def test_factors():
    found = _factors([0.0, 1.0, 4.0, 100.0], 2.0)
    np.testing.assert_allclose(found, [1.0, 1.0, 1.0, 0.2], rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_norm_that_is_not_finite_gives_zero(bad):
    found = _factors([bad, 4.0], 1.0)
    assert found[0] == 0.0
    np.testing.assert_allclose(found[1], 0.5, rtol=1e-4)


def test_absent_examples_get_zero():
    found = _factors([1.0, 0.0, np.nan], 1.0, [False, False, False])
    np.testing.assert_array_equal(found, [0.0, 0.0, 0.0])


@given(
    st.floats(0.0, 2.0**126, width=32), st.floats(2.0**-30, 2.0**30, width=32)
)
def test_a_clipped_norm_is_never_above_the_threshold(squared_norm, threshold):
    factor = float(_factors([squared_norm], threshold)[0])
    assert 0.0 <= factor <= 1.0
    assert factor * np.sqrt(np.float64(squared_norm)) <= threshold
    if np.sqrt(squared_norm) < 0.999 * threshold:
        assert factor == 1.0


@pytest.mark.parametrize("jit_compile", [False, True])
def test_long_gradients_stay_below_the_threshold(jit_compile):
    # Equal numbers are the worst case of a sum of squares in float32.
    values = np.full((1, 2_000_003), 0.7371, np.float32)

    @tf.function(jit_compile=jit_compile)
    def clipped(values):
        gradient = tf.reshape(values, [1, -1])
        norms = tf.reduce_sum(tf.square(gradient), axis=1)
        factor = clipping.clip_factors(norms, 1.0, tf.constant([True]))
        return gradient * factor[:, None]

    found = np.linalg.norm(clipped(values).numpy().astype(np.float64))
    assert 0.9999 < found <= 1.0
