import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp import auditing
from tf_dpfp import sampling

pytestmark = pytest.mark.usefixtures("without_trial")


def linear_model(**settings):
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(1, kernel_initializer="ones"),
        ]
    )
    tf_dpfp.make_private(model)
    settings = {"noise_multiplier": 0.0, "l2_norm_clip": 5.0, **settings}
    model.compile(tf_dpfp.DPSGD(0.5, **settings), loss="mse")
    return model


LEARNING_RATE = 1e-3
X = np.array([[1.0, 2.0], [0.5, -1.0], [0.0, 0.0]], np.float32)
Y = np.array([[0.0], [3.0], [0.5]], np.float32)


def clipped_sum(weights, clip=5.0):
    """In float64, example by example."""
    total = np.zeros(3)
    for x, y in zip(X.astype(float), Y[:, 0].astype(float), strict=True):
        inputs = np.append(x, 1.0)
        gradient = 2.0 * (inputs @ weights - y) * inputs
        total += gradient * min(1.0, clip / np.linalg.norm(gradient))
    return total


def test_what_is_recorded_is_the_released_sum_of_each_step():
    model = linear_model()
    recorder = auditing.ReleaseRecorder()
    model.fit(X, Y, batch_size=3, epochs=4, verbose=0, callbacks=[recorder])
    assert recorder.releases.shape == (4, 3)
    weights = np.array([1.0, 1.0, 0.0])
    for released in recorder.releases:
        expected = clipped_sum(weights)
        np.testing.assert_allclose(released, expected, atol=1e-3)
        weights -= 0.5 * expected / 3.0


def test_runs_start_over_and_the_ledger_goes_on():
    model = linear_model(noise_multiplier=1.0)
    model.optimizer.build(model.trainable_variables)
    recorder = auditing.ReleaseRecorder(restart_every=2)
    batches = tf.data.Dataset.from_tensors((X, Y)).repeat(7)
    model.fit(batches, shuffle=False, verbose=0, callbacks=[recorder])
    # The seventh step is half a run.
    assert recorder.releases.shape == (3, 2, 3)
    start = clipped_sum(np.array([1.0, 1.0, 0.0]))
    noise = recorder.releases[:, 0] - start
    # Fresh noise, around the sum at the same weights.
    assert np.max(np.abs(noise)) < 5.0 * 6.0
    assert len(np.unique(noise)) == 9
    assert sum(entry.steps for entry in tf_dpfp.ledger(model)) == 7
    # The next `fit` starts where this one did.
    assert int(model.optimizer.iterations.numpy()) == 0
    np.testing.assert_array_equal(model.get_weights()[0], [[1.0], [1.0]])


def test_the_ledger_of_a_layer_goes_on_under_ordinary_sgd():
    model = keras.Sequential(
        [
            keras.Input((2,)),
            tf_dpfp.DPRepresentationClip(1.0, 3.0, labels="public"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.5), loss="mse")
    recorder = auditing.ReleaseRecorder(restart_every=1)
    start = model.get_weights()[-2:]
    batches = tf.data.Dataset.from_tensors((X, Y)).repeat(4)
    model.fit(batches, shuffle=False, verbose=0, callbacks=[recorder])
    assert recorder.releases.shape == (4, 1, 3)
    assert len(np.unique(recorder.releases[..., 0])) == 4
    counted = [e.steps for e in model.layers[0].ledger_entries]
    model.fit(batches, shuffle=False, verbose=0, callbacks=[recorder])
    assert [e.steps for e in model.layers[0].ledger_entries] == [
        2 * count for count in counted
    ]
    for before, after in zip(start, model.get_weights()[-2:], strict=True):
        np.testing.assert_array_equal(before, after)


def test_schedules_are_read_before_each_step():
    model = linear_model()
    model.compile(
        tf_dpfp.DPSGD(
            keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.25]),
            noise_multiplier=0.0,
            l2_norm_clip=5.0,
        ),
        loss="mse",
    )
    recorder = auditing.ReleaseRecorder()
    model.fit(X, Y, batch_size=3, epochs=2, verbose=0, callbacks=[recorder])
    weights = np.array([1.0, 1.0, 0.0])
    for released, rate in zip(recorder.releases, (0.5, 0.25), strict=True):
        np.testing.assert_allclose(released, clipped_sum(weights), atol=1e-3)
        weights -= rate * clipped_sum(weights) / 3.0


@pytest.mark.parametrize(
    "optimizer, message",
    [
        (lambda: tf_dpfp.DPAdam(0.1, noise_multiplier=1.0), "DPAdam"),
        (
            lambda: tf_dpfp.DPSGD(0.1, momentum=0.9, noise_multiplier=1.0),
            "momentum",
        ),
        (
            lambda: tf_dpfp.DPSGD(0.1, weight_decay=0.1, noise_multiplier=1.0),
            "weight_decay",
        ),
    ],
)
def test_optimizers_that_hide_what_was_released_are_refused(optimizer, message):
    model = linear_model()
    model.compile(optimizer(), loss="mse")
    with pytest.raises(ValueError, match=message):
        model.fit(X, Y, verbose=0, callbacks=[auditing.ReleaseRecorder()])


def test_steps_that_can_not_be_told_apart_are_refused():
    model = linear_model()
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0),
        loss="mse",
        steps_per_execution=2,
    )
    with pytest.raises(ValueError, match="steps_per_execution=1"):
        model.fit(X, Y, verbose=0, callbacks=[auditing.ReleaseRecorder()])
    with pytest.raises(ValueError, match="restart_every=0"):
        auditing.ReleaseRecorder(restart_every=0)


def test_likelihood_scores_are_log_likelihood_ratios():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3, 2))
    signal, deviation, rate = 1.5, 0.7, 0.3

    def density(value, mean):
        return np.exp(-((value - mean) ** 2) / (2 * deviation**2))

    both = (1 - rate) * density(x, 0.0) + rate * density(x, signal)
    expected = np.log(both / density(x, 0.0)).sum(axis=1)
    found = auditing.likelihood_scores(x, signal, deviation, rate)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    always = np.log(density(x, signal) / density(x, 0.0)).sum(axis=1)
    np.testing.assert_allclose(
        auditing.likelihood_scores(x, signal, deviation), always, rtol=1e-9
    )


def test_spread_scores_see_what_noise_used_twice_hides():
    noise = np.array([[0.3], [-1.0]])
    steps = noise + np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    np.testing.assert_allclose(auditing.spread_scores(steps), [0.0, 1.0])


def test_dirac_audit_refuses_what_it_can_not_audit():
    used = linear_model().optimizer
    used.build([keras.Variable([0.0])])
    with pytest.raises(ValueError, match="built for another model"):
        auditing.dirac_audit(used)
    with pytest.raises(ValueError, match="steps=0"):
        auditing.dirac_audit(tf_dpfp.DPSGD(1.0, noise_multiplier=1.0), steps=0)


def test_dirac_audit_keeps_the_batch_size_and_counts_what_it_ran():
    optimizer = tf_dpfp.DPSGD(
        0.25, noise_multiplier=1.0, l2_norm_clip=0.5, expected_batch_size=64.0
    )
    report = auditing.dirac_audit(optimizer, runs=5, steps=2, delta=1e-3)
    assert optimizer.expected_batch_size == 64.0
    assert sum(entry.steps for entry in optimizer.ledger_entries) == 20
    assert report.adjacency == "add_or_remove" and len(report.scores) == 10
    # Two steps without sampling: a Gaussian mechanism of multiplier 1/sqrt 2.
    exact = accounting.compute_epsilon(
        [accounting.LedgerEntry(accounting.PoissonSampling(1.0), 0.5**0.5, 1)],
        1e-3,
        "pld",
    )
    assert report.claimed_epsilon == pytest.approx(exact, rel=1e-3)


def _audit_of_persons(noise_multiplier=2.0, **arguments):
    return auditing.dirac_audit(
        tf_dpfp.DPSGD(1.0, noise_multiplier=noise_multiplier, l2_norm_clip=0.5),
        runs=200,
        max_examples_per_user=8,
        delta=1e-5,
        **arguments,
    )


@pytest.mark.parametrize("layers", [1, 3])
def test_a_person_with_eight_examples_moves_a_step_by_one_clip_norm(layers):
    report = _audit_of_persons(noise_multiplier=0.5, layers=layers)
    assert not report.refuted
    said = "one person is added or removed, with all examples. Confidence"
    assert report.unit == "person" and said in str(report)
    # A shift of one clip norm moves the likelihood ratio by 1 / 0.5^2; the
    # difference of the means has a deviation of 0.2, so sqrt(2) is seen.
    apart = (
        report.scores[report.included].mean()
        - report.scores[~report.included].mean()
    )
    assert apart == pytest.approx(4.0, abs=1.0)


def test_the_audit_by_person_refutes_a_clip_of_single_examples(monkeypatch):
    draw = sampling.poisson_batches

    def by_example(*data, users, max_examples_per_user, **arguments):
        del users, max_examples_per_user
        return draw(*data, **arguments)

    monkeypatch.setattr(sampling, "poisson_batches", by_example)
    assert _audit_of_persons().refuted


def test_canaries_are_removed_without_changing_the_number_of_rows():
    x = {"a": np.ones((3, 2)), "b": np.zeros(3)}
    own = {"a": np.full((2, 2), 7.0), "b": np.ones(2)}
    inputs, labels, weights = auditing.insert_canaries(
        x, np.arange(3), own, np.array([8, 9]), np.array([True, False])
    )
    assert (
        inputs["a"].shape == (5, 2)
        and inputs["b"].tolist() == [0] * 3 + [1.0] * 2
    )
    assert labels.tolist() == [0, 1, 2, 8, 9]
    assert weights.tolist() == [1, 1, 1, 1, 0]


def test_unused_features_are_zero_for_everybody_else():
    x, own = auditing.unused_features(np.ones((2, 3)), 2, scale=4.0)
    assert x.tolist() == [[1, 1, 1, 0, 0]] * 2
    assert own.tolist() == [[0, 0, 0, 4, 0], [0, 0, 0, 0, 4]]


def fixed_batch_releases(noise_multiplier, runs, steps):
    """A model, and a function from rows to released sums.

    The sums are those of `runs` epochs over batches of two rows, unshuffled.
    """
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]
    )
    tf_dpfp.make_private(model)
    # The gradient is minus the input, whatever the weight.
    model.compile(
        tf_dpfp.DPSGD(
            LEARNING_RATE,
            l2_norm_clip=1.0,
            noise_multiplier=noise_multiplier,
            expected_batch_size=1.0,
            seed=3,
        ),
        loss=lambda y_true, y_pred: -keras.ops.sum(y_pred, axis=-1),
    )
    (weight,) = model.trainable_variables
    model.train_on_batch(np.zeros((1, 1)), np.zeros((1, 1)))

    # Traced once, for an odd number of rows, too.
    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec([None, 1], tf.float32)]
    )
    def epoch(x):
        released = []
        for i in range(steps):
            batch = x[2 * i : 2 * i + 2]
            before = tf.identity(weight.value)
            with tf.control_dependencies([before]):
                model.train_step((batch, batch))
            released.append((weight.value - before) / LEARNING_RATE)
        return tf.reshape(tf.stack(released), [-1])

    def releases(signs):
        x = tf.constant(10.0 * np.asarray(signs)[:, None], tf.float32)
        return np.stack([epoch(x).numpy() for _ in range(runs)])

    return model, releases


def test_a_row_left_out_of_fixed_batches_moves_each_sum_by_two_clip_norms():
    steps, runs, noise_multiplier = 4, 800, 2.8
    signs = np.zeros(2 * steps)
    signs[0::4], signs[2::4] = 1.0, -1.0
    model, releases = fixed_batch_releases(noise_multiplier, runs, steps)
    whole, ledger = releases(signs), tf_dpfp.ledger(model)
    shifted = releases(signs[1:])
    assert whole.shape == shifted.shape == (runs, steps)
    assert ledger[0].steps == 1 + runs * steps
    # Sums are +C, -C, ... with the first row, and -C, +C, ... without it,
    # but for the last batch, of one row.
    direction = np.where(np.arange(steps) % 2 == 0, 1.0, -1.0)
    scores = np.concatenate([whole @ direction, shifted @ direction])
    assert all(type(e.sampling) is accounting.UnknownSampling for e in ledger)
    entry = accounting.LedgerEntry(ledger[0].sampling, noise_multiplier, steps)

    def refuted(adjacency):
        return auditing.audit_scores(
            scores,
            np.arange(2 * runs) < runs,
            method="many_runs",
            delta=0.1,
            claimed_epsilon=lambda d: accounting.compute_epsilon(
                [entry], d, "pld", adjacency
            ),
            adjacency="add_or_remove",
        ).refuted

    # Sensitivity C, which holds for a row that is zeroed out in its place.
    assert refuted(accounting.Adjacency.ZERO_OUT)
    assert not refuted(None)
