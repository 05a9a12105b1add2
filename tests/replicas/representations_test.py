"""Representations on several replicas are those of one."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers
from tests.replicas import common
from tf_dpfp import layers as layers_lib

CLIP, NOISE = 0.5, 1.5
X, Y = common.data()
DRAW = {"draw_size": 7, "draws": 3, "labels": "public", "seed": 3}


def _model(count, noise=0.0, below=None, **compiled):
    keras.utils.set_random_seed(5)
    with common.strategy(count).scope():
        encoder = layers.Dense(9, "tanh")
        encoder.trainable = False
        model = keras.Sequential(
            [
                keras.Input((common.FEATURES,)),
                encoder,
                *([] if below is None else [below]),
                tf_dpfp.DPRepresentationClip(CLIP, noise, labels="public"),
                layers.Dense(5, "tanh", kernel_regularizer="l2"),
                layers.Dense(common.CLASSES),
            ]
        )
        tf_dpfp.make_private(model)
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            common.loss(),
            **({"metrics": ["accuracy"]} | compiled),
        )
    return model


def _batches(**kwargs):
    return tf_dpfp.representations.stratified_batches(X, Y, **(DRAW | kwargs))


def _train(model):
    """Trains on draws, on what is no draw, and on less than one row each."""
    classes = {0: 2.0, 1: 0.5, 2: 1.0}
    logs = model.fit(
        _batches(), epochs=2, class_weight=classes, verbose=0
    ).history
    model.fit(_batches().map(lambda x, y: (x, y)), verbose=0)
    model.fit(X, Y, batch_size=10, shuffle=False, verbose=0)
    found = model.train_on_batch(X[:3], Y[:3], return_dict=True)
    names = ("loss", "accuracy")
    return [*np.ravel([logs[n] for n in names]), *(found[n] for n in names)]


def _ledger(model):
    return sorted(tf_dpfp.ledger(model), key=str)


def test_several_train_and_count_as_one():
    # Rows and sums, below, on two.
    one, several = models = [_model(count) for count in (1, 4)]
    logs = [_train(model) for model in models]
    drawn, unknown = _ledger(one)[::-1]
    assert (drawn.steps, unknown.steps) == (2 * 3 * 3, 3 * 3 + 7 + 1)
    fresh = _model(1)
    np.testing.assert_allclose(logs[1], logs[0], rtol=1e-5)
    for a, b, c in zip(
        one.trainable_variables,
        several.trainable_variables,
        fresh.trainable_variables,
        strict=True,
    ):
        np.testing.assert_allclose(a, b.value.numpy(), atol=1e-6)
        assert np.abs(a.numpy() - c.numpy()).max() > 1e-3
    assert _ledger(several) == _ledger(one)
    evaluated = [m.evaluate(X, Y, verbose=0) for m in models]
    np.testing.assert_allclose(*evaluated, rtol=1e-5)
    assert _ledger(several) == _ledger(one)
    common.assert_same_bits(several, 4)


def _released(count, rows, seed=None, steps=2):
    """What each replica releases of the same rows, in each of the steps."""
    with common.strategy(count).scope():
        layer = tf_dpfp.DPRepresentationClip(
            CLIP, NOISE, labels="public", seed=seed, name=f"clip_{seed}"
        )
        layer.build(rows.shape)
        layer.ledger.ensure_open(layer.release)

    def call():
        with layers_lib.dealt():
            return layer(rows, training=True)

    step = tf.function(lambda: common.strategy(count).run(call))
    found = [common.local_results(count, step()) for _ in range(steps)]
    (entry,) = layer.ledger_entries
    assert entry.steps == steps
    return np.array(found).reshape(steps * count, -1)


def test_each_row_has_the_whole_noise_and_one_of_its_own():
    rows = np.zeros((500, 100), np.float32)
    noises = _released(4, rows)
    helpers.assert_normal(
        noises, NOISE * CLIP, (0.97, 1.03, 0.5, 2.0, CLIP, 1.0 / CLIP)
    )
    # Of replicas and steps, also row i of one and row j of another.
    shifted = np.roll(noises, 100, axis=1)
    correlations = np.corrcoef(np.concatenate([noises, shifted]))
    apart = correlations[np.triu_indices(16, 1)]
    assert np.abs(apart).max() < 6 / np.sqrt(noises.shape[1])
    seeded = _released(2, rows, seed=8)
    np.testing.assert_array_equal(seeded, _released(2, rows, seed=8))
    assert np.abs(np.corrcoef(seeded)[np.triu_indices(4, 1)]).max() < 0.05


# A representation of zeros, and a head that shows row i as its column i.
WIDTH, ROWS = 2000, 8


def _shown(joint, eager):
    """The noised rows of two replicas, as what is trained sees them."""
    with common.strategy(2).scope():
        below = layers.Dense(WIDTH, use_bias=False, kernel_initializer="zeros")
        below.trainable = joint
        clip = tf_dpfp.DPRepresentationClip(CLIP, NOISE, labels="public")
        head = layers.Dense(ROWS, use_bias=False, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((2,)), below, clip, head])
        tf_dpfp.make_private(model)
        optimizer = keras.optimizers.SGD(1.0)
        if joint:
            optimizer = tf_dpfp.DPSGD(
                1.0, noise_multiplier=1.0, microbatch_size=2
            )
        model.compile(
            optimizer,
            lambda y, shown: tf.reduce_sum(y * shown, -1),
            run_eagerly=eager,
        )
    x, y = np.zeros((ROWS, 2), np.float32), np.eye(ROWS, dtype=np.float32)
    seen = []
    for _ in range(2):
        before = head.get_weights()[0]
        model.fit(x, y, batch_size=ROWS, verbose=0)
        seen += list(ROWS * (before - head.get_weights()[0]).T)
    (entry,) = tf_dpfp.ledger(model)
    assert entry.steps == 2
    return np.array(seen)


@pytest.mark.parametrize(
    "joint, eager", [(False, False), (True, False), (True, True)]
)
def test_what_is_trained_sees_every_row_with_noise_of_its_own(joint, eager):
    noises = _shown(joint, eager)
    helpers.assert_normal(noises, NOISE * CLIP, (0.9, 1.1, 0.5**0.5, 2**0.5))
    correlations = np.corrcoef(noises)[np.triu_indices(2 * ROWS, 1)]
    assert np.abs(correlations).max() < 6 / np.sqrt(WIDTH)


def _joint_model(count):
    keras.utils.set_random_seed(5)
    with common.strategy(count).scope():
        model = keras.Sequential(
            [
                keras.Input((common.FEATURES,)),
                layers.Dense(9, "tanh"),
                tf_dpfp.DPRepresentationClip(CLIP, 0.0, labels="public"),
                layers.Dense(5, "tanh", kernel_regularizer="l2"),
                layers.Dense(common.CLASSES),
            ]
        )
        tf_dpfp.make_private(model)
        optimizer = tf_dpfp.DPSGD(
            0.5, l2_norm_clip=0.05, noise_multiplier=0.0, microbatch_size=3
        )
        model.compile(optimizer, common.loss())
    return model


def test_rows_and_sums_train_and_count_as_one():
    one, two = models = [_joint_model(count) for count in (1, 2)]
    for model in models:
        model.fit(_batches(draws=1), verbose=0)
        model.fit(X, Y, batch_size=7, shuffle=False, verbose=0)
        tf_dpfp.loops.distributed_step(model, X[:9], Y[:9])
    assert sorted(e.steps for e in _ledger(one)) == [1, 9, 9]
    assert _ledger(two) == _ledger(one)
    for a, b, c in zip(
        one.trainable_variables,
        two.trainable_variables,
        _joint_model(1).trainable_variables,
        strict=True,
    ):
        np.testing.assert_allclose(a, b.value.numpy(), atol=1e-6)
        assert np.abs(a.numpy() - c.numpy()).max() > 1e-3


def test_rows_that_nobody_dealt_are_refused():
    model = _model(2, NOISE)
    run = functools.partial(common.strategy(2).run, model)
    step = tf.function(lambda: run((X,), {"training": True}), autograph=False)
    with pytest.raises(ValueError, match="each example to one"):
        step()
    assert tf_dpfp.ledger(model) == []


@pytest.mark.parametrize("way", ["representations", "gradients"])
def test_while_fit_deals_a_callback_does_not(way):
    if way == "gradients":
        model, batches = common.private(2), common.batches(steps_per_epoch=1)
    else:
        model, batches = _model(2, NOISE), _batches(steps_per_epoch=1)
    strategy = common.strategy(2)
    refused = pytest.raises(
        tf_dpfp.errors.NotPrivateError, match="each example 2 times"
    )

    class Step(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            run = functools.partial(strategy.run, model.train_step, ((X, Y),))
            with refused:
                tf.function(run, autograph=False)()
            # Nor by the function that `fit` has traced.
            same = strategy.experimental_distribute_values_from_function(
                lambda _: tf.constant(X)
            )
            with refused:
                model.train_function(iter([(same, same)]))
            # Nor by a loop of Keras's own, inside of the one that deals.
            everywhere = strategy.distribute_datasets_from_function(
                lambda _: tf.data.Dataset.from_tensors((X, Y)).repeat()
            )
            with refused:
                keras.Model.fit(model, everywhere, steps_per_epoch=1, verbose=0)

    model.fit(batches, callbacks=[Step()], verbose=0)
    (entry,) = tf_dpfp.ledger(model)
    assert entry.steps == (1 if way == "gradients" else 3)


class _Meeting(layers.Layer):
    """Adds to each row the one that has its place on other replicas."""

    def call(self, x):
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return x
        return x + context.all_reduce("SUM", x) - x

    def compute_output_shape(self, input_shape):
        return input_shape


def test_rows_that_meet_those_of_other_replicas_are_refused():
    # Which add up by an operation that is per example, as any sum of two.
    model = _model(4, NOISE, _Meeting())
    with pytest.raises(ValueError, match="the representations"):
        model.fit(_batches(draw_size=8), verbose=0)
    assert tf_dpfp.ledger(model) == []


def test_what_is_not_released_on_replicas_is_refused():
    for compiled, message in (
        ({"run_eagerly": True}, "in compiled steps"),
        ({"jit_compile": True}, "XLA compiles on several replicas under"),
    ):
        model = _model(2, NOISE, **compiled)
        for train in (model.fit, model.train_on_batch):
            with pytest.raises(ValueError, match=message):
                train(X, Y)
        assert tf_dpfp.ledger(model) == []
