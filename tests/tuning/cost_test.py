"""The worst of several candidates is no less than any of them."""

import dataclasses
import itertools

import numpy as np
import pytest

from tf_dpfp import accounting
from tf_dpfp.accounting import composition
from tf_dpfp.accounting import releases
from tf_dpfp.tuning import cost


def _sums(rate=0.1, noise=1.0, steps=10, overflow=0.0):
    sampling = accounting.PoissonSampling(rate, overflow)
    return accounting.LedgerEntry(sampling, noise, steps)


def _banded(rate=0.1, noise=1.0, steps=13, parts=4, bands=4):
    return accounting.LedgerEntry(
        accounting.CyclicPoissonSampling(rate, parts=parts),
        noise,
        steps,
        release=accounting.BandedSums(bands),
    )


_SCORE = accounting.LedgerEntry(
    accounting.EveryExample(), 20.0, 1, release=accounting.Evaluation()
)
_UNKNOWN = accounting.LedgerEntry(accounting.UnknownSampling(100, 5), 4.0, 7)
_DRAWN = accounting.LedgerEntry(
    accounting.WithoutReplacement(50, 5),
    2.0,
    9,
    release=accounting.Representations("public"),
)
CANDIDATES = [
    [_sums(), _SCORE],
    [_sums(noise=0.8), _SCORE],
    [_sums(rate=0.3, steps=4), _SCORE],
    [_sums(steps=30, noise=2.0), _SCORE],
    [_sums(), _sums(rate=0.05, noise=3.0, steps=8)],
    [_UNKNOWN, dataclasses.replace(_SCORE, noise_multiplier=9.0)],
    [dataclasses.replace(_UNKNOWN, sampling=accounting.UnknownSampling(90, 9))],
    [_banded(), _SCORE],
    [_banded(rate=0.2, noise=0.9, steps=23), _banded(steps=7)],
    [_banded(rate=0.3, parts=8), _SCORE],
    [_DRAWN, _SCORE],
    [
        dataclasses.replace(
            _DRAWN, sampling=accounting.WithoutReplacement(40, 5)
        )
    ],
]


@pytest.mark.parametrize(
    "pair", itertools.combinations(range(len(CANDIDATES)), 2), ids=str
)
def test_the_worst_dominates_at_every_order(pair):
    pair = [CANDIDATES[i] for i in pair]
    bound = cost.worst(pair)
    for adjacency, examples in (
        (releases.Adjacency.ADD_OR_REMOVE_ONE, 1),
        (releases.Adjacency.ADD_OR_REMOVE_ONE, 3),
        (releases.Adjacency.REPLACE_ONE, 1),
    ):
        drawn = any(e.release.has_representations for e in [*pair[0], *pair[1]])
        if drawn and adjacency is not releases.Adjacency.REPLACE_ONE:
            continue
        if examples > 1 and any(
            isinstance(e.release, accounting.BandedSums) for e in bound
        ):
            continue
        whole = composition.composed_rdp(bound, adjacency, examples)
        for entries in pair:
            own = composition.composed_rdp(entries, adjacency, examples)
            assert np.all(own <= whole * (1.0 + 1e-9))
    for entries in pair:
        assert cost.is_within(entries, bound)


def test_candidates_that_release_alike_cost_what_one_costs():
    assert cost.worst([[_sums(), _SCORE]] * 3) == [_sums(), _SCORE]
    few = [_sums(steps=3), _SCORE]
    assert cost.is_within(few, [_sums(), _SCORE])
    assert cost.is_within([], [_sums(), _SCORE])


@pytest.mark.parametrize(
    "entries",
    [
        [_sums(steps=11)],
        [_sums(noise=0.99)],
        [_sums(rate=0.11)],
        [_sums(overflow=1e-9)],
        [_sums(), _sums(rate=0.01, steps=1)],
        [_sums(), _UNKNOWN],
        [dataclasses.replace(_sums(), seeded=True)],
        [dataclasses.replace(_sums(), release=accounting.PersonSums(2))],
    ],
    ids=str,
)
def test_more_of_anything_is_not_within(entries):
    assert not cost.is_within(entries, [_sums(), _SCORE])


@pytest.mark.parametrize(
    "changed",
    [{"steps": 14}, {"noise": 0.9}, {"rate": 0.2}, {"parts": 8}, {"bands": 3}],
    ids=str,
)
def test_more_correlated_steps_are_not_within(changed):
    assert cost.is_within([_banded(steps=12)], [_banded(), _SCORE])
    assert not cost.is_within([_banded(**changed)], [_banded(), _SCORE])


def test_cyclic_sampling_stays_what_it_is():
    def entry(rate, steps, parts=4):
        return accounting.LedgerEntry(
            accounting.CyclicPoissonSampling(rate, parts=parts),
            noise_multiplier=1.0,
            steps=steps,
            release=accounting.BandedSums(bands=4),
        )

    one, more = entry(0.1, 7), entry(0.1, 11)
    assert cost.worst([[one], [one]]) == [one]
    assert cost.worst([[more], [one]]) == [more]
    assert cost.is_within([one], [more]) and not cost.is_within([more], [one])
    # Others add up.
    other = entry(0.2, 9, parts=5)
    assert cost.worst([[one], [other]]) == [one, other]
