"""Sound steps are not refuted, by canaries as sharp as can be; bugs are."""

import warnings

import numpy as np
import pytest
from scipy import stats

from benchmarks import audit_cases
from benchmarks import planted_bugs
from tests.cards import rates

# Models of one layer, which no bug is in.
pytestmark = pytest.mark.usefixtures("without_trial")

RUNS = 200
# Twice the signal over noise: at so many runs it shows whatever the seed. No
# noise, or the same in four steps, shows at once.
SUBTLE = dict.fromkeys(
    ("noise halved", "actual batch size", "padding leaking"), 600
)
PLAIN = dict.fromkeys(("noise forgotten", "noise reused"), 100)


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
    if case is audit_cases.low_rank:
        rates.assert_within(report, "RGP, rank 2")


def test_sound_adaptive_steps_are_not_refuted():
    report = audit_cases.per_layer_adaptive(RUNS, seed=3)
    assert not report.refuted
    rates.assert_within(report, "DP-SGD, per layer, adaptive, 2 steps")
    # Two steps of signal 1: 2 apart, less what the counts take.
    inside = report.scores[report.included]
    outside = report.scores[~report.included]
    assert 1.7 < np.mean(inside) - np.mean(outside) < 2.3


def test_a_public_batch_size_hides_the_number_of_examples():
    report = audit_cases.data_size(100, seed=3)
    assert not report.refuted
    rates.assert_within(report, "DP-SGD, number of examples not public")
    # Otherwise sums are divided by what follows the data: of another claim.
    assert audit_cases.data_size(100, seed=3, public=False).refuted


def test_every_bug_has_a_case():
    assert set(planted_bugs.BUGS) == set(audit_cases.TELLTALE)


@pytest.mark.parametrize("bug", planted_bugs.BUGS)
def test_a_planted_bug_is_refuted(bug):
    runs = (SUBTLE | PLAIN).get(bug, RUNS)
    with planted_bugs.BUGS[bug]():
        report = audit_cases.TELLTALE[bug](runs, seed=3)
    assert report.refuted, str(report)
