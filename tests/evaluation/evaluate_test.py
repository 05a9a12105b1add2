"""Private evaluations: what they release, and what ledgers count."""

import contextlib
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers
from tests.replicas import common
from tf_dpfp import mechanisms
from tf_dpfp import noise as noise_lib
from tf_dpfp.evaluation import data as data_lib
from tf_dpfp.evaluation import evaluate as evaluate_lib
from tf_dpfp.evaluation import settings as settings_lib
from tf_dpfp.evaluation import statistics
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.sampling import sources

RNG = np.random.default_rng(0)
COUNT = 300
X = RNG.normal(size=(COUNT, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DELTA = 1e-4


def _model(optimizer=None, middle=(), **kwargs):
    model = keras.Sequential(
        [keras.Input((5,)), *middle, layers.Dense(2, name="head")]
    )
    tf_dpfp.make_private(model)
    model.compile(
        optimizer or tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), LOSS, **kwargs
    )
    return model


def _clip_layer(**kwargs):
    return tf_dpfp.DPRepresentationClip(1.0, 2.0, labels="public", **kwargs)


def _row(model):
    (entry,) = [
        entry
        for entry in tf_dpfp.ledger(model)
        if isinstance(entry.release, tf_dpfp.accounting.Evaluation)
    ]
    return entry


def test_figures_are_those_of_keras_where_noise_is_small():
    model = _model(metrics=["accuracy"])
    loss, accuracy = model.evaluate(X, Y, verbose=0)
    found = tf_dpfp.evaluate_privately(
        model,
        (X, Y),
        noise_multiplier=1e-3,
        loss_bound=50.0,
        batch_size=77,
        groups=Y,
        group_values=[0, 1, 2],
    )
    np.testing.assert_allclose(found.accuracy.value, accuracy, atol=1e-4)
    np.testing.assert_allclose(found.loss.value, loss, atol=1e-2)
    np.testing.assert_allclose(found.num_examples.value, COUNT, atol=0.1)
    assert list(found.groups) == [0, 1, 2]
    right = model.predict(X, verbose=0).argmax(axis=1) == Y
    for value in (0, 1):
        group = found.groups[value]
        np.testing.assert_allclose(
            group.accuracy.value, right[Y == value].mean(), atol=1e-4
        )
        assert group.accuracy.low <= right[Y == value].mean()
    # A group without examples: nothing is known, and nothing fails.
    assert found.groups[2].num_examples.value < 0.1
    assert (found.groups[2].accuracy.low, found.groups[2].accuracy.high) == (
        0.0,
        1.0,
    )
    assert "accuracy" in str(found)


def test_leaving_out_one_example_moves_the_private_sum_by_at_most_one(
    monkeypatch,
):
    """Of the very sum that gets the noise, for each example and kind."""
    model = _model()
    x = X[:40].copy()
    x[0], x[1] = np.nan, 1e20
    groups = np.arange(40) % 5
    sums = []
    ordinary = evaluate_lib._private_sum

    def spied(*args):
        sums.append(ordinary(*args))
        return sums[-1]

    monkeypatch.setattr(evaluate_lib, "_private_sum", spied)

    def run(keep):
        tf_dpfp.evaluate_privately(
            model,
            (x[keep], Y[:40][keep]),
            noise_multiplier=1.0,
            loss_bound=0.5,
            groups=groups[keep],
            group_values=[0, 1, 2],
            batch_size=16,
        )
        return sums[-1]

    everything = run(np.ones(40, bool))
    moved = []
    for left_out in range(40):
        keep = np.arange(40) != left_out
        moved.append(np.linalg.norm(everything - run(keep)))
    assert max(moved) <= 1.0 + 1e-9
    assert max(moved) > 0.999


@pytest.mark.parametrize("batch_size", [2, 7])
@pytest.mark.parametrize("by_person", [False, True])
def test_the_private_sum_holds_each_that_takes_part_once(batch_size, by_person):
    taking_part, right, groups, users = np.array(
        [
            [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0],
            [0.5, 1.0, 1.0, 0.0, 1.0, 0.25, 1.0],
            [0, 0, 1, -1, 1, 0, 1],
            [0, 1, 0, 0, 1, 1, 2],
        ]
    )
    groups, users = groups.astype(int), users.astype(int)
    rows = np.stack([taking_part, right], 1).astype(np.float32)
    data = data_lib.Data(
        sources.make_source(rows), groups, users if by_person else None
    )
    layout = statistics.Layout(1, 2)
    found = evaluate_lib._private_sum(lambda x: x, data, layout, batch_size)
    wanted = 0.0
    for i in np.flatnonzero(taking_part):
        mine = (users == users[i]) & (taking_part > 0.0)
        vectors = layout.vectors(right[i : i + 1, None])
        wanted += layout.sums(vectors, groups[i : i + 1]) / (
            mine.sum() if by_person else 1
        )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_noise_is_that_of_the_row():
    """Many blocks of noise of one release, each entry with its deviation."""
    mechanism = mechanisms.mechanism_of(_model())
    release = settings_lib.Settings(7.0).release(by_person=False)
    layout = statistics.Layout(1, 20_000)
    one, other = (
        evaluate_lib._noise(
            mechanism, noise_lib.NoiseSource(), 0, layout, release
        )
        for _ in range(2)
    )
    assert one.shape == layout.shape
    helpers.assert_normal(one, 7.0, [0.9, 1.1])
    assert not np.allclose(one, other)


@pytest.mark.parametrize("secure", [False, True])
def test_no_digit_leaves_that_noise_does_not_reach(secure):
    """Of two guesses at a sum, the true one alone would leave noise."""
    deviation = 3.0
    key = noise_lib.SecureKey()
    if not secure:
        step = noise_lib.NoiseSource(None).next_step(tf.constant(0, tf.int64))
        key = noise_lib.NoiseSource.key_of(step, 0)
    noise = noise_lib.gaussian_noise([1000], deviation, key).numpy()
    noise = noise.astype(np.float64)
    assert np.abs(noise).max() < 8.0 * deviation
    digits = 2.0**30
    total = np.round(RNG.uniform(0.0, 1e5, 1000) * digits) / digits

    def are_noise(released, guess):
        rest = released - guess
        return np.mean(rest == np.float32(rest))

    other = total + 1.0 / 3.0
    in_clear = total + noise
    assert are_noise(in_clear, total) > 0.9 > 0.1 > are_noise(in_clear, other)
    released = evaluate_lib._released(total, noise, deviation)
    assert are_noise(released, total) < 0.1 > are_noise(released, other)


def test_every_sum_is_rounded_with_as_many_numbers_of_the_noise():
    """Ties that went to even steps would tell sums of integers apart."""
    deviation, step = 20.0, 2.0**-14
    # All float32 numbers of some steps, where noise is often found.
    noise = np.arange(16.0, 16.0 + 64 * step, 2.0**-19)
    for total in (0.0, 3.0, 0.3, 2.0**-20, 2.0**-15, -7.0):
        for sign in (1.0, -1.0):
            released = evaluate_lib._released(
                np.full(noise.shape, total), sign * noise, deviation
            )
            _, counts = np.unique(released, return_counts=True)
            # The first and the last step may be met in part.
            assert (counts[1:-1] == 32).all(), (total, sign)


def test_what_is_released_is_near_the_sum_however_great_it_is():
    # float32 numbers are 4 apart there: rounding to them would move two sums
    # that differ by one to a distance of four.
    total = 2.0**25 + np.arange(4.0)
    noise = np.float64(np.float32([0.1, -7.3, 2.2, 30.0]))
    released = evaluate_lib._released(total, noise, 4.0)
    np.testing.assert_allclose(released, total + noise, rtol=0, atol=2.0**-18)
    assert (released * 2.0**17 == np.round(released * 2.0**17)).all()
    np.testing.assert_array_equal(
        evaluate_lib._released(total, noise, 0.0), total + noise
    )


@pytest.mark.parametrize("kind", ["gradients", "representations", "joint"])
def test_every_mechanism_counts_it_by_its_own_adjacency(kind):
    middle = [layers.Dense(4, trainable=kind == "joint"), _clip_layer()]
    if kind == "gradients":
        model = _model()
    elif kind == "joint":
        model = _model(middle=middle)
    else:
        model = _model(optimizer=keras.optimizers.SGD(0.1), middle=middle)
    batch = (X[:32], Y[:32])
    model.train_on_batch(*batch)
    before = tf_dpfp.ledger(model)
    tf_dpfp.evaluate_privately(model, (X, Y), noise_multiplier=9.0)
    tf_dpfp.evaluate_privately(model, (X, Y), noise_multiplier=9.0)
    row = _row(model)
    assert (row.steps, row.noise_multiplier) == (2, 9.0)
    assert [e for e in tf_dpfp.ledger(model) if e != row] == before
    # By replacement an example moves the sum twice as far.
    effective = 9.0 if kind == "gradients" else 4.5
    gaussian = tf_dpfp.accounting.LedgerEntry(
        tf_dpfp.accounting.PoissonSampling(1.0), effective, 2
    )
    alone = tf_dpfp.accounting.compute_epsilon([gaussian], DELTA)
    adjacency = tf_dpfp.accounting.adjacency_of([*before, row])
    np.testing.assert_allclose(
        tf_dpfp.accounting.compute_epsilon([row], DELTA, "rdp", adjacency),
        alone,
    )
    assert tf_dpfp.compute_epsilon(model, DELTA) > (
        tf_dpfp.accounting.compute_epsilon(before, DELTA)
    )
    statement = tf_dpfp.privacy_statement(model, DELTA)
    assert "2 evaluations with noise multiplier 9" in statement
    # Training goes on, and the budget of both is kept.
    model.train_on_batch(*batch)
    assert _row(model).steps == 2


def test_it_is_counted_before_it_is_released(monkeypatch):
    model = _model()

    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_lib, "_noise", fails)
    with pytest.raises(KeyboardInterrupt):
        tf_dpfp.evaluate_privately(model, (X, Y), noise_multiplier=5.0)
    assert _row(model).steps == 1
    monkeypatch.undo()
    # And nothing is released where it can't be counted.
    mechanism = mechanisms.mechanism_of(model)
    drawn = []
    monkeypatch.setattr(evaluate_lib, "_noise", lambda *_: drawn.append(1))
    monkeypatch.setattr(
        type(mechanism.optimizer.ledger), "absorb", lambda *_: 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        tf_dpfp.evaluate_privately(model, (X, Y), noise_multiplier=5.0)
    assert not drawn


def test_what_is_refused_counts_nothing():
    model = _model()
    good = {"noise_multiplier": 5.0}
    batches = tf_dpfp.poisson_batches(X, Y, expected_batch_size=9)
    for data, kwargs, message in (
        (batches, good, "drawn at random"),
        ((X,), good, "needs labels"),
        ((X, Y), good | {"groups": Y}, "group_values"),
        ((X, Y), good | {"group_values": [1]}, "group_values"),
        (
            (X, Y),
            good | {"groups": Y[:3], "group_values": [0]},
            "one entry for each",
        ),
        (
            (X, Y),
            good | {"groups": Y, "group_values": [0, 0]},
            "each group once",
        ),
        (
            tf.data.Dataset.from_tensor_slices((X, Y)),
            good | {"users": Y},
            "examples of arrays",
        ),
        ((X, Y), {"noise_multiplier": -1.0}, "noise_multiplier"),
        ((X, Y), good | {"loss_bound": 0.0}, "loss_bound"),
        ((X, Y), good | {"confidence": 1.0}, "confidence"),
        ((X, Y), good | {"correct": 3}, "correct"),
    ):
        with pytest.raises(ValueError, match=message):
            tf_dpfp.evaluate_privately(model, data, **kwargs)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), "mse")
    with pytest.raises(ValueError, match="Nothing says what model"):
        tf_dpfp.evaluate_privately(model, (X, Y), **good)
    assert not tf_dpfp.ledger(model)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0))
    with pytest.raises(ValueError, match="without a loss"):
        tf_dpfp.evaluate_privately(model, (X, Y), **good, loss_bound=1.0)
    assert not tf_dpfp.ledger(model)
    ordinary = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    with pytest.raises(tf_dpfp.errors.NotPrivateError):
        tf_dpfp.evaluate_privately(ordinary, (X, Y), **good)


def test_two_threads_evaluate_with_other_noise_of_one_seed(monkeypatch):
    model, both, found = _model(), threading.Barrier(2), []
    mechanism = type(mechanisms.mechanism_of(model))
    entries = mechanism.entries

    def slow(self):
        before = entries(self)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(1.0)  # Until the other one knows its number as well.
        return before

    def evaluate():
        data = data_lib.read((X, Y), None, None, settings)
        found.append(evaluate_lib.evaluate(model, data, settings).accuracy)

    settings = settings_lib.checked(noise_multiplier=3.0, seed=5)
    evaluate()
    monkeypatch.setattr(mechanism, "entries", slow)
    threads = [threading.Thread(target=evaluate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # Of the same data and weights, so that only the noise differs.
    assert len({each.value for each in found}) == 3


def test_a_seed_repeats_a_run_and_never_another_release_of_it():
    def values(model):
        return [
            tf_dpfp.evaluate_privately(
                model, (X, Y), noise_multiplier=3.0, seed=5
            ).accuracy.value
            for _ in range(3)
        ]

    one, other = _model(), _model()
    other.set_weights(one.get_weights())
    released = values(one)
    assert len(set(released)) == 3
    assert values(other) == released
    assert _row(one).seeded
    assert "SEEDED" in tf_dpfp.privacy_statement(one, DELTA)


def test_keys_are_secret_or_of_evaluations_alone(monkeypatch):
    keys = []
    ordinary = noise_lib.gaussian_noise

    def spied(shape, deviation, key):
        keys.append(key)
        return ordinary(shape, deviation, key)

    monkeypatch.setattr(noise_lib, "gaussian_noise", spied)
    model = _model()
    assert not state_lib.state_of(model).has_released
    tf_dpfp.evaluate_privately(model, (X, Y), noise_multiplier=3.0, seed=5)
    # By which a search sees a model that was evaluated out of it.
    assert state_lib.state_of(model).has_released
    of_training = noise_lib.NoiseSource(5).next_step(tf.constant(0, tf.int64))
    assert int(keys[0]) != int(noise_lib.NoiseSource.key_of(of_training, 0))
    secure = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, secure=True)
    tf_dpfp.evaluate_privately(_model(secure), (X, Y), noise_multiplier=3.0)
    assert isinstance(keys[1], noise_lib.SecureKey)


def test_data_sets_public_numbers_and_no_noise():
    model = _model()
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    found = tf_dpfp.evaluate_privately(
        model, dataset.batch(7), noise_multiplier=0.0, num_examples=COUNT
    )
    right = model.predict(X, verbose=0).argmax(axis=1) == Y
    np.testing.assert_allclose(found.accuracy.value, right.mean(), atol=1e-6)
    assert found.num_examples.low == COUNT == found.num_examples.high
    assert found.loss is None
    assert tf_dpfp.compute_epsilon(model, DELTA) == np.inf


def test_persons_add_the_mean_of_their_examples(monkeypatch):
    users = np.arange(COUNT) // 3
    model = _model()
    batches = tf_dpfp.poisson_batches(
        X, Y, users=users, max_examples_per_user=3, expected_batch_size=20
    )
    model.fit(batches, epochs=1, verbose=0)
    with pytest.raises(ValueError, match="Give `users=`"):
        tf_dpfp.evaluate_privately(model, (X, Y), noise_multiplier=5.0)
    sums = []
    ordinary = evaluate_lib._private_sum

    def spied(*args):
        sums.append(ordinary(*args))
        return sums[-1]

    monkeypatch.setattr(evaluate_lib, "_private_sum", spied)

    def run(keep):
        return tf_dpfp.evaluate_privately(
            model,
            (X[keep], Y[keep]),
            noise_multiplier=1e-3,
            users=users[keep],
            groups=Y[keep],
            group_values=[0, 1],
        )

    found = run(np.ones(COUNT, bool))
    right = model.predict(X, verbose=0).argmax(axis=1) == Y
    np.testing.assert_allclose(found.accuracy.value, right.mean(), atol=1e-3)
    np.testing.assert_allclose(found.num_examples.value, 100, atol=0.1)
    # A person with all examples is left out, or with all but one.
    for user in range(5):
        run(users != user)
        assert np.linalg.norm(sums[0] - sums[-1]) <= 1.0 + 1e-9
    assert np.isfinite(tf_dpfp.compute_epsilon(model, DELTA))
    assert _row(model).release.unit == "person"
    fresh = _model()
    fresh.train_on_batch(X[:8], Y[:8])
    with pytest.raises(ValueError, match="Leave `users` out"):
        tf_dpfp.evaluate_privately(
            fresh, (X, Y), noise_multiplier=5.0, users=users
        )


@pytest.mark.parametrize(
    "users",
    [
        [1, "1"],
        [np.nan, np.nan],
        [None, None],
        np.array([2**24, 2**24 + 1], np.float32),
        [2**60, 2.0**60],
        np.array(["NaT", "NaT"], "datetime64[D]"),
    ],
)
def test_two_persons_are_never_taken_for_one(users):
    # Without the first of the two the mean would move by nearly 2.
    with pytest.raises((ValueError, TypeError), match="person"):
        tf_dpfp.PrivateEvaluation((X[:2], Y[:2]), 1.0, users=users)
    apart = tf_dpfp.PrivateEvaluation((X[:2], Y[:2]), 1.0, users=[2**60, 1.5])
    assert len(set(apart._data.users)) == 2


def test_saved_ledgers_hold_evaluations(tmp_path):
    model = _model()
    tf_dpfp.evaluate_privately(model, (X, Y), noise_multiplier=5.0)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = tf_dpfp.make_private(keras.saving.load_model(path))
    assert tf_dpfp.ledger(loaded) == tf_dpfp.ledger(model)


def test_a_model_of_replicas_is_evaluated_once():
    with common.strategy(2).scope():
        model = _model()
    found = tf_dpfp.evaluate_privately(model, (X, Y), noise_multiplier=1e-3)
    np.testing.assert_allclose(found.num_examples.value, COUNT, atol=0.1)
    assert _row(model).steps == 1
