"""Audits of steps with correlated noise.

The adversary knows the strategy C, the part that the canary is in, and all
other examples. A round, the steps from one turn of the canary's part to the
next, has all that it tells of the canary: C times the releases of these steps,
projected on the column of the canary's step. Rounds are independent, so one
training is as many runs as it has rounds.
"""

import functools

import numpy as np
import pytest

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp import auditing
from tf_dpfp.accounting import banded
from tf_dpfp.auditing import canaries
from tf_dpfp.auditing import dirac
from tf_dpfp.noise import chain as chain_lib
from tf_dpfp.sampling import cyclic

pytestmark = pytest.mark.usefixtures("without_trial")

BANDS, OTHERS, ROUNDS, SEED = 3, dirac._OTHERS, 400, 11
CLIP, NOISE, DELTA = 0.5, 1.0, (1e-3, 1e-1)


@functools.cache
def _sound():
    return tuple(_projections(included) for included in (True, False))


def _projections(included, rate=1.0, rounds=ROUNDS):
    """One number for each round; with the canary at home in its part."""
    scale = 4.0 * CLIP
    others, canary = canaries.unused_features(
        np.eye(OTHERS, dtype=np.float32) * scale, 1, scale
    )
    x, y, weight = canaries.insert_canaries(
        others,
        np.ones((OTHERS, 1), np.float32),
        canary,
        np.ones((1, 1), np.float32),
        np.array([included]),
    )
    model = dirac._linear_model(1)
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(
        1.0,
        l2_norm_clip=CLIP,
        noise_multiplier=NOISE,
        expected_batch_size=4.0,
        correlated_noise=tf_dpfp.Banded(BANDS),
    )
    model.compile(optimizer, loss=dirac._linear_loss)
    steps = BANDS * (rounds + 2)
    recorder = auditing.ReleaseRecorder()
    model.fit(
        tf_dpfp.cyclic_poisson_batches(
            x,
            y,
            weight,
            sampling_rate=rate / BANDS,
            expected_batch_size=4.0,
            steps_per_epoch=steps,
            seed=SEED,
        ),
        callbacks=[recorder],
        verbose=0,
    )
    assert not included or len(x) == OTHERS + 1
    members = cyclic.assign(OTHERS + 1, BANDS, SEED)
    (part,) = (p for p in range(BANDS) if OTHERS in members[p])
    strategy = np.array(banded.coefficients(BANDS, steps))
    own = -recorder.releases[:, -1]
    rows = np.convolve(own, strategy)[:steps]
    first = part + BANDS * np.arange(rounds)
    blocks = np.stack([rows[first + lag] for lag in range(BANDS)], axis=1)
    return blocks @ (strategy / np.linalg.norm(strategy))


def _audit(found, claimed_rate=1.0, confidence=0.95):
    scores = [
        auditing.likelihood_scores(each[:, None], CLIP, NOISE * CLIP)
        for each in found
    ]
    claimed = accounting.LedgerEntry(
        accounting.CyclicPoissonSampling(claimed_rate, parts=BANDS),
        NOISE,
        BANDS,
        release=accounting.BandedSums(BANDS),
    )
    return auditing.audit_scores(
        np.concatenate(scores),
        np.arange(len(scores[0]) + len(scores[1])) < len(scores[0]),
        method="many_runs",
        delta=DELTA,
        confidence=confidence,
        claimed_epsilon=lambda d: accounting.compute_epsilon(
            [claimed], d, "pld"
        ),
    )


def test_no_audit_of_a_round_refutes_its_epsilon():
    # The noise is secret: another one in every run of the test.
    report = _audit(_sound(), confidence=0.9999)
    assert not report.refuted, str(report)
    # The canary has its full effect, so that the bugs below can be seen: to
    # five standard errors.
    found, missing = (np.mean(each) for each in _sound())
    error = NOISE * CLIP * np.sqrt(2.0 / ROUNDS)
    assert abs(found - missing - CLIP) < 5.0 * error


def test_a_rate_without_the_parts_is_refuted():
    """Planted: counted at the rate of the whole data."""
    assert _audit(_sound(), claimed_rate=1.0 / BANDS / 4).refuted


def test_columns_that_are_too_long_are_refuted(monkeypatch):
    """Planted: coefficients that begin with one, as in the series."""
    ordinary = chain_lib._checked
    monkeypatch.setattr(
        chain_lib,
        "_checked",
        lambda strategy, bands: ordinary(strategy, bands) * np.float32(2.5),
    )
    # The noise is 2.5 times too small: half of the rounds show it.
    found = [_projections(i, rounds=ROUNDS // 2) for i in (True, False)]
    assert _audit(found).refuted
