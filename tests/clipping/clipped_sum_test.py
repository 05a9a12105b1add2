"""Sums and counts of written-out gradients against a float64 loop."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import tf_dpfp
from tf_dpfp import clipping

SHAPES = [(3, 2), (2,), (4,)]
MEMBERS = [(0, 2), (1,)]
NASTY = [0.0, 1e-30, 1e-19, 1e-3, 1.0, -5.0, 1e10, 1e19, 3e38]
NASTY = [*NASTY, np.nan, np.inf, -np.inf]


def _groups(adaptive, stability=0.0):
    return [
        clipping.Group(
            name=str(members),
            members=members,
            clip_norm=clip_norm,
            dimension=1,
            stability=stability,
            estimate=estimate if adaptive else None,
        )
        for members, clip_norm, estimate in zip(
            MEMBERS, (0.7, 2.0), (1.5, 0.4), strict=True
        )
    ]


def _run(values, groups, present):
    gradients = [
        None
        if v is None
        else tf_dpfp.gradient_rules.PerExampleTensor(tf.constant(v))
        for v in values
    ]
    return clipping.clip_and_sum(gradients, groups, tf.constant(present))


def _loop(values, groups, present):
    sums = [None if v is None else np.zeros(v.shape[1:]) for v in values]
    counts = np.zeros(len(groups))
    for number, group in enumerate(groups):
        mine = [k for k in group.members if values[k] is not None]
        for i in np.flatnonzero(present):
            parts = [values[k][i].astype(np.float64) for k in mine]
            norm = np.sqrt(sum(np.sum(p**2) for p in parts))
            if not norm < 1.8e19:  # Its square is not a float32.
                continue
            if group.stability:
                factor = group.clip_norm / (norm + group.stability)
            else:
                factor = min(1.0, group.clip_norm / max(norm, 1e-300))
            for k, part in zip(mine, parts, strict=True):
                sums[k] += factor * part
            if group.estimate is not None:
                counts[number] += 0.5 if norm <= group.estimate else -0.5
    return sums, counts


def _values(seed, count=9):
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(size=(count, 1, 1), scale=2.0))
    values = []
    for shape in SHAPES:
        drawn = rng.normal(size=(count, *shape))
        scale = sizes.reshape([count] + [1] * len(shape))
        values.append((drawn * scale).astype(np.float32))
    values[0][2] = np.nan  # One group of an example, and
    values[1][3] = np.inf  # the other group of another.
    values[0][4], values[1][4], values[2][4] = 0.0, 0.0, 0.0
    return values, np.arange(count) % 5 != 1


@pytest.mark.parametrize("stability", [0.0, 0.01])
@pytest.mark.parametrize("seed", range(3))
def test_sums_and_counts_equal_the_loop(seed, stability):
    values, present = _values(seed)
    groups = _groups(True, stability)
    found = _run(values, groups, present)
    sums, counts = _loop(values, groups, present)
    for a, b in zip(found.sums, sums, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)
    np.testing.assert_array_equal(found.counts, counts)
    assert found.counts.dtype == tf.float32


def test_without_estimates_nothing_is_counted():
    values, present = _values(0)
    assert _run(values, _groups(False), present).counts is None


def test_a_group_without_gradients_counts_who_is_present():
    values, present = _values(0)
    values[1] = None  # The loss does not depend on it: norms of zero.
    found = _run(values, _groups(True), present)
    assert found.sums[1] is None
    assert float(found.counts[1]) == 0.5 * np.count_nonzero(present)
    assert float(_run(values, _groups(True), present & False).counts[1]) == 0.0


def test_wider_gradients_are_counted_the_same():
    values, present = _values(0)
    narrow = _run(values, _groups(True), present)
    wide = _run([v.astype(np.float64) for v in values], _groups(True), present)
    np.testing.assert_array_equal(narrow.counts, wide.counts)


@given(
    st.lists(st.sampled_from(NASTY), min_size=12, max_size=12),
    st.sampled_from([0.0, 1e-10, 0.01, 1e6]),
    st.booleans(),
)
def test_a_nasty_example_moves_no_group_too_far(row, stability, here):
    values, present = _values(1)
    cuts = np.cumsum([np.prod(shape) for shape in SHAPES])[:-1]
    for value, part in zip(values, np.split(row, cuts), strict=True):
        value[0] = part.reshape(value.shape[1:])
    present[0] = here
    groups = _groups(True, stability)
    with_it = _run(values, groups, present)
    without = _run([v[1:] for v in values], groups, present[1:])
    for number, group in enumerate(groups):
        moved = [
            np.float64(with_it.sums[k]) - np.float64(without.sums[k])
            for k in group.members
        ]
        length = np.sqrt(sum(np.sum(m**2) for m in moved))
        # The sums around it are rounded, too.
        assert length <= group.clip_norm * (1 + 1e-5)
        counted = float(with_it.counts[number] - without.counts[number])
        assert abs(counted) in ({0.0, 0.5} if here else {0.0})
        if not here:
            assert length < 1e-6


def test_the_clip_norm_and_the_estimate_are_two_things():
    # Rescaled clip norms: norms are clipped at one number, counted at another.
    groups = [dataclasses.replace(g, clip_norm=1e-3) for g in _groups(True)]
    values, present = _values(2)
    found = _run(values, groups, present)
    _, counts = _loop(values, _groups(True), present)
    np.testing.assert_array_equal(found.counts, counts)


@pytest.mark.parametrize("examples", [1, 2])
def test_rows_that_are_not_examples_are_refused(examples):
    """One example's mask would broadcast, and each row be clipped by itself."""
    gradient = tf_dpfp.gradient_rules.PerExampleTensor(tf.ones([4, 3]))
    group = clipping.Group("all", (0,), 1.0, 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        clipping.clip_and_sum([gradient], [group], tf.fill([examples], True))
