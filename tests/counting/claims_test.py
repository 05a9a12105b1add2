"""Claims: for whose batches they hold, and for how many steps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp.counting import claims

SUMS = counting.GaussianRelease(1.0, 1.5)
POISSON = accounting.PoissonSampling(0.25)
UNKNOWN = accounting.UnknownSampling()


def _ledger():
    return counting.Ledger(
        keras.Variable(np.zeros(counting.TABLE_SHAPE), dtype="float64")
    )


def _counts(ledger):
    return {entry.sampling: entry.steps for entry in ledger.entries()}


def test_a_claim_of_one_size_holds_for_no_other():
    any_size = counting.Claim(SUMS, POISSON)
    assert any_size.of_other_sizes() is any_size
    claim = counting.Claim(SUMS, POISSON, True, draws=3, batch_size=8)
    assert claim.of_other_sizes() == counting.Claim(SUMS, UNKNOWN, True, 3)
    ledger = _ledger()
    with counting.announced(None, {ledger: claim}, drawn=True):
        for size in (8, 7, 8):
            ledger.count_step(SUMS, ledger.stamp(SUMS), size)
    assert _counts(ledger) == {POISSON: 6, UNKNOWN: 3}
    assert all(entry.seeded for entry in ledger.entries())


def test_a_claim_holds_on_the_batches_of_its_loop_alone():
    ledger, other = _ledger(), _ledger()
    claim = counting.Claim(SUMS, POISSON)

    def held():
        assert claims.of_thread(other) is None
        located = claims.of_thread(ledger)
        return located is not None and located.claim == claim

    assert not held()
    with counting.announced("one", {ledger: claim}):
        assert not held() and claims.to_come(ledger) == claim
        with counting.on_drawn_batch("another"):
            assert not held()
        with counting.on_drawn_batch("one"):
            assert held()
            # Of a loop inside of it the batches are others.
            inside = counting.Claim(SUMS, accounting.PoissonSampling(0.5))
            with counting.announced("another", {ledger: inside}):
                assert not held() and claims.of_thread(ledger) is None
                with counting.on_drawn_batch("one"):
                    assert claims.of_thread(ledger) is None
            assert held()
        assert not held()
    assert claims.to_come(ledger) is None


def test_eager_replicas_have_the_claim_of_the_step_that_runs_them():
    ledger = _ledger()
    claim = counting.Claim(SUMS, POISSON)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def held():
        found = strategy.run(
            lambda: tf.constant(claims.of_thread(ledger) is not None)
        )
        return [bool(each) for each in found.values]

    with counting.announced("one", {ledger: claim}):
        with counting.passed_to_replicas():
            assert held() == [False, False]
        with counting.on_drawn_batch("one"), counting.passed_to_replicas():
            assert held() == [True, True]


def test_a_stamp_is_good_for_one_step_of_its_ledger():
    ledger = _ledger()
    claim = counting.Claim(SUMS, POISSON)
    with counting.announced(None, {ledger: claim}, drawn=True):
        stamp = ledger.stamp(SUMS)
    assert stamp.take(_ledger()) is None
    copy = stamp.copy()
    for each in (stamp, copy):
        ledger.count_step(SUMS, each)
        ledger.count_step(SUMS, each)
        with pytest.raises(ValueError, match="used already"):
            each.copy()
    assert _counts(ledger) == {POISSON: 2, UNKNOWN: 2}


def test_a_stamp_claims_nothing_in_what_may_use_it_again():
    ledger = _ledger()

    def count_outside(stamp):
        """Counts with a stamp in a function, of which it captures it."""
        count = tf.function(lambda: ledger.count_step(SUMS, stamp))
        for _ in range(2):
            count()

    @tf.function
    def count_in_loop():
        stamp = ledger.stamp(SUMS)
        for _ in tf.range(2):
            ledger.count_step(SUMS, stamp)

    @tf.function
    def count_in_branch(taken):
        stamp = ledger.stamp(SUMS)
        if taken:
            ledger.count_step(SUMS, stamp)

    @tf.function
    def count_by_rounds():
        for _ in tf.range(2):
            ledger.count_step(SUMS, ledger.stamp(SUMS))

    claim = counting.Claim(SUMS, POISSON)
    with counting.announced(None, {ledger: claim}, drawn=True):
        count_outside(ledger.stamp(SUMS))
        count_in_loop()
        assert _counts(ledger) == {UNKNOWN: 4}
        # A branch, and a round with a stamp of its own, use one once.
        count_in_branch(tf.constant(True))
        count_in_branch(tf.constant(False))
        count_by_rounds()
    assert _counts(ledger) == {UNKNOWN: 4, POISSON: 3}


class _Told:
    """Counts what Python is told of before steps."""

    def __init__(self):
        self.claims = []

    def __call__(self, located):
        self.claims.append(located.claim.sampling)

    def since(self):
        found, self.claims = self.claims, []
        return found


def test_each_step_is_told_once_whenever_its_batch_was_stamped():
    ledger, told = _ledger(), _Told()
    early = ledger.stamp(SUMS)
    ledger.call_before(told)
    stamp = ledger.stamp(SUMS)
    assert told.since() == [UNKNOWN]
    ledger.count_step(SUMS, stamp)
    assert told.since() == []
    # Stamped before anybody asked, and in pieces: one step, on two replicas.
    piece = early.copy()
    ledger.rows_of(SUMS, early)
    assert told.since() == [UNKNOWN]
    ledger.rows_of(SUMS, piece)
    assert told.since() == []
    # A second step on what was stamped for one, and one on no stamp at all.
    for again in (stamp, None):
        ledger.count_step(SUMS, again)
        assert told.since() == [UNKNOWN]


def test_each_call_of_a_compiled_step_is_told():
    ledger, told = _ledger(), _Told()
    ledger.call_before(told)
    ledger.ensure_open(SUMS)
    outside = ledger.stamp(SUMS)
    assert told.since() == [UNKNOWN]

    @tf.function
    def whole():
        ledger.count_step(SUMS, ledger.stamp(SUMS))

    @tf.function
    def on_what_was_stamped_outside():
        ledger.count_step(SUMS, outside)

    for step in (whole, on_what_was_stamped_outside):
        for _ in range(3):
            step()
            assert told.since() == [UNKNOWN]
    assert _counts(ledger) == {UNKNOWN: 6}
