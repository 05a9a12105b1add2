"""Correlated noise of several replicas: shares that add up to that of one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tests import helpers
from tests.replicas import common
from tests.training import banded_runs as runs
from tf_dpfp import accounting
from tf_dpfp import loops
from tf_dpfp import replicas as replicas_lib
from tf_dpfp import sampling
from tf_dpfp.accounting import banded
from tf_dpfp.distribute import replicas
from tf_dpfp.noise import chain as chain_lib
from tf_dpfp.optimizers import release
from tf_dpfp.sampling import registry

BANDS = 3
STRATEGY = banded.coefficients(BANDS, 10)


def _silent(count=2, width=260, compiled=None, **kwargs):
    with common.strategy(count).scope():
        return runs.silent(
            runs.optimizer(BANDS, **kwargs), width, **compiled or {}
        )


def _line(count=2, compiled=None, **kwargs):
    keras.utils.set_random_seed(5)
    with common.strategy(count).scope():
        return helpers.private_line(
            runs.optimizer(BANDS, **kwargs), **compiled or {}
        )


@pytest.mark.parametrize(
    ("count", "arguments", "compiled"),
    [
        (2, {}, {}),
        (4, {}, {}),
        (2, {"clipping": "per_layer", "microbatch_size": 2}, {}),
        (2, {}, {"run_eagerly": True}),
        (2, {"secure": True}, {}),
    ],
    ids=str,
)
def test_shares_add_up_to_the_noise_of_one_device(count, arguments, compiled):
    """One kernel is drawn in pieces, the rest together."""
    if "secure" in arguments:
        pytest.importorskip("cryptography")
    found = runs.releases(_silent(count, compiled=compiled, **arguments))
    assert found.shape == (10, 260 * 265)
    runs.assert_of_strategy(found, STRATEGY, runs.CLIP * runs.NOISE)


def test_shares_add_up_where_clip_norms_adapt():
    width = 160
    model = _silent(width=width, clipping=runs.adaptive())
    normals = runs.adaptive_normals(model, width)
    runs.assert_of_strategy(normals, STRATEGY, 1.0)
    assert runs.only(model).noise_multiplier == runs.NOISE


def _of_replica(wanted, monkeypatch):
    """Lets one replica's share alone be released."""
    ordinary = replicas.sum_over_all

    def alone(tensors):
        factor = tf.cast(replicas.index() == wanted, tf.float32)
        return ordinary([None if t is None else factor * t for t in tensors])

    monkeypatch.setattr(replicas, "sum_over_all", alone)


def test_what_one_replica_sends_has_correlated_noise_of_its_share(monkeypatch):
    # A variable: one trace serves both replicas.
    wanted = tf.Variable(0)
    _of_replica(wanted, monkeypatch)
    model = _silent()
    deviation = runs.CLIP * runs.NOISE / np.sqrt(2)
    for replica in (0, 1):
        wanted.assign(replica)
        found = runs.releases(model)
        runs.assert_of_strategy(found, STRATEGY, deviation)


def _whole_share(monkeypatch):
    ordinary = release.draws_of

    def draws_of(*args):
        found = ordinary(*args)
        return release.Draws(found.step_key, found.replica, 1.0, found.secure)

    monkeypatch.setattr(release, "draws_of", draws_of)


def _one_key(monkeypatch):
    monkeypatch.setattr(
        release.Draws,
        "key",
        lambda self, tensor: release.noise_lib.NoiseSource.key_of(
            self.step_key, tensor, 0
        ),
    )


def _kept_by_the_first(monkeypatch):
    """Replicas take back the noise of the first one, and not their own."""
    ordinary = chain_lib.NoiseChain._kept_of

    def kept_of(self, *args):
        return [
            getattr(kept, "values", [kept])[0] for kept in ordinary(self, *args)
        ]

    monkeypatch.setattr(chain_lib.NoiseChain, "_kept_of", kept_of)


def _independent_elsewhere(monkeypatch):
    """Only the first replica takes anything back."""
    ordinary = chain_lib.NoiseChain.correlated

    def correlated(self, normals, turn, draw, change=None):
        found = ordinary(self, normals, turn, draw, change)
        return tf.where(replicas.index() == 0, found, normals)

    monkeypatch.setattr(chain_lib.NoiseChain, "correlated", correlated)


@pytest.mark.parametrize(
    "plant",
    [_whole_share, _one_key, _kept_by_the_first, _independent_elsewhere],
)
def test_shares_that_do_not_add_up_would_be_seen(plant, monkeypatch):
    """Planted bugs: more noise, less noise, and noise of another strategy."""
    plant(monkeypatch)
    found = runs.releases(_silent())
    with pytest.raises(AssertionError):
        runs.assert_of_strategy(found, STRATEGY, runs.CLIP * runs.NOISE)


def test_every_fit_begins_with_noise_of_its_own():
    """After a restore, too: nothing but the process has earlier noise."""
    model = _silent(width=120)
    first, second = runs.releases(model), runs.releases(model)
    for last, begin in ((first[-1], second[0]), (first[0], second[0])):
        scale = np.std(last) * np.std(begin) / np.sqrt(first.shape[1])
        assert abs(np.mean(last * begin)) < 6 * scale
    deviation = runs.CLIP * runs.NOISE / STRATEGY[0]
    helpers.assert_normal(second[0], deviation, [0.8, 1.2])
    kept = model.optimizer.correlation._chain._kept
    copies = [
        copy
        for several in kept.values()
        for variable in several
        for copy in common.local_results(2, variable)
    ]
    assert len(copies) >= 4 and not any(np.any(c.numpy()) for c in copies)


def test_a_fork_begins_anew_on_every_replica(monkeypatch):
    strategy = common.strategy(2)
    chain = chain_lib.NoiseChain(BANDS)
    with strategy.scope():
        chain.build()

    def step(part):
        def of_replica():
            turn = chain.turn(BANDS, part, "one")
            return chain.correlated(tf.ones([4]), turn, 0)

        return [
            found.numpy()
            for found in common.local_results(2, strategy.run(of_replica))
        ]

    with chain.opened(STRATEGY):
        first = step(0)
        assert not np.allclose(step(1), first)
        forked = object()
        monkeypatch.setattr(chain_lib, "this_process", lambda: forked)
        assert chain.is_fresh
        # In a replica of an eager step, which no other replica repeats.
        strategy.run(lambda: chain.before_step(by_parts=True))
        np.testing.assert_array_equal(step(2), first)
        steps = [
            copy.numpy()[0] for copy in common.local_results(2, chain._state)
        ]
    assert steps == [1, 1]


@pytest.mark.parametrize(
    ("counts", "arguments"),
    [
        ((2, 4), {}),
        ((2,), {"clipping": "per_layer", "microbatch_size": 2}),
        ((2,), {"clipping": common.adaptive(rescale=False)}),
    ],
    ids=str,
)
def test_clipped_sums_are_those_of_one_device(counts, arguments):
    models = [
        _line(count, noise_multiplier=0.0, **arguments)
        for count in (1, *counts)
    ]
    for model in models:
        runs.fit(model, runs.batches(seed=3), epochs=2)
    one, *others = models
    fresh = _line(1).get_weights()[0]
    assert np.abs(one.get_weights()[0] - fresh).max() > 1e-2
    for other in others:
        common.assert_equal_weights(one, other)


@pytest.mark.parametrize("compiled", [{}, {"run_eagerly": True}], ids=str)
def test_the_ledger_and_epsilon_are_those_of_one_device(compiled):
    one, two = _line(1, compiled), _line(2, compiled)
    for model in (one, two):
        runs.fit(model, epochs=2)
        runs.fit(model, epochs=1)
    assert tf_dpfp.ledger(one) == tf_dpfp.ledger(two)
    assert runs.only(two) == accounting.LedgerEntry(
        accounting.CyclicPoissonSampling(BANDS * 0.05, parts=BANDS),
        runs.NOISE,
        10 + 2 + 5 + 2,
        release=accounting.BandedSums(BANDS),
    )
    epsilons = [tf_dpfp.compute_epsilon(model, 1e-3) for model in (one, two)]
    assert epsilons[0] == epsilons[1]
    common.assert_same_bits(two, 2)


def test_an_example_is_in_its_part_on_whichever_replica():
    rows = np.arange(60)
    dataset = tf_dpfp.cyclic_poisson_batches(
        rows, expected_batch_size=15, steps_per_epoch=BANDS
    )
    batches = registry.sampling_of(dataset).cyclic.batches_of(BANDS)
    pieces = list(sampling.deal(batches, 2).take(2 * 300))
    part_of, places = {}, {}
    for step in range(300):
        dealt = pieces[2 * step : 2 * step + 2]
        assert [int(piece.part) for piece in dealt] == [step % BANDS] * 2
        found = np.concatenate([piece.batch.numpy() for piece in dealt])
        assert len(set(found)) == len(found)
        for replica, piece in enumerate(dealt):
            for row in piece.batch.numpy():
                assert part_of.setdefault(row, step % BANDS) == step % BANDS
                places.setdefault(row, set()).add(replica)
    assert len(part_of) == 60
    assert all(found == {0, 1} for found in places.values())


def test_an_order_that_is_not_the_schedules_is_refused_on_every_replica():
    runs.assert_one_part_over_and_over_is_refused(_line())


def test_steps_outside_of_fit_have_independent_noise_and_no_amplification():
    model = _silent(width=100, expected_batch_size=runs.SIZE)
    x, y = np.zeros((6, 3)), np.zeros((6, 100))
    found = []
    for step in range(4):
        before = np.concatenate([w.ravel() for w in model.get_weights()])
        if step % 2:
            model.train_on_batch(x, y)
        else:
            loops.distributed_step(model, x, y)
        after = np.concatenate([w.ravel() for w in model.get_weights()])
        found.append((before - after) * runs.SIZE)
    helpers.assert_normal(found, runs.CLIP * runs.NOISE, [0.9, 1.1])
    covariance = np.corrcoef(found)[np.triu_indices(4, 1)]
    assert np.max(np.abs(covariance)) < 6 / np.sqrt(found[0].size)
    assert runs.only(model) == accounting.LedgerEntry(
        accounting.UnknownSampling(), runs.NOISE, 4
    )


def test_a_callback_may_not_step_meanwhile():
    class Steps(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.train_on_batch(runs.X[:4], runs.Y[:4])

    with pytest.raises(RuntimeError, match="no other step"):
        runs.fit(_line(), callbacks=[Steps()])


def test_noise_and_bands_are_found_for_the_budget(capsys):
    x = np.random.default_rng(1).normal(size=(3000, 3)).astype(np.float32)
    data = tf_dpfp.cyclic_poisson_batches(x, x[:, :1], expected_batch_size=50)
    with common.strategy(2).scope():
        model = helpers.private_line(
            runs.optimizer("best", noise_multiplier="calibrate")
        )
    budget = tf_dpfp.PrivacyBudget(3.0, 1e-5)
    runs.fit(model, data, epochs=2, callbacks=[budget])
    assert 0.999 * 3.0 <= tf_dpfp.compute_epsilon(model, 1e-5) <= 3.0
    entry = runs.only(model)
    assert f"Bands: {entry.release.bands}." in capsys.readouterr().out
    assert entry.steps == 120 + entry.release.bands - 1


def test_a_training_that_is_resumed_counts_a_new_beginning(tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise InterruptedError

    path = str(tmp_path / "b")
    model = _line()
    with pytest.raises(InterruptedError):
        runs.fit(model, callbacks=[tf_dpfp.BackupAndRestore(path), Kill()])
    counted = runs.only(model)
    assert counted.steps == 1 + 2
    resumed = _line()
    resumed.build((None, 3))
    with pytest.warns(UserWarning, match="They stay counted"):
        runs.fit(resumed, callbacks=[tf_dpfp.BackupAndRestore(path)])
    assert runs.only(resumed).steps >= counted.steps + 5 + 2


def test_several_workers_are_refused(monkeypatch):
    monkeypatch.setattr(replicas_lib, "are_mirrored", lambda _: False)
    with pytest.raises(ValueError, match="workers don't agree on the part"):
        runs.fit(_line())
