import math

import keras
import numpy as np
import pytest

import tf_dpfp
from tests import helpers

pytestmark = pytest.mark.usefixtures("without_trial")

X = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
DELTA = 1e-3


def _model(noise_multiplier=1.0, **kwargs):
    optimizer = tf_dpfp.DPSGD(0.01, noise_multiplier=noise_multiplier)
    return helpers.private_line(optimizer, **kwargs)


def _batches(steps=10):
    return tf_dpfp.poisson_batches(
        X, Y, expected_batch_size=10, steps_per_epoch=steps
    )


def _steps(model):
    return sum(entry.steps for entry in tf_dpfp.ledger(model))


def _affordable(epsilon, noise_multiplier=1.0):
    entry = tf_dpfp.accounting.LedgerEntry(
        tf_dpfp.accounting.PoissonSampling(10 / 500), noise_multiplier, 1
    )
    return tf_dpfp.accounting.max_steps([], [entry], epsilon, DELTA, "rdp")


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_training_stops_at_the_last_step_the_budget_allows(
    steps_per_execution, capsys
):
    budget = 0.9
    allowed = _affordable(budget)
    assert 5 < allowed < 95
    model = _model(steps_per_execution=steps_per_execution)
    callback = tf_dpfp.PrivacyBudget(budget, DELTA)
    model.fit(_batches(12), epochs=20, verbose=0, callbacks=[callback])
    assert tf_dpfp.compute_epsilon(model, DELTA) <= budget
    assert allowed - steps_per_execution < _steps(model) <= allowed
    # Nothing is left for another session: it ends as done, without a step.
    before = _steps(model)
    history = model.fit(_batches(), verbose=0, callbacks=[callback])
    assert history.history == {} and _steps(model) == before
    assert "reached its budget" in capsys.readouterr().out
    # Nothing of that is left behind.
    more = tf_dpfp.PrivacyBudget(5.0, DELTA)
    model.fit(_batches(4), verbose=0, callbacks=[more])
    assert _steps(model) == before + 4


@pytest.mark.parametrize(
    "other",
    [
        {"epsilon": 0.5},  # Exceeded by what ran.
        {"noise_multiplier": 0.5},  # No such step ran.
    ],
)
def test_what_is_not_done_is_refused(other):
    budget = 0.9
    model = _model()
    model.fit(
        _batches(100), verbose=0, callbacks=[tf_dpfp.PrivacyBudget(0.9, DELTA)]
    )
    before = _steps(model)
    if "noise_multiplier" in other:
        model.compile(tf_dpfp.DPSGD(0.01, **other), "mse")
    budget = tf_dpfp.PrivacyBudget(other.get("epsilon", 0.9), DELTA)
    with pytest.raises(ValueError, match="does not allow the next"):
        model.fit(_batches(), verbose=0, callbacks=[budget])
    assert _steps(model) == before


def test_an_ordinary_pipeline_is_told_of_sampling():
    budget = tf_dpfp.PrivacyBudget(0.9, DELTA)
    with pytest.raises(ValueError, match="pass the data set of .*itself"):
        _model().fit(_batches().prefetch(1), verbose=0, callbacks=[budget])


@pytest.mark.parametrize("steps_per_execution", [7, 20])
@pytest.mark.parametrize("epochs", [2, 3])
def test_calls_beyond_the_end_of_an_epoch_take_what_is_left(
    steps_per_execution, epochs
):
    # Two epochs of ten steps fit into the budget, and not one step more.
    entry = tf_dpfp.accounting.LedgerEntry(
        tf_dpfp.accounting.PoissonSampling(10 / 500), 1.0, 20
    )
    budget = tf_dpfp.accounting.compute_epsilon([entry], DELTA)
    model = _model(steps_per_execution=steps_per_execution)
    model.fit(
        _batches(10),
        epochs=epochs,
        verbose=0,
        callbacks=[tf_dpfp.PrivacyBudget(budget, DELTA)],
    )
    assert _steps(model) == 20


def test_calls_are_not_cut_off_where_the_data_go_on():
    # Keras's call takes all its fifteen steps, whatever an epoch is said to be.
    entry = tf_dpfp.accounting.LedgerEntry(
        tf_dpfp.accounting.PoissonSampling(10 / 500), 1.0, 14
    )
    budget = tf_dpfp.accounting.compute_epsilon([entry], DELTA)
    model = _model(steps_per_execution=15)
    with pytest.raises(ValueError, match="does not allow the next 15 step"):
        model.fit(
            _batches(100),
            epochs=4,
            steps_per_epoch=10,
            verbose=0,
            callbacks=[tf_dpfp.PrivacyBudget(budget, DELTA)],
        )
    assert _steps(model) == 0


def test_epsilon_reaches_callbacks_that_stand_before_the_budget(tmp_path):
    seen = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["epsilon"])

    log = tmp_path / "log.csv"
    path = str(tmp_path / "{epsilon:.3f}.weights.h5")
    model = _model()
    model.fit(
        _batches(3),
        epochs=2,
        verbose=0,
        callbacks=[
            [keras.callbacks.CSVLogger(log), Note()],
            keras.callbacks.ModelCheckpoint(path, save_weights_only=True),
            tf_dpfp.PrivacyBudget(3.0, DELTA),
        ],
    )
    header, first, last = log.read_text().split()
    at = header.split(",").index("epsilon")
    assert float(first.split(",")[at]) == seen[2]
    assert float(last.split(",")[at]) == seen[5]
    assert seen[5] == tf_dpfp.compute_epsilon(model, DELTA)
    assert (tmp_path / f"{seen[5]:.3f}.weights.h5").exists()


@pytest.mark.parametrize("when", ["on_train_batch_end", "on_epoch_begin"])
def test_steps_of_other_callbacks_count_as_what_they_are(when):
    # Of unknown sampling; the budget allows some 10 steps of that kind.
    budget, model = 60.0, _model(2.0)

    def step(number, logs=None):
        if number == 1:
            model.train_on_batch(X[:10], Y[:10])

    other = keras.callbacks.Callback()
    setattr(other, when, step)
    callback = tf_dpfp.PrivacyBudget(budget, DELTA)
    history = model.fit(
        _batches(5), epochs=3, verbose=0, callbacks=[callback, other]
    )
    shown = history.history["epsilon"][-1]
    assert shown == tf_dpfp.compute_epsilon(model, DELTA) <= budget


def test_no_step_follows_those_of_another_callback_that_spent_the_budget():
    model = _model()

    class Spend(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                model.train_on_batch(X[:10], Y[:10])

    callback = tf_dpfp.PrivacyBudget(1.0, DELTA)
    model.fit(_batches(), verbose=0, callbacks=[callback, Spend()])
    assert _steps(model) == 3 + 1


def test_a_step_before_an_epoch_that_spends_the_budget_is_told():
    model = _model()

    class Spend(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                model.train_on_batch(X[:10], Y[:10])

    callback = tf_dpfp.PrivacyBudget(1.0, DELTA)
    with pytest.raises(ValueError, match="have used up the budget"):
        model.fit(
            _batches(3), epochs=2, verbose=0, callbacks=[callback, Spend()]
        )
    assert _steps(model) == 3 + 1


def test_a_list_of_keras_works_as_it_is():
    model = _model()
    given = keras.callbacks.CallbackList(
        [tf_dpfp.PrivacyBudget(0.9, DELTA)],
        add_history=True,
        model=model,
        steps=100,
        epochs=1,
    )
    model.fit(_batches(100), verbose=0, callbacks=given)
    assert _steps(model) == _affordable(0.9)


def test_what_a_backup_restores_may_be_done(tmp_path, capsys):
    def run():
        model = _model()
        callbacks = [
            tf_dpfp.PrivacyBudget(0.9, DELTA),
            tf_dpfp.BackupAndRestore(
                str(tmp_path / "backup"), delete_checkpoint=False
            ),
        ]
        model.fit(_batches(50), epochs=3, verbose=0, callbacks=callbacks)
        return model

    first, again = run(), run()
    assert capsys.readouterr().out.count("reached its budget") == 1
    assert _steps(again) == _steps(first) == _affordable(0.9)
    np.testing.assert_equal(again.get_weights(), first.get_weights())


def test_earlier_sessions_count(tmp_path):
    budget = 0.9
    model = _model()
    model.fit(_batches(), verbose=0)
    model.save(tmp_path / "model.keras")
    again = tf_dpfp.make_private(
        keras.models.load_model(tmp_path / "model.keras")
    )
    again.fit(
        _batches(),
        epochs=30,
        verbose=0,
        callbacks=[tf_dpfp.PrivacyBudget(budget, DELTA)],
    )
    assert _steps(again) == _affordable(budget)


def test_epsilon_is_in_the_progress_bar_the_history_and_the_logs(capsys):
    seen = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(logs["epsilon"])

    model = _model()
    history = model.fit(
        _batches(5),
        epochs=2,
        verbose=1,
        callbacks=[tf_dpfp.PrivacyBudget(None, DELTA), Note()],
    )
    assert "epsilon: " in capsys.readouterr().out
    assert len(seen) == 10 and all(np.diff(seen) > 0)
    assert history.history["epsilon"] == [seen[4], seen[9]]
    assert seen[9] == tf_dpfp.compute_epsilon(model, DELTA)


def test_pld_is_shown_once_per_epoch():
    model = _model(noise_multiplier=4.0)  # A coarser grid does.
    callback = tf_dpfp.PrivacyBudget(3.0, DELTA, accountant="pld")
    history = model.fit(_batches(3), verbose=0, callbacks=[callback])
    assert history.history["epsilon"] == [
        pytest.approx(tf_dpfp.compute_epsilon(model, DELTA, "pld"), rel=1e-6)
    ]


def test_without_noise_epsilon_is_infinite_and_no_budget_is_enough():
    model = _model(noise_multiplier=0.0)
    with pytest.raises(ValueError, match="does not allow"):
        model.fit(
            _batches(),
            verbose=0,
            callbacks=[tf_dpfp.PrivacyBudget(100.0, DELTA)],
        )
    assert _steps(model) == 0
    history = model.fit(
        _batches(2),
        verbose=0,
        callbacks=[tf_dpfp.PrivacyBudget(math.inf, DELTA)],
    )
    assert history.history["epsilon"] == [math.inf]


def test_a_delta_of_one_over_the_examples_is_refused():
    model = _model()
    for batches in (_batches(), None):
        data = (batches,) if batches else (X, Y)
        with pytest.raises(ValueError, match="not below one over"):
            model.fit(
                *data,
                verbose=0,
                callbacks=[tf_dpfp.PrivacyBudget(3.0, 1 / 500)],
            )
    assert _steps(model) == 0


def test_a_costly_history_restored_after_the_budget_looked(tmp_path):
    path = tmp_path / "w.weights.h5"
    # Fixed batches have sensitivity 2: a plain Gaussian of multiplier 1.
    model = _model(noise_multiplier=2.0)
    model.fit(X, Y, batch_size=500, verbose=0)
    model.save_weights(path)

    class Restore(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.load_weights(path)

    again = _model()
    budget = 5.9
    assert tf_dpfp.compute_epsilon(model, DELTA) < budget
    again.fit(
        _batches(20),
        epochs=20,
        verbose=0,
        callbacks=[tf_dpfp.PrivacyBudget(budget, DELTA), Restore()],
    )
    assert tf_dpfp.compute_epsilon(again, DELTA) <= budget
    assert len(tf_dpfp.ledger(again)) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"epsilon": 0.0, "delta": DELTA},
        {"epsilon": -1.0, "delta": DELTA},
        {"epsilon": math.nan, "delta": DELTA},
        {"epsilon": 1.0, "delta": 0.0},
        {"epsilon": 1.0, "delta": 1.0},
        {"epsilon": 1.0, "delta": math.nan},
        {"epsilon": 1.0, "delta": DELTA, "accountant": "moments"},
    ],
    ids=str,
)
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError):
        tf_dpfp.PrivacyBudget(**arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [("delta", "1e-5"), ("delta", True), ("epsilon", "3"), ("epsilon", True)],
)
def test_text_and_booleans_are_no_numbers(name, value):
    arguments = {"epsilon": 3.0, "delta": DELTA} | {name: value}
    with pytest.raises(ValueError, match=f"Received: {name}={value!r}"):
        tf_dpfp.PrivacyBudget(**arguments)


def test_arguments_are_kept_as_python_floats():
    callback = tf_dpfp.PrivacyBudget(np.float32(3.0), np.float64(1e-5))
    assert type(callback.epsilon) is float
    assert type(callback.delta) is float


def test_config_round_trip():
    callback = tf_dpfp.PrivacyBudget(2.0, 1e-5, accountant="pld")
    again = tf_dpfp.PrivacyBudget(**callback.get_config())
    assert again.get_config() == callback.get_config()
