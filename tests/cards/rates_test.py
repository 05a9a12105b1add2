"""Every audit of docs/auditing.md stays below the rates of the card."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import audit_cases
from benchmarks import forward_cases
from tf_dpfp import accounting
from tf_dpfp.accounting import tradeoff
from tf_dpfp.auditing import bounds

ERROR = 1e-4  # Of one bound; about a hundred are compared.


def _steps(steps=1, rate=1.0, noise=1.0):
    sampling = accounting.PoissonSampling(rate)
    return accounting.LedgerEntry(sampling, noise, steps)


def _drawn(of, steps):
    sampling = accounting.WithoutReplacement(of, 1)
    kind = accounting.Representations("public")
    return accounting.LedgerEntry(sampling, 2.0, steps, release=kind)


# What one run of each audit released, as its ledger has it.
RAN = {
    "DP-SGD, flat": _steps(),
    "DP-SGD, flat, 4 steps, rate 1/2": _steps(4, 0.5),
    "DP-SGD, per layer, adaptive, 2 steps": _steps(2),
    # Audited under zero-out adjacency: once the clip norm.
    "RGP, rank 2": _steps(),
    "DP-SGD, number of examples not public": _steps(1, 0.5),
    "DP-FP, labels public": _drawn(1, 1),
    "DP-FP, labels public, 2 steps of 2 draws, rate 1/4": _drawn(4, 4),
    "labels by randomised response": accounting.LedgerEntry(
        accounting.EveryLabel(2, 1), 1.0, 1, release=accounting.Labels()
    ),
}
CASES = {**audit_cases.SOUND, **forward_cases.SOUND}
# Each kind of audit once without `-m slow`.
RUNS = {"labels by randomised response": 4000}


def test_every_sound_audit_is_here():
    missing = set(CASES) - set(RAN)
    # Fixed batches with a canary that pulls against all others, or fills a
    # row of padding: the releases of the first.
    assert all(name.startswith("DP-SGD") for name in missing), missing


def _rates_shown(report):
    """Bounds on the rates of thresholds that other runs chose."""
    scores, included = report.scores, report.included
    there, away = scores[included], scores[~included]
    for wanted in (0.01, 0.05, 0.1, 0.3, 0.6):
        threshold = np.quantile(away[::2], 1.0 - wanted)
        for sign in (1, -1):
            # Members by great scores, or others by low ones.
            false, true = (
                sign * np.asarray(values[1::2]) > sign * threshold
                for values in ((away, there), (there, away))[sign == -1]
            )
            yield (
                bounds.greatest_rate(np.sum(false), len(false), ERROR),
                1.0 - bounds.greatest_rate(np.sum(~true), len(true), ERROR),
            )


def _excess(report, entry):
    curve = tradeoff.curve_of([entry]).curve
    return max(
        true - float(curve(np.array([false]))[0])
        for false, true in _rates_shown(report)
    )


@pytest.fixture(scope="module")
def flat():
    return audit_cases.flat(500, seed=5)


@pytest.mark.parametrize("name", RAN)
def test_no_audit_beats_the_rates_of_the_card(name, flat):
    is_flat = CASES[name] is audit_cases.flat
    report = flat if is_flat else CASES[name](RUNS.get(name, 100), seed=5)
    assert _excess(report, RAN[name]) <= 0.0


def test_rates_of_more_noise_than_was_drawn_are_beaten(flat):
    assert _excess(flat, _steps(noise=5.0)) > 0.0


def test_the_best_attack_comes_close_to_the_rates(flat):
    mu = tradeoff.membership_attacks([RAN["DP-SGD, flat"]]).mu
    there = flat.scores[flat.included]
    away = flat.scores[~flat.included]
    shown = stats.norm.ppf(np.mean(there > np.quantile(away, 0.9)))
    assert abs(shown - (stats.norm.ppf(0.1) + mu)) < 0.3
