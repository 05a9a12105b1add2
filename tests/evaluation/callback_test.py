"""Evaluations at the ends of epochs, within the budget of a training."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import tf_dpfp
from tf_dpfp.evaluation import callback as callback_lib

pytestmark = pytest.mark.usefixtures("without_trial")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
DELTA = 1e-4


def _model(noise_multiplier=1.0):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, "softmax")])
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.5, noise_multiplier=noise_multiplier),
        "sparse_categorical_crossentropy",
    )
    return model


def _batches():
    return tf_dpfp.poisson_batches(
        X, Y, expected_batch_size=40, steps_per_epoch=5
    )


def _evaluations(model):
    return sum(
        entry.steps
        for entry in tf_dpfp.ledger(model)
        if isinstance(entry.release, tf_dpfp.accounting.Evaluation)
    )


class _Reads(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(dict(logs))


def test_logs_have_it_wherever_the_callback_stands_and_it_is_counted():
    model, reads = _model(), _Reads()
    evaluation = tf_dpfp.PrivateEvaluation(
        (X, Y), 10.0, every=2, loss_bound=2.0, num_examples=400
    )
    history = model.fit(
        _batches(), epochs=5, verbose=0, callbacks=[reads, evaluation]
    ).history
    assert len(history["private_accuracy"]) == 2 == _evaluations(model)
    assert ["private_loss" in logs for logs in reads.seen] == [
        *[False, True] * 2,
        False,
    ]
    assert [e.accuracy.value for e in evaluation.released] == history[
        "private_accuracy"
    ]


def test_early_stopping_keeps_the_best_epoch():
    model = _model()
    stopping = keras.callbacks.EarlyStopping(
        "private_accuracy", mode="max", patience=1, restore_best_weights=True
    )
    evaluation = tf_dpfp.PrivateEvaluation((X, Y), 300.0)
    model.fit(
        _batches(), epochs=30, verbose=0, callbacks=[stopping, evaluation]
    )
    # So much noise is no better than the best for long.
    assert _evaluations(model) == len(evaluation.released) < 30


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_a_budget_keeps_back_what_the_evaluation_costs(accountant):
    model = _model(4.0)
    budget = tf_dpfp.PrivacyBudget(2.0, DELTA, accountant)
    evaluation = tf_dpfp.PrivateEvaluation((X, Y), 4.0)
    history = model.fit(
        _batches(), epochs=100, verbose=0, callbacks=[budget, evaluation]
    ).history
    spent = tf_dpfp.compute_epsilon(model, DELTA, accountant)
    assert spent <= 2.0
    # The last epoch is evaluated, too, and epsilon in its logs is that.
    assert len(history["private_accuracy"]) == len(history["loss"]) < 100
    np.testing.assert_allclose(history["epsilon"][-1], spent)
    # No step more would fit with its evaluation.
    step = tf_dpfp.accounting.LedgerEntry(
        tf_dpfp.accounting.PoissonSampling(0.1), 4.0, 1
    )
    more = [*tf_dpfp.ledger(model), evaluation.next_entry, step]
    assert tf_dpfp.accounting.compute_epsilon(more, DELTA, accountant) > 2.0


def test_an_evaluation_that_does_not_fit_is_not_made():
    model = _model(4.0)
    evaluation = tf_dpfp.PrivateEvaluation((X, Y), 0.1)
    budget = tf_dpfp.PrivacyBudget(3.0, DELTA)
    # A list of Keras's own is not arranged.
    callbacks = keras.callbacks.CallbackList(
        [evaluation, budget], model=model, add_history=True
    )
    with pytest.raises(ValueError, match="does not allow the next"):
        model.fit(_batches(), epochs=3, verbose=0, callbacks=callbacks)
    evaluation.respect([budget])
    evaluation.set_model(model)
    evaluation.on_epoch_end(0, {})
    assert model.stop_training and not _evaluations(model)


class _CountsEntries:
    """A budget of so many kinds of entries."""

    def __init__(self, epsilon):
        self.epsilon = epsilon

    def epsilon_of(self, entries):
        return float(len(entries))


def test_every_budget_must_hold_what_was_spent_and_the_next():
    model = _model()
    model.build((None, 3))
    tf_dpfp.PrivateEvaluation((X, Y), 7.0).evaluate(model)
    evaluation = tf_dpfp.PrivateEvaluation((X, Y), 4.0)
    evaluation.set_model(model)
    for epsilons, fits in (
        ((1.0, 3.0), False),
        ((3.0, 1.0), False),
        ((2.0, np.inf), True),
    ):
        evaluation.respect([_CountsEntries(e) for e in epsilons])
        assert evaluation._fits() is fits


def test_what_is_planned_is_what_the_epochs_of_a_fit_will_add():
    evaluation = tf_dpfp.PrivateEvaluation((X, Y), 4.0, every=3)
    for first, last, steps in ((None, 9, 3), (3, 9, 2), (4, 5, 0), (5, 6, 1)):
        arguments = {"initial_epoch": first, "epochs": last}
        (entry,) = callback_lib.planned([evaluation], arguments)
        assert entry.steps == steps
        assert entry == dataclasses.replace(evaluation.next_entry, steps=steps)


def test_calibrated_noise_leaves_room_for_all_evaluations():
    model = _model("calibrate")
    budget = tf_dpfp.PrivacyBudget(2.0, DELTA)
    evaluation = tf_dpfp.PrivateEvaluation((X, Y), 10.0, every=2)
    history = model.fit(
        _batches(), epochs=6, verbose=0, callbacks=[evaluation, budget]
    ).history
    assert len(history["loss"]) == 6 and _evaluations(model) == 3
    assert 1.99 < tf_dpfp.compute_epsilon(model, DELTA) <= 2.0


@pytest.mark.parametrize("noise_multiplier", ["calibrate", 1.0])
def test_no_budget_holds_persons_and_examples_together(noise_multiplier):
    model = _model(noise_multiplier)
    persons = tf_dpfp.poisson_batches(
        X,
        Y,
        expected_batch_size=40,
        users=np.arange(400) // 2,
        max_examples_per_user=2,
    )
    budget = tf_dpfp.PrivacyBudget(2.0, DELTA)
    evaluation = tf_dpfp.PrivateEvaluation((X, Y), 10.0)
    by_person = tf_dpfp.PrivateEvaluation((X, Y), 10.0, users=X[:, 0])
    assert by_person.next_entry.release.unit == "person"
    assert by_person.next_entry.steps == 1
    with pytest.raises(ValueError, match="examples, and others persons"):
        model.fit(persons, verbose=0, callbacks=[evaluation, budget])
    assert not tf_dpfp.ledger(model)


def test_the_journal_of_a_backup_notes_it_before_it_is_made(tmp_path):
    model = _model()

    class Killed(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    backup = tf_dpfp.BackupAndRestore(tmp_path / "backup")
    evaluation = tf_dpfp.PrivateEvaluation((X, Y), 10.0)
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            _batches(),
            epochs=3,
            verbose=0,
            callbacks=[evaluation, Killed(), backup],
        )
    noted = [
        line
        for path in tmp_path.rglob("others")
        for line in path.read_text().split()
    ]
    assert noted
    resumed = _model()
    backup = tf_dpfp.BackupAndRestore(tmp_path / "backup")
    resumed.fit(_batches(), epochs=1, verbose=0, callbacks=[backup])
    assert _evaluations(resumed) >= 1
