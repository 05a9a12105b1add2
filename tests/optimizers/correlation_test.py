"""Steps of one chain of correlated noise: what they share and count."""

import dataclasses
import functools
import types

import keras
import pytest
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import clipping
from tf_dpfp import compilation
from tf_dpfp import counting
from tf_dpfp import optimizers
from tf_dpfp.optimizers import correlation as correlation_lib

PARTS = 3
SUMS = counting.GaussianRelease(1.0, 2.0, kind=accounting.BandedSums(2))
CLAIM = counting.Claim(SUMS, accounting.CyclicPoissonSampling(0.3, parts=PARTS))


@functools.cache
def _variables():
    """Those of one model, in all of its steps."""
    return [keras.Variable(tf.zeros([3])) for _ in range(3)]


def _clipped(**changes):
    clipped = optimizers.ClippedGradients(
        sums=[tf.zeros([3])] * 2,
        variables=_variables()[:2],
        groups=(clipping.Group("both", (0, 1), 1.0, 6),),
        regularization=[None] * 2,
    )
    return dataclasses.replace(clipped, **changes)


def test_other_clip_norms_are_another_layout():
    """Noise takes back that of earlier steps, so it must be as large."""
    clipped = _clipped()
    apart = tuple(clipping.Group(str(i), (i,), 0.5**0.5, 3) for i in range(2))
    layout = correlation_lib._layout
    assert layout(clipped) == layout(_clipped(sums=[tf.ones([3])] * 2))
    assert layout(clipped) != layout(_clipped(groups=apart))


def test_other_weights_of_the_same_shapes_are_another_layout():
    layout = correlation_lib._layout
    others = _clipped(variables=_variables()[1:])
    assert layout(_clipped()) != layout(others)


def test_other_draws_are_another_layout(monkeypatch):
    layouts = [
        correlation_lib._layout(_clipped(sums=sums))
        for sums in (
            [tf.zeros([3]), None],
            [None, tf.zeros([3])],
            [tf.zeros([4]), None],
        )
    ]
    clipped = _clipped()
    layouts.append(correlation_lib._layout(clipped))
    with compilation.tracing_for(compilation.Target.XLA):
        layouts.append(correlation_lib._layout(clipped))
    monkeypatch.setattr(compilation, "has_accelerator", lambda: "another")
    layouts.append(correlation_lib._layout(clipped))
    assert len(set(layouts)) == len(layouts)


class _Ledger:
    """Notes what it is asked to count."""

    def __init__(self):
        self.before, self.counted, self.asked = [], [], []

    def call_before(self, function):
        self.before.append(function)

    def count_step(self, *given):
        self.counted.append(given)

    def rows_of(self, *given):
        self.asked.append(given)
        *_, has_part = given
        parts = PARTS if has_part else 0
        return tf.constant([0, 1, 1, 1, 0, parts], tf.int64)

    def count_in(self, rows, batch_size, further):
        del rows
        self.counted.append((batch_size, int(further)))


def _taken(bands, monkeypatch):
    ledger = _Ledger()
    monkeypatch.setattr(counting, "to_come", lambda _: CLAIM)
    correlation = correlation_lib.Correlation(ledger)
    correlation.take(bands)
    return correlation, ledger


@pytest.mark.parametrize("bands", [None, 1])
def test_independent_noise_has_no_chain(bands, monkeypatch):
    correlation, ledger = _taken(bands, monkeypatch)
    clipped = _clipped(stamp="stamp", joint=types.SimpleNamespace(batch_size=7))
    assert correlation.count_step(SUMS, clipped) is None
    assert ledger.counted == [(SUMS, "stamp", 7)]
    assert not ledger.before and correlation.pending == []


def test_a_chain_counts_its_first_step_as_one_of_every_part(monkeypatch):
    correlation, ledger = _taken(2, monkeypatch)
    assert correlation.pending == []
    joint = types.SimpleNamespace(batch_size=7)
    with correlation.opened(5):
        # What a budget must know before it.
        assert [e.steps for e in correlation.pending] == [PARTS - 1]
        for part in (1, 2, 0):
            step = _clipped(part=tf.constant(part), stamp="stamp", joint=joint)
            assert correlation.count_step(SUMS, step) is not None
            assert correlation.pending == []
        # By itself, as by hand: of no part.
        correlation.count_step(SUMS, _clipped())
    assert ledger.counted == [(7, PARTS - 1), (7, 0), (7, 0), (0, 0)]
    assert ledger.asked == [(SUMS, "stamp", True)] * 3 + [(SUMS, None, False)]


def test_only_steps_by_parts_and_evaluations_may_run_meanwhile(monkeypatch):
    correlation, ledger = _taken(2, monkeypatch)
    (before_step,) = ledger.before
    others = counting.Claim(SUMS, accounting.UnknownSampling())
    evaluation = counting.Claim(
        dataclasses.replace(SUMS, kind=accounting.Evaluation()),
        accounting.EveryExample(),
    )
    rows = tf.zeros([6], tf.int64)
    for claim in (CLAIM, evaluation, others):
        before_step(counting.Located(claim, rows))
    with correlation.opened(5):
        for claim in (CLAIM, evaluation):
            before_step(counting.Located(claim, rows))
        with pytest.raises(RuntimeError, match="no other step"):
            before_step(counting.Located(others, rows))
