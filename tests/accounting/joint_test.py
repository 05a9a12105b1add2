import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_dpfp import accounting
from tf_dpfp.accounting import joint as joint_lib

multipliers = st.floats(1e-3, 1e3)
shares = st.floats(1e-6, 1.0 - 1e-6)


@given(multipliers, shares, st.integers(1, 10**5))
def test_the_parts_are_one_mechanism_of_the_whole(sigma, share, count):
    split = accounting.split_budget(sigma, share, count)
    # Every one of `count` counts moves by 1/2.
    joint = 1 / split.sums**2 + count * (0.5 / split.counts) ** 2
    assert joint == pytest.approx(1 / sigma**2, rel=1e-9)
    # The share is what the counts take of it, neither more nor less.
    of_counts = count * (0.5 / split.counts) ** 2
    assert of_counts * sigma**2 == pytest.approx(share, rel=1e-9)


@given(multipliers, shares)
def test_one_count_is_the_published_closed_form(sigma, share):
    split = accounting.split_budget(sigma, share, 1)
    published = (sigma**-2 - (2.0 * split.counts) ** -2) ** -0.5
    assert split.sums == pytest.approx(published, rel=1e-6)


def test_figures_of_fifty_groups():
    split = accounting.split_budget(1.0, 0.01, 50)
    assert split.sums == pytest.approx(1 / math.sqrt(0.99))
    assert split.counts == pytest.approx(math.sqrt(50) / 0.2)


def test_no_noise_stays_no_noise():
    none = accounting.BudgetSplit(0.0, 0.0)
    assert accounting.split_budget(0.0, 0.3, 7) == none


@pytest.mark.parametrize("first, second", [(0.0, 3.0), (3.0, 0.0), (0.0, 0.0)])
def test_a_release_without_noise_leaves_none_to_both(first, second):
    assert accounting.joint_noise_multiplier(first, second) == 0.0


@given(multipliers, multipliers)
def test_two_releases_have_less_noise_than_either(first, second):
    joint = accounting.joint_noise_multiplier(first, second)
    assert joint <= min(first, second)
    assert 1 / joint**2 == pytest.approx(1 / first**2 + 1 / second**2)


@pytest.mark.parametrize(
    "share", [0.0, 1.0, -0.1, 1.1, math.nan, math.inf, True]
)
def test_a_share_that_leaves_nothing_to_one_part_is_refused(share):
    with pytest.raises(ValueError, match=f"budget_share={share}"):
        accounting.split_budget(1.0, share, 1)


@given(multipliers, st.floats(1.001, 1e3))
def test_the_other_release_makes_up_what_is_left(joint, ratio):
    first = joint * ratio
    second = joint_lib.other_noise_multiplier(joint, first)
    found = accounting.joint_noise_multiplier(first, second)
    # Rounded up: never less noise than asked for.
    assert joint <= found <= joint * (1 + 1e-6)


@pytest.mark.parametrize("first", [0.0, 1.0, 2.0, math.nan])
def test_a_first_release_that_spends_everything_is_refused(first):
    with pytest.raises(ValueError, match="spends the whole budget"):
        joint_lib.other_noise_multiplier(2.0, first)
