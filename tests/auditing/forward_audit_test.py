"""Forward propagation holds as it is here, and fails as it was published."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import forward_cases
from tests.cards import rates


def test_the_sound_form_is_exactly_as_private_as_its_noise():
    report = forward_cases.sound(200, seed=3)
    assert not report.refuted and report.adjacency == "replace_one"
    rates.assert_within(report, "DP-FP, labels public")
    # A row at either end of the clipped ball, noise of standard deviation 2.
    for included, mean in [(True, 1.0), (False, -1.0)]:
        rows = report.scores[report.included == included]
        assert stats.kstest(rows, stats.norm(mean, 2.0).cdf).pvalue > 1e-3


def test_randomised_response_is_exactly_as_private_as_its_epsilon():
    report = forward_cases.randomized_labels(20_000, seed=3)
    assert 0.9 < report.lower_bound <= 1.0
    rates.assert_within(report, "labels by randomised response")


@pytest.mark.parametrize(
    "case",
    [forward_cases.published_labels, forward_cases.published_encoder],
)
def test_the_published_form_is_refuted(case):
    report = case(100, seed=3)
    assert report.refuted, str(report)
    assert 0 < report.claimed_epsilon < np.inf
    # Without the canary nothing moves at all: the noise is not in the way.
    assert np.max(np.abs(report.scores[~report.included])) == 0.0
