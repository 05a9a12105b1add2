"""Checks of private training on the replicas of one machine.

`python -m tests.training.replicas_worker results.json` writes the name of
every check with its traceback, or null. Logical devices must be made before
TensorFlow starts, so that this is a process of its own.
"""

import contextlib
import functools
import json
import math
import sys
import tempfile
import traceback
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from scipy import stats

import tf_dpfp
from tests.training import crossings
from tests.training import reference
from tf_dpfp import clipping
from tf_dpfp.clipping import clipped_sum
from tf_dpfp.distribute import agreement
from tf_dpfp.distribute import copies
from tf_dpfp.distribute import replicas
from tf_dpfp.independence import gradients as probe
from tf_dpfp.noise import NoiseSource
from tf_dpfp.optimizers import release

EXAMPLES, FEATURES, CLASSES = 61, 7, 3
CLIP, EXPECTED = 0.3, 9.0
CHECKS = {}
_PROBE_CHECK = probe.check


def check(function):
    """Makes a function one of the checks."""
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


@functools.cache
def strategy(count):
    """One strategy for each number of replicas, which adds up in its own way.

    Two that both do it by collective operations would take each other's.
    """
    if count == 1:
        return tf.distribute.get_strategy()
    way = None if count == 2 else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(count)], cross_device_ops=way
    )


def _data(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    return x, rng.integers(0, CLASSES, EXAMPLES)


def _mlp():
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(19, "tanh", kernel_regularizer="l2"),
            layers.Dense(CLASSES),
        ]
    )


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _private(
    count, cls=tf_dpfp.DPAdam, make=_mlp, marks=None, compiled=None, **kwargs
):
    """A private model on `count` replicas, with the same weights for each."""
    keras.utils.set_random_seed(5)
    arguments = {"noise_multiplier": 0.0, "l2_norm_clip": CLIP} | kwargs
    with strategy(count).scope():
        model = make()
        tf_dpfp.make_private(model)
        if marks:
            tf_dpfp.reparametrize(model, **marks)
        model.compile(
            cls(0.05, **arguments), **({"loss": _loss()} | (compiled or {}))
        )
    return model


def _batches(expected=EXPECTED, **kwargs):
    return tf_dpfp.poisson_batches(
        *_data(), expected_batch_size=expected, seed=3, **kwargs
    )


def _fit(model, batches=None, **kwargs):
    return model.fit(
        _batches() if batches is None else batches,
        **({"epochs": 2, "verbose": 0} | kwargs),
    )


def _assert_equal_weights(a, b, atol=1e-5):
    for mine, theirs in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=atol, rtol=1e-5)


def _assert_moved(model):
    fresh = _private(1).get_weights()
    assert all(
        np.abs(a - b).max() > 1e-2
        for a, b in zip(model.get_weights(), fresh, strict=True)
    )


def _adaptive(**kwargs):
    return tf_dpfp.PerLayer(thresholds=tf_dpfp.Adaptive(**kwargs))


# What is trained.

WAYS = {
    "flat": (2, {"microbatch_size": 2}),
    "adaptive": (
        4,
        {
            "cls": tf_dpfp.DPAdamW,
            "weight_decay": 0.1,
            "clipping": _adaptive(rescale=False),
        },
    ),
    "carriers of the history": (
        2,
        {
            "marks": {"rank": 2, "warmup_steps": 2},
            "clipping": tf_dpfp.PerLayer(thresholds=tf_dpfp.Automatic()),
        },
    ),
    "random carriers": (
        4,
        {
            "marks": {"rank": 2, "carrier_source": "random"},
            "use_ema": True,
            "clipping": "per_layer",
        },
    ),
    "eager": (2, {"compiled": {"run_eagerly": True}}),
}


def _trains_as_on_one(count, kwargs):
    one, several = (_private(n, **kwargs) for n in (1, count))
    # Batches smaller than the replicas are many, and empty; some are not.
    batches = [_batches(expected=2.5), _batches(expected=2.5)]
    _fit(one, batches[0], epochs=1)
    _fit(several, batches[1], epochs=1)
    _assert_moved(several)
    _assert_equal_weights(one, several)
    assert tf_dpfp.ledger(one) == tf_dpfp.ledger(several)
    thresholds = [list(tf_dpfp.thresholds(m).values()) for m in (one, several)]
    np.testing.assert_allclose(*thresholds, rtol=1e-5)


for _way in WAYS:
    CHECKS[f"{_way} on several trains as on one"] = functools.partial(
        _trains_as_on_one, *WAYS[_way]
    )


@check
def padded_batches_train_as_on_one():
    compiled = {"weighted_metrics": ["accuracy"]}
    models = [_private(n, compiled=compiled) for n in (1, 2)]
    # A capacity that two replicas can't share equally.
    logs = [
        _fit(m, _batches(padded="static", capacity=23)).history for m in models
    ]
    _assert_equal_weights(*models)
    for name in logs[0]:
        np.testing.assert_allclose(logs[0][name], logs[1][name], rtol=1e-4)
    (entry,) = tf_dpfp.ledger(models[1])
    assert entry.sampling.overflow_probability > 0.0
    assert tf_dpfp.ledger(models[0]) == [entry]


@check
def several_replicas_train_as_the_loop_over_examples():
    model = _private(2, cls=tf_dpfp.DPSGD)
    loop = reference.Reference(
        _mlp,
        model,
        lambda: keras.optimizers.SGD(0.05),
        reference.flat_group,
        CLIP,
        EXPECTED,
        lambda: {"loss": _loss()},
    )
    batches = list(_batches(steps_per_epoch=4))
    _fit(model, _batches(steps_per_epoch=4), epochs=1)
    for x, y in batches:
        loop.step(x, y)
    loop.assert_weights_equal(model, atol=1e-5)
    # Clipping must have mattered.
    sums, _ = loop.clipped_sum(*batches[0])
    length = math.sqrt(sum(np.sum(s**2) for s in sums))
    assert length > 0.5 * CLIP


@check
def an_ordinary_data_set_is_dealt_too():
    models = [_private(n, expected_batch_size=5) for n in (1, 2)]
    data = tf.data.Dataset.from_tensor_slices(_data()).batch(5)
    logs = [_fit(m, data).history["loss"] for m in models]
    _assert_equal_weights(*models)
    np.testing.assert_allclose(*logs, rtol=1e-4)
    (entry,) = tf_dpfp.ledger(models[1])
    assert entry.steps == 26
    assert tf_dpfp.ledger(models[0]) == [entry]


@check
def arrays_are_dealt_too():
    x, y = _data()
    weights = np.linspace(0.0, 2.0, EXAMPLES)  # Of float64.
    arguments = {"sample_weight": weights, "batch_size": 9, "shuffle": False}
    models = [_private(n) for n in (1, 2)]
    logs = [_fit(m, x, y=y, **arguments).history["loss"] for m in models]
    _assert_moved(models[1])
    _assert_equal_weights(*models)
    np.testing.assert_allclose(*logs, rtol=1e-4)
    (entry,) = tf_dpfp.ledger(models[1])
    assert entry.steps == 14
    assert tf_dpfp.ledger(models[0]) == [entry]


@check
def single_batches_are_dealt_too():
    models = [_private(n, expected_batch_size=6) for n in (1, 2)]
    x, y = _data()
    for first, last in ((0, 7), (7, 8), (8, 16)):
        rows = slice(first, last)
        logs = [
            m.train_on_batch(x[rows], y[rows], return_dict=True) for m in models
        ]
        np.testing.assert_allclose(*[log["loss"] for log in logs], rtol=1e-4)
    # What was traced there and what `fit` runs must be one step.
    for model in models:
        _fit(model, tf.data.Dataset.from_tensor_slices((x, y)).batch(8))
    _assert_moved(models[1])
    _assert_equal_weights(*models)
    assert tf_dpfp.ledger(models[0]) == tf_dpfp.ledger(models[1])


@check
def steps_of_a_loop_are_dealt_too():
    for compiled, settings in (
        (True, {"clipping": _adaptive(), "microbatch_size": 2}),
        (False, {"marks": {"rank": 2}}),
    ):
        models = [_private(n, **settings) for n in (1, 2)]
        for model in models:
            batches = _batches(steps_per_epoch=3)

            def step(x, y, model=model):
                tf_dpfp.dealt_step(model, x, y)

            if compiled:
                step = tf.function(step, reduce_retracing=True)
            with tf_dpfp.sampled_steps(model, batches):
                for batch in batches:
                    step(*batch)
        _assert_moved(models[1])
        _assert_equal_weights(*models)
        (entry,) = tf_dpfp.ledger(models[1])
        assert entry.steps == 3
        assert entry.sampling.sampling_rate == EXPECTED / EXAMPLES
        assert tf_dpfp.ledger(models[0]) == [entry]
        thresholds = [list(tf_dpfp.thresholds(m).values()) for m in models]
        np.testing.assert_allclose(*thresholds, rtol=1e-5)


@check
def a_strategy_of_one_replica_trains_as_none():
    arguments = {"noise_multiplier": 0.0, "l2_norm_clip": CLIP}
    models = [_private(1)]
    keras.utils.set_random_seed(5)
    with tf.distribute.MirroredStrategy(["CPU:1"]).scope():
        models.append(tf_dpfp.make_private(_mlp()))
        models[1].compile(tf_dpfp.DPAdam(0.05, **arguments), loss=_loss())
    # Of seeded batches Keras would look at the first ones to build the model.
    data = tf.data.Dataset.from_tensor_slices(_data()).batch(8)
    for model in models:
        _fit(model, data, epochs=1)
        model.train_on_batch(*_data())
    _assert_equal_weights(*models)
    assert tf_dpfp.ledger(models[0]) == tf_dpfp.ledger(models[1])


@check
def a_model_that_is_not_built_is_built_before_the_first_step():
    def unbuilt():
        return keras.Sequential(
            [layers.Dense(5, "tanh"), layers.Dense(CLASSES)]
        )

    def in_a_loop(model):
        step = tf.function(lambda x, y: tf_dpfp.dealt_step(model, x, y))
        step(*_data())

    for train in (in_a_loop, _fit):
        model = _private(
            2, make=unbuilt, noise_multiplier=1.0, expected_batch_size=EXPECTED
        )
        train(model)
        assert all(
            isinstance(v.value, tf.distribute.DistributedValues)
            for v in [*model.variables, *model.optimizer.variables]
        )
    assert math.isfinite(model.evaluate(*_data(), verbose=0))


@check
def the_trial_runs_once_and_refuses():
    class Mixing(layers.Layer):
        def call(self, x):
            return x - keras.ops.mean(x, axis=0)

    def mixing():
        return keras.Sequential(
            [keras.Input((FEATURES,)), layers.Dense(3), Mixing()]
        )

    good, bad = _private(2), _private(2, make=mixing)
    with mock.patch.object(probe, "check", side_effect=_PROBE_CHECK) as trial:
        _fit(good, epochs=1)
        _fit(good, epochs=1)
        assert trial.call_count == 1
        _refuses(bad, "depends on the other")


# The noise.


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
    with strategy(count).scope():
        model = tf_dpfp.make_private(make())
        model.compile(
            tf_dpfp.DPSGD(1.0, l2_norm_clip=CLIP, **(arguments | kwargs)),
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
    return np.diff(flat, axis=0) * 5.0 / (CLIP * 1.7)


def _has_scale_one(sample, replica_count):
    def p(scale):
        return stats.kstest(np.ravel(sample), stats.norm(0, scale).cdf).pvalue

    root = math.sqrt(replica_count)
    assert p(1.0) > 1e-6, np.std(sample)
    for wrong in (0.97, 1.03, root, 1 / root, replica_count, 1 / replica_count):
        assert p(wrong) < 1e-6, wrong


@check
def the_noise_of_two_replicas_is_that_of_one():
    moves = _moves(_silent(2), 3)
    _has_scale_one(moves, 2)
    correlations = np.corrcoef(moves)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 6 / math.sqrt(moves.shape[1])


@check
def the_noise_of_a_dealt_step_is_that_of_one():
    model = _silent(2)
    zeros = tf.zeros((6, model.input_shape[1]))
    before = model.get_weights()
    tf.function(lambda: tf_dpfp.dealt_step(model, zeros, zeros))()
    moves = [
        np.float64(a - b).ravel()
        for a, b in zip(model.get_weights(), before, strict=True)
    ]
    noise = np.concatenate(moves) * 5.0 / (CLIP * 1.7)
    p = [
        stats.kstest(noise, stats.norm(0, scale).cdf).pvalue
        for scale in (1.0, 0.95, 1.05, 2**0.5, 0.5**0.5)
    ]
    assert p[0] > 1e-6 > max(p[1:]), p


@check
def the_noise_of_four_replicas_is_that_of_one():
    _has_scale_one(_moves(_silent(4, 450), 1), 4)


@check
def the_noise_of_counts_is_that_of_one_replica():
    share, groups, steps, multiplier, expected = 0.5, 4, 150, 1.3, 100.0

    def make():
        return keras.Sequential(
            [keras.Input((2,))] + [layers.Dense(2) for _ in range(groups)]
        )

    rate = 1e-2  # So that what is clipped stays what it was.
    with strategy(4).scope():
        model = tf_dpfp.make_private(make())
        model.compile(
            tf_dpfp.DPSGD(
                0.0,
                noise_multiplier=multiplier,
                expected_batch_size=expected,
                clipping=_adaptive(
                    budget_share=share, learning_rate=rate, rescale=False
                ),
            ),
            loss=lambda y_true, y_pred: tf.reduce_sum(0.0 * y_pred),
        )
    seen = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(list(tf_dpfp.thresholds(model).values()))

    zeros = np.zeros((10, 2), np.float32)
    data = tf.data.Dataset.from_tensors((zeros, zeros)).repeat(steps)
    model.fit(data, verbose=0, callbacks=[Note()])
    # An estimate times exp(-rate * (fraction - quantile)); the ten examples
    # are all below it.
    fractions = 0.5 - np.diff(np.log(np.float64(seen)), axis=0) / rate
    deviation = multiplier * math.sqrt(groups) / (2 * math.sqrt(share))
    noise = ((fractions - 0.5) * expected - 5.0) / deviation
    for wrong, sign in ((1.0, 1), (0.5, -1), (2.0, -1), (0.25, -1), (4.0, -1)):
        p = stats.kstest(noise.ravel(), stats.norm(0, wrong).cdf).pvalue
        assert sign * (p - 1e-6) > 0, (wrong, noise.mean(), noise.std())


@check
def replicas_draw_from_streams_of_their_own():
    shapes = [(300, 300), (900,)]  # One drawn alone, the other with others.
    variables = [keras.Variable(np.zeros(s, np.float32)) for s in shapes]
    group = clipping.Group("all", (0, 1), 1.0, 90900)
    with strategy(4).scope():
        source = NoiseSource()
        source.build()

    def shares():
        clipped = tf_dpfp.ClippedGradients(
            sums=[tf.zeros(s) for s in shapes],
            variables=variables,
            groups=[group],
            regularization=[None, None],
            replicas=4,
        )
        draws = release.Draws(source.next_step(), replicas.index(), 0.5)
        found = release.add_noise(clipped, 1.0, "global", draws)
        return tf.concat([tf.reshape(f, [-1]) for f in found], 0)

    step = tf.function(lambda: strategy(4).run(shares), autograph=False)
    drawn = np.concatenate(
        [
            strategy(4).experimental_local_results(step()),
            strategy(4).experimental_local_results(step()),
        ]
    )
    np.testing.assert_allclose(np.std(drawn, axis=1), 0.5, rtol=0.02)
    for part in (drawn[:, :90000], drawn[:, 90000:]):
        correlations = np.corrcoef(part)[np.triu_indices(8, 1)]
        assert np.abs(correlations).max() < 5 / math.sqrt(part.shape[1])


@check
def seeded_noise_repeats_on_as_many_replicas():
    first, second = _moves(_silent(2, 31, seed=8), 2)
    np.testing.assert_array_equal(_moves(_silent(2, 31, seed=8), 1)[0], first)
    assert not np.allclose(first, second)


# What is the same everywhere.


def _assert_same_bits(model, count):
    for variable in [*model.variables, *model.optimizer.variables]:
        copies = strategy(count).experimental_local_results(variable.value)
        assert len({copy.numpy().tobytes() for copy in copies}) == 1
        assert len(copies) == count


@check
def replicas_that_went_apart_are_found():
    model = _private(2, noise_multiplier=1.0)

    class Disturb(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            kernel = model.trainable_variables[0].value
            copy = strategy(2).experimental_local_results(kernel)[1]
            copy.assign_add(1e-7 * tf.ones_like(copy))

    with _raises(agreement.ReplicasDifferError, "different numbers for"):
        _fit(model, epochs=1, callbacks=[Disturb()])


@check
def the_budget_stops_several_replicas_where_it_stops_one():
    models = [_private(n, noise_multiplier=1.1) for n in (1, 2)]
    for model in models:
        budget = tf_dpfp.PrivacyBudget(epsilon=3.0, delta=1e-3)
        history = _fit(model, epochs=50, callbacks=[budget]).history
        assert len(history["epsilon"]) < 50
    (entry,) = tf_dpfp.ledger(models[1])
    assert tf_dpfp.ledger(models[0]) == [entry]
    assert entry.steps > 2 * len(_batches())
    epsilons = [tf_dpfp.epsilon(m, 1e-3) for m in models]
    assert 2.0 < epsilons[0] == epsilons[1] <= 3.0


# What crosses from replica to replica.


def _sent(count, **kwargs):
    model = _private(count, noise_multiplier=1.0, **kwargs)
    step = crossings.of_step(
        lambda: _fit(model, _batches(steps_per_epoch=1), epochs=1)
    )
    return model, [c for c in step.crossings if c.source != c.to]


def _numbers(sent, source):
    """How many numbers of float32 leave a replica, logs and keys left out."""
    shapes = [
        c.shape for c in sent if c.source == source and c.dtype == tf.float32
    ]
    return sum(math.prod(shape) for shape in shapes if shape)


@check
def nothing_of_single_examples_leaves_a_replica():
    # By collective operations, and from device to device.
    for count in (2, 4):
        model, sent = _sent(count, clipping=_adaptive())
        assert sent
        for crossing in sent:
            assert crossing.shape is not None, crossing
            assert None not in crossing.shape, crossing
            assert "examples" not in crossing.carries, crossing
        assert any("sum" in crossing.carries for crossing in sent)
        weights = sum(w.size for w in model.get_weights())
        counts = len(tf_dpfp.thresholds(model))
        # The last replica receives and adds up nothing.
        assert _numbers(sent, f"CPU:{count - 1}") == weights + counts


@check
def only_carriers_leave_a_replica():
    def wide():
        return keras.Sequential(
            [keras.Input((40,)), layers.Dense(30, use_bias=False)]
        )

    model = _private(2, make=wide, marks={"rank": 2}, noise_multiplier=1.0)
    x = np.ones((12, 40), np.float32)
    data = tf.data.Dataset.from_tensors((x, np.zeros(12, np.int64)))
    step = crossings.of_step(lambda: _fit(model, data, epochs=1))
    assert _numbers(step.crossings, "CPU:1") == 2 * (40 + 30)


@contextlib.contextmanager
def _raises(kind, message):
    try:
        yield
    except kind as error:
        assert message in str(error), str(error)
    else:
        raise AssertionError(f"did not raise {kind.__name__}: {message}")


def _refuses(model, message, *args, kind=ValueError, **kwargs):
    before = model.get_weights()
    with _raises(kind, message):
        _fit(model, *args, **kwargs)
    for mine, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert tf_dpfp.ledger(model) == []


# What is refused.


@check
def a_scope_that_is_entered_too_late_is_refused():
    outside = _private(1)
    with strategy(2).scope():
        _refuses(outside, "was made outside of it")
    keras.utils.set_random_seed(5)
    with strategy(2).scope():
        model = tf_dpfp.make_private(_mlp())
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss=_loss())
    _refuses(model, "was made outside of the scope")
    model = tf_dpfp.make_private(_mlp())
    with strategy(2).scope():
        model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss=_loss())
    _refuses(model, "outside of it")


@check
def batches_that_may_miss_a_replica_are_refused():
    x, y = _data()
    model = _private(2, expected_batch_size=8)
    _refuses(model, "`validation_split`", x, y=y, validation_split=0.5)
    _refuses(model, "The generator can't be dealt", ((x, y) for _ in range(2)))
    distributed = strategy(2).experimental_distribute_dataset(
        tf.data.Dataset.from_tensors((x, y))
    )
    _refuses(model, "exactly one replica can't be told", distributed)
    _refuses(model, "`class_weight`", _batches(8), class_weight={0: 2.0})
    with _raises(ValueError, "`class_weight`"):
        model.train_on_batch(x, y, class_weight={0: 2.0})
    unknown = tf.data.Dataset.from_generator(
        lambda: [(x, y)],
        output_signature=(
            tf.TensorSpec([None, FEATURES]),
            tf.TensorSpec([None], tf.int64),
        ),
    )
    _refuses(model, "steps_per_epoch=", unknown)
    _fit(model, unknown, steps_per_epoch=2, epochs=1)


@check
def a_loop_that_gives_every_replica_the_same_batch_is_refused():
    model = _private(2, expected_batch_size=8)
    x, y = _data()
    clipped = tf_dpfp.clipped_gradients(model, x[:8], y[:8])
    with _raises(tf_dpfp.NotPrivateError, "each example 2 times"):
        with strategy(2).scope():
            model.optimizer.apply(clipped)

    def step(x, y):
        model.optimizer.apply(tf_dpfp.clipped_gradients(model, x, y))

    with _raises(tf_dpfp.NotPrivateError, "each example 2 times"):
        strategy(2).run(step, args=(x[:8], y[:8]))
    assert tf_dpfp.ledger(model) == []


@check
def a_step_that_can_not_deal_is_refused():
    model = _private(2, expected_batch_size=8)
    x, y = (part[:8] for part in _data())

    def step():
        tf_dpfp.dealt_step(model, x, y)

    with _raises(ValueError, "outside of `strategy.run`"):
        strategy(2).run(step)
    pieces = strategy(2).experimental_distribute_values_from_function(
        lambda context: tf.constant(x)
    )
    with _raises(ValueError, "exactly one replica can't be told"):
        tf_dpfp.dealt_step(model, pieces, y)
    with _raises(ValueError, "no first axis over examples"):
        tf_dpfp.dealt_step(model, x, y, sample_weight=1.0)
    assert tf_dpfp.ledger(model) == []


@check
def what_is_not_done_on_replicas_is_refused():
    _refuses(
        _private(2, compiled={"steps_per_execution": 3}),
        "steps_per_execution=1",
    )
    _refuses(_private(2, compiled={"jit_compile": True}), "without XLA")
    _refuses(
        _private(2, use_ema=True, ema_overwrite_frequency=2),
        "`ema_overwrite_frequency`",
    )


@check
def asynchronous_strategies_are_refused():
    with tf.distribute.experimental.CentralStorageStrategy(
        ["CPU:0", "CPU:1"]
    ).scope():
        model = tf_dpfp.make_private(_mlp())
        model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss=_loss())
    _refuses(model, "does not run under CentralStorageStrategy")


# Replicas on several devices each.


class OnDevices(layers.Layer):
    """A chain of layers, of every replica on a device of its own."""

    def __init__(self, chain, devices, **kwargs):
        super().__init__(**kwargs)
        self.chain, self.devices = chain, devices

    def build(self, input_shape):
        with tf_dpfp.distribute.on_devices(self.devices):
            for layer in self.chain:
                layer.build(input_shape)
                input_shape = layer.compute_output_shape(input_shape)

    def call(self, x):
        with tf_dpfp.distribute.on_devices(self.devices):
            for layer in self.chain:
                x = layer(x)
            return x


# The first replica's two devices, and the second one's.
FIRST, SECOND = ("CPU:0", "CPU:1"), ("CPU:2", "CPU:3")


def _in_pieces(places=(FIRST, SECOND)):
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            OnDevices([layers.Dense(19, "tanh"), layers.Dense(23)], places[0]),
            OnDevices(
                [
                    layers.Dense(29, "tanh", kernel_regularizer="l2"),
                    layers.Dense(CLASSES),
                ],
                places[1],
            ),
        ]
    )


PIECES = {
    "": (3, {"thresholds": {"CPU:0": 0.1, "CPU:2": 0.08**0.5}}),
    "adaptive ": (None, {"thresholds": tf_dpfp.Adaptive(rescale=False)}),
}


def _pieces_train_as_on_one(microbatch_size, kwargs):
    settings = {
        "clipping": tf_dpfp.PerDevice(**kwargs),
        "microbatch_size": microbatch_size,
    }
    models = [_private(n, make=_in_pieces, **settings) for n in (1, 2)]
    models.append(_private(1, make=_in_pieces))
    for model in models:
        _fit(model, _batches(expected=5.0), epochs=1)
    one, several, flat = models
    _assert_equal_weights(one, several)
    assert any(
        np.abs(a - b).max() > 1e-3
        for a, b in zip(flat.get_weights(), one.get_weights(), strict=True)
    )
    assert tf_dpfp.ledger(one) == tf_dpfp.ledger(several)
    names = [list(tf_dpfp.thresholds(m)) for m in (one, several)]
    assert names == [["CPU:0", "CPU:2"]] * 2, names
    thresholds = [list(tf_dpfp.thresholds(m).values()) for m in (one, several)]
    np.testing.assert_allclose(*thresholds, rtol=1e-5)


for _name in PIECES:
    CHECKS[f"{_name}pieces on two replicas train as on one"] = (
        functools.partial(_pieces_train_as_on_one, *PIECES[_name])
    )


@check
def the_noise_of_a_piece_goes_by_its_own_threshold():
    width, expected, multiplier = 450, 5.0, 1.7
    chosen = {"CPU:0": 0.3, "CPU:2": 0.4}

    def make():
        model = keras.Sequential([keras.Input((width,))])
        for places in (FIRST, SECOND):
            dense = layers.Dense(width, kernel_initializer="zeros")
            model.add(OnDevices([dense], places))
        return model

    zeros = np.zeros((6, width), np.float32)
    data = tf.data.Dataset.from_tensors((zeros, zeros))
    model = _private(
        2,
        tf_dpfp.DPSGD,
        make,
        compiled={"loss": lambda y_true, y_pred: tf.reduce_sum(0.0 * y_pred)},
        l2_norm_clip=0.5,
        noise_multiplier=multiplier,
        expected_batch_size=expected,
        clipping=tf_dpfp.PerDevice(thresholds=chosen),
    )
    _fit(model, data, epochs=1)
    weights = [np.float64(w) / 0.05 for w in model.get_weights()]
    for threshold, pair in zip(
        chosen.values(), (weights[:2], weights[2:]), strict=True
    ):
        scale = multiplier * math.sqrt(2) * threshold / expected
        _has_scale_one(np.concatenate([w.ravel() for w in pair]) / scale, 2)
    kernels = [weights[0].ravel(), weights[2].ravel()]
    assert abs(np.corrcoef(kernels)[0, 1]) < 5 / width


@check
def only_noised_sums_leave_the_pieces_of_a_replica():
    for settings in ({}, {"microbatch_size": 2}):
        model = _private(
            2,
            make=_in_pieces,
            noise_multiplier=1.0,
            clipping="per_device",
            **settings,
        )
        step = crossings.of_step(
            lambda m=model: _fit(m, _batches(steps_per_epoch=1), epochs=1)
        )
        replica = {d: n for n in (0, 1) for d in (FIRST[n], SECOND[n])}
        for found in step.crossings:
            assert "examples" not in found.carries, found
            within = replica[found.source] == replica.get(found.to)
            if found.carries and not (within and settings):
                assert found.noised, found
        # Each piece's norms, and its noise, are where the piece is.
        for scope, operation in (
            (clipped_sum.EXAMPLES_SCOPE, None),
            (clipped_sum.SUM_SCOPE, None),
            ("", "StatelessRandomUniformFullIntV2"),
        ):
            devices = {
                device
                for device, operations in step.operations.items()
                for kind, names in operations.items()
                if operation in (None, kind)
                and any(scope in name for name in names)
            }
            assert devices == set(replica), (scope, operation, devices)


@check
def state_of_a_piece_is_where_the_piece_is():
    settings = {"make": _in_pieces, "clipping": "per_device"}
    model = _private(2, noise_multiplier=1.0, use_ema=True, **settings)
    _fit(model, epochs=1)
    _assert_same_bits(model, 2)
    for index, variable in enumerate(model.trainable_variables):
        names = [
            crossings.short(device)
            for state in [variable, *model.optimizer.variables]
            if variable.path.replace("/", "_") in state.path.replace("/", "_")
            for device in copies.devices_of(state.value)
        ]
        # The weight, two moments and an average.
        assert names == list(FIRST if index < 4 else SECOND) * 4, names


@check
def pieces_that_are_not_alike_on_all_replicas_are_refused():
    for places in ((FIRST, ("CPU:2", "CPU:1")), (FIRST, ("CPU:0", "CPU:2"))):
        model = _private(
            2,
            make=functools.partial(_in_pieces, places),
            noise_multiplier=1.0,
            clipping="per_device",
        )
        _refuses(model, "alike on every replica")
    with _raises(ValueError, "one device for each of the 2 replicas"):
        _private(2, make=functools.partial(_in_pieces, (FIRST, ("CPU:2",))))

    # A TensorFlow that places copies where it likes.
    class Elsewhere(layers.Layer):
        def build(self, input_shape):
            with (
                tf.variable_creator_scope(
                    lambda create, **kwargs: create(
                        **(kwargs | {"colocate_with": None})
                    )
                ),
                tf_dpfp.distribute.on_devices(SECOND),
            ):
                self.add_weight(shape=(2,))

    with _raises(RuntimeError, "can't place copies"):
        with strategy(2).scope():
            Elsewhere().build((None, 2))


# State.


@check
def checkpoints_of_several_replicas_keep_everything():
    kwargs = dict(
        noise_multiplier=1.0,
        clipping=_adaptive(),
        marks={"rank": 2},
    )
    model = _private(2, **kwargs)
    with tempfile.TemporaryDirectory() as folder:
        _fit(model, epochs=1)
        _assert_same_bits(model, 2)
        model.save_weights(f"{folder}/model.weights.h5")
        entries = tf_dpfp.ledger(model)
        state = model.optimizer.variables
        saved = [v.numpy() for v in state if "ledger" not in v.path]
        tf.train.Checkpoint(model=model).write(f"{folder}/checkpoint")
        for restore in (
            lambda m: m.load_weights(f"{folder}/model.weights.h5"),
            lambda m: tf.train.Checkpoint(model=m).read(f"{folder}/checkpoint"),
        ):
            again = _private(2, **kwargs)
            with strategy(2).scope():
                again.optimizer.build(again.trainable_variables)
            restore(again)
            _assert_equal_weights(model, again, atol=0)
            assert tf_dpfp.ledger(again) == entries
            state = again.optimizer.variables
            state = [v.value for v in state if "ledger" not in v.path]
            for variable, value in zip(state, saved, strict=True):
                for copy in strategy(2).experimental_local_results(variable):
                    np.testing.assert_array_equal(copy.numpy(), value)
            _fit(again, epochs=1)
            (entry,) = tf_dpfp.ledger(again)
            assert entry.steps == 2 * len(_batches())


@check
def a_model_checkpoint_is_loaded_with_and_without_replicas():
    def carried():
        return keras.Sequential(
            [
                keras.Input((FEATURES,)),
                tf_dpfp.RGPDense(19, rank=2),
                layers.Dense(CLASSES),
            ]
        )

    model = _private(
        2, make=carried, noise_multiplier=1.0, clipping=_adaptive()
    )
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.keras"
        save = keras.callbacks.ModelCheckpoint(path)
        _fit(model, epochs=1, callbacks=[save])
        for count in (1, 2):
            with strategy(count).scope():
                again = tf_dpfp.make_private(keras.models.load_model(path))
            assert tf_dpfp.ledger(again) == tf_dpfp.ledger(model)
            assert again.optimizer.clipping == model.optimizer.clipping
            # A loaded layer's path may lack the name of the model.
            found = [tf_dpfp.thresholds(m).values() for m in (again, model)]
            assert list(found[0]) == list(found[1]), found
            names = " ".join(v.path for v in again.optimizer.variables)
            for name in ("first_weight", "carrier", "clip_estimates"):
                assert name in names, names
            for mine, theirs in zip(
                *[
                    [*m.variables, *m.optimizer.variables]
                    for m in (again, model)
                ],
                strict=True,
            ):
                if "ledger" not in mine.path:  # Whose rows may move.
                    np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
            _fit(again, epochs=1)
            (entry,) = tf_dpfp.ledger(again)
            assert entry.steps == 2 * len(_batches())
        _assert_same_bits(again, 2)


def main(path: str, *only: str) -> None:
    """Runs the checks, or those that are named."""
    results = {}
    for name in only or CHECKS:
        results[name] = None
        try:
            with without_trial():
                CHECKS[name]()
        except Exception:  # Reported by name, by the test.
            results[name] = traceback.format_exc()
    with open(path, "w") as file:
        json.dump(results, file)


def without_trial():
    """It is not what is checked, and it takes half of the time."""
    return mock.patch.object(probe, "check")


def make_devices(count):
    """Splits the CPU into logical devices."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * count
    )


if __name__ == "__main__":
    make_devices(4)
    main(*sys.argv[1:])
