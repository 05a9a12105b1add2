"""Audits of a sparse table: by the rows that pass, and by what they hold.

Every canary has a row of its own, and nobody else touches it. To the adversary
a step tells whether that row passed, and if so its noised sum. Rows pass and
are noised independently, so one step is as many runs as there are canaries.
"""

import keras
import numpy as np
import pytest
from keras import layers
from scipy import stats

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp import auditing
from tf_dpfp.auditing import dirac

pytestmark = pytest.mark.usefixtures("without_trial")

CANARIES, STEPS = 20, 60
CLIP, NOISE, SHARE, DELTA = 0.5, 1.0, 0.5, (1e-3, 1e-1)


def _releases(threshold):
    """What steps release of each canary's row; the first half takes part."""
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="int32"),
            layers.Embedding(CANARIES, 1, "zeros", name="items"),
            layers.Flatten(),
        ]
    )
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(
        1.0,
        l2_norm_clip=CLIP,
        noise_multiplier=NOISE,
        sparse_tables=tf_dpfp.Sparse(
            "items", threshold=threshold, contribution_share=SHARE
        ),
    )
    model.compile(optimizer, loss=dirac._linear_loss)
    recorder = auditing.ReleaseRecorder()
    rows = np.arange(CANARIES // 2, dtype="int32")[:, None]
    model.fit(
        tf_dpfp.poisson_batches(
            rows,
            np.full(rows.shape, 100.0, "float32"),
            sampling_rate=1.0,
            steps_per_epoch=STEPS,
        ),
        callbacks=[recorder],
        verbose=0,
    )
    return recorder.releases


def _audit(releases, threshold, confidence=0.95):
    passed = releases != 0.0
    # By the settings, whatever the release really did.
    deviation = NOISE * CLIP / np.sqrt(1 - SHARE)
    sign = np.sign(np.sum(releases[:, : CANARIES // 2]))
    values = (sign * releases * CLIP - CLIP**2 / 2) / deviation**2
    count = np.sqrt(SHARE) / NOISE
    with_it = stats.norm(count - threshold)
    without = stats.norm(-threshold)
    scores = np.where(
        passed,
        with_it.logsf(0.0) - without.logsf(0.0) + values,
        with_it.logcdf(0.0) - without.logcdf(0.0),
    )
    claimed = accounting.LedgerEntry(accounting.PoissonSampling(1.0), NOISE, 1)
    return auditing.audit_scores(
        scores.T.ravel(),
        np.repeat(np.arange(CANARIES) < CANARIES // 2, STEPS),
        method="many_runs",
        delta=DELTA,
        confidence=confidence,
        claimed_epsilon=lambda d: accounting.compute_epsilon(
            [claimed], d, "pld"
        ),
    )


def _split(contributions=1.0, rest=1.0):
    """Plants a bug: noise of another size than is counted."""
    original = accounting.split_contributions

    def split(noise_multiplier, share):
        found = original(noise_multiplier, share)
        return type(found)(
            contributions * found.contributions, rest * found.rest
        )

    return split


def test_no_audit_of_a_step_refutes_its_epsilon():
    releases = _releases(0.5)
    # The noise is secret: another one in every run of the test.
    report = _audit(releases, 0.5, confidence=0.9999)
    assert not report.refuted, str(report)
    # Canaries have their full effect, so that the bugs below can be seen.
    passed = (releases != 0.0).sum(axis=0)
    runs = STEPS * CANARIES // 2
    for half, count in ((slice(0, 10), np.sqrt(SHARE)), (slice(10, 20), 0.0)):
        chance = stats.norm.cdf(count / NOISE - 0.5)
        number = int(passed[half].sum())
        assert stats.binomtest(number, runs, chance).pvalue > 1e-6


@pytest.mark.parametrize(
    ("bug", "threshold"),
    [({"contributions": 0.05}, 3.0), ({"rest": 0.2}, -40.0)],
)
def test_noise_that_is_too_small_is_refuted(monkeypatch, bug, threshold):
    monkeypatch.setattr(accounting, "split_contributions", _split(**bug))
    assert _audit(_releases(threshold), threshold).refuted
