"""One example moves the sum by at most 1, and intervals hold the truth."""

import itertools

import numpy as np
import pytest

from tf_dpfp.evaluation import statistics

LAYOUTS = [
    statistics.Layout(fractions, groups, num_examples)
    for fractions, groups, num_examples in itertools.product(
        (1, 2), (0, 3), (None, 50)
    )
]


def _sum(layout, fractions, groups, users=None):
    vectors = layout.vectors(np.asarray(fractions, np.float64))
    return layout.sums(vectors, np.asarray(groups))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_one_example_moves_the_sum_by_at_most_one_and_some_by_one(layout):
    rng = np.random.default_rng(0)
    others = rng.uniform(size=(20, layout.fractions))
    of_others = rng.integers(-1, max(layout.groups, 1), 20)
    corners = list(itertools.product([0.0, 0.5, 1.0], repeat=layout.fractions))
    before = _sum(layout, others, of_others)
    lengths = []
    for fractions, group in itertools.product(corners, range(-1, 3)):
        with_one = _sum(
            layout, [*others, fractions], [*of_others, min(group, 2)]
        )
        lengths.append(np.linalg.norm(with_one - before))
    assert max(lengths) <= 1.0 + 1e-12
    assert max(lengths) > 1.0 - 1e-12
    # Replaced by any other, in any group: what the ledger counts then.
    moves = [
        _sum(layout, [f], [g]) - _sum(layout, [h], [k])
        for f, h in itertools.product(corners, repeat=2)
        for g, k in itertools.product(range(-1, 3), repeat=2)
    ]
    assert max(map(np.linalg.norm, moves)) <= 2.0


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_without_noise_the_estimates_are_exact(layout):
    rng = np.random.default_rng(1)
    fractions = rng.uniform(size=(50, layout.fractions))
    groups = np.arange(50) % max(layout.groups, 1)
    blocks = layout.estimates(_sum(layout, fractions, groups), 0.0, 0.9)
    assert len(blocks) == 1 + layout.groups
    for number, block in enumerate(blocks):
        mine = fractions if not number else fractions[groups == number - 1]
        truth = [len(mine), *mine.mean(axis=0)]
        for estimate, exact in zip(block, truth, strict=True):
            for found in (estimate.value, estimate.low, estimate.high):
                np.testing.assert_allclose(found, exact, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("deviation", [1.0, 6.0, 40.0])
def test_intervals_hold_the_truth_as_often_as_they_say(layout, deviation):
    """Small data, where the noise is as great as the numbers, included."""
    rng = np.random.default_rng(2)
    # About half of each group: far from 0 and 1, where intervals are cut off.
    fractions = np.tile(np.arange(50)[:, None] % 2.0, layout.fractions)
    groups = np.arange(50) % max(layout.groups, 1)
    total = _sum(layout, fractions, groups)
    runs, confidence = 1500, 0.9
    noise = rng.normal(size=(runs, *total.shape)) * deviation
    held = []
    for drawn in noise:
        blocks = layout.estimates(total + drawn, deviation, confidence)
        held.append(
            [
                estimate.low - 1e-9 <= exact <= estimate.high + 1e-9
                for number, block in enumerate(blocks)
                for estimate, exact in zip(
                    block, _truth(fractions, groups, number), strict=True
                )
            ]
        )
    share = np.mean(held, axis=0)
    error = 4.5 * np.sqrt(confidence * (1.0 - confidence) / runs)
    assert np.all(share > confidence - error)
    if deviation == 1.0:
        # And not more often, but for a public number, which is always right.
        exact = share[1:] if layout.num_examples else share
        assert np.all(exact < confidence + error)


def _truth(fractions, groups, number):
    mine = fractions if not number else fractions[groups == number - 1]
    return [len(mine), *mine.mean(axis=0)]


def test_the_deviation_of_an_accuracy_is_the_noise_over_the_number():
    """What the docstring of `evaluate_privately` promises."""
    rng = np.random.default_rng(3)
    for share in (0.0, 0.3, 1.0):
        layout = statistics.Layout(1)
        count, deviation = 10_000, 25.0
        fractions = np.zeros((count, 1))
        fractions[: int(share * count)] = 1.0
        total = _sum(layout, fractions, np.full(count, -1))
        found = [
            layout.estimates(
                total + deviation * rng.normal(size=total.shape), deviation, 0.9
            )[0][1].value
            for _ in range(400)
        ]
        # Half of the estimates of 0 and 1 are cut off: take the mean square.
        error = np.sqrt(np.mean((np.array(found) - share) ** 2))
        assert error < 1.15 * deviation / count
