"""Random interleavings of everything that takes steps: each is counted right.

By hand, for many more than the suite tries:

    TF_DPFP_INTERLEAVINGS=10000 pytest -s --basetemp=/dev/shm/interleavings \\
        tests/mechanisms/interleavings_test.py

or in pieces, with `--hypothesis-seed=1` and so on. Many files are written, and
each waits for its disk: they are quicker in memory.
"""

import collections
import copy
import functools
import gc
import json
import os
import signal
import threading
import time

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from keras import layers
from keras.src.saving import saving_lib
from keras.src.trainers.data_adapters import array_data_adapter

import tf_dpfp
from tf_dpfp.independence import gradients as trial_lib
from tf_dpfp.keras_private import forked

EXAMPLES = int(os.environ.get("TF_DPFP_INTERLEAVINGS", "6"))
STEPS = 3
X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
SIZES = 20, 40


# Seconds that a child has.
_ALARM = 20


class _Stop(Exception):
    pass


class _Killed(BaseException):
    """Stands for a kill: nothing in between may catch it."""


class _Machine:
    """One model, what can be done with it, and what was done so far."""

    def __init__(self, folder):
        self.model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
        tf_dpfp.make_private(self.model)
        optimizer = tf_dpfp.DPSGD(
            0.01, noise_multiplier=1.0, expected_batch_size=4
        )
        self.model.compile(optimizer, loss="mse")
        self.step = tf.function(self._step, reduce_retracing=True)
        self.data = {
            size: tf_dpfp.poisson_batches(
                X[:size], Y[:size], expected_batch_size=4, steps_per_epoch=STEPS
            )
            for size in SIZES
        }
        self.truth = collections.Counter()
        self.lock = threading.Lock()
        self.file = str(folder / "older.weights.h5")
        self.checkpoint = tf.train.Checkpoint(
            model=self.model, optimizer=self.model.optimizer
        )
        self.checkpoints = str(folder / "checkpoint")
        self.older = None
        self.backups = folder / "backup"
        self.done = collections.Counter()
        self.programs = 0
        self.started = time.monotonic()

    def _step(self, x, y):
        self.model.optimizer.apply(
            tf_dpfp.loops.clipped_gradients(self.model, x, y)
        )

    def count(self, kind, steps=1):
        with self.lock:
            self.truth[kind] += steps

    def counted(self):
        counts = collections.Counter()
        for entry in tf_dpfp.ledger(self.model):
            rate = getattr(entry.sampling, "sampling_rate", None)
            counts[rate and round(4 / rate)] += entry.steps
        return counts

    def check(self):
        """Compares the ledger with what ran."""
        counted, truth = self.counted(), self.truth
        # No later program is to blame, or none could be made shorter.
        self.truth = counted
        assert counted == truth

    def run(self, actions):
        for name, *arguments in actions:
            self.done[name] += 1
            getattr(self, name)(*arguments)

    # Everything that an interleaving is made of.

    def custom(self):
        self.step(X[:4], Y[:4])
        self.count(None)

    def eager(self):
        self._step(X[:4], Y[:4])
        self.count(None)

    def on_batch(self):
        self.model.train_on_batch(X[:4], Y[:4])
        self.count(None)

    def plain(self):
        self.model.fit(X[:8], Y[:8], batch_size=4, verbose=0)
        self.count(None, 2)

    def past(self):
        keras.Model.fit(self.model, X[:4], Y[:4], verbose=0)
        self.count(None)

    def fit(self, size, when, actions, fails):
        machine = self

        class At(keras.callbacks.Callback):
            batches = 0

            def on_train_batch_begin(self, batch, logs=None):
                if (batch, when) == (1, "begin"):
                    machine.run(actions)

            def on_train_batch_end(self, batch, logs=None):
                machine.count(size)
                if (batch, when) == (1, "end"):
                    machine.run(actions)
                if fails and batch == 1:
                    raise _Stop

        try:
            self.model.fit(self.data[size], verbose=0, callbacks=[At()])
        except _Stop:
            pass

    def sampled(self, size, actions):
        batches = self.data[size]
        with tf_dpfp.loops.sampled_steps(self.model, batches):
            for index, (x, y) in enumerate(batches):
                self.step(x, y)
                self.count(size)
                if index == 1:
                    self.run(actions)

    def threads(self, programs):
        errors = []

        def run(actions):
            try:
                self.run(actions)
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

        started = [
            threading.Thread(target=run, args=(actions,))
            for actions in programs
        ]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        assert not errors, errors

    def save(self):
        self.model.save_weights(self.file)

    def restore(self):
        if os.path.exists(self.file):
            self.model.load_weights(self.file)

    def keep(self):
        self.older = self.checkpoint.save(self.checkpoints)

    def go_back(self):
        if self.older is not None:
            self.checkpoint.restore(self.older)

    def copied(self):
        twin = copy.deepcopy(self.model.optimizer)
        assert twin.ledger_entries == self.model.optimizer.ledger_entries

    def forked(self, steps):
        """A child that goes on by itself; TensorFlow's threads stay behind."""
        source = self.model.optimizer._noise_source
        key = int(source._key)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            gc.disable()  # To free functions, TensorFlow needs its threads.
            signal.alarm(_ALARM)
            try:
                for _ in range(steps):
                    self.eager()
                same = self.counted() == self.truth
                found = [same, int(source._key) != key]
                os.write(write, json.dumps(found).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            found = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            # TensorFlow waited for a thread that is not there, or failed.
            self.done["forked, undecided"] += 1
            return
        assert json.loads(found) == [True, True]
        assert int(source._key) == key

    def killed(self, size, batch, when, actions):
        """A training that is killed in a batch, and resumed."""
        machine = self

        class Kill(keras.callbacks.Callback):
            def on_train_batch_begin(self, at, logs=None):
                if (at, when) == (batch, "begin"):
                    machine.run(actions)
                    # The batch that begins is in the journal.
                    machine.count(size)
                    raise _Killed

            def on_train_batch_end(self, at, logs=None):
                machine.count(size)
                if (at, when) == (batch, "end"):
                    machine.run(actions)
                    raise _Killed

        class Count(keras.callbacks.Callback):
            def on_train_batch_end(self, at, logs=None):
                machine.count(size)

        def fit(*callbacks):
            backup = tf_dpfp.BackupAndRestore(self.backups, save_freq=2)
            self.model.fit(
                self.data[size], verbose=0, callbacks=[backup, *callbacks]
            )

        with pytest.raises(_Killed):
            fit(Kill())
        self._forget()
        fit(Count())
        assert not self.backups.exists()

    def _forget(self):
        """Takes what a killed process takes along: all of its memory."""
        ledger = self.model.optimizer._ledger
        ledger._table.value.assign(np.zeros(ledger._table.shape))
        ledger._unclaimed.clear()
        self.model.optimizer.ensure_ledger_open()

    def renew(self):
        """An older ledger, written past Keras's files."""
        table = self.model.optimizer._ledger._table
        table.assign(np.zeros(table.shape))


# `sampled` claims what its own thread does inside, so it holds no plain steps
# of this thread; those of `fit` and `train_on_batch` have claims of their own.
_PLAIN = [("custom",), ("eager",), ("on_batch",), ("plain",), ("past",)]
_FILES = [("save",), ("restore",), ("keep",), ("go_back",)]
_FILES += [("renew",), ("copied",)]
_LEAVES = st.sampled_from(_PLAIN + _FILES)


def _compound(inner):
    few = st.lists(inner, max_size=2)
    many = st.lists(few, min_size=2, max_size=3)
    size = st.sampled_from(SIZES)
    fit = st.tuples(
        st.just("fit"),
        size,
        st.sampled_from(["begin", "end"]),
        few,
        st.booleans(),
    )
    return fit | st.tuples(st.just("threads"), many.map(_without_files))


def _without_files(programs):
    """Files are written and read by one thread at a time."""
    return [[a for a in actions if not _has_files(a)] for actions in programs]


def _has_files(action):
    if isinstance(action, (tuple, list)):
        return any(map(_has_files, action))
    return action in ("save", "restore", "keep", "go_back", "copied")


_ACTIONS = st.recursive(_LEAVES, _compound, max_leaves=6)
_OF_OTHERS = st.lists(
    st.sampled_from(
        [
            ("on_batch",),
            ("plain",),
            ("threads", [[("custom",), ("on_batch",)]]),
            ("fit", 20, "end", [("custom",), ("eager",)], False),
            ("fit", 40, "begin", [("past",)], True),
        ]
    ),
    max_size=2,
)
_KILLED = st.tuples(
    st.just("killed"),
    st.sampled_from(SIZES),
    st.integers(0, STEPS - 1),
    st.sampled_from(["begin", "end"]),
    st.lists(_ACTIONS, max_size=2),
)
_FORKED = st.tuples(st.just("forked"), st.integers(1, 2))
_PROGRAMS = st.lists(
    _ACTIONS
    | _KILLED
    | _FORKED
    | st.tuples(st.just("sampled"), st.sampled_from(SIZES), _OF_OTHERS),
    min_size=1,
    max_size=5,
)


def _spare(patch):
    """Leaves out what takes long and counts no step."""
    patch.setattr(trial_lib, "check", lambda *_: None)
    # Keras makes a layer for each answer of this one.
    skipped = functools.cache(saving_lib.get_attr_skipset)
    patch.setattr(saving_lib, "get_attr_skipset", skipped)
    # It traces three functions in every `fit` on the same arrays.
    adapter = array_data_adapter.ArrayDataAdapter
    make, made = adapter.get_tf_dataset, {}

    def get_tf_dataset(self):
        kind = self._num_samples, self._batch_size, self._shuffle
        if kind not in made:
            made[kind] = make(self)
        return made[kind]

    patch.setattr(adapter, "get_tf_dataset", get_tf_dataset)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        _spare(patch)
        made = _Machine(tmp_path_factory.mktemp("interleavings"))
        # Traced by one thread, once.
        made.run([("custom",), ("plain",), ("on_batch",)])
        made.run([("fit", size, "end", [], False) for size in SIZES])
        # A restore gives layers attributes, after which steps are proved anew.
        made.run([("save",), ("restore",), ("eager",)])
        # The pass of a child is proved here, and not by each child.
        with pytest.MonkeyPatch.context() as child:
            child.setattr(forked, "is_forked", lambda: True)
            made.run([("eager",)])
        made.check()
        yield made
    print(f"\n{EXAMPLES} interleavings:", dict(made.done))


@hypothesis.settings(max_examples=EXAMPLES, database=None)
@hypothesis.given(program=_PROGRAMS)
def test_every_interleaving_is_counted_as_it_was(machine, program):
    machine.run(program)
    machine.check()
    machine.programs += 1
    if machine.programs % 100 == 0:
        seconds = time.monotonic() - machine.started
        print(
            f"{machine.programs} programs counted as they were, "
            f"{seconds:.0f} s: {dict(machine.done)}",
            flush=True,
        )
