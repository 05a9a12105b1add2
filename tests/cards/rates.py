"""What audits show of the rates on a card, and what their runs released."""

import numpy as np

from tf_dpfp import accounting
from tf_dpfp.accounting import tradeoff
from tf_dpfp.auditing import bounds

ERROR = 1e-4  # Of one bound; about a hundred are compared.


def steps_of(steps=1, rate=1.0, noise=1.0):
    sampling = accounting.PoissonSampling(rate)
    return accounting.LedgerEntry(sampling, noise, steps)


def _drawn(of, steps):
    sampling = accounting.WithoutReplacement(of, 1)
    kind = accounting.Representations("public")
    return accounting.LedgerEntry(sampling, 2.0, steps, release=kind)


# What one run of each audit released, as its ledger has it.
RAN = {
    "DP-SGD, flat": steps_of(),
    "DP-SGD, flat, 4 steps, rate 1/2": steps_of(4, 0.5),
    "DP-SGD, per layer, adaptive, 2 steps": steps_of(2),
    # Audited under zero-out adjacency: once the clip norm.
    "RGP, rank 2": steps_of(),
    "DP-SGD, number of examples not public": steps_of(1, 0.5),
    "DP-FP, labels public": _drawn(1, 1),
    "DP-FP, labels public, 2 steps of 2 draws, rate 1/4": _drawn(4, 4),
    "labels by randomised response": accounting.LedgerEntry(
        accounting.EveryLabel(2, 1), 1.0, 1, release=accounting.Labels()
    ),
}


def _shown(report):
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


def excess(report, entry):
    """How far an audit shows more than the rates allow; at most 0 if sound."""
    curve = tradeoff.curve_of([entry]).curve
    return max(
        true - float(curve(np.array([false]))[0])
        for false, true in _shown(report)
    )


def assert_within(report, name):
    """Asserts that an audit shows no more than the card of its training."""
    assert excess(report, RAN[name]) <= 0.0
