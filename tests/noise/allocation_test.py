import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tf_dpfp import noise

thresholds = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20)


@given(thresholds)
def test_sensitivity_is_the_norm_of_the_thresholds(values):
    np.testing.assert_allclose(
        noise.sensitivity(values), np.linalg.norm(values), rtol=1e-12
    )


@given(thresholds, st.floats(0.0, 100.0))
def test_every_group_gets_the_noise_of_the_whole(values, multiplier):
    # One Gaussian mechanism: the shift of any neighbour, measured in the
    # noise of each coordinate, is at most 1 / multiplier.
    deviations = noise.standard_deviations(
        values, [1] * len(values), multiplier
    )
    assert len(deviations) == len(values)
    if multiplier == 0.0:
        assert set(deviations) == {0.0}
        return
    if multiplier > 1e-6:
        shift = math.sqrt(
            sum((c / s) ** 2 for c, s in zip(values, deviations, strict=True))
        )
        assert shift == pytest.approx(1 / multiplier, rel=1e-9)


@given(
    st.lists(
        st.tuples(st.floats(1e-3, 1e3), st.integers(1, 10**6)),
        min_size=1,
        max_size=12,
    ),
    st.floats(0.1, 10.0),
    st.sampled_from(noise.ALLOCATIONS),
)
def test_every_allocation_is_as_private(groups, multiplier, allocation):
    values, dimensions = zip(*groups, strict=True)
    deviations = noise.standard_deviations(
        values, dimensions, multiplier, allocation
    )
    shift = math.sqrt(
        sum((c / s) ** 2 for c, s in zip(values, deviations, strict=True))
    )
    assert shift == pytest.approx(1 / multiplier, rel=1e-9)


def test_the_allocations_by_hand():
    values, dimensions = (3.0, 4.0), (4, 9)
    assert noise.standard_deviations(values, dimensions, 2.0) == (10.0, 10.0)
    equal = noise.standard_deviations(values, dimensions, 2.0, "equal_budget")
    # sigma sqrt(K) C_k
    np.testing.assert_allclose(equal, [2 * 2**0.5 * 3, 2 * 2**0.5 * 4])
    weighted = noise.standard_deviations(
        values, dimensions, 2.0, "by_dimension"
    )
    # sigma sqrt(sum d) C_k / sqrt(d_k)
    np.testing.assert_allclose(
        weighted, [2 * 13**0.5 * 3 / 2, 2 * 13**0.5 * 4 / 3]
    )


def test_an_unknown_allocation_is_refused():
    with pytest.raises(ValueError, match="`allocation` must be one of"):
        noise.standard_deviations([1.0], [1], 1.0, "fair")


@pytest.mark.parametrize("allocation", noise.ALLOCATIONS)
@pytest.mark.parametrize("count", [1, 3, 600])
def test_thresholds_may_be_tensors(allocation, count):
    rng = np.random.default_rng(count)
    values = np.exp(rng.normal(scale=4.0, size=count)).astype(np.float32)
    dimensions = rng.integers(1, 10**6, count).tolist()
    found = noise.standard_deviations(
        [tf.constant(v) for v in values], dimensions, 1.3, allocation
    )
    expected = noise.standard_deviations(
        values.astype(np.float64).tolist(), dimensions, 1.3, allocation
    )
    # Rounding stays far inside the margin of 2^-15 by which clip factors are
    # lowered.
    np.testing.assert_allclose(
        np.array([s.numpy() for s in found]), expected, rtol=2.0**-17
    )
