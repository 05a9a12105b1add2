"""Audits of docs/auditing.md stay below the rates of the card."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import audit_cases
from benchmarks import forward_cases
from tests.cards import rates
from tf_dpfp.accounting import tradeoff

CASES = {**audit_cases.SOUND, **forward_cases.SOUND}
# Of the others the rates are compared where they are audited.
HERE = (
    "DP-SGD, flat, 4 steps, rate 1/2",
    "DP-FP, labels public, 2 steps of 2 draws, rate 1/4",
)


def test_every_sound_audit_is_here():
    missing = set(CASES) - set(rates.RAN)
    # Fixed batches with a canary that pulls against all others, or fills a
    # row of padding: the releases of the first.
    assert all(name.startswith("DP-SGD") for name in missing), missing


@pytest.fixture(scope="module")
def flat():
    return audit_cases.flat(500, seed=5)


@pytest.mark.parametrize("name", HERE)
def test_no_audit_beats_the_rates_of_the_card(name):
    rates.assert_within(CASES[name](100, seed=5), name)


def test_rates_of_more_noise_than_was_drawn_are_beaten(flat):
    rates.assert_within(flat, "DP-SGD, flat")
    assert rates.excess(flat, rates.steps_of(noise=5.0)) > 0.0


def test_the_best_attack_comes_close_to_the_rates(flat):
    mu = tradeoff.membership_attacks([rates.RAN["DP-SGD, flat"]]).mu
    there = flat.scores[flat.included]
    away = flat.scores[~flat.included]
    shown = stats.norm.ppf(np.mean(there > np.quantile(away, 0.9)))
    assert abs(shown - (stats.norm.ppf(0.1) + mu)) < 0.3
