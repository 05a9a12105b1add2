"""Functions of one example that draw random numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tests.independence import graphs
from tf_dpfp import compilation
from tf_dpfp import noise
from tf_dpfp.independence import step_proof
from tf_dpfp.keras_private import random as keras_random
from tf_dpfp.step import single_examples

SOURCE = noise.LayerSeeds()
SOURCE.build()
# Held by nothing but the functions below.
HELD = keras.random.SeedGenerator(1)


def _drawn(x):
    noise = keras.random.normal(ops.shape(x), seed=HELD)
    return [ops.sum(x * 0.0 + noise, axis=-1)]


def _drawn_twice(x):
    return [_drawn(x)[0] - _drawn(x)[0]]


def _drawn_in_a_branch(x):
    (found,) = _drawn(x)
    return [tf.cond(found[0] > 0.0, lambda: found, lambda: 2.0 * found)]


def _known(x):
    noise = keras.random.normal(ops.shape(x), seed=1)
    return [ops.sum(x + noise, axis=-1)]


def _mapped(function):
    def run(x):
        with keras_random.seeds_from(SOURCE.of_pass()):
            return tf.reshape(single_examples.mapped(function, x)[0], [-1])

    return run


def _proof(function):
    with compilation.tracing_for(compilation.Target.KERNELS):
        found, _ = graphs.prove(
            _mapped(function), graphs.X, secret_handles=SOURCE.handles()
        )
    return found


@pytest.mark.parametrize("function", [_drawn, _drawn_twice, _drawn_in_a_branch])
def test_examples_draw_from_secret_seeds_of_their_own(function):
    proof = _proof(function)
    assert not proof.refusals(step_proof.ALLOWED)
    assert not step_proof.known_draws(proof)
    assert proof.draws
    run = tf.function(_mapped(function), autograph=False)
    x = np.zeros((6, 3), "float32")
    found = [run(x).numpy() for _ in range(2)]
    # Of each example, in each step, and of each draw.
    assert len(np.unique(found)) == 12
    assert HELD.state.numpy()[1] == 0


def test_a_known_seed_is_the_same_for_all_examples():
    found = tf.function(_mapped(_known), autograph=False)(
        np.zeros((3, 3), "float32")
    )
    assert len(np.unique(found.numpy())) == 1
    assert not _proof(_known).refusals(step_proof.ALLOWED)
