"""Correlated noise of a chain, against its strategy written out."""

import copy
import pickle

import numpy as np
import pytest
import tensorflow as tf
from scipy import linalg

from tests import helpers
from tf_dpfp import noise
from tf_dpfp.accounting import banded
from tf_dpfp.noise import chain as chain_lib

BANDS, STEPS = 4, 11
STRATEGY = banded.coefficients(BANDS, STEPS)


def strategy_matrix(steps=STEPS):
    column = np.zeros(steps)
    column[:BANDS] = STRATEGY
    return linalg.toeplitz(column, np.zeros(steps))


def run(chain, normals, parts=BANDS, layout="one", part=None, size=None):
    """Gives normals, one row a step, to a chain; eagerly or not."""
    found = []
    for t, row in enumerate(normals):
        due = t % max(parts, 1) if part is None else part
        turn = chain.turn(parts, tf.constant(due), layout)
        found.append(chain.correlated(tf.constant(row, tf.float32), turn, 0))
    return np.stack(found)


def opened(chain=None):
    return (chain or noise.NoiseChain(BANDS)).opened(STRATEGY)


@pytest.mark.parametrize("wide", [5, 2**16 + 3])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_strategy_takes_noise_back_to_independent_normals(wide, compiled):
    normals = np.random.default_rng(0).normal(size=(STEPS, wide))
    chain = noise.NoiseChain(BANDS)

    @tf.function
    def step(row, due):
        turn = chain.turn(BANDS, due, "one")
        return chain.correlated(row, turn, 0)

    with opened(chain):
        if compiled:
            found = np.stack(
                [
                    step(tf.constant(row, tf.float32), tf.constant(t % BANDS))
                    for t, row in enumerate(normals)
                ]
            )
        else:
            found = run(chain, normals)
    np.testing.assert_allclose(strategy_matrix() @ found, normals, atol=2e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_earlier_noise_goes_through_a_change(compiled):
    """From the fifth step on numbers are those of the other end, halved."""
    normals = np.random.default_rng(0).normal(size=(STEPS, 6))
    chain = noise.NoiseChain(BANDS)

    def step(row, number):
        turn = chain.turn(BANDS, number % BANDS, "one")
        change = noise.Change(number == 5, lambda x: 0.5 * tf.reverse(x, [0]))
        return chain.correlated(row, turn, 0, change)

    if compiled:
        step = tf.function(step, jit_compile=True)
    with opened(chain):
        found = np.stack(
            [
                step(tf.constant(row, tf.float32), tf.constant(t))
                for t, row in enumerate(normals)
            ]
        )
    matrix = strategy_matrix()
    expected = matrix[:5, :5] @ found[:5]
    np.testing.assert_allclose(expected, normals[:5], atol=2e-5)
    changed = 0.5 * found[:5, ::-1]
    expected = matrix[5:, :5] @ changed + matrix[5:, 5:] @ found[5:]
    np.testing.assert_allclose(expected, normals[5:], atol=2e-5)


def test_impulses_show_a_banded_strategy_with_columns_of_norm_one():
    """C as the code has it, by what it makes of one unit of noise a step."""
    chain = noise.NoiseChain(BANDS)
    with opened(chain):
        inverse = run(chain, np.eye(STEPS))
    c = np.linalg.inv(inverse.astype(np.float64))
    lags = np.subtract.outer(np.arange(STEPS), np.arange(STEPS))
    assert np.all(np.abs(c[(lags < 0) | (lags >= BANDS)]) < 1e-6)
    norms = np.linalg.norm(c, axis=0)
    assert np.all(norms < 1.0)
    assert np.all(norms[: STEPS - BANDS + 1] > 1.0 - 1e-5)


def test_covariance_and_marginals_of_many_draws_are_the_strategys():
    draws = 20_000
    normals = np.random.default_rng(1).normal(size=(STEPS, draws))
    chain = noise.NoiseChain(BANDS)
    with opened(chain):
        found = run(chain, normals).astype(np.float64)
    inverse = np.linalg.inv(strategy_matrix())
    expected = inverse @ inverse.T
    covariance = found @ found.T / draws
    # Deviation of an entry: that of a product of normals.
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)) / draws)
    assert np.max(np.abs(covariance - expected) / scale) < 6.0
    # What it would be with the lags one place off, or of independent noise.
    for wrong in (np.eye(STEPS), np.roll(expected, 1, axis=1)):
        assert np.max(np.abs(covariance - wrong) / scale) > 20.0
    for row, variance in zip(found, np.diag(expected), strict=True):
        helpers.assert_normal(row, np.sqrt(variance), [0.9, 1.1])


def test_a_chain_begins_without_earlier_noise():
    normals = np.random.default_rng(2).normal(size=(STEPS, 3))
    chain = noise.NoiseChain(BANDS)
    with opened(chain):
        first = run(chain, normals)
    for kept in chain._kept.values():
        assert not any(np.any(v.numpy()) for v in kept)
    with opened(chain):
        np.testing.assert_array_equal(run(chain, normals), first)


def test_earlier_noise_would_be_seen(monkeypatch):
    """Planted: a chain that goes on where the last one ended."""
    normals = np.random.default_rng(2).normal(size=(STEPS, 3))
    chain = noise.NoiseChain(BANDS)
    monkeypatch.setattr(chain, "_forget", lambda: None)
    with opened(chain):
        first = run(chain, normals)
    monkeypatch.setattr(chain, "_begin_anew", lambda: None)
    with opened(chain):
        begun = chain.turn(BANDS, tf.constant(STEPS % BANDS), "one")
        again = chain.correlated(tf.constant(normals[0], tf.float32), begun, 0)
    assert not np.allclose(again, first[0])


def test_a_step_without_a_part_is_independent_and_leaves_the_chain():
    normals = np.random.default_rng(3).normal(size=(STEPS, 3))
    chain = noise.NoiseChain(BANDS)
    with opened(chain):
        expected = run(chain, normals)
    with opened(chain):
        found = [run(chain, normals[:5])]
        outside = run(chain, normals[:2], parts=0)
        rest = []
        for t in range(5, STEPS):
            turn = chain.turn(BANDS, tf.constant(t % BANDS), "one")
            row = tf.constant(normals[t], tf.float32)
            rest.append(chain.correlated(row, turn, 0))
    np.testing.assert_array_equal(outside, normals[:2].astype(np.float32))
    np.testing.assert_array_equal([*found[0], *rest], expected)


@pytest.mark.parametrize("wrong", ["part", "layout"])
def test_a_step_out_of_turn_fails(wrong):
    chain = noise.NoiseChain(BANDS)
    row = tf.zeros([3])
    with opened(chain):
        # A chain may begin with any part.
        chain.correlated(row, chain.turn(BANDS, tf.constant(2), "one"), 0)
        with pytest.raises(tf.errors.InvalidArgumentError, match="whose turn"):
            if wrong == "part":
                chain.turn(BANDS, tf.constant(0), "one")
            else:
                chain.turn(BANDS, tf.constant(3), "other weights")
        chain.turn(BANDS, tf.constant(3), "one")


def test_a_step_out_of_turn_makes_nan_where_assertions_are_left_out(
    monkeypatch,
):
    """As XLA leaves them out; those that are due again, too."""
    monkeypatch.setattr(chain_lib.tf.debugging, "Assert", lambda *_: None)
    chain = noise.NoiseChain(BANDS)
    with pytest.raises(RuntimeError, match="Nothing but NaN"):
        with opened(chain):
            guards = [
                float(chain.turn(BANDS, tf.constant(part), "one").guard)
                for part in (0, 1, 1, 3)
            ]
            outside = chain.turn(0, None, "one").guard
    np.testing.assert_array_equal(guards, [1.0, 1.0, np.nan, np.nan])
    assert float(outside) == 1.0
    with opened(chain):
        assert float(chain.turn(BANDS, tf.constant(2), "one").guard) == 1.0


def test_two_chains_at_a_time_are_refused():
    chain = noise.NoiseChain(BANDS)
    with opened(chain):
        with pytest.raises(RuntimeError, match="Another `fit`"):
            with opened(chain):
                pass
        with pytest.raises(RuntimeError, match="no other step"):
            chain.before_step(by_parts=False)
    with opened(chain):
        pass
    chain.before_step(by_parts=False)


@pytest.mark.parametrize(
    "strategy", [[1.0, 0.1], [0.0, 0.5], [-0.9, 0.1], [np.nan, 0.1]]
)
def test_strategies_of_less_noise_than_is_counted_are_refused(strategy):
    with pytest.raises(ValueError, match="at most 1"):
        with noise.NoiseChain(2).opened(strategy):
            pass


def test_a_chain_is_fresh_until_its_first_step():
    """Or a budget would not count the beginning of a chain before it."""
    chain = noise.NoiseChain(BANDS)
    for _ in range(2):
        assert not chain.is_fresh
        with opened(chain):
            assert chain.is_fresh
            run(chain, np.ones((1, 2)))
            assert not chain.is_fresh


def test_a_process_that_was_forked_begins_anew(monkeypatch):
    normals = np.random.default_rng(4).normal(size=(STEPS, 3))
    chain = noise.NoiseChain(BANDS)
    with opened(chain):
        first = run(chain, normals[:6])
        assert not chain.is_fresh
        forked = object()
        monkeypatch.setattr(chain_lib, "this_process", lambda: forked)
        # What a budget counts for the next step, before it is taken.
        assert chain.is_fresh
        chain.before_step(by_parts=True)
        again = run(chain, normals[:6], part=None)
    np.testing.assert_array_equal(again, first)


def test_an_interrupted_end_is_an_end(monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    chain = noise.NoiseChain(BANDS)
    with monkeypatch.context() as patched:
        patched.setattr(noise.NoiseChain, "_forget", interrupt)
        with pytest.raises(KeyboardInterrupt), opened(chain):
            pass
    normals = np.ones((2, 3))
    with opened(chain):
        again = run(chain, normals)
    with opened(fresh := noise.NoiseChain(BANDS)):
        np.testing.assert_array_equal(again, run(fresh, normals))


@pytest.mark.parametrize(
    "other",
    [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))],
)
def test_no_copy_has_the_noise(other):
    chain = noise.NoiseChain(BANDS)
    with opened(chain):
        run(chain, np.ones((3, 2)))
        twin = other(chain)
    assert twin.bands == BANDS
    assert twin._kept == {} and twin._state is None
