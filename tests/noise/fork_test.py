"""Forked processes draw noise of their own, and keep the ledger."""

import copy
import functools
import json
import os
import pickle
import tempfile
import textwrap

import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tests import helpers
from tests import programs
from tf_dpfp.noise import keys

_FORKED = """
import gc, json, os, signal, sys
import keras, numpy as np, tf_dpfp

seed = json.loads(sys.argv[1])
x, y = np.zeros((4, 3), "float32"), np.zeros((4, 5), "float32")
model = keras.Sequential(
    [keras.Input((3,)), keras.layers.Dense(5, use_bias=False)])
tf_dpfp.make_private(model)
model.compile(
    tf_dpfp.DPSGD(
        1.0, noise_multiplier=1.0, expected_batch_size=1, seed=seed),
    loss="mse", run_eagerly=True)
layer = tf_dpfp.DPRepresentationClip(1.0, 1.0, labels="public", seed=seed)

def by_optimizer():
    before = model.get_weights()[0]
    model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))
    return (model.get_weights()[0] - before).tolist()

def by_layer():
    return layer(x, training=True).numpy().tolist()

def by_claims():
    '''A compiled step only reads the key.'''
    seeds = model.optimizer._layer_seeds
    seeds.build()
    model.optimizer.claims(tf_dpfp.accounting.UnknownSampling())
    sources = model.optimizer._noise_source, seeds._source
    return [int(source._key) for source in sources]

by_optimizer(), by_layer()
read, write = os.pipe()
pid = os.fork()
signal.alarm(120)  # TensorFlow's threads do not come along,
gc.disable()  # and are needed to free its functions.
child = pid == 0 and os.fork()
# Claims first: the next step of the optimizer would take a new key itself.
draws = {
    "claims": [by_claims(), by_claims()],
    "optimizer": [by_optimizer(), by_optimizer()],
    "layer": [by_layer(), by_layer()],
}
counts = [
    one.ledger_entries[0].steps for one in (model.optimizer, layer)]
seeded = model.optimizer.ledger_entries[0].seeded
if pid == 0:
    if child:
        os.waitpid(child, 0)
    os.write(write, (json.dumps([draws, counts, seeded]) + "\\n").encode())
    os._exit(0)
os.waitpid(pid, 0)
os.close(write)
print("FOUND")
print(json.dumps([draws, counts, seeded]))
print(os.fdopen(read).read())
"""


@functools.cache
def _forked(seed):
    """Draws in a process, in its child and in the child of that."""
    root = os.path.dirname(os.path.dirname(tf_dpfp.__file__))
    with tempfile.TemporaryDirectory() as folder:
        result = programs.run(
            ["-c", textwrap.dedent(_FORKED), json.dumps(seed)],
            folder,
            cwd=root,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )
    assert result.returncode == 0, result.stderr
    found = result.stdout.split("FOUND\n")[1].split("\n")
    return [json.loads(line) for line in found if line.strip()]


@pytest.mark.parametrize("what", ["optimizer", "layer"])
def test_no_process_draws_what_another_draws(what):
    found = _forked(None)
    assert len(found) == 3
    draws = np.array([draws[what] for draws, _, _ in found])
    numbers = draws.astype(np.float32).ravel()
    assert len(np.unique(numbers)) == len(numbers)
    # The ledger of each has the steps before the fork, and its own.
    assert all(counts == [3, 3] for _, counts, _ in found)
    assert not any(seeded for _, _, seeded in found)


def test_a_claim_gives_a_compiled_step_a_key():
    keys = [draws["claims"] for draws, _, _ in _forked(None)]
    # Of one process it stays.
    assert all(first == second for first, second in keys)
    # Keys of the noise, and of the seeds of random layers.
    assert len({key for first, _ in keys for key in first}) == 6


def test_a_compiled_loop_takes_a_key_of_its_own(monkeypatch, without_trial):
    """A child that calls nothing but a function that its parent compiled."""
    del without_trial
    model = helpers.private_line(
        tf_dpfp.DPSGD(0.01, noise_multiplier=1.0, expected_batch_size=4)
    )
    layer = tf_dpfp.DPRepresentationClip(1.0, 1.0, labels="public")
    x, y = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)

    @tf.function
    def by_optimizer():
        model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))

    @tf.function
    def by_layer():
        return layer(x, training=True)

    for owner, step in (model.optimizer, by_optimizer), (layer, by_layer):
        sources = owner._noise_source, owner._layer_seeds._source
        for source in sources:
            source.build()
        step()
        before = [int(source._key) for source in sources]
        step()
        assert [int(source._key) for source in sources] == before
        # As `os.fork` does in the child.
        monkeypatch.setattr(keys._Process, "token", object())
        step()
        after = [int(source._key) for source in sources]
        assert len({*before, *after}) == 4
        step()
        assert [int(source._key) for source in sources] == after


def test_a_seed_stays_a_seed_and_is_told():
    found = _forked(7)
    assert len(found) == 3
    draws = [np.array(draws["layer"]) for draws, _, _ in found]
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[0], draws[2])
    assert all(seeded for _, _, seeded in found)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_keeps_the_ledger_and_has_a_key_of_its_own(copied):
    model = helpers.private_line(
        tf_dpfp.DPSGD(0.01, noise_multiplier=1.0, expected_batch_size=4)
    )
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 1)))
    layer = tf_dpfp.DPRepresentationClip(1.0, 1.0, labels="public")
    layer(np.ones((4, 3), np.float32), training=True)
    for original, twin in (
        (model.optimizer, copied(model).optimizer),
        (model.optimizer, copied(model.optimizer)),
        (layer, copied(layer)),
    ):
        assert twin is not original
        assert twin.ledger_entries == original.ledger_entries
        (entry,) = twin.ledger_entries
        assert entry.steps == 1
        for one, other in (
            (twin._noise_source, original._noise_source),
            (twin._layer_seeds._source, original._layer_seeds._source),
        ):
            one.build()
            assert int(one._key) != int(other._key)
