"""Where the seed of a random draw is from: secret, known, or not told."""

import keras
import pytest
import tensorflow as tf

from tests.independence import graphs
from tf_dpfp import compilation
from tf_dpfp import noise

X = tf.TensorSpec([None, 3], tf.float32)
SOURCE = noise.LayerSeeds()
SOURCE.build()
KNOWN = tf.Variable([1, 2], dtype=tf.int64)
GENERATOR = tf.random.Generator.from_seed(1)


@pytest.fixture(autouse=True)
def _no_global_seed():
    tf.random.set_seed(None)


def _uniform(x, seed):
    return x * tf.random.stateless_uniform(tf.shape(x), tf.cast(seed, tf.int32))


def _in_a_loop(draw):
    def run(x):
        return tf.while_loop(
            lambda i, _: i < 2, lambda i, x: (i + 1, draw(x)), (0, x)
        )[1]

    return run


def _secret(x):
    return _uniform(x, SOURCE.of_pass()())


def _with_secret_of_outside(x):
    seed = SOURCE.of_pass()()
    return _in_a_loop(lambda x: _uniform(x, seed))(x)


def _by_a_function(x):
    return tf.function(_secret)(x)


def _seeded_source(x):
    return _uniform(x, SOURCE.of_pass(1, tf.constant(1, tf.int64))())


def _without_itself(x):
    seed = SOURCE.of_pass()()
    return _uniform(x, seed - seed)


def _carried(x):
    def body(i, seed, x):
        return i + 1, seed + 1, _uniform(x, seed)

    start = (0, tf.constant([1, 2]), x)
    return tf.while_loop(lambda i, *_: i < 2, body, start)[2]


WAYS = {
    "secret": (_secret, True),
    "secret, mixed with a number": (
        lambda x: _uniform(x, SOURCE.of_pass()() + 3),
        True,
    ),
    "of few that are secret": (
        lambda x: _uniform(x, SOURCE.of_pass()() % 3),
        None,
    ),
    "secret, times nothing": (
        lambda x: _uniform(x, SOURCE.of_pass()() * 0),
        None,
    ),
    "secret, for ThreeFry": (
        lambda x: (
            x
            * tf.random.stateless_uniform(
                tf.shape(x), SOURCE.of_pass()(), alg="threefry"
            )
        ),
        True,
    ),
    "secret, shifted out": (
        lambda x: _uniform(x, tf.bitwise.left_shift(SOURCE.of_pass()(), 63)),
        None,
    ),
    "secret, or all bits": (
        lambda x: _uniform(x, tf.bitwise.bitwise_or(SOURCE.of_pass()(), -1)),
        None,
    ),
    "secret, times what is nothing": (
        lambda x: _uniform(x, SOURCE.of_pass()() * KNOWN),
        None,
    ),
    "secret, times one bit": (
        lambda x: _uniform(x, tf.cast(SOURCE.of_pass()(), tf.int32) * 2**30),
        None,
    ),
    "secret, without itself": (_without_itself, None),
    "secret, times three": (
        lambda x: _uniform(x, SOURCE.of_pass()() * 3),
        True,
    ),
    "as many as are secret": (
        lambda x: _uniform(x, tf.ones_like(SOURCE.of_pass()())),
        False,
    ),
    "written down, with a limit that is secret": (
        lambda x: (
            x
            * tf.cast(
                tf.random.stateless_uniform(
                    tf.shape(x),
                    [1, 2],
                    0,
                    tf.cast(SOURCE.of_pass()()[0] % 2, tf.int32) + 1,
                    tf.int32,
                ),
                x.dtype,
            )
        ),
        False,
    ),
    "secret in a loop": (_in_a_loop(_secret), True),
    "secret from outside of a loop": (_with_secret_of_outside, True),
    "secret in a function": (_by_a_function, True),
    "secret by steps": (_seeded_source, True),
    "of the operating system": (
        lambda x: x * tf.random.uniform(tf.shape(x)),
        True,
    ),
    "written down": (lambda x: _uniform(x, [1, 2]), False),
    "written down, in a loop": (
        _in_a_loop(lambda x: _uniform(x, [1, 2])),
        False,
    ),
    "a variable": (lambda x: _uniform(x, KNOWN), False),
    "a variable in a loop": (_in_a_loop(lambda x: _uniform(x, KNOWN)), False),
    "a generator of TensorFlow": (
        lambda x: _uniform(x, GENERATOR.make_seeds(1)[:, 0]),
        False,
    ),
    "a seed of the operation": (
        lambda x: x * tf.random.uniform(tf.shape(x), seed=4),
        False,
    ),
    "carried from round to round": (_carried, None),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_origin_of_a_seed_is_found(name):
    draw, is_secret = WAYS[name]
    with compilation.tracing_for(compilation.Target.KERNELS):
        proof, _ = graphs.prove(draw, X, secret_handles=SOURCE.handles())
    assert proof.draws
    assert [d.is_secret for d in proof.draws] == [is_secret] * len(proof.draws)


def test_a_global_seed_makes_every_draw_known():
    keras.utils.set_random_seed(1)
    try:
        proof, _ = graphs.prove(WAYS["of the operating system"][0], X)
    finally:
        tf.random.set_seed(None)
    assert [d.is_secret for d in proof.draws] == [False]


@pytest.mark.parametrize(
    ("target", "is_secret"),
    [
        (compilation.Target.KERNELS, True),
        # Of a process of its own, XLA's numbers are the same.
        (compilation.Target.XLA, False),
        (compilation.Target.UNKNOWN, None),
    ],
)
def test_without_a_seed_the_compiler_decides(target, is_secret):
    with compilation.tracing_for(target):
        proof, _ = graphs.prove(WAYS["of the operating system"][0], X)
    assert [d.is_secret for d in proof.draws] == [is_secret]


def test_of_two_draws_of_one_name_both_are_noted():
    def both(x):
        x = tf.function(lambda x: _uniform(x, [1, 2]))(x)
        return tf.function(_secret)(x)

    proof, _ = graphs.prove(both, X, secret_handles=SOURCE.handles())
    assert sorted(d.is_secret for d in proof.draws) == [False, True]
