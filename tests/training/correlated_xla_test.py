"""Correlated noise in steps that XLA compiles."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import linalg

import tf_dpfp
from tests import helpers
from tests.replicas import common
from tests.training import banded_runs as runs
from tf_dpfp import accounting
from tf_dpfp import sampling
from tf_dpfp.accounting import banded
from tf_dpfp.mechanisms import gradients
from tf_dpfp.noise import chain as chain_lib
from tf_dpfp.sampling import registry

pytestmark = pytest.mark.usefixtures("without_trial")

BANDS = 3
STRATEGY = banded.coefficients(BANDS, 10)


def _line(jit_compile=True, **kwargs):
    keras.utils.set_random_seed(1)
    return helpers.private_line(
        runs.optimizer(BANDS, **kwargs), jit_compile=jit_compile
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_noise_of_steps_has_the_covariance_of_the_strategy(steps):
    model = runs.silent(
        runs.optimizer(BANDS),
        200 if steps == 1 else 20,
        jit_compile=True,
        steps_per_execution=steps,
    )
    if steps == 1:
        found = runs.releases(model)
        deviation = runs.CLIP * runs.NOISE
        runs.assert_of_strategy(found, STRATEGY, deviation)
        # As they were drawn, the same normals would be seen.
        column = np.pad(STRATEGY, (0, len(found) - len(STRATEGY)))
        drawn = linalg.toeplitz(column, np.zeros(len(found))) @ found
        with pytest.raises(AssertionError):
            runs.assert_of_strategy(drawn / STRATEGY[0], STRATEGY, deviation)
    else:
        runs.fit(model, epochs=2)
    # As of a step without XLA.
    entry = accounting.LedgerEntry(
        accounting.CyclicPoissonSampling(BANDS * 0.05, parts=BANDS),
        runs.NOISE,
        10 + 2,
        release=accounting.BandedSums(BANDS),
    )
    assert runs.only(model) == entry
    runs.fit(model)
    entry = dataclasses.replace(entry, steps=10 + 2 + 5 + 2)
    assert runs.only(model) == entry
    epsilon = accounting.compute_epsilon([entry], 1e-3)
    assert tf_dpfp.compute_epsilon(model, 1e-3) == epsilon


def test_noise_is_correlated_where_clip_norms_adapt():
    model = runs.silent(
        runs.optimizer(BANDS, clipping=runs.adaptive()), 160, jit_compile=True
    )
    normals = runs.adaptive_normals(model, 160)
    runs.assert_of_strategy(normals, STRATEGY, 1.0)


@pytest.mark.slow
def test_noise_that_is_not_taken_back_would_be_seen(monkeypatch):
    """Planted: XLA gets the normals as they are drawn."""
    monkeypatch.setattr(
        chain_lib, "_filtered", lambda normals, *_: normals / STRATEGY[0]
    )
    model = runs.silent(runs.optimizer(BANDS), 200, jit_compile=True)
    found = runs.releases(model)
    with pytest.raises(AssertionError):
        runs.assert_of_strategy(found, STRATEGY, runs.CLIP * runs.NOISE)


@pytest.fixture
def seen(monkeypatch):
    """Sizes that XLA compiles a step for, and how often one was traced."""
    seen = {"sizes": set(), "traces": 0}
    in_buckets = sampling.in_buckets
    train_step = gradients.Gradients.train_step

    def note(x):
        seen["sizes"].add(len(x))
        return x

    def recorded(*args):
        def record(found):
            x, *rest = found.batch
            noted = tf.numpy_function(note, [x], x.dtype)
            noted.set_shape(x.shape)
            return found._replace(batch=(noted, *rest))

        padded = in_buckets(*args)
        is_part = isinstance(padded.element_spec, sampling.PartBatch)
        return padded.map(record) if is_part else padded

    def traced(*args):
        seen["traces"] += 1
        return train_step(*args)

    monkeypatch.setattr(sampling, "in_buckets", recorded)
    monkeypatch.setattr(gradients.Gradients, "train_step", traced)
    return seen


@pytest.mark.parametrize("microbatch_size", [None, 12])
def test_a_step_is_compiled_for_few_sizes_and_sums_the_same(
    microbatch_size, seen
):
    settings = {
        "noise_multiplier": 0.0,
        "learning_rate": 0.1,
        "microbatch_size": microbatch_size,
    }
    compiled, plain = _line(**settings), _line(False, **settings)
    runs.fit(compiled, runs.batches(steps=30, seed=3), epochs=2)
    assert seen["traces"] == 1 and 1 <= len(seen["sizes"]) <= 4
    assert all(size % (microbatch_size or 8) == 0 for size in seen["sizes"])
    runs.fit(plain, runs.batches(steps=30, seed=3), epochs=2)
    for mine, other in zip(compiled.weights, plain.weights, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    assert tf_dpfp.ledger(compiled) == tf_dpfp.ledger(plain)
    fresh = _line(False, **settings).get_weights()[0]
    assert np.abs(compiled.get_weights()[0] - fresh).max() > 1e-2


def _fit_out_of_turn(model, parts):
    """The parts of batches are others, of steps from the third on."""
    batches = runs.batches()
    cyclic = registry.sampling_of(batches).cyclic
    ordinary = cyclic.batches_of

    def batches_of(count):
        return (
            ordinary(count)
            .enumerate()
            .map(lambda n, found: found._replace(part=tf.gather(parts, n)))
        )

    object.__setattr__(cyclic, "batches_of", batches_of)
    weights, norms = [], []
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_, **__: (
            weights.append(model.get_weights()),
            norms.append(list(tf_dpfp.clip_norms(model).values())),
        )
    )
    with pytest.raises(RuntimeError, match="whose turn.*NaN"):
        runs.fit(model, batches, callbacks=[keep])
    return weights, norms


@pytest.mark.parametrize("clipping", ["flat", runs.adaptive()], ids=str)
def test_a_step_out_of_turn_releases_nothing_and_a_new_chain_does(clipping):
    """XLA drops assertions: neither sums nor counts leave such a step."""
    model = runs.silent(
        runs.optimizer(BANDS, clipping=clipping), 20, jit_compile=True
    )
    before = model.get_weights()
    # The fourth is due again, and nothing of it is released, either.
    weights, norms = _fit_out_of_turn(model, tf.constant([0, 1, 1, 0, 1]))
    for step, (of_step, of_counts) in enumerate(
        zip(weights, norms, strict=True)
    ):
        is_due = step < 2
        assert all(np.all(np.isfinite(w) == is_due) for w in of_step), step
        if clipping != "flat":
            # Of counts that are NaN nothing is kept: the first norms are back.
            begun = np.isclose(of_counts, [0.1, 0.3])
            assert np.all(begun != is_due), step
    assert runs.only(model).steps == 5 + 2
    # A chain begins anew after one that failed.
    model.set_weights(before)
    runs.fit(model)
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())


def test_replicas_compile_their_pieces_for_few_sizes(seen):
    models = []
    for count in (1, 2):
        keras.utils.set_random_seed(1)
        with common.strategy(count).scope():
            model = helpers.private_line(
                runs.optimizer(BANDS, noise_multiplier=0.0, learning_rate=0.1),
                jit_compile=count > 1,
            )
        runs.fit(model, runs.batches(steps=12, seed=3), epochs=2)
        models.append(model)
    common.assert_equal_weights(*models)
    assert tf_dpfp.ledger(models[0]) == tf_dpfp.ledger(models[1])
    assert 1 <= len(seen["sizes"]) <= 4
