"""Keys of noise: no two draws share one."""

import pytest
import tensorflow as tf

from tf_dpfp import noise


def test_keys_of_steps_tensors_and_replicas_are_all_different():
    source = noise.NoiseSource()
    keys = [
        int(source.key_of(source_key, tensor, replica).numpy())
        for source_key in [source.next_step() for _ in range(6)]
        for tensor in (0, 1, 2, 2**20 - 1)
        for replica in (0, 1, 2**12 - 1)
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("seed", [None, 5])
def test_steps_and_replicas_are_as_far_apart_as_there_are_tensors(seed):
    key = noise.NoiseSource.key_of(tf.constant(0, tf.int64), 7, 3)
    assert int(key) == 3 * 2**20 + 7
    source = noise.NoiseSource(seed)
    first, second = (
        int(source.next_step(tf.constant(step, tf.int64))) for step in (4, 5)
    )
    assert (second - first) % 2**64 == 2**12 * 2**20


@pytest.mark.parametrize("replicas", [1, 2])
def test_outside_of_its_replica_only_one_replica_draws(replicas):
    devices = [f"CPU:{i}" for i in range(replicas)]
    source = noise.NoiseSource()
    with tf.distribute.MirroredStrategy(devices).scope():
        source.build()
        if replicas == 1:
            assert int(source.next_step()) != int(source.next_step())
            return
        with pytest.raises(RuntimeError, match="belongs to one replica"):
            source.next_step()


def test_unseeded_sources_differ_and_ignore_the_iteration():
    a, b = noise.NoiseSource(), noise.NoiseSource()
    assert a.next_step().numpy() != b.next_step().numpy()
    # A restored optimizer would count from the same iteration again.
    iteration = tf.constant(3, tf.int64)
    steps = {int(a.next_step(iteration).numpy()) for _ in range(5)}
    assert len(steps) == 5


def test_a_seed_reproduces_each_step():
    a, b = noise.NoiseSource(seed=7), noise.NoiseSource(seed=7)
    other = noise.NoiseSource(seed=8)
    keys = [[], [], []]
    for iteration in range(4):
        step = tf.constant(iteration, tf.int64)
        for source, found in zip((a, b, other), keys, strict=True):
            found.append(int(source.next_step(step).numpy()))
    assert keys[0] == keys[1]
    assert len(set(keys[0] + keys[2])) == 8
    # The noise of a step that is resumed, and of no other one.
    resumed = noise.NoiseSource(seed=7)
    assert int(resumed.next_step(tf.constant(2, tf.int64))) == keys[0][2]
    assert int(a.next_step(tf.constant(3, tf.int64))) not in keys[0]
    assert int(resumed.next_step(tf.constant(9, tf.int64))) not in keys[0]


def test_the_key_is_fresh_inside_a_compiled_step():
    source = noise.NoiseSource()

    @tf.function
    def step():
        return noise.gaussian_noise(
            [5], 1.0, source.key_of(source.next_step(), 0)
        )

    drawn = {tuple(step().numpy().tolist()) for _ in range(6)}
    assert len(drawn) == 6


@pytest.mark.parametrize("tensor", [-1, 2**20])
def test_tensors_out_of_range_are_refused(tensor):
    with pytest.raises(ValueError, match="at most 1048576 tensors"):
        noise.NoiseSource.key_of(tf.constant(0, tf.int64), tensor)


def test_checkpoints_do_not_see_the_source():
    source = noise.NoiseSource()
    source.next_step()
    assert not isinstance(source, tf.__internal__.tracking.Trackable)
