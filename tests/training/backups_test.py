"""Backups outlive kills, and the count outlives the backups."""

import contextlib
import dataclasses
import gc
import json
import os
import shutil
import threading
import warnings

import keras
import numpy as np
import pytest

import tf_dpfp
from tests import helpers
from tests import programs
from tests.replicas import common as replicas
from tests.training import killed_saves
from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp.training import backups
from tf_dpfp.training import journal as journal_lib

STEPS = killed_saves.STEPS


class _Stop(keras.callbacks.Callback):
    """Interrupts in the middle of an epoch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self._at = epoch, batch
        self._epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self._epoch, batch) == self._at:
            raise killed_saves.Killed


def _killed(folder, *stop, **kwargs):
    with pytest.raises(killed_saves.Killed):
        killed_saves.train(folder, callbacks=[_Stop(*stop)], **kwargs)


@pytest.mark.parametrize("double_checkpoint", [False, True])
def test_kills_inside_of_saves_lose_no_step_and_no_backup(
    tmp_path, double_checkpoint
):
    kills = killed_saves.POINTS if not double_checkpoint else 4
    for point in range(kills):
        kill = killed_saves.KillInSave(point % killed_saves.POINTS, point % 2)
        with pytest.raises(killed_saves.Killed):
            killed_saves.train(
                tmp_path,
                kill,
                strict=True,
                double_checkpoint=double_checkpoint,
            )
    model, truth = killed_saves.train(
        tmp_path, epochs=1, double_checkpoint=double_checkpoint
    )
    assert truth.at_start[0] == truth.at_start[1] >= kills * STEPS
    assert killed_saves.counted(model) == truth.steps()


def test_all_points_of_a_save_are_tried(tmp_path):
    killed_saves.train(tmp_path, epochs=1, delete_checkpoint=False)
    for point in (killed_saves.POINTS - 1, killed_saves.POINTS):
        kill = killed_saves.KillInSave(point)
        reached = contextlib.nullcontext()
        if point < killed_saves.POINTS:
            reached = pytest.raises(killed_saves.Killed)
        with reached:
            killed_saves.train(
                tmp_path, kill, epochs=2, delete_checkpoint=False
            )


def _run(folder, kills):
    root = os.path.dirname(os.path.dirname(tf_dpfp.__file__))
    done = programs.run(
        ["-m", "tests.training.killed_saves", folder, kills],
        folder,
        cwd=root,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] == int(kills), done.stdout
    counted, ran = result["at start"]
    assert counted == ran >= STEPS


def test_three_real_kills(tmp_path):
    _run(tmp_path, "3")


@pytest.mark.slow
def test_a_hundred_real_kills(tmp_path):
    _run(tmp_path, "100")


def test_a_lost_backup_loses_no_step(tmp_path):
    _killed(tmp_path, 1, 0)
    shutil.rmtree(tmp_path / "backup")
    with pytest.warns(UserWarning, match="counts 3 steps"):
        model, truth = killed_saves.train(tmp_path, epochs=1)
    assert truth.at_start == (3, 3)
    assert killed_saves.counted(model) == truth.steps() == 3 + STEPS


def test_a_backup_without_its_journal_is_said(tmp_path):
    """As where the folder alone was copied to another machine."""
    _killed(tmp_path, 1, 0)
    shutil.rmtree(tmp_path / "backup.ledger")
    with pytest.warns(UserWarning, match="steps after the backup are"):
        killed_saves.train(tmp_path, epochs=1)


def test_steps_of_callbacks_and_threads_are_counted_after_a_kill(tmp_path):
    """They are on the disk before they run, though no save follows."""
    x, y = killed_saves.X[:4], killed_saves.Y[:4]

    def step(model):
        clipped = tf_dpfp.loops.clipped_gradients(model, x, y)
        for _ in range(2):
            model.optimizer.apply(clipped)

    class Steps(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            step(self.model)
            thread = threading.Thread(target=step, args=(self.model,))
            thread.start()
            thread.join()
            raise killed_saves.Killed

    with pytest.raises(killed_saves.Killed):
        killed_saves.train(tmp_path, callbacks=[Steps()])
    seen = []

    class See(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.extend(tf_dpfp.ledger(self.model))
            raise killed_saves.Killed

    with (
        pytest.warns(UserWarning, match="counts 5 steps"),
        pytest.raises(killed_saves.Killed),
    ):
        killed_saves.train(tmp_path, callbacks=[See()])
    kinds = {type(e.sampling).__name__: e.steps for e in seen}
    assert kinds == {"PoissonSampling": 1, "UnknownSampling": 4}


def _on_disk(folder):
    journal = journal_lib.Journal(folder / "backup.ledger")
    return sum(entry.steps for entry in journal.entries())


def _clipped(model):
    x, y = killed_saves.X[:4], killed_saves.Y[:4]
    return tf_dpfp.loops.clipped_gradients(model, x, y)


def test_sums_that_are_applied_after_a_reservation_are_noted_anew(tmp_path):
    class Late(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            # One would do for what may be running.
            self.held = [_clipped(self.model) for _ in range(3)]

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                for clipped in self.held:
                    self.model.optimizer.apply(clipped)
                raise killed_saves.Killed

    with pytest.raises(killed_saves.Killed):
        killed_saves.train(tmp_path, callbacks=[Late()])
    assert _on_disk(tmp_path) == 2 * STEPS + 3


@pytest.mark.parametrize("tells_of_batches", [False, True])
@pytest.mark.parametrize("steps_of_batch", [1, 2])
def test_steps_of_a_loop_are_on_the_disk_before_they_run(
    tmp_path, tells_of_batches, steps_of_batch
):
    model = killed_saves.make_model()
    optimizer = model.optimizer
    optimizer.set_expected_batch_size(4, "the loop")
    callbacks = keras.callbacks.CallbackList(
        [tf_dpfp.BackupAndRestore(tmp_path / "backup")], model=model, steps=2
    )
    callbacks.on_train_begin()
    taken = 0
    for epoch in range(2):
        callbacks.on_epoch_begin(epoch)
        for batch in range(2):
            if tells_of_batches:
                callbacks.on_train_batch_begin(batch)
            for _ in range(steps_of_batch):
                optimizer.apply(_clipped(model))
                taken += 1
                assert _on_disk(tmp_path) == taken
            if tells_of_batches:
                callbacks.on_train_batch_end(batch)
        callbacks.on_epoch_end(epoch)
    assert _on_disk(tmp_path) == taken == killed_saves.counted(model)


@pytest.mark.parametrize("with_backup", [False, True])
def test_steps_before_are_added_to_those_of_a_killed_process(
    tmp_path, with_backup
):
    """A script of two phases runs its first one again."""
    batches = tf_dpfp.poisson_batches(
        killed_saves.X, killed_saves.Y, expected_batch_size=8
    )

    def run(*callbacks):
        model = killed_saves.make_model()
        model.fit(batches, epochs=1, steps_per_epoch=5, verbose=0)
        given = [tf_dpfp.BackupAndRestore(tmp_path / "backup"), *callbacks]
        model.fit(
            batches, epochs=2, steps_per_epoch=2, verbose=0, callbacks=given
        )
        return killed_saves.counted(model)

    with pytest.raises(killed_saves.Killed):
        run(_Stop(1 if with_backup else 0, 0))
    taken = 5 + (3 if with_backup else 1)
    assert _on_disk(tmp_path) == taken
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert run() == taken + 5 + (2 if with_backup else 4)


def test_steps_after_a_fit_that_was_interrupted_are_noted(tmp_path):
    """Also where nobody holds the callback, and with another optimizer."""
    model, other = killed_saves.make_model(), killed_saves.make_model()
    batches = tf_dpfp.poisson_batches(
        killed_saves.X, killed_saves.Y, expected_batch_size=8
    )

    def fit(*callbacks):
        model.fit(
            batches,
            epochs=2,
            steps_per_epoch=2,
            verbose=0,
            callbacks=list(callbacks),
        )

    for taken in (3, 8):
        with pytest.raises(killed_saves.Killed):
            fit(tf_dpfp.BackupAndRestore(tmp_path / "backup"), _Stop(1, 0))
        gc.collect()
        assert _on_disk(tmp_path) == taken == killed_saves.counted(model)
        if taken > 3:
            model.compile(other.optimizer, "mse")
        fit()
        assert _on_disk(tmp_path) == killed_saves.counted(model) > taken
    # The one that ends takes the journal along.
    fit(tf_dpfp.BackupAndRestore(tmp_path / "backup"))
    fit()
    assert os.listdir(tmp_path) == []


def test_steps_of_this_process_are_in_its_journal_once(tmp_path):
    model = killed_saves.make_model()
    batches = tf_dpfp.poisson_batches(
        killed_saves.X, killed_saves.Y, expected_batch_size=8
    )

    def fit(*callbacks, epochs=2):
        model.fit(
            batches,
            epochs=epochs,
            steps_per_epoch=2,
            verbose=0,
            callbacks=[
                tf_dpfp.BackupAndRestore(tmp_path / "backup"),
                *callbacks,
            ],
        )

    model.fit(batches, epochs=1, steps_per_epoch=5, verbose=0)
    with pytest.raises(killed_saves.Killed):
        fit(_Stop(1, 0))
    # With another optimizer, too, whose ledger goes on.
    model.compile(killed_saves.make_model().optimizer, "mse")
    fit()
    assert killed_saves.counted(model) == 5 + 3 + 2


def test_every_step_is_on_the_disk_before_it_runs(tmp_path):
    model = helpers.private_line(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=4)
    )
    optimizer, unknown = model.optimizer, accounting.UnknownSampling()
    one = optimizer.next_entry
    callback = tf_dpfp.BackupAndRestore(tmp_path / "backup", save_freq=False)
    callback.set_model(model)

    def on_disk():
        journal = journal_lib.Journal(tmp_path / "backup.ledger")
        return {e.sampling: e.steps for e in journal.entries()}

    def begin(ahead):
        callback.set_params({"steps": ahead})
        callback.on_train_batch_begin(0)

    with counting.announced("fit", {}):
        callback.set_params({"steps": 2})
        callback.on_train_begin()
        # The third is beyond what was reserved.
        for step in (1, 2, 3):
            begin(ahead=50)
            assert on_disk() == {unknown: step}
            optimizer.ledger.add(one)
        # A call of others, of batches of which the size can't be told.
        model.steps_per_execution = 3
        claims = optimizer.claims(accounting.PoissonSampling(0.5), batch_size=8)
        with counting.announced("others", claims, drawn=True):
            optimizer.stamp()
        assert on_disk() == {unknown: 3 + 3}
        # It took more, as a compiled function may: the next batch tells.
        optimizer.ledger.add(dataclasses.replace(one, steps=7))
        begin(ahead=50)
        assert on_disk() == {unknown: 3 + 7 + 3}


def test_steps_of_an_epoch_that_was_not_saved_are_counted(tmp_path):
    _killed(tmp_path, 1, 0)
    model, truth = killed_saves.train(tmp_path, epochs=2)
    assert truth.at_start == (3, 3)
    # The epoch that was interrupted runs again.
    assert killed_saves.counted(model) == truth.steps() == 3 + STEPS
    [entry] = tf_dpfp.ledger(model)
    assert entry.sampling.sampling_rate == 8 / 64


def test_a_machine_that_crashed_counts_what_was_reserved(tmp_path, monkeypatch):
    _killed(tmp_path, 1, 0)
    monkeypatch.setattr(journal_lib, "_boot", lambda: "another")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, truth = killed_saves.train(tmp_path, epochs=1)
    assert truth.at_start == (2 * STEPS, 3)


def test_budgets_hold_over_kills(tmp_path):
    delta = 1e-3
    model = killed_saves.make_model()
    batches = tf_dpfp.poisson_batches(
        killed_saves.X, killed_saves.Y, expected_batch_size=8
    )
    model.fit(batches, epochs=1, steps_per_epoch=7, verbose=0)
    allowed = tf_dpfp.compute_epsilon(model, delta)
    for epoch in range(10):
        budget = tf_dpfp.PrivacyBudget(allowed, delta)
        stop = _Stop(epoch, 0)
        try:
            killed_saves.train(
                tmp_path, callbacks=[budget, stop], delete_checkpoint=False
            )
        except killed_saves.Killed:
            continue
        except ValueError as error:
            assert "does not allow" in str(error)
        break
    assert (tmp_path / "truth").stat().st_size == 7


def test_the_end_of_a_training_deletes_both(tmp_path):
    killed_saves.train(tmp_path, epochs=1)
    assert os.listdir(tmp_path) == ["truth"]
    _, truth = killed_saves.train(tmp_path, epochs=1)
    assert truth.at_start == (0, STEPS)
    killed_saves.train(tmp_path, epochs=1, delete_checkpoint=False)
    _, truth = killed_saves.train(tmp_path, epochs=1, delete_checkpoint=False)
    # Everything was done already.
    assert truth.at_start[0] == STEPS and truth.steps() == 3 * STEPS


@pytest.mark.parametrize("save_freq, saves", [(1, 4), (3, 1), (False, 0)])
def test_save_freq_counts_batches(tmp_path, save_freq, saves):
    kill = killed_saves.KillInSave(None)
    killed_saves.train(tmp_path, kill, epochs=2, save_freq=save_freq)
    assert kill.saves == saves


def test_weights_and_epoch_are_restored(tmp_path):
    _killed(tmp_path, 2, 0)
    seen = []

    class See(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append((epoch, int(self.model.optimizer.iterations)))
            raise killed_saves.Killed

    with pytest.raises(killed_saves.Killed):
        killed_saves.train(tmp_path, callbacks=[See()])
    assert seen == [(2, 2 * STEPS)]


@pytest.mark.parametrize("double_checkpoint", [False, True])
def test_a_backup_that_cannot_be_read_is_said(tmp_path, double_checkpoint):
    kwargs = {"double_checkpoint": double_checkpoint}
    _killed(tmp_path, 2, 0, **kwargs)
    latest = tmp_path / "backup" / "latest.weights.h5"
    latest.write_bytes(latest.read_bytes()[:100])
    if double_checkpoint:
        _, truth = killed_saves.train(tmp_path, epochs=1, **kwargs)
        assert truth.at_start == (2 * STEPS + 1, 2 * STEPS + 1)
    else:
        with pytest.raises(ValueError, match="keeps the count"):
            killed_saves.train(tmp_path, **kwargs)


def test_a_journal_that_cannot_be_read_is_said(tmp_path):
    _killed(tmp_path, 0, 0)
    (tmp_path / "backup.ledger" / "journal.json").write_text("{")
    with pytest.raises(ValueError, match="can't be read"):
        killed_saves.train(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"backup_dir": ""},
        {"backup_dir": "gs://bucket/backup"},
        {"backup_dir": "a", "save_freq": "batch"},
        {"backup_dir": "a", "save_freq": -1},
        {"backup_dir": "a", "save_freq": True},
    ],
)
def test_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match="Received"):
        backups.BackupAndRestore(**arguments)


def test_representations_are_counted_in_their_layer(tmp_path):
    x = np.ones((8, 3), np.float32)

    def run(*callbacks):
        clip = tf_dpfp.DPRepresentationClip(1.0, 2.0, labels="public")
        model = keras.Sequential(
            [keras.Input((3,)), clip, keras.layers.Dense(1)]
        )
        tf_dpfp.make_private(model)
        model.compile("sgd", loss="mse")
        backup = tf_dpfp.BackupAndRestore(tmp_path / "backup")
        model.fit(
            x,
            x[:, :1],
            batch_size=4,
            epochs=2,
            verbose=0,
            callbacks=[*callbacks, backup],
        )
        return killed_saves.counted(model)

    with pytest.raises(killed_saves.Killed):
        run(_Stop(1, 0))
    assert run() == 3 + 2


@pytest.mark.parametrize("kind", ["joint", "replicas"])
def test_other_ways_to_train_are_counted_over_a_kill(
    tmp_path, without_trial, kind
):
    del without_trial
    x = np.ones((8, 3), np.float32)
    is_joint = kind == "joint"

    def run(*callbacks):
        scope = (
            contextlib.nullcontext()
            if is_joint
            else replicas.strategy(2).scope()
        )
        with scope:
            middle = []
            if is_joint:
                clip = tf_dpfp.DPRepresentationClip(1.0, 2.0, labels="public")
                middle = [keras.layers.Dense(2), clip]
            model = keras.Sequential(
                [keras.Input((3,)), *middle, keras.layers.Dense(1)]
            )
            tf_dpfp.make_private(model)
            optimizer = tf_dpfp.DPSGD(
                0.1, noise_multiplier=1.0, expected_batch_size=4
            )
            model.compile(optimizer, loss="mse")
        model.fit(
            x,
            x[:, :1],
            batch_size=4,
            epochs=2,
            verbose=0,
            callbacks=[
                *callbacks,
                tf_dpfp.BackupAndRestore(tmp_path / "backup"),
            ],
        )
        return killed_saves.counted(model)

    with pytest.raises(killed_saves.Killed):
        run(_Stop(1, 0))
    assert run() == 3 + 2
