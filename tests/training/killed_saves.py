"""Trainings that are killed inside of saves, one after the other.

Run as a program it forks a process for each training, which kills itself: at
every call that reaches the disk in turn, and in the middle of the file of the
weights. The next one resumes. It prints one line of JSON.
"""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
from unittest import mock

import keras
import numpy as np

import tf_dpfp
from tf_dpfp.independence import gradients as trial
from tf_dpfp.training import backups

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
STEPS = 2
# Points of a save at which it can be killed.
POINTS = 13
# Calls of a save that reach the disk.
_CALLS = ("open", "fsync", "replace", "pwrite", "unlink")


class Killed(BaseException):
    """Stands for a kill: nothing in between may catch it."""


def raise_killed():
    raise Killed


def kill_process():
    os.kill(os.getpid(), signal.SIGKILL)


class KillInSave(keras.callbacks.Callback):
    """Dies at one of the points of one of the saves.

    Args:
        point: Number of the call inside of the save; `None` never dies.
        save: Number of the save.
        die: Called to die.
        torn: If true, cuts the file that is being written, as if it had not
            been written whole.
    """

    def __init__(self, point, save=0, die=raise_killed, torn=True):
        super().__init__()
        self.saves = 0
        self._countdown = None
        self._point, self._save, self._die = point, save, die
        self._torn = torn

    def step(self, path=None):
        if self._countdown is None:
            return
        if self._countdown == 0:
            if self._torn and isinstance(path, os.PathLike):
                beside = os.path.basename(path).startswith(".writing")
                if beside and os.path.isfile(path):
                    size = os.path.getsize(path)
                    os.truncate(path, random.Random(size).randint(0, size))
            self._die()
        self._countdown -= 1

    @contextlib.contextmanager
    def watching(self):
        """Counts calls inside of saves while it is open."""
        with contextlib.ExitStack() as stack:
            for name in _CALLS:
                ordinary = getattr(os, name)

                def call(*args, _ordinary=ordinary, **kwargs):
                    self.step(args[0] if args else None)
                    return _ordinary(*args, **kwargs)

                stack.enter_context(mock.patch.object(os, name, call))
            save = backups.BackupAndRestore._save

            def saving(callback):
                if self.saves == self._save:
                    self._countdown = self._point
                save(callback)
                self._countdown = None
                self.saves += 1

            stack.enter_context(
                mock.patch.object(backups.BackupAndRestore, "_save", saving)
            )
            stack.enter_context(mock.patch.object(trial, "check"))
            yield


class Truth(keras.callbacks.Callback):
    """Writes every step that ran to a file, and compares at the start."""

    def __init__(self, path, strict):
        super().__init__()
        self._path = pathlib.Path(path)
        self._path.touch()
        self._strict = strict
        self.at_start = None

    def steps(self):
        return self._path.stat().st_size

    def on_train_begin(self, logs=None):
        self.at_start = counted(self.model), self.steps()
        if self._strict:
            assert self.at_start[0] == self.at_start[1], self.at_start

    def on_train_batch_end(self, batch, logs=None):
        with self._path.open("ab") as file:
            file.write(b".")


def counted(model):
    return sum(e.steps for e in tf_dpfp.ledger(model))


def make_model(**kwargs):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPAdam(0.01, noise_multiplier=1.0), loss="mse", **kwargs
    )
    return model


def train(
    folder,
    kill=None,
    epochs=1000,
    callbacks=(),
    strict=False,
    run_eagerly=True,
    **kwargs,
):
    """Trains with a backup in a folder; returns model and truth."""
    folder = pathlib.Path(folder)
    # A handful of eager steps takes less time than to trace one.
    model = make_model(run_eagerly=run_eagerly)
    truth = Truth(folder / "truth", strict)
    backup = tf_dpfp.BackupAndRestore(folder / "backup", **kwargs)
    batches = tf_dpfp.poisson_batches(
        X, Y, expected_batch_size=8, steps_per_epoch=STEPS
    )
    kill = kill or KillInSave(None)
    with kill.watching():
        model.fit(
            batches,
            epochs=epochs,
            verbose=0,
            callbacks=[backup, truth, *callbacks],
        )
    return model, truth


def main(folder, kills):
    folder, kills = pathlib.Path(folder), int(kills)
    status, killed = 0, 0
    while killed < kills:
        if killed % 10 == 9:
            # What users do; the journal is beside it.
            shutil.rmtree(folder / "backup", ignore_errors=True)
        child = os.fork()
        if not child:
            kill = KillInSave(killed % POINTS, killed % 2, kill_process)
            try:
                train(folder, kill, strict=True, run_eagerly=False)
            except BaseException as error:
                print(repr(error), flush=True)
            os._exit(1)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            break
        killed += 1
    # The last one resumes, too, and ends.
    model, truth = train(folder, epochs=1, run_eagerly=False)
    print(
        json.dumps(
            {"kills": killed, "at start": truth.at_start, "status": status}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
