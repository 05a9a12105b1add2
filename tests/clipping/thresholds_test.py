"""Splits of one bound: the squares add up to that of the bound."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_dpfp.clipping import thresholds

NAMES = ["a", "b"]


@given(
    st.sampled_from(["equal", "by_dimension"]),
    st.floats(1e-6, 1e6),
    st.lists(st.integers(1, 10**9), min_size=1, max_size=9),
)
def test_every_split_keeps_to_the_bound(split, bound, dimensions):
    names = [str(i) for i in range(len(dimensions))]
    found = thresholds.split_bound(split, bound, names, dimensions)
    assert math.hypot(*found) == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("off", [1e-3, -1e-3, 1e-5, -1e-5, 0.09, -0.09])
def test_clip_norms_that_miss_the_bound_are_refused(off):
    given = (("a", 3.0), ("b", 4.0))
    bound = 5.0 * (1.0 + off)
    with pytest.raises(ValueError, match="must add up to that of l2_norm_clip"):
        thresholds.split_bound(given, bound, NAMES, [1, 1])


@pytest.mark.parametrize("off", [0.0, 1e-8, -1e-8])
def test_clip_norms_may_miss_the_bound_by_rounding(off):
    given = thresholds.as_split("thresholds", {"b": 4.0, "a": 3.0})
    bound = 5.0 * (1.0 + off)
    found = thresholds.split_bound(given, bound, NAMES, [1, 1])
    assert found == (3.0, 4.0)


@pytest.mark.parametrize(
    "value", ["3.0", True, None, math.nan, math.inf, 0.0, -3.0, 1e-20]
)
def test_what_is_no_clip_norm_is_refused_by_the_name_of_its_group(value):
    with pytest.raises(ValueError, match=r"`thresholds\['a'\]` must be"):
        split = thresholds.as_split("thresholds", {"a": value, "b": 4.0})
        thresholds.split_bound(split, 5.0, NAMES, [1, 1])
