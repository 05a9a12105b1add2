import dataclasses

import keras
import numpy as np
import pytest

import tf_dpfp
from tf_dpfp import auditing
from tf_dpfp.auditing import bounds
from tf_dpfp.auditing import one_run

pytestmark = pytest.mark.usefixtures("without_trial")


def gaussian_training(rng, mu=1.0):
    """Releases each coin with noise."""
    return lambda included: included * mu + rng.normal(size=len(included))


def test_many_runs_are_balanced_and_bounded_by_error_rates():
    report = auditing.audit(
        gaussian_training(np.random.default_rng(0), 3.0),
        runs=600,
        delta=1e-3,
        claimed_epsilon=0.5,
        rng=1,
    )
    assert report.method == "many_runs"
    assert np.sum(report.included) == 300
    assert report.lower_bound == bounds.many_runs_epsilon(
        report.scores, report.included, 1e-3, 0.95
    )
    assert report.lower_bound > 1.5
    assert report.refuted and report.claimed_epsilon == 0.5


def test_coins_of_several_runs_are_fair_independent_and_counted_together():
    seen = []

    def train(included):
        seen.append(included.copy())
        return included * 4.0

    report = auditing.audit(
        train, runs=3, canaries=400, delta=0.0, rng=np.random.default_rng(2)
    )
    assert report.method == "one_run"
    assert np.array_equal(np.concatenate(seen), report.included)
    assert not np.array_equal(seen[0], seen[1])
    assert abs(np.mean(report.included) - 0.5) < 0.05
    assert report.lower_bound == one_run.one_run_epsilon(
        report.scores, report.included, 0.0, 0.95
    )


def test_the_same_rng_gives_the_same_audit():
    def report(seed):
        return auditing.audit(
            gaussian_training(np.random.default_rng(5)),
            runs=2,
            canaries=50,
            delta=1e-5,
            rng=seed,
        )

    first, again, other = report(1), report(1), report(2)
    assert np.array_equal(first.included, again.included)
    assert first.points == again.points
    assert not np.array_equal(first.included, other.included)


def test_several_deltas_share_the_error_probability():
    rng = np.random.default_rng(0)
    included = np.arange(2000) < 1000
    scores = included * 2.0 + rng.normal(size=2000)
    report = auditing.audit_scores(
        scores,
        included,
        method="many_runs",
        delta=(1e-5, 1e-1),
        claimed_epsilon=lambda delta: 50.0 if delta < 1e-3 else 1.0,
        confidence=0.9,
    )
    assert [p.lower_bound for p in report.points] == [
        bounds.many_runs_epsilon(scores, included, delta, 0.95)
        for delta in (1e-5, 1e-1)
    ]
    assert [p.refuted for p in report.points] == [False, True]
    assert report.refuted and report.lower_bound < report.claimed_epsilon


def test_the_coins_that_count_are_out_of_the_trainings_reach():
    def train(included):
        included[:] = True
        return np.ones(len(included))

    report = auditing.audit(train, runs=1, canaries=200, delta=0.0, rng=0)
    assert not report.included.all()


def test_the_report_says_it_in_words():
    report = auditing.audit(
        gaussian_training(np.random.default_rng(0), 6.0),
        runs=400,
        delta=(1e-5, 1e-2),
        claimed_epsilon=0.1,
        adjacency="replace_one",
        rng=0,
    )
    words = str(report)
    assert "400 scores, 200 with the canary" in words
    assert "one example is replaced by another" in words
    assert "95 % for all rows together" in words
    assert f"at least {report.lower_bound - 5e-4:.3f}; claimed: 0.1" in words
    assert "REFUTED" in words
    kept = dataclasses.replace(
        report, points=(auditing.AuditPoint(1e-5, 1.0, 2.0),)
    )
    assert "not refuted. That proves nothing more" in str(kept)
    open_end = dataclasses.replace(
        report, points=(auditing.AuditPoint(1e-5, 1.0),)
    )
    assert not open_end.refuted and "claim" not in str(open_end)


def test_words_round_bounds_down():
    point = auditing.AuditPoint(0.1, 1.23999, 3.0)
    report = auditing.AuditReport(
        "many_runs",
        "add_or_remove",
        0.95,
        (point,),
        np.zeros(2),
        np.array([True, False]),
    )
    assert "at least 1.239;" in str(report)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"runs": 3}, "runs=3, canaries=1"),
        (
            {"runs": 0, "canaries": 5},
            "`runs` must .* at least 1. Received: runs=0",
        ),
        ({"runs": 4, "adjacency": "swap"}, "adjacency='swap'"),
        (
            {"runs": 4, "claimed_epsilon": -1.0},
            "claimed_epsilon=-1.0 at delta=1e-05",
        ),
        ({"runs": 4, "delta": ()}, r"delta=\(\)"),
        ({"runs": 4, "delta": "1e-5"}, "delta='1e-5'"),
        ({"runs": 4.0}, "runs=4.0"),
        ({"runs": 4, "confidence": True}, "confidence=True"),
        ({"runs": 4, "confidence": 95}, "confidence=95"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    arguments = {"delta": 1e-5, "rng": 0, **arguments}
    train = gaussian_training(np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        auditing.audit(train, **arguments)


def test_a_score_for_each_canary_is_needed():
    with pytest.raises(ValueError, match=r"each of 9 canaries.*\(2,\)"):
        auditing.audit(
            lambda included: [0.0, 1.0], runs=1, canaries=9, delta=0.0
        )


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method='two_runs'"):
        auditing.audit_scores(
            [0.0, 1.0], [True, False], method="two_runs", delta=0.0
        )


def test_a_model_that_remembers_is_refuted_and_a_private_one_is_not():
    """One run each, of the library, with canaries scored by their loss."""
    rng = np.random.default_rng(0)
    others = rng.normal(size=(100, 10)).astype(np.float32)
    canaries = 120
    x, own = auditing.unused_features(others, canaries, scale=3.0)
    y = (others[:, 0] > 0).astype(np.float32)[:, None]
    own_y = rng.integers(0, 2, (canaries, 1)).astype(np.float32)

    def trained(noise_multiplier):
        def train(included):
            keras.utils.set_random_seed(0)
            model = keras.Sequential(
                [keras.Input((10 + canaries,)), keras.layers.Dense(1)]
            )
            tf_dpfp.make_private(model)
            model.compile(
                tf_dpfp.DPSGD(20.0, noise_multiplier=noise_multiplier, seed=1),
                loss=keras.losses.BinaryCrossentropy(from_logits=True),
            )
            batches = tf_dpfp.poisson_batches(
                *auditing.insert_canaries(x, y, own, own_y, included),
                sampling_rate=0.5,
                steps_per_epoch=20,
                seed=1,
            )
            model.fit(batches, verbose=0)
            trained.epsilon = tf_dpfp.compute_epsilon(model, 1e-5)
            return -auditing.example_losses(model, own, own_y)

        return auditing.audit(
            train, runs=1, canaries=canaries, delta=1e-5, rng=0
        )

    assert trained(1e-3).lower_bound > 1.5
    report = trained(4.0)
    assert report.lower_bound < 0.5 < trained.epsilon
