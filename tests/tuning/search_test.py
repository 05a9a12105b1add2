"""A search returns one model, and its ledger holds the whole search."""

import dataclasses
import gc
import traceback
import warnings
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy import stats

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp.independence import gradients as trial_lib
from tf_dpfp.keras_private import names as keras_names
from tf_dpfp.tuning import runs as runs_lib

pytestmark = pytest.mark.usefixtures("without_trial")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DELTA = 1e-4


def _build(
    lr=0.1, noise=1.0, optimizer=None, middle=(), metrics=None, **kwargs
):
    model = keras.Sequential([keras.Input((3,)), *middle, layers.Dense(2)])
    tf_dpfp.make_private(model)
    if optimizer is None:
        optimizer = tf_dpfp.DPSGD(lr, noise_multiplier=noise, **kwargs)
    model.compile(optimizer, LOSS, metrics=metrics)
    return model


def _fit(steps=2, **kwargs):
    batches = tf_dpfp.poisson_batches(
        X, Y, expected_batch_size=20, steps_per_epoch=steps
    )
    return {"x": batches, "epochs": 2, **kwargs}


def _score(**kwargs):
    return tf_dpfp.PrivateEvaluation((X, Y), 30.0, **kwargs)


def _search(build=_build, space=({"lr": 0.1}, {"lr": 0.0}), **kwargs):
    given = {
        "fit": _fit(),
        "score": _score(),
        "runs": "geometric",
        "expected_runs": 3,
    }
    return tf_dpfp.tuning.search(build, space, **(given | kwargs))


def _of_run(steps=4, noise=1.0):
    return [
        accounting.LedgerEntry(accounting.PoissonSampling(0.1), noise, steps),
        accounting.LedgerEntry(
            accounting.EveryExample(), 30.0, 1, release=accounting.Evaluation()
        ),
    ]


def _price(entries, runs="geometric", expected_runs=3):
    search = accounting.Search(runs, expected_runs)
    return accounting.compute_epsilon(
        [dataclasses.replace(e, search=search) for e in entries], DELTA
    )


def _draws(monkeypatch, count):
    monkeypatch.setattr(accounting.Search, "draw", lambda *_: count)


@pytest.mark.parametrize(
    ("runs", "count"), [("poisson", 0), ("logarithmic", 1), ("geometric", 2)]
)
def test_the_price_is_that_of_the_search_whatever_was_drawn(
    runs, count, monkeypatch
):
    _draws(monkeypatch, count)
    found = _search(runs=runs)
    assert tf_dpfp.compute_epsilon(found.model, DELTA) == _price(
        _of_run(), runs
    )
    rows = tf_dpfp.ledger(found.model)
    assert [dataclasses.replace(e, search=None) for e in rows] == _of_run()
    assert (found.score is None) == (count == 0)
    assert "SEARCH" in tf_dpfp.privacy_statement(found.model, DELTA)


def test_the_best_is_returned_and_nothing_of_the_others(monkeypatch, capsys):
    _draws(monkeypatch, 4)
    built, scores = [], iter([0.1, 0.7, np.nan, 0.7])
    kept = {}

    def build(lr):
        model = _build(lr)
        built.append(weakref.ref(model))
        return model

    def score(model):
        value = next(scores)
        # The second run: the fourth has the same score, later.
        if value == 0.7 and not kept:
            kept["weights"] = model.get_weights()
        warnings.warn(f"A run: {value}", stacklevel=1)
        return value

    evaluation = _score()
    stopping = keras.callbacks.EarlyStopping(
        "private_accuracy", mode="max", restore_best_weights=True, verbose=1
    )
    # What it prints would tell the number of runs, and how long each was.
    rates = keras.callbacks.LearningRateScheduler(lambda _, lr: lr, verbose=1)
    fit = _fit(callbacks=[evaluation, stopping, rates])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = _search(build, fit=fit, score=score, score_is_public=True)
    assert not any("A run" in str(each.message) for each in warned)
    assert found.score == 0.7
    for mine, other in zip(
        found.model.get_weights(), kept["weights"], strict=True
    ):
        np.testing.assert_array_equal(mine, other)
    gc.collect()
    # Two to plan, four runs, the returned one: only that is alive.
    assert len(built) == 7
    alive = [each() for each in built if each() is not None]
    assert alive == [found.model]
    assert evaluation.released == []
    assert stopping.best_weights is None and stopping.best is None
    assert not hasattr(found.model, "history") or not found.model.history
    output = capsys.readouterr()
    assert output.out == ""


def test_weights_of_metrics_do_not_come_along(monkeypatch):
    _draws(monkeypatch, 1)
    once = keras.metrics.SparseCategoricalAccuracy()

    def build(lr):
        model = _build(lr)
        model.compile(model.optimizer, LOSS, metrics=[once])
        return model

    named = _search(lambda lr: _build(lr, metrics=["accuracy"]))
    for found in (named, _search(build)):
        assert len(found.model.metrics) > 1
        for metric in (*found.model.metrics, once):
            for variable in metric.variables:
                assert not np.any(variable.numpy())


def test_candidates_are_drawn_alike_and_models_begin_apart(monkeypatch):
    _draws(monkeypatch, 400)
    seen, initial = [], []

    def run(self, candidate, plan):
        seen.append(candidate["lr"])
        return runs_lib.Outcome(candidate, 0.0, 0.0, [])

    def build(lr):
        model = _build(lr)
        initial.append(model.get_weights()[0].tobytes())
        return model

    monkeypatch.setattr(runs_lib.Runner, "run", run)
    monkeypatch.setattr(runs_lib, "put", lambda *_: None)
    _search(build, space={"lr": [0.0, 1.0, 2.0, 3.0]})
    counts = np.bincount(np.array(seen, int))
    assert counts.sum() == 400 and stats.chisquare(counts).pvalue > 1e-4
    # Whatever the global seed was, and not by it.
    keras.utils.set_random_seed(1)
    _search(build)
    keras.utils.set_random_seed(1)
    _search(build)
    assert len(set(initial)) == len(initial) == 5 + 3 + 3


def test_the_worst_candidate_is_charged_whichever_is_drawn(monkeypatch):
    _draws(monkeypatch, 0)
    found = _search(space={"noise": [1.0, 3.0, 0.9]})
    assert tf_dpfp.compute_epsilon(found.model, DELTA) == _price(
        _of_run(noise=0.9)
    )
    found = _search(
        space=[{"lr": 0.1}, {"lr": 0.2}], fit=lambda lr: _fit(int(lr * 50))
    )
    assert tf_dpfp.compute_epsilon(found.model, DELTA) == _price(
        _of_run(steps=20)
    )
    # One of less noise trains, and is charged what the other would cost.
    _draws(monkeypatch, 1)
    found = _search(space={"noise": [3.0, 3.0, 3.0, 0.9]})
    assert tf_dpfp.compute_epsilon(found.model, DELTA) == _price(
        _of_run(noise=0.9)
    )


def test_early_stopping_saves_nothing(monkeypatch):
    _draws(monkeypatch, 1)
    stopping = keras.callbacks.EarlyStopping(
        "private_accuracy", mode="max", patience=0
    )
    every = tf_dpfp.PrivateEvaluation((X, Y), 500.0)
    fit = _fit(callbacks=[every, stopping]) | {"epochs": 9}
    found = _search(fit=fit)
    rows = {e.noise_multiplier: e.steps for e in tf_dpfp.ledger(found.model)}
    # The score and the evaluations are of one kind: the least noise, all steps.
    assert rows == {1.0: 18, 30.0: 10}


@pytest.mark.parametrize("kind", ["representations", "joint", "persons"])
def test_every_mechanism_can_be_searched(kind, monkeypatch):
    # Of labels that all runs have in common there are two runs.
    _draws(monkeypatch, 2 if kind == "representations" else 1)
    fit, score = _fit(), _score()

    def build(lr):
        if kind == "persons":
            return _build(lr)
        noised = tf_dpfp.DPRepresentationClip(1.0, 2.0)
        joint = kind == "joint"
        return _build(
            lr,
            optimizer=None if joint else keras.optimizers.SGD(lr),
            middle=[layers.Dense(4, trainable=joint), noised],
        )

    if kind == "persons":
        users = np.arange(200) // 2
        batches = tf_dpfp.poisson_batches(
            X, Y, users=users, max_examples_per_user=2, expected_batch_size=20
        )
        fit, score = {"x": batches}, _score(users=users)
    else:
        labels = tf_dpfp.representations.randomize_labels(
            Y, epsilon=3.0, num_classes=2
        )
        batches = tf_dpfp.representations.stratified_batches(
            X, labels, draw_size=20
        )
        fit = {"x": batches}
    found = _search(build, fit=fit, score=score)
    rows = tf_dpfp.ledger(found.model)
    assert all(
        (e.search is None) == isinstance(e.release, accounting.Labels)
        for e in rows
    )
    assert 0.0 < tf_dpfp.compute_epsilon(found.model, DELTA) < np.inf
    before = tf_dpfp.compute_epsilon(found.model, DELTA)
    found.model.fit(batches, verbose=0)
    assert tf_dpfp.compute_epsilon(found.model, DELTA) > before


def test_correlated_noise_can_be_searched(monkeypatch):
    """The price holds what the noise of a run counts to begin."""
    _draws(monkeypatch, 2)
    batches = tf_dpfp.cyclic_poisson_batches(
        X, Y, expected_batch_size=20, steps_per_epoch=2
    )

    def build(lr=0.1):
        return _build(lr, correlated_noise=tf_dpfp.Banded(3))

    fit = {"x": batches, "epochs": 2}
    found = _search(build, fit=fit)
    (counted,) = (e for e in tf_dpfp.ledger(found.model) if e.steps > 1)
    assert counted.search is not None
    assert counted.release == accounting.BandedSums(3)
    assert (counted.steps, counted.rounds) == (4 + 2, 2)
    # As two steps at three times the rate.
    of_run = [
        accounting.LedgerEntry(accounting.PoissonSampling(0.3), 1.0, 2),
        _of_run()[1],
    ]
    epsilon = tf_dpfp.compute_epsilon(found.model, DELTA)
    assert epsilon == pytest.approx(_price(of_run))
    # And as a training without a search counts it.
    alone = build()
    alone.fit(**fit, verbose=0)
    assert list(tf_dpfp.ledger(alone)) == [
        dataclasses.replace(counted, search=None)
    ]


@pytest.fixture(scope="module")
def searched():
    """A model of a search of one run, to be saved and not to be trained."""
    with pytest.MonkeyPatch.context() as patched:
        _draws(patched, 1)
        patched.setattr(trial_lib, "check", lambda *_: True)
        return _search().model


@pytest.mark.parametrize("way", ["keras", "h5", "weights", "checkpoint"])
def test_saved_searches_keep_their_price(way, tmp_path, searched):
    model = searched
    price = tf_dpfp.compute_epsilon(model, DELTA)
    if way in ("keras", "h5"):
        path = tmp_path / f"model.{way}"
        model.save(path)
        loaded = tf_dpfp.make_private(keras.saving.load_model(path))
    elif way == "weights":
        model.save_weights(tmp_path / "model.weights.h5")
        loaded = _build()
        loaded.optimizer.build(loaded.trainable_variables)
        loaded.load_weights(tmp_path / "model.weights.h5")
    else:
        saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        path = saved.save(str(tmp_path / "checkpoint"))
        loaded = _build()
        loaded.optimizer.build(loaded.trainable_variables)
        tf.train.Checkpoint(model=loaded, optimizer=loaded.optimizer).restore(
            path
        )
    assert tf_dpfp.compute_epsilon(loaded, DELTA) == price
    assert tf_dpfp.ledger(loaded) == tf_dpfp.ledger(model)
    # Compiled anew, and loaded again: the search is counted once.
    loaded.compile(tf_dpfp.DPAdam(noise_multiplier=1.0), LOSS)
    assert tf_dpfp.compute_epsilon(loaded, DELTA) == price


def test_training_goes_on_within_a_budget_of_all(monkeypatch):
    _draws(monkeypatch, 1)
    model = _search().model
    price = tf_dpfp.compute_epsilon(model, DELTA)
    budget = tf_dpfp.PrivacyBudget(price + 0.3, DELTA)
    history = model.fit(
        **_fit() | {"epochs": 50}, verbose=0, callbacks=[budget]
    ).history
    spent = tf_dpfp.compute_epsilon(model, DELTA)
    assert price < spent <= price + 0.3
    assert history["epsilon"][-1] == spent
    more = [e for e in tf_dpfp.ledger(model) if e.search is None]
    assert len(more) == 1 and more[0].steps > 0


def test_what_a_model_had_released_before_is_counted_once(
    monkeypatch, tmp_path
):
    _draws(monkeypatch, 1)
    before = _build(noise=2.0)
    before.fit(**_fit(), verbose=0)
    path = tmp_path / "before.weights.h5"
    before.save_weights(path)

    def build(lr):
        model = _build(lr)
        model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
        return model

    found = _search(build)
    outside = [e for e in tf_dpfp.ledger(found.model) if e.search is None]
    assert outside == list(tf_dpfp.ledger(before))


def _not_compiled(lr):
    del lr
    return tf_dpfp.make_private(
        keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(budget=3.0), r"`budget` is tf_dpfp.PrivacyBudget.*3.0"),
        (dict(fit=(1, 2)), "`fit` is a dictionary.*tuple"),
        (dict(build=_not_compiled), "private and compiled.*is not compiled"),
        (dict(build=lambda lr: lr), "private and compiled.*float.*not private"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _search(**arguments)


@pytest.mark.parametrize("way", ["compiled", "batch", "evaluate"])
def test_models_that_build_trains_or_evaluates_are_refused(way):
    def build(lr):
        model = _build(lr)
        if way == "evaluate":
            tf_dpfp.evaluate_privately(model, (X, Y), noise_multiplier=9.0)
        elif way == "batch":
            model.train_on_batch(X[:20], Y[:20])
        else:
            # What the optimizer that is thrown away had counted.
            model.fit(**_fit(), verbose=0)
            model.compile(tf_dpfp.DPSGD(lr, noise_multiplier=1.0), LOSS)
        return model

    with pytest.raises(ValueError, match="which every run would do anew"):
        _search(build)


def test_no_name_tells_the_number_of_runs(monkeypatch):
    before, seen = keras_names.counters(), []
    for count in (0, 2):
        keras_names.set_counters(before)
        _draws(monkeypatch, count)
        model = _search(runs="poisson").model
        paths = [w.path for w in [*model.weights, *model.optimizer.variables]]
        made_next = layers.Dense(1).name
        seen.append((model.name, model.get_config()["layers"], paths))
        seen[-1] = str((*seen[-1], model.optimizer.name, made_next))
    assert seen[0] == seen[1]


def test_a_seed_repeats_the_draws_and_is_told(monkeypatch):
    seen = []

    def run(self, candidate, plan):
        seen.append(candidate["lr"])
        return runs_lib.Outcome(candidate, 0.0, 0.0, [])

    monkeypatch.setattr(runs_lib.Runner, "run", run)
    monkeypatch.setattr(runs_lib, "put", lambda *_: None)
    space = [{"lr": 0.1 * i} for i in range(6)]
    args = {"space": space, "runs": "poisson", "expected_runs": 20}
    one = _search(seed=3, **args)
    first = list(seen)
    seen.clear()
    _search(seed=3, **args)
    assert seen == first
    assert "SEEDED" in tf_dpfp.privacy_statement(one.model, DELTA)
    seen.clear()
    _search(**args)
    assert seen != first


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_fails_ends_the_search_and_keeps_nothing(error, monkeypatch):
    _draws(monkeypatch, 3)
    models, calls = [], []

    def score(model):
        models.append(weakref.ref(model))
        calls.append(1)
        if len(calls) == 2:
            raise error("no luck")
        return 1.0

    wrapped = RuntimeError if error is ValueError else error
    with pytest.raises(wrapped) as raised:
        _search(score=score, score_is_public=True)
    # What it says may be of an example.
    assert ("no luck" in str(raised.value)) == (error is KeyboardInterrupt)
    assert error.__name__ in repr(raised.value)
    assert raised.value.__cause__ is None and raised.value.__context__ is None
    # A debugger finds what the frames of an error hold.
    frames = [frame for frame, _ in traceback.walk_tb(raised.tb)]
    held = [value for frame in frames for value in frame.f_locals.values()]
    assert not any(isinstance(each, runs_lib.Outcome) for each in held)
    assert not any(isinstance(each, ValueError) for each in held)
    assert not any(isinstance(each, keras.Model) for each in held)


def test_a_run_that_releases_more_than_planned_is_no_run(monkeypatch):
    _draws(monkeypatch, 1)
    calls = []

    def fit(lr):
        calls.append(lr)
        return _fit(2 if len(calls) <= 2 else 3)

    with pytest.raises(RuntimeError, match="released more than was planned"):
        _search(fit=fit)


def test_a_budget_is_checked_before_the_first_run(monkeypatch):
    monkeypatch.setattr(runs_lib.Runner, "run", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match="The search costs epsilon="):
        _search(budget=tf_dpfp.PrivacyBudget(0.5, DELTA))
    monkeypatch.undo()
    _draws(monkeypatch, 0)
    found = _search(budget=tf_dpfp.PrivacyBudget(9.0, DELTA))
    assert tf_dpfp.compute_epsilon(found.model, DELTA) <= 9.0


def _shared():
    model = _build()
    return lambda lr: model


def _unbuilt(lr):
    model = keras.Sequential([layers.Dense(2)])
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(lr, noise_multiplier=1.0), LOSS)
    return model


REFUSED = {
    "no_noise": (
        {"score": tf_dpfp.PrivateEvaluation((X, Y), 0.0)},
        "adds no noise",
    ),
    "function": ({"score": lambda model: 0.0}, "score_is_public=True"),
    "no_score": ({"score": 3}, "`score` must be"),
    "seeded_score": ({"score": _score(seed=1)}, "must be independent"),
    "seeded_noise": (
        {"build": lambda lr: _build(lr, seed=1)},
        "must be independent",
    ),
    "seeded_batches": (
        {
            "fit": {
                "x": tf_dpfp.poisson_batches(
                    X, Y, expected_batch_size=9, seed=2
                )
            }
        },
        "must be independent",
    ),
    "shared": ({"build": _shared()}, "of an earlier run"),
    "ordinary": (
        {"build": lambda lr: keras.Sequential([layers.Dense(2)])},
        "private and compiled",
    ),
    "unbuilt": ({"build": _unbuilt}, "that is built"),
    "empty": ({"space": []}, "not empty"),
    "numbers": ({"space": [1, 2]}, "list of dictionaries"),
    "runs": ({"runs": "fixed"}, "runs"),
    "expected": ({"expected_runs": 2.5}, "expected_runs"),
    "logger": (
        {"fit": _fit(callbacks=[keras.callbacks.CSVLogger("x.csv")])},
        "may keep nothing of a run",
    ),
    "budget_in_a_run": (
        {"fit": _fit(callbacks=[tf_dpfp.PrivacyBudget(3.0, DELTA)])},
        "budget=tf_dpfp.PrivacyBudget",
    ),
    "stopping": (
        {"fit": _fit(callbacks=[keras.callbacks.EarlyStopping("loss")])},
        "without noise",
    ),
    "calibrated": (
        {"build": lambda lr: _build(lr, noise="calibrate")},
        "calibrate",
    ),
    "endless": (
        {"fit": {"x": iter([(X, Y)]), "epochs": 1}},
        "must be known before the first one",
    ),
    "units": ({"score": _score(users=np.arange(200))}, "protect examples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_accounted_for_is_refused_before_any_run(
    name, monkeypatch
):
    monkeypatch.setattr(runs_lib.Runner, "run", lambda *_: 1 / 0)
    kwargs, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        _search(**kwargs)


def test_ledgers_that_differ_before_are_refused(tmp_path):
    before = _build()
    before.train_on_batch(X[:9], Y[:9])
    before.save_weights(tmp_path / "before.weights.h5")

    def build(lr):
        model = _build(lr)
        if lr:
            model.optimizer.build(model.trainable_variables)
            model.load_weights(tmp_path / "before.weights.h5")
        return model

    with pytest.raises(ValueError, match="ledgers that differ"):
        _search(build)


def test_a_card_holds_the_search(monkeypatch):
    _draws(monkeypatch, 0)
    model = _search().model
    for accountant in ("rdp", "pld"):
        assert tf_dpfp.compute_epsilon(model, DELTA, accountant) == _price(
            _of_run()
        )
    attacks = accounting.membership_attacks(tf_dpfp.ledger(model))
    of_run = accounting.membership_attacks(_of_run())
    assert attacks.method == "rdp"
    assert all(
        whole > part
        for (_, whole), (_, part) in zip(
            attacks.rates, of_run.rates, strict=True
        )
    )
    model.fit(**_fit(), verbose=0)  # Of no search, and not said to be.
    card = tf_dpfp.privacy_card(model, DELTA)
    (tuning,) = card.fields["tuning"]
    of_a_run = f", in each run of search {tuning['identity']} |"
    rows = [line for line in str(card).splitlines() if "| no |" in line]
    assert [of_a_run in row for row in rows] == [True, True, False]
    assert (tuning["runs"], tuning["expected_runs"]) == ("geometric", 3)
