"""The noise of several replicas is that of one."""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers
from tests.replicas import common
from tf_dpfp import clipping
from tf_dpfp.distribute import replicas
from tf_dpfp.noise import NoiseSource
from tf_dpfp.optimizers import release


def _silent(count, width=257, **kwargs):
    """Zero inputs and zero labels: whatever moves is noise."""

    def make():
        return keras.Sequential(
            [
                keras.Input((width,)),
                layers.Dense(width, kernel_initializer="zeros"),
            ]
        )

    arguments = {"noise_multiplier": 1.7, "expected_batch_size": 5.0}
    with common.strategy(count).scope():
        model = tf_dpfp.make_private(make())
        model.compile(
            tf_dpfp.DPSGD(
                1.0, l2_norm_clip=common.CLIP, **(arguments | kwargs)
            ),
            loss=lambda y_true, y_pred: tf.reduce_sum(0.0 * y_pred),
        )
    return model


def _moves(model, steps):
    """What each step adds to each weight, over its right deviation."""
    width = model.input_shape[1]
    seen = [model.get_weights()]

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(model.get_weights())

    zeros = np.zeros((6, width), np.float32)
    data = tf.data.Dataset.from_tensors((zeros, zeros)).repeat(steps)
    model.fit(data, verbose=0, callbacks=[Note()])
    flat = [
        np.concatenate([w.astype(np.float64).ravel() for w in weights])
        for weights in seen
    ]
    return np.diff(flat, axis=0) * 5.0 / (common.CLIP * 1.7)


def test_the_noise_of_two_replicas_is_that_of_one():
    moves = _moves(_silent(2), 3)
    common.assert_scale_one(moves, 2)
    correlations = np.corrcoef(moves)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 6 / math.sqrt(moves.shape[1])


def test_the_noise_of_a_dealt_step_is_that_of_one():
    model = _silent(2)
    zeros = tf.zeros((6, model.input_shape[1]))
    before = model.get_weights()
    tf.function(lambda: tf_dpfp.loops.distributed_step(model, zeros, zeros))()
    moves = [
        np.float64(a - b).ravel()
        for a, b in zip(model.get_weights(), before, strict=True)
    ]
    noise = np.concatenate(moves) * 5.0 / (common.CLIP * 1.7)
    helpers.assert_normal(noise, 1.0, (0.95, 1.05, 2**0.5, 0.5**0.5))


def test_the_noise_of_four_replicas_is_that_of_one():
    common.assert_scale_one(_moves(_silent(4, 450), 1), 4)


def test_the_noise_of_counts_is_that_of_one_replica():
    share, groups, steps, multiplier, expected = 0.5, 4, 150, 1.3, 100.0

    def make():
        return keras.Sequential(
            [keras.Input((2,))] + [layers.Dense(2) for _ in range(groups)]
        )

    rate = 1e-2  # So that what is clipped stays what it was.
    with common.strategy(4).scope():
        model = tf_dpfp.make_private(make())
        model.compile(
            tf_dpfp.DPSGD(
                0.0,
                noise_multiplier=multiplier,
                expected_batch_size=expected,
                clipping=common.adaptive(
                    budget_share=share, learning_rate=rate, rescale=False
                ),
            ),
            loss=lambda y_true, y_pred: tf.reduce_sum(0.0 * y_pred),
        )
    seen = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(list(tf_dpfp.clip_norms(model).values()))

    zeros = np.zeros((10, 2), np.float32)
    data = tf.data.Dataset.from_tensors((zeros, zeros)).repeat(steps)
    model.fit(data, verbose=0, callbacks=[Note()])
    # An estimate times exp(-rate * (fraction - quantile)); the ten examples
    # are all below it.
    fractions = 0.5 - np.diff(np.log(np.float64(seen)), axis=0) / rate
    deviation = multiplier * math.sqrt(groups) / (2 * math.sqrt(share))
    noise = ((fractions - 0.5) * expected - 5.0) / deviation
    helpers.assert_normal(noise, 1.0, (0.5, 2.0, 0.25, 4.0))


def test_replicas_draw_from_streams_of_their_own():
    shapes = [(300, 300), (900,)]  # One drawn alone, the other with others.
    variables = [keras.Variable(np.zeros(s, np.float32)) for s in shapes]
    group = clipping.Group("all", (0, 1), 1.0, 90900)
    with common.strategy(4).scope():
        source = NoiseSource()
        source.build()

    def shares():
        clipped = tf_dpfp.loops.ClippedGradients(
            sums=[tf.zeros(s) for s in shapes],
            variables=variables,
            groups=[group],
            regularization=[None, None],
            replicas=4,
        )
        draws = release.Draws(source.next_step(), replicas.index(), 0.5)
        found = release.add_noise(clipped, 1.0, "global", draws)
        return tf.concat([tf.reshape(f, [-1]) for f in found], 0)

    step = tf.function(lambda: common.strategy(4).run(shares), autograph=False)
    drawn = np.concatenate([common.local_results(4, step()) for _ in range(2)])
    np.testing.assert_allclose(np.std(drawn, axis=1), 0.5, rtol=0.02)
    for part in (drawn[:, :90000], drawn[:, 90000:]):
        correlations = np.corrcoef(part)[np.triu_indices(8, 1)]
        assert np.abs(correlations).max() < 5 / math.sqrt(part.shape[1])


def test_seeded_noise_repeats_on_as_many_replicas():
    first, second = _moves(_silent(2, 31, seed=8), 2)
    np.testing.assert_array_equal(_moves(_silent(2, 31, seed=8), 1)[0], first)
    assert not np.allclose(first, second)
