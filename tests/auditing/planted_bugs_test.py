"""Sound steps are not refuted, by canaries as sharp as can be; bugs are."""

import warnings

import numpy as np
import pytest
from scipy import stats

from benchmarks import audit_cases
from benchmarks import planted_bugs

RUNS = 200
# Twice the signal over noise: at so many runs it shows whatever the seed.
SUBTLE = 600


@pytest.fixture(autouse=True)
def _small_batches_drown_counts():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The fractions that adapt")
        yield


@pytest.mark.parametrize(
    "case",
    [
        audit_cases.flat,
        audit_cases.low_rank,
        audit_cases.opposed,
        audit_cases.padded,
    ],
)
def test_one_sound_step_is_exactly_as_private_as_claimed(case):
    report = case(RUNS, seed=3)
    assert not report.refuted
    assert [p.claimed_epsilon > 0 for p in report.points] == [True] * 3
    # Log-likelihood ratios of N(0, 1) and N(1, 1), on either side: a weaker
    # canary, or more noise than claimed, would show no bug.
    for included, mean in [(True, 0.5), (False, -0.5)]:
        scores = report.scores[report.included == included]
        assert len(scores) == RUNS
        assert stats.kstest(scores, stats.norm(mean).cdf).pvalue > 1e-3


def test_sound_adaptive_steps_are_not_refuted():
    report = audit_cases.per_layer_adaptive(RUNS, seed=3)
    assert not report.refuted
    # Two steps of signal 1: 2 apart, less what the counts take.
    inside = report.scores[report.included]
    outside = report.scores[~report.included]
    assert 1.7 < np.mean(inside) - np.mean(outside) < 2.3


def test_sound_sampled_steps_are_not_refuted():
    assert not audit_cases.flat_sampled(RUNS // 2, seed=3).refuted


def test_a_public_batch_size_hides_the_number_of_examples():
    assert not audit_cases.data_size(RUNS, seed=3).refuted
    # Otherwise sums are divided by what follows the data: of another claim.
    assert audit_cases.data_size(RUNS, seed=3, public=False).refuted


def test_every_bug_has_a_case():
    assert set(planted_bugs.BUGS) == set(audit_cases.TELLTALE)


@pytest.mark.parametrize("bug", planted_bugs.BUGS)
def test_a_planted_bug_is_refuted(bug):
    subtle = bug in ("noise halved", "actual batch size", "padding leaking")
    with planted_bugs.BUGS[bug]():
        report = audit_cases.TELLTALE[bug](SUBTLE if subtle else RUNS, seed=3)
    assert report.refuted, str(report)
