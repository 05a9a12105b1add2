"""Contributions to rows, and sums by row, against a float64 loop."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tf_dpfp import clipping
from tf_dpfp import per_example

ROWS, WIDTH, POSITIONS = 7, 2, 3
CLIP_NORMS = (0.7, 2.0)
NASTY = [0.0, 1e-45, 1e-30, 1e-3, 1.0, -5.0, 1e10, 3e38]
NASTY = [*NASTY, np.nan, np.inf, -np.inf]


def _groups(flat):
    if flat:
        return [clipping.Group("all", (0, 1, 2), CLIP_NORMS[0], 1)]
    return [
        clipping.Group("first", (0, 2), CLIP_NORMS[0], 1),
        clipping.Group("second", (1,), CLIP_NORMS[1], 1),
    ]


def _batch(seed, count=6):
    """Ids and gradients of two tables, and a gradient of a weight."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, ROWS, (count, POSITIONS)) for _ in range(2)]
    values = [
        rng.normal(size=(count, POSITIONS, WIDTH), scale=s).astype("float32")
        for s in (0.3, 3.0)
    ]
    values[0][2] = 0.0  # Looked up, and without a gradient: not touched.
    dense = rng.normal(size=(count, 4), scale=0.3).astype("float32")
    return ids, values, dense


def _run(batch, present, flat, contribution_clip):
    ids, values, dense = batch
    gradients = [
        per_example.EmbeddingRows(
            tf.constant(i, tf.int32), tf.constant(v), ROWS
        )
        for i, v in zip(ids, values, strict=True)
    ]
    gradients.append(per_example.PerExampleTensor(tf.constant(dense)))
    tables = clipping.SparseTables((0, 1), contribution_clip, ("a", "b"))
    found = clipping.clip_and_sum(
        gradients, _groups(flat), tf.constant(present), tables
    ).sums
    sums, counts = [], []
    for table in found[:2]:
        added = clipping.added_up(table)
        assert len(set(added.rows.numpy())) == len(added.rows)
        total, count = np.zeros((ROWS, WIDTH)), np.zeros(ROWS)
        total[added.rows] = added.values
        count[added.rows] = added.contributions
        sums.append(total)
        counts.append(count)
    return [*sums, found[2].numpy().astype(np.float64)], counts


def _loop(batch, present, flat, contribution_clip):
    ids, values, dense = batch
    sums = [np.zeros((ROWS, WIDTH)), np.zeros((ROWS, WIDTH)), np.zeros(4)]
    counts = np.zeros((2, ROWS))
    for i in np.flatnonzero(present):
        mine = []
        for k in range(2):
            table = np.zeros((ROWS, WIDTH))
            np.add.at(table, ids[k][i], values[k][i].astype(np.float64))
            mine.append(table)
        mine.append(dense[i].astype(np.float64))
        touched = np.zeros((2, ROWS))
        for group in _groups(flat):
            norm = np.sqrt(sum(np.sum(mine[k] ** 2) for k in group.members))
            factor = min(1.0, group.clip_norm / max(norm, 1e-300))
            for k in group.members:
                sums[k] += factor * mine[k]
                if k < 2:
                    touched[k] = np.any(mine[k] != 0.0, axis=1)
        counts += touched * min(
            1.0, contribution_clip / max(np.sqrt(touched.sum()), 1e-300)
        )
    return sums, list(counts)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("contribution_clip", [0.5, 1.0, 10.0])
def test_sums_and_contributions_equal_the_loop(flat, contribution_clip):
    for seed in range(3):
        batch, present = _batch(seed), np.arange(6) != 4
        found = _run(batch, present, flat, contribution_clip)
        wanted = _loop(batch, present, flat, contribution_clip)
        for a, b in zip(found[0], wanted[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        for a, b in zip(found[1], wanted[1], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@given(
    st.lists(
        st.sampled_from(NASTY),
        min_size=2 * POSITIONS * WIDTH + 4,
        max_size=2 * POSITIONS * WIDTH + 4,
    ),
    st.lists(
        st.integers(0, ROWS - 1),
        min_size=2 * POSITIONS,
        max_size=2 * POSITIONS,
    ),
    st.booleans(),
    st.sampled_from([0.3, 1.0, 4.0]),
    st.booleans(),
)
def test_a_nasty_example_moves_counts_and_sums_by_their_bounds(
    numbers, rows, flat, contribution_clip, here
):
    (ids, values, dense), present = _batch(1), np.arange(6) != 4
    size = POSITIONS * WIDTH
    for k in range(2):
        ids[k][0] = rows[k * POSITIONS : (k + 1) * POSITIONS]
        part = numbers[k * size : (k + 1) * size]
        values[k][0] = np.reshape(part, (POSITIONS, WIDTH))
    dense[0] = numbers[2 * size :]
    present[0] = here
    batch = (ids, values, dense)
    others = tuple(
        part[1:] if isinstance(part, np.ndarray) else [p[1:] for p in part]
        for part in batch
    )
    with_it = _run(batch, present, flat, contribution_clip)
    without = _run(others, present[1:], flat, contribution_clip)
    moved = np.ravel(np.array(with_it[1]) - np.array(without[1]))
    # Contributions are float64; nobody but the example moves them.
    assert np.linalg.norm(moved) <= contribution_clip * (1 + 1e-12)
    for group in _groups(flat):
        moved = [with_it[0][k] - without[0][k] for k in group.members]
        length = np.sqrt(sum(np.sum(m**2) for m in moved))
        assert length <= group.clip_norm * (1 + 1e-5)
    if not here:
        for a, b in zip(with_it[1], without[1], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_table_that_is_not_looked_up_alone_is_refused():
    gradient = per_example.PerExampleTensor(tf.ones([2, ROWS, WIDTH]))
    group = clipping.Group("all", (0,), 1.0, 1)
    with pytest.raises(ValueError, match="'items' is used otherwise"):
        clipping.clip_and_sum(
            [gradient],
            [group],
            tf.constant([True, True]),
            clipping.SparseTables((0,), 1.0, ("items",)),
        )
