"""One of two workers that train together.

`python -m tests.training.workers_program INDEX checks FOLDER [NAME ...]` runs
the checks, or those that are named, and writes what came of them; `... INDEX
train FOLDER [HOW]` trains with backups. `HOW` is `middle`, to kill worker 1 in
the middle of the second epoch; `between`, to kill it at the end of that epoch,
when worker 0 has saved its backup and it has not; or `mend`, to be refused,
copy the newer backup over the older one and train on.
"""

import json
import math
import os
import pathlib
import shutil
import signal
import sys
import time
import traceback
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from scipy import stats

import tf_dpfp
from tf_dpfp.distribute import agreement
from tf_dpfp.independence import gradients as trial_lib

EXAMPLES, FEATURES, CLASSES, CLIP = 61, 7, 3, 0.3
EPOCHS, STEPS, RATE = 3, 4, 0.5
CHECKS = {}


def check(function):
    """Makes a function one of the checks."""
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


def _data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    return x, rng.integers(0, CLASSES, EXAMPLES)


def _batches(rate=RATE, **kwargs):
    return tf_dpfp.poisson_batches(
        *_data(), sampling_rate=rate, steps_per_epoch=STEPS, **kwargs
    )


def _mlp():
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(19, "tanh"),
            layers.Dense(CLASSES),
        ]
    )


def _private(strategy, marks=None, make=_mlp, metrics=None, **kwargs):
    keras.utils.set_random_seed(5)
    with strategy.scope():
        model = tf_dpfp.make_private(make())
        if marks:
            tf_dpfp.reparametrize(model, **marks)
        arguments = {"l2_norm_clip": CLIP, "noise_multiplier": 1.0} | kwargs
        model.compile(
            tf_dpfp.DPAdam(0.05, **arguments),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=metrics,
        )
    return model


def _adaptive():
    return tf_dpfp.PerLayer(thresholds=tf_dpfp.clipping.Adaptive(rescale=False))


@check
def two_workers_train_as_one(strategy, index):
    # Every example in every batch: shards of 31 and 30.
    models, logs = [], []
    for each in (strategy, tf.distribute.get_strategy()):
        model = _private(
            each,
            metrics=["accuracy"],
            noise_multiplier=0.0,
            clipping=_adaptive(),
        )
        history = model.fit(
            _batches(rate=1.0),
            epochs=2,
            verbose=0,
            validation_data=_data(),
        ).history
        models.append(model)
        logs.append(history)
    for mine, theirs in zip(*[m.get_weights() for m in models], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-5)
    moved = np.abs(
        models[0].get_weights()[0]
        - _private(tf.distribute.get_strategy()).get_weights()[0]
    )
    assert moved.max() > 1e-2
    assert tf_dpfp.ledger(models[0]) == tf_dpfp.ledger(models[1])
    for name in logs[0]:
        np.testing.assert_allclose(logs[0][name], logs[1][name], rtol=1e-4)


class _Place(layers.Layer):
    """A dense layer on another CPU of each worker."""

    def __init__(self, units, device):
        super().__init__()
        self._dense, self._devices = layers.Dense(units), [device]

    def build(self, input_shape):
        with tf_dpfp.distribute.on_devices(self._devices):
            self._dense.build(input_shape)

    def call(self, x):
        with tf_dpfp.distribute.on_devices(self._devices):
            return self._dense(x)


def _in_pieces(strategy, device):
    def make():
        return keras.Sequential(
            [
                keras.Input((FEATURES,)),
                layers.Dense(19, "tanh"),
                _Place(CLASSES, device),
            ]
        )

    return _private(
        strategy, make=make, noise_multiplier=0.0, clipping="per_device"
    )


@check
def pieces_on_two_workers_train_as_on_one(strategy, index):
    model = _in_pieces(strategy, f"CPU:{1 + index}")
    _refuses("different placements", model.fit, _batches(), verbose=0)
    models = []
    for each in (strategy, tf.distribute.get_strategy()):
        # Where TensorFlow put nothing: it tells devices apart by the order of
        # their first use, and would wait forever.
        models.append(_in_pieces(each, "CPU:3"))
        models[-1].fit(_batches(rate=1.0), verbose=0)
        names = list(tf_dpfp.clip_norms(models[-1]))
        assert names == ["CPU:0", "CPU:3"], names
    for mine, theirs in zip(*[m.get_weights() for m in models], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-5)


@check
def the_noise_of_two_workers_is_that_of_one(strategy, index):
    width, expected, multiplier = 257, 5.0, 1.7
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((width,)),
                layers.Dense(width, kernel_initializer="zeros"),
            ]
        )
        tf_dpfp.make_private(model)
        model.compile(
            tf_dpfp.DPSGD(1.0, l2_norm_clip=CLIP, noise_multiplier=multiplier),
            loss=lambda y_true, y_pred: tf.reduce_sum(0.0 * y_pred),
        )
    zeros = np.zeros((10, width), np.float32)
    batches = tf_dpfp.poisson_batches(
        zeros, zeros, expected_batch_size=expected, steps_per_epoch=1
    )
    model.fit(batches, verbose=0)
    flat = np.concatenate([np.ravel(w) for w in model.get_weights()])
    noise = np.float64(flat) * expected / (CLIP * multiplier)
    for scale, sign in ((1.0, 1), (2**0.5, -1), (0.5**0.5, -1), (2.0, -1)):
        p = stats.kstest(noise, stats.norm(0, scale).cdf).pvalue
        assert sign * (p - 1e-6) > 0, (scale, noise.std())


@check
def a_shard_without_examples_takes_part(strategy, index):
    model = _private(strategy, marks={"rank": 2})
    x, y = _data()
    batches = tf_dpfp.poisson_batches(
        x[:1], y[:1], sampling_rate=0.5, steps_per_epoch=3
    )
    model.fit(batches, verbose=0)
    (entry,) = tf_dpfp.ledger(model)
    assert entry.steps == 3


@check
def padded_shards_take_part(strategy, index):
    model = _private(strategy)
    model.fit(_batches(padded="static", capacity=40), verbose=0)
    (entry,) = tf_dpfp.ledger(model)
    # Rows for 20 of 31 examples, and of 32 next door, in two shards.
    overflow = 2 * stats.binom.sf(20, 32, RATE)
    claimed = entry.sampling.overflow_probability
    assert math.isclose(claimed, overflow), (claimed, overflow)


@check
def the_noise_that_fit_finds_is_that_of_one_worker(strategy, index):
    model = _private(strategy, noise_multiplier="calibrate")
    budget = tf_dpfp.PrivacyBudget(3.0, 1e-3)
    model.fit(_batches(), verbose=0, callbacks=[budget])
    (entry,) = tf_dpfp.ledger(model)
    # Of all examples, and not of the shard of one worker.
    wanted = tf_dpfp.calibrate_noise_multiplier(3.0, 1e-3, RATE, STEPS)
    assert abs(entry.noise_multiplier - wanted) < 1e-3, entry
    assert entry.noise_multiplier == model.optimizer.noise_multiplier
    assert 2.997 <= tf_dpfp.compute_epsilon(model, 1e-3) <= 3.0


@check
def workers_with_different_flags_are_refused(strategy, index):
    model = _private(strategy, noise_multiplier=1.0 + index)
    _refuses("different optimizers", model.fit, _batches(), verbose=0)
    model = _private(strategy)
    _refuses("different data sets", model.fit, _batches(0.5 + 0.1 * index))
    _refuses("different lengths", model.fit, _batches(), epochs=1 + index)

    class Restore(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            if index:
                kernel = self.model.trainable_variables[0]
                kernel.assign(kernel + 1.0)

    _refuses("different states", model.fit, _batches(), callbacks=[Restore()])
    assert tf_dpfp.ledger(model) == []


@check
def workers_with_different_examples_are_refused(strategy, index):
    x, y = _data()
    changed = x.copy()
    changed[17, 2] += 1e-6 * index
    order = np.random.default_rng(index).permutation(EXAMPLES)
    model = _private(strategy)
    for data in ((x[order], y[order]), (changed, y)):
        batches = tf_dpfp.poisson_batches(*data, sampling_rate=RATE)
        _refuses("different examples", model.fit, batches, verbose=0)
    assert tf_dpfp.ledger(model) == []


@check
def data_that_is_not_sharded_is_refused(strategy, index):
    model = _private(strategy, expected_batch_size=8)
    data = tf.data.Dataset.from_tensor_slices(_data()).batch(8)
    _refuses("its own share", model.fit, data)
    x, y = _data()
    _refuses("its own share", model.fit, x, y)
    for step in (
        model.train_on_batch,
        lambda x, y: tf_dpfp.loops.distributed_step(model, x, y),
    ):
        _refuses("replicas of one machine", step, x[:8], y[:8])
    assert tf_dpfp.ledger(model) == []


@check
def workers_that_went_apart_are_found(strategy, index):
    model = _private(strategy)

    class Disturb(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            if index:
                kernel = model.trainable_variables[0]
                kernel.assign(kernel + 1e-6)

    _refuses(
        "trained apart",
        model.fit,
        _batches(),
        verbose=0,
        callbacks=[Disturb()],
        kind=agreement.ReplicasDifferError,
    )


@check
def the_chief_alone_saves_for_all(strategy, index):
    # A folder that both are given on the command line.
    path = pathlib.Path(sys.argv[3], "model.keras")
    model = _private(strategy, clipping=_adaptive())
    callbacks = []
    if tf_dpfp.distribute.worker_index() == 0:
        callbacks.append(keras.callbacks.ModelCheckpoint(path))
    model.fit(_batches(), epochs=2, verbose=0, callbacks=callbacks)
    one = tf_dpfp.make_private(keras.models.load_model(path))
    assert tf_dpfp.ledger(one) == tf_dpfp.ledger(model)
    found = [list(tf_dpfp.clip_norms(m).values()) for m in (one, model)]
    assert found[0] == found[1], found
    for mine, theirs in zip(
        *[[*m.variables, *m.optimizer.variables] for m in (one, model)],
        strict=True,
    ):
        if "ledger" not in mine.path:  # Whose rows may move.
            np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    one.fit(_batches(), verbose=0)
    assert [e.steps for e in tf_dpfp.ledger(one)] == [3 * STEPS]


@check
def keras_still_needs_the_ways_round(strategy, index):
    """Fails when Keras mends it: `keras_distribution` can then do without."""

    def ordinary():
        with strategy.scope():
            model = _mlp()
            model.compile("sgd", loss="sparse_categorical_crossentropy")
        return model

    data = tf.data.Dataset.from_tensor_slices(_data()).batch(10)
    _refuses("", ordinary().fit, data, verbose=0, kind=Exception)
    model = ordinary()
    with mock.patch.object(model, "_maybe_symbolic_build"):
        _refuses("", model.fit, data, verbose=0, kind=Exception)


def _refuses(message, function, *args, kind=ValueError, **kwargs):
    try:
        function(*args, **kwargs)
    except kind as error:
        assert message in str(error), str(error)
    else:
        raise AssertionError(f"not refused: {message}")


def _run_checks(strategy, index, *only):
    results = {}
    for name in only or CHECKS:
        results[name] = None
        try:
            with mock.patch.object(trial_lib, "check"):
                CHECKS[name](strategy, index)
        except Exception:  # Reported by name, by the test.
            results[name] = traceback.format_exc()
    return results


class _KillInTheMiddle(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        epoch = self.model.optimizer.iterations.numpy() // STEPS
        if epoch == 1 and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class _KillBetweenSaves(keras.callbacks.Callback):
    def __init__(self, other):
        super().__init__()
        self._other = pathlib.Path(other, "training_metadata.json")

    def on_epoch_end(self, epoch, logs=None):
        if epoch != 1:
            return
        while json.loads(self._other.read_text() or "{}").get("epoch") != 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)


def _train(strategy, index, folder, how=None):
    if how != "mend":
        # The last one has the trial, too.
        with mock.patch.object(trial_lib, "check"):
            return _train_on(strategy, index, folder, how)
    _refuses("different states", _train_on, strategy, index, folder)
    if index:
        shutil.copytree(
            f"{folder}/backup0", f"{folder}/backup1", dirs_exist_ok=True
        )
    return _train_on(strategy, index, folder)


def _train_on(strategy, index, folder, how=None):
    model = _private(strategy, clipping=_adaptive(), marks={"rank": 2})
    before = []

    class Note(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            before.append(sum(e.steps for e in tf_dpfp.ledger(model)))

    callbacks = [
        keras.callbacks.BackupAndRestore(
            f"{folder}/backup{index}", delete_checkpoint=False
        ),
        Note(),
    ]
    if how == "middle" and index:
        callbacks.append(_KillInTheMiddle())
    if how == "between" and index:  # Before it saves.
        callbacks.insert(0, _KillBetweenSaves(f"{folder}/backup0"))
    model.fit(_batches(), epochs=EPOCHS, verbose=0, callbacks=callbacks)
    return {
        "steps before": before[0],
        "steps": [e.steps for e in tf_dpfp.ledger(model)],
        "epsilon": tf_dpfp.compute_epsilon(model, 1e-3),
        "thresholds": list(tf_dpfp.clip_norms(model).values()),
        "digest": agreement.digest_of(
            [*model.variables, *model.optimizer.variables]
        ),
    }


def main(index, what, folder, *how):
    """Runs one worker, of one replica and further CPUs."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 4,
    )
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    assert strategy.num_replicas_in_sync == 2
    if what == "checks":
        results = _run_checks(strategy, int(index), *how)
    else:
        results = _train(strategy, int(index), folder, *how)
    path = pathlib.Path(folder, f"results{index}.json")
    path.write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
