"""Training by person: float64 oracle, sensitivity, ledger and refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.replicas import common
from tests.training import joined_rows
from tf_dpfp import accounting
from tf_dpfp import mechanisms
from tf_dpfp import sampling
from tf_dpfp.mechanisms import train_step

pytestmark = pytest.mark.usefixtures("without_trial")

PERSONS, PLACES = 4, 3
CLIP, CLASSES, SHAPES = (
    joined_rows.CLIP,
    joined_rows.CLASSES,
    joined_rows.SHAPES,
)
RNG = np.random.default_rng(0)


def _batch(kind, seed=0):
    """Persons with 3, 1, 2 and 0 examples, of very different size."""
    rng = np.random.default_rng(seed)
    shape = (PERSONS, PLACES, *SHAPES[kind])
    if kind == "tokens":
        x = rng.integers(0, 7, shape)
    else:
        x = rng.normal(size=shape).astype(np.float32)
    y = rng.integers(0, CLASSES, (PERSONS, PLACES))
    weight = rng.uniform(0.5, 2.0, (PERSONS, PLACES)).astype(np.float32)
    # One person far beyond the clip norm, one far below.
    weight[0] *= 20.0
    weight[2] *= 1e-3
    weight[1, 1:] = weight[2, 2:] = weight[3] = 0.0
    return sampling.PersonBatch(x, y, weight)


def _model(kind, **kwargs):
    return joined_rows.make_model(kind, PERSONS, **kwargs)


@pytest.mark.parametrize(
    "kind, clipping, compiled",
    [
        ("dense", "flat", True),
        ("dense", "per_layer", False),
        ("conv", "flat", False),
        ("tokens", "per_layer", False),
    ],
)
def test_sums_are_those_of_an_oracle(kind, clipping, compiled):
    model, batch = _model(kind, clipping=clipping), _batch(kind)
    gradients = joined_rows.summed_gradients(model, batch)
    norms = [np.sqrt(sum(np.sum(p**2) for p in g)) for g in gradients]
    assert max(norms) > 3 * CLIP and min(n for n in norms if n) < CLIP / 3
    owned = common.owned(model)
    groups = [
        (group.members, float(group.clip_norm))
        for group in model.optimizer.groups(owned)
    ]
    assert (len(groups) == 1) == (clipping == "flat")
    expected, _ = joined_rows.clipped(gradients, groups)
    found, _ = joined_rows.sums(model, batch, compiled)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_carriers_are_those_of_persons():
    model, batch = _model("rgp"), _batch("rgp")
    gradients = joined_rows.summed_gradients(model, batch)
    projected = joined_rows.projected(model, gradients)
    expected, _ = joined_rows.clipped(
        projected, [(range(len(projected[0])), CLIP)]
    )
    found, _ = joined_rows.sums(model, batch)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_counts_of_adaptive_clipping_are_of_persons():
    adaptive = tf_dpfp.clipping.Adaptive(initial=CLIP, rescale=False)
    model = _model("dense", clipping=tf_dpfp.PerLayer(thresholds=adaptive))
    batch = _batch("dense")
    gradients = joined_rows.summed_gradients(model, batch)
    _, counts = joined_rows.sums(model, batch)
    groups = model.optimizer.groups(common.owned(model))
    expected = []
    for group in groups:
        count = 0.0
        for parts in gradients[:3]:  # The last one has no example.
            norm = np.sqrt(sum(np.sum(parts[i] ** 2) for i in group.members))
            count += 0.5 if norm <= CLIP else -0.5
        expected.append(count)
    np.testing.assert_array_equal(counts, expected)


def test_micro_batches_keep_persons_together():
    batch = _batch("dense")
    whole, *several = (
        joined_rows.sums(_model("dense", microbatch_size=size), batch)[0]
        for size in (None, 1, 3)
    )
    for pieces in several:
        for a, b in zip(whole, pieces, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


NASTY = {
    "huge": (1e20, 0, 1.0),
    "aligned": (1.0, 0, 1e6),
    "not a number": (np.nan, 0, 1.0),
    "infinite": (np.inf, 0, 1.0),
    "label out of range": (1.0, 99, 1.0),
    "weight not a number": (1.0, 0, np.nan),
    "infinite weight": (1.0, 0, np.inf),
    "negative weight": (1.0, 1, -50.0),
}


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_a_person_moves_the_sum_by_at_most_the_clip_norm(clipping):
    model, batch = _model("dense", clipping=clipping), _batch("dense")
    run = tf.function(
        lambda *data: (
            train_step.clipped_gradients(
                mechanisms.gradients_of(model), sampling.PersonBatch(*data)
            ).sums
        ),
        autograph=False,
    )
    without, moved = run(*map(tf.constant, batch)), {}
    for first in NASTY:
        for second in ("aligned", "huge", "not a number"):
            x, y, weight = (part.copy() for part in batch)
            for place, name in enumerate((first, second, first)):
                size, label, w = NASTY[name]
                x[3, place], y[3, place], weight[3, place] = size, label, w
            found = run(*map(tf.constant, (x, y, weight)))
            moved[first, second] = np.sqrt(
                sum(
                    np.sum((np.float64(a) - np.float64(b)) ** 2)
                    for a, b in zip(found, without, strict=True)
                )
            )
    assert all(m <= CLIP * (1 + 1e-5) for m in moved.values()), moved
    # The bound is reached: three examples of one person, all alike.
    assert moved["aligned", "aligned"] > 0.99 * CLIP


def _data(examples=40, persons=12, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, 5)).astype(np.float32)
    return (
        x,
        rng.integers(0, CLASSES, examples),
        np.arange(examples) % persons,
    )


def _batches(**kwargs):
    x, y, users = _data()
    arguments = {
        "expected_batch_size": 4,
        "users": users,
        "max_examples_per_user": 3,
        "seed": 0,
    }
    return tf_dpfp.poisson_batches(x, y, **(arguments | kwargs))


NOISY = {"noise_multiplier": 1.3, "seed": 4, "expected_batch_size": None}


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_one_example_a_person_trains_as_by_example(clipping):
    x, y, _ = _data()
    models = []
    for persons in (False, True):
        model = _model("dense", clipping=clipping, **NOISY)
        extra = {"users": np.arange(40), "max_examples_per_user": 1}
        batches = tf_dpfp.poisson_batches(
            x,
            y,
            np.ones(40, np.float32),
            expected_batch_size=8,
            seed=0,
            **(extra if persons else {}),
        )
        model.fit(batches, verbose=0)
        models.append(model)
    for a, b in zip(*(m.get_weights() for m in models), strict=True):
        np.testing.assert_array_equal(a, b)
    of_examples, of_persons = map(tf_dpfp.ledger, models)
    assert of_examples[0].release == accounting.Sums()
    assert of_persons[0].release == accounting.PersonSums(1)
    assert of_examples[0].sampling == of_persons[0].sampling


def test_the_noise_that_fit_finds_is_that_of_persons():
    settings = {"noise_multiplier": "calibrate", "expected_batch_size": None}
    model = _model("dense", **settings)
    budget = tf_dpfp.PrivacyBudget(epsilon=3.0, delta=1e-3)
    model.fit(_batches(), epochs=2, verbose=0, callbacks=[budget])
    assert 2.997 <= tf_dpfp.compute_epsilon(model, 1e-3) <= 3.0
    noise = model.optimizer.noise_multiplier
    # Of 12 persons, though 40 examples would need less of it.
    assert noise == pytest.approx(
        tf_dpfp.calibrate_noise_multiplier(3.0, 1e-3, 4 / 12, 6), abs=1e-3
    )
    (entry,) = tf_dpfp.ledger(model)
    assert entry.release == accounting.PersonSums(3)
    assert (entry.steps, entry.noise_multiplier) == (6, noise)


def test_fit_counts_persons_and_says_so():
    model = _model("dense", **NOISY)
    model.compile(model.optimizer, joined_rows.loss(), metrics=["accuracy"])
    history = model.fit(
        _batches(),
        epochs=2,
        verbose=0,
        callbacks=[tf_dpfp.PrivacyBudget(epsilon=50.0, delta=1e-3)],
    )
    assert 0.0 <= history.history["accuracy"][-1] <= 1.0
    (entry,) = tf_dpfp.ledger(model)
    assert entry == accounting.LedgerEntry(
        accounting.PoissonSampling(4 / 12),
        1.3,
        6,
        seeded=True,
        release=accounting.PersonSums(3),
    )
    assert model.optimizer.expected_batch_size == 4
    by_example = accounting.LedgerEntry(entry.sampling, 1.3, 6)
    epsilon = tf_dpfp.compute_epsilon(model, 1e-3)
    assert epsilon == accounting.compute_epsilon([by_example], 1e-3)
    assert history.history["epsilon"][-1] == epsilon
    # The bound changes nothing: a person has one part of a step.
    assert epsilon == tf_dpfp.compute_epsilon(model, 1e-3, examples_per_user=9)
    words = " ".join(tf_dpfp.privacy_statement(model, 1e-3).split())
    for said in (
        "DP-SGD performed over 12 persons for 6 steps",
        "rate 0.333333 of persons, up to 3 examples of each",
        "User-level DP with add-or-remove-one adjacency",
        "Neighbours differ by one person with all of their examples",
        "puts each person into each step",
    ):
        assert said in words
    assert "No user-level" not in words


def test_units_that_differ_have_no_epsilon_without_a_bound():
    model = _model("dense", **NOISY)
    model.fit(_batches(), verbose=0)
    x, y, _ = _data()
    model.train_on_batch(x[:4], y[:4])
    assert len(tf_dpfp.ledger(model)) == 2
    assert tf_dpfp.compute_epsilon(model, 1e-3) == np.inf
    bounded = tf_dpfp.compute_epsilon(model, 1e-3, examples_per_user=4)
    entries = tf_dpfp.ledger(model)
    assert (
        max(
            accounting.compute_epsilon([e], 1e-3, examples_per_user=4)
            for e in entries
        )
        < bounded
        < np.inf
    )
    words = " ".join(tf_dpfp.privacy_statement(model, 1e-3).split())
    assert "Nothing is proved of both together" in words
    assert "infinite" in words


def _fitted(fitted, **way):
    model = _model("dense")
    model.compile(
        tf_dpfp.DPSGD(1.0, l2_norm_clip=CLIP, noise_multiplier=0.0),
        joined_rows.loss(),
        **fitted,
    )
    model.fit(_batches(steps_per_epoch=2, **way), verbose=0)
    return model.get_weights()


@pytest.fixture(scope="module")
def fitted_by_default():
    return _fitted({"jit_compile": False})


@pytest.mark.parametrize(
    "kwargs, fitted",
    [
        ({"padded": "static", "capacity": 8}, {"jit_compile": False}),
        ({"padded": "static", "capacity": 8}, {"jit_compile": True}),
        ({}, {"jit_compile": True}),
        ({}, {"run_eagerly": True}),
    ],
)
def test_every_way_of_fitting_gives_the_same(kwargs, fitted, fitted_by_default):
    found = _fitted(fitted, **kwargs)
    for a, b in zip(found, fitted_by_default, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_two_replicas_train_as_one():
    users = np.arange(common.EXAMPLES) % 17
    extra = {"users": users, "max_examples_per_user": 2}
    one, two = (common.private(n, tf_dpfp.DPSGD) for n in (1, 2))
    for model in (one, two):
        common.fit(model, common.batches(3.5, **extra), epochs=1)
    common.assert_equal_weights(one, two)
    assert tf_dpfp.ledger(one) == tf_dpfp.ledger(two)
    assert tf_dpfp.ledger(two)[0].release == accounting.PersonSums(2)


def test_custom_loops_clip_persons():
    fitted, looped = (_model("dense") for _ in range(2))
    fitted.fit(_batches(), verbose=0)

    @tf.function(reduce_retracing=True)
    def step(x, y, weight):
        looped.optimizer.apply(
            tf_dpfp.loops.clipped_gradients(looped, x, y, weight, persons=True)
        )

    batches = _batches()
    with tf_dpfp.loops.sampled_steps(looped, batches):
        for x, y, weight in batches:
            step(x, y, weight)
    for a, b in zip(fitted.get_weights(), looped.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert tf_dpfp.ledger(fitted) == tf_dpfp.ledger(looped)
    # Outside, of unknown sampling, and still of persons.
    step(*map(tf.constant, _batch("dense")))
    entry = tf_dpfp.ledger(looped)[-1]
    assert entry.sampling == accounting.UnknownSampling()
    assert entry.release == accounting.PersonSums(3)


def test_a_loop_that_clips_examples_of_persons_is_refused():
    model, batches = _model("dense"), _batches()
    step = tf.function(
        lambda x, y, w: model.optimizer.apply(
            tf_dpfp.loops.clipped_gradients(model, x, y, w)
        )
    )
    flat = sampling.flat(_batch("dense"))
    before = model.get_weights()
    with tf_dpfp.loops.sampled_steps(model, batches):
        with pytest.raises(RuntimeError, match="persons=True"):
            step(*flat)
        # Before the shapes of a batch of persons are met.
        with pytest.raises(RuntimeError, match="persons=True"):
            tf_dpfp.loops.clipped_gradients(model, *_batch("dense"))
    by_example = tf_dpfp.poisson_batches(*_data()[:2], expected_batch_size=4)
    with tf_dpfp.loops.sampled_steps(model, by_example):
        with pytest.raises(RuntimeError, match="every person"):
            tf_dpfp.loops.clipped_gradients(
                model, *_batch("dense"), persons=True
            )
    # Traced before any claim was there, and called under one.
    step(*flat)
    moved = model.get_weights()
    with tf_dpfp.loops.sampled_steps(model, batches):
        with pytest.raises(Exception, match="persons=True"):
            step(*flat)
    for a, b in zip(moved, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(before[0], moved[0])
    assert [e.steps for e in tf_dpfp.ledger(model)] == [1]


def test_refusals():
    model = _model("dense", **NOISY)
    for derived in (
        _batches().prefetch(1),
        _batches().map(lambda batch: batch),
        _batches().repeat(),
    ):
        with pytest.raises(ValueError, match="derived from batches of persons"):
            model.fit(derived, verbose=0)
    with pytest.raises(ValueError, match="`class_weight` is for batches"):
        model.fit(_batches(), class_weight={0: 2.0}, verbose=0)
    with pytest.raises(ValueError, match="`evaluate`, and the validation"):
        model.evaluate(_batches(), verbose=0)
    with pytest.raises(ValueError, match="needs the sample weights"):
        tf_dpfp.loops.clipped_gradients(
            model, *_batch("dense")[:2], persons=True
        )
    with pytest.raises(ValueError, match="as many places"):
        x, y, weight = _batch("dense")
        tf_dpfp.loops.clipped_gradients(
            model, x, y[:, :2], weight, persons=True
        )
    assert tf_dpfp.ledger(model) == []


def test_representations_and_gradients_of_persons_are_refused():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4),
            tf_dpfp.DPRepresentationClip(1.0, 2.0, labels="public"),
            layers.Dense(CLASSES),
        ]
    )
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), joined_rows.loss())
    for train in (
        lambda: model.fit(_batches(), verbose=0),
        lambda: tf_dpfp.loops.clipped_gradients(
            model, *_batch("dense"), persons=True
        ),
    ):
        with pytest.raises(ValueError, match="single examples, and nothing"):
            train()


def test_layers_that_mix_the_examples_of_a_person_are_refused():
    class Mixes(layers.Layer):
        def call(self, x):
            return x - keras.ops.mean(x, axis=0, keepdims=True)

    model = keras.Sequential(
        [keras.Input((5,)), Mixes(), layers.Dense(CLASSES)]
    )
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), joined_rows.loss())
    with pytest.raises(ValueError, match="Mixes|mixes"):
        model.fit(_batches(), verbose=0)
    assert tf_dpfp.ledger(model) == []


def test_validate_takes_batches_of_persons():
    model = _model("dense")
    assert tf_dpfp.validate(model, _batches()) == []


def test_the_ledger_of_persons_survives_saving(tmp_path):
    model = _model("dense", **NOISY)
    model.fit(_batches(), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    tf_dpfp.make_private(loaded)
    assert tf_dpfp.ledger(loaded) == tf_dpfp.ledger(model)
