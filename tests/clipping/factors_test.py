import doctest

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tf_dpfp import clipping
from tf_dpfp.clipping import factors as factors_lib


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


def test_the_example_of_the_docstring():
    results = doctest.testmod(factors_lib)
    assert results.attempted == 3 and results.failed == 0


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    ("squared_norm", "plain", "automatic"),
    [
        (0.0, 1.0, 50.0),
        (1e-45, 1.0, 50.0),
        (0.2499, 1.0, 0.5 / (0.2499**0.5 + 0.01)),
        (3e38, 0.5 / 3e38**0.5, 0.5 / 3e38**0.5),
        (np.inf, 0.0, 0.0),
        (np.nan, 0.0, 0.0),
    ],
)
def test_the_table_of_the_docstring(
    squared_norm, plain, automatic, jit_compile
):
    @tf.function(jit_compile=jit_compile)
    def found(squared_norms, present, stability):
        return clipping.clip_factors(squared_norms, 0.5, present, stability)

    # Other examples of the batch change nothing.
    squared_norms = tf.constant([1.0, squared_norm, np.nan], tf.float32)
    for stability, expected in ((0.0, plain), (0.01, automatic)):
        for present in (True, False):
            factor = found(
                squared_norms, tf.constant([True, present, True]), stability
            )[1]
            wanted = expected if present else 0.0
            np.testing.assert_allclose(factor, wanted, rtol=1e-4)
            assert factor <= wanted


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


def _centred_count(norms, estimate, present=None):
    with np.errstate(over="ignore"):
        squared = np.square(np.asarray(norms, np.float32))
    if present is None:
        present = np.ones(squared.shape, bool)
    return float(
        clipping.centred_count(
            tf.constant(squared), tf.constant(estimate), tf.constant(present)
        )
    )


def test_a_count_is_centred():
    # Below, equal, above: +1/2, +1/2, -1/2.
    assert _centred_count([1.0], 2.0) == 0.5
    assert _centred_count([2.0], 2.0) == 0.5
    assert _centred_count([3.0], 2.0) == -0.5
    assert _centred_count([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2.0) == -0.5
    assert _centred_count([], 2.0) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_who_takes_no_part_is_not_counted(bad):
    assert _centred_count([bad], 1.0) == 0.0
    assert _centred_count([0.0, 9.0], 1.0, [False, False]) == 0.0
    assert _centred_count([0.0, bad, 9.0, 0.5], 1.0, [False, True] * 2) == 0.5


@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.floats(0.0, 2.0**100, width=32),
                st.sampled_from([np.nan, np.inf]),
            ),
            st.booleans(),
        ),
        min_size=1,
        max_size=20,
    ),
    st.floats(2.0**-30, 2.0**30, width=32),
)
def test_one_example_moves_a_count_by_half_or_not_at_all(rows, estimate):
    norms, present = zip(*rows, strict=True)
    moved = _centred_count(norms, estimate, present) - _centred_count(
        norms[1:], estimate, np.array(present[1:], bool)
    )
    takes_part = present[0] and norms[0] < 2.0**64
    assert abs(moved) == (0.5 if takes_part else 0.0)


_SQUARED_NORMS = [0.0, 1e-38, 1e-20, 1e-4, 1.0, 4.0, 1e20, 1e38]


@pytest.mark.parametrize("threshold", [1e-10, 0.3, 1e10])
@pytest.mark.parametrize("stability", [1e-10, 0.01, 1e6])
def test_automatic_factors_bring_every_norm_below_the_threshold(
    threshold, stability
):
    squared = np.array([*_SQUARED_NORMS, np.nan, np.inf], np.float32)
    present = np.ones(squared.shape, bool)
    present[4] = False
    factors = clipping.clip_factors(
        tf.constant(squared), threshold, tf.constant(present), stability
    ).numpy()
    assert np.all(np.isfinite(factors))
    np.testing.assert_array_equal(factors[[4, 8, 9]], 0.0)
    norms = np.sqrt(squared[:8].astype(np.float64))
    assert np.all(factors[:8] * norms < np.float32(threshold))
    kept = np.arange(8) != 4
    np.testing.assert_allclose(
        factors[:8][kept], (threshold / (norms + stability))[kept], rtol=1e-4
    )
