"""Secret seeds of random layers: no two are equal, and none can be known."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp import noise
from tf_dpfp.noise import keys


def _distinct(seeds):
    seeds = [tuple(int(n) for n in seed) for seed in seeds]
    return len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("seed", [None, 5])
def test_no_two_seeds_of_a_process_are_equal(seed):
    source = noise.LayerSeeds(seed)
    found = []
    for step, piece in itertools.product(range(3), range(3)):
        steps = tf.constant(step, tf.int64)
        draw = source.of_pass(piece, steps)
        found += [draw().numpy() for _ in range(3)]
    assert found[0].dtype == np.int64
    assert found[0].shape == (2,)
    assert _distinct(found)


@pytest.mark.parametrize("seed", [None, 5])
def test_every_round_of_a_loop_has_a_seed_of_its_own(seed):
    source = noise.LayerSeeds(seed)
    source.build()

    @tf.function
    def run(steps):
        draw = source.of_pass(0, steps)
        seeds = tf.TensorArray(tf.int64, 4, element_shape=[2])
        outside = draw()
        _, seeds = tf.while_loop(
            lambda i, _: i < 4,
            lambda i, array: (i + 1, array.write(i, draw())),
            (0, seeds),
        )
        return tf.concat([[outside, draw()], seeds.stack()], 0)

    first, second = (run(tf.constant(n, tf.int64)).numpy() for n in (0, 1))
    assert _distinct([*first, *second])


def test_seeds_differ_between_sources_and_repeat_with_a_seed():
    def draw(seed):
        source = noise.LayerSeeds(seed)
        return source.of_pass(1, tf.constant(7, tf.int64))().numpy()

    assert np.all(draw(None) != draw(None))
    assert np.all(draw(3) != draw(4))
    np.testing.assert_array_equal(draw(3), draw(3))


def test_seeds_of_layers_are_not_the_bits_of_the_noise():
    # Of one seed: a mask that is told must not tell the noise.
    noise_source, seeds = noise.NoiseSource(3), noise.LayerSeeds(3)
    step = tf.constant(0, tf.int64)
    key = noise.NoiseSource.key_of(noise_source.next_step(step), 0)
    seeds.build()
    other = noise.NoiseSource.key_of(seeds._source.next_step(step), 0)
    assert int(key) != int(other)


def test_a_piece_may_be_a_tensor():
    source = noise.LayerSeeds(5)
    step = tf.constant(0, tf.int64)
    for piece in range(2):
        np.testing.assert_array_equal(
            source.of_pass(piece, step)(),
            source.of_pass(tf.constant(piece), step)(),
        )


@pytest.mark.parametrize("seed", [None, 5])
def test_a_forked_process_takes_another_key_unless_there_is_a_seed(
    seed, monkeypatch
):
    source = noise.LayerSeeds(seed)
    draw = source.of_pass(0, tf.constant(0, tf.int64))
    draw()
    key = source._source._key.numpy()
    monkeypatch.setattr(keys._Process, "token", object())  # As by a fork.
    source.renew_after_fork()
    assert (source._source._key.numpy() == key) == (seed is not None)
