"""`keras.random.SeedGenerator` with seeds from elsewhere."""

import inspect
import threading

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tf_dpfp.keras_private import random as keras_random

SEED = tf.constant([11, 12], tf.int64)


def _state(generator):
    return np.array(generator.state.value)


def test_keras_still_has_what_is_used():
    parameters = inspect.signature(keras.random.SeedGenerator.next).parameters
    assert list(parameters) == ["self", "ordered"]
    state = keras.random.SeedGenerator(1).state
    assert state.shape == (2,)
    assert state.name == "seed_generator_state"


def test_generators_take_given_seeds_and_keep_their_state():
    generator = keras.random.SeedGenerator(3)
    before = _state(generator)
    with keras_random.seeds_from(lambda: SEED):
        np.testing.assert_array_equal(generator.next(), SEED)
        # Random functions without a seed ask a generator of Keras's own.
        mask = keras.random.uniform((4,))
        np.testing.assert_array_equal(mask, keras.random.uniform((4,)))
        dropped = layers.Dropout(0.5, seed=3)(np.ones((4, 8)), training=True)
    np.testing.assert_array_equal(_state(generator), before)
    np.testing.assert_array_equal(generator.next(), before)
    assert not np.array_equal(_state(generator), before)
    ordinary = layers.Dropout(0.5, seed=3)(np.ones((4, 8)), training=True)
    assert not np.array_equal(dropped, ordinary)


def test_other_threads_and_what_comes_after_are_as_before():
    generator = keras.random.SeedGenerator(3)
    found = []
    with keras_random.seeds_from(lambda: SEED):
        thread = threading.Thread(
            target=lambda: found.append(generator.next().numpy())
        )
        thread.start()
        thread.join()
        with keras_random.seeds_from(lambda: SEED + 1):
            np.testing.assert_array_equal(generator.next(), SEED + 1)
        np.testing.assert_array_equal(generator.next(), SEED)
    assert found[0].tolist() == [3, 0]
    assert generator.next().numpy().tolist() == [3, 1]
    assert keras_random.drawn_seed() is None


def test_a_stateless_scope_that_gives_a_state_is_obeyed():
    given, other = (keras.random.SeedGenerator(n) for n in (3, 4))
    mapping = [(given.state, tf.constant([7, 0], tf.int64))]
    with keras_random.seeds_from(lambda: SEED):
        with keras.StatelessScope(state_mapping=mapping):
            assert given.next().numpy().tolist() == [7, 0]
            np.testing.assert_array_equal(other.next(), SEED)


def test_masks_by_threefry_have_the_same_law():
    layer = layers.Dropout(0.25)

    def mask(seed, threefry):
        def masked():
            with keras_random.seeds_from(lambda: seed, threefry=threefry):
                return layer(tf.ones((400, 500)), training=True)

        return tf.function(masked, jit_compile=True)().numpy()

    masks = [mask(SEED, False), mask(SEED, True), mask(SEED + 1, True)]
    for found in masks:
        np.testing.assert_allclose(np.unique(found), [0, 4 / 3], rtol=1e-6)
        # Six standard errors.
        assert abs((found == 0).mean() - 0.25) < 0.006
    for one, other in zip(masks, masks[1:], strict=False):
        both_kept = ((one != 0) & (other != 0)).mean()
        assert abs(both_kept - 0.75**2) < 0.007
    np.testing.assert_array_equal(masks[1], mask(SEED, True))
