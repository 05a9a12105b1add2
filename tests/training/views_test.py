"""Training on views of examples: oracle, sensitivity, ledger and refusals."""

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

EXAMPLES, VIEWS = 4, 3
CLIP, CLASSES, SHAPES = (
    joined_rows.CLIP,
    joined_rows.CLASSES,
    joined_rows.SHAPES,
)


def _batch(kind):
    """Views that differ, of examples with gradients of very different size."""
    rng = np.random.default_rng(0)
    shape = (EXAMPLES, VIEWS, *SHAPES[kind])
    x = rng.normal(size=shape).astype(np.float32)
    if kind == "tokens":
        x = rng.integers(0, 7, shape)
    y = np.repeat(rng.integers(0, CLASSES, EXAMPLES)[:, None], VIEWS, 1)
    weight = np.repeat([[20.0], [1.0], [1e-3], [0.0]], VIEWS, 1)
    return sampling.ViewBatch(x, y, weight.astype(np.float32))


def _model(kind, **kwargs):
    return joined_rows.make_model(kind, EXAMPLES, **kwargs)


def _mean_gradients(model, batch):
    """The mean over views of their gradients, in float64, by a tape."""
    return [
        [part / VIEWS for part in total]
        for total in joined_rows.summed_gradients(model, batch)
    ]


ADAPTIVE = tf_dpfp.PerLayer(
    thresholds=tf_dpfp.clipping.Adaptive(initial=CLIP, rescale=False)
)


@pytest.mark.parametrize(
    "kind, clipping, compiled",
    [
        ("dense", "flat", True),
        ("dense", ADAPTIVE, False),
        ("conv", "per_layer", False),
        ("tokens", "flat", False),
        ("rgp", "flat", False),
    ],
)
def test_sums_are_those_of_an_oracle(kind, clipping, compiled):
    model, batch = _model(kind, clipping=clipping), _batch(kind)
    gradients = _mean_gradients(model, batch)
    if kind == "rgp":
        gradients = joined_rows.projected(model, gradients)
    norms = [np.sqrt(sum(np.sum(p**2) for p in g)) for g in gradients]
    assert max(norms) > 3 * CLIP and min(n for n in norms if n) < CLIP / 3
    groups = [
        (group.members, float(group.clip_norm))
        for group in model.optimizer.groups(common.owned(model))
    ]
    assert (len(groups) == 1) == (clipping == "flat")
    expected, counts = joined_rows.clipped(gradients, groups)
    found, found_counts = joined_rows.sums(model, batch, compiled)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    if clipping is ADAPTIVE:
        np.testing.assert_array_equal(found_counts, counts)


def test_micro_batches_keep_views_together():
    batch = _batch("dense")
    whole, _ = joined_rows.sums(_model("dense"), batch)
    pieces, _ = joined_rows.sums(_model("dense", microbatch_size=3), batch)
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


NASTY = {
    "huge": (1e20, 1.0),
    "aligned": (1.0, 1e6),
    "not a number": (np.nan, 1.0),
    "infinite": (np.inf, 1.0),
    "weight not a number": (1.0, np.nan),
    "negative weight": (1.0, -50.0),
}


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_an_example_moves_the_sum_by_at_most_the_clip_norm(clipping):
    model, batch = _model("dense", clipping=clipping), _batch("dense")
    run = tf.function(
        lambda *data: (
            train_step.clipped_gradients(
                mechanisms.gradients_of(model), sampling.ViewBatch(*data)
            ).sums
        ),
        autograph=False,
    )
    without, moved = run(*map(tf.constant, batch)), {}
    for first in NASTY:
        for second in ("aligned", "huge", "not a number"):
            x, y, weight = (part.copy() for part in batch)
            for view, name in enumerate((first, second, first)):
                x[3, view], weight[3, view] = NASTY[name]
            found = run(*map(tf.constant, (x, y, weight)))
            moved[first, second] = np.sqrt(
                sum(
                    np.sum((np.float64(a) - np.float64(b)) ** 2)
                    for a, b in zip(found, without, strict=True)
                )
            )
    assert all(m <= CLIP * (1 + 1e-5) for m in moved.values()), moved
    # The bound is reached.
    assert moved["aligned", "aligned"] > 0.99 * CLIP


RNG = np.random.default_rng(1)
X, Y = (
    RNG.normal(size=(40, 5)).astype(np.float32),
    RNG.integers(0, CLASSES, 40),
)
NOISY = {"noise_multiplier": 1.3, "seed": 4, "expected_batch_size": None}


def _noisy(x):
    return x + 0.1 * keras.random.normal((5,))


def _batches(**kwargs):
    given = {"expected_batch_size": 4, "seed": 0, "multiplicity": VIEWS}
    return tf_dpfp.poisson_batches(X, Y, **(given | kwargs))


def test_copies_train_as_the_example_alone():
    models = []
    for kwargs in ({}, {"multiplicity": 1}):
        model = _model("dense", **NOISY)
        model.compile(model.optimizer, joined_rows.loss(), metrics=["accuracy"])
        weights = {0: 3.0}
        history = model.fit(_batches(**kwargs), verbose=0, class_weight=weights)
        models.append((model, history.history))
    (views, shown), (plain, expected) = models
    for a, b in zip(views.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for name in expected:
        np.testing.assert_allclose(shown[name], expected[name], rtol=1e-5)
    of_views, of_examples = (tf_dpfp.ledger(m)[0] for m in (views, plain))
    # The same noise, sampling and steps, and so the same epsilon.
    assert of_views.release == accounting.ViewSums(VIEWS)
    assert of_examples.release == accounting.Sums()
    epsilons = [tf_dpfp.compute_epsilon(m, 1e-3) for m in (views, plain)]
    assert epsilons[0] == epsilons[1]
    words = " ".join(tf_dpfp.privacy_statement(views, 1e-3).split())
    for said in (
        f"mean gradient of {VIEWS} views of each example clipped once",
        "Example-level DP",
        "DP-SGD performed over 40 examples for 10 steps",
        "one example with all of its views",
    ):
        assert said in words
    assert "views" not in tf_dpfp.privacy_statement(plain, 1e-3)
    card = tf_dpfp.privacy_card(views, 1e-3)
    assert "views of an example" in str(card.to_markdown())


def _fitted(fitted):
    model = _model("dense")
    model.compile(
        tf_dpfp.DPSGD(1.0, l2_norm_clip=CLIP, noise_multiplier=0.0),
        joined_rows.loss(),
        **fitted,
    )
    model.fit(_batches(steps_per_epoch=2, augment=_noisy), verbose=0)
    return model.get_weights()


@pytest.fixture(scope="module")
def fitted_by_default():
    return _fitted({"jit_compile": False})


@pytest.mark.parametrize(
    "fitted", [{"jit_compile": True}, {"run_eagerly": True}]
)
def test_every_way_of_fitting_gives_the_same(fitted, fitted_by_default):
    # The same draws and seeds; what is drawn for padding is left out.
    for a, b in zip(_fitted(fitted), fitted_by_default, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_number_of_views_may_change_from_fit_to_fit():
    model = _model("dense", **NOISY)
    kinds = []
    for views in (2, 1, VIEWS):
        model.fit(_batches(multiplicity=views, steps_per_epoch=1), verbose=0)
        kinds.append(tf_dpfp.ledger(model)[-1].release)
    users = {"users": np.arange(40) // 4, "max_examples_per_user": 3}
    batches = _batches(multiplicity=1, steps_per_epoch=1, **users)
    model.fit(batches, verbose=0)
    kinds.append(tf_dpfp.ledger(model)[-1].release)
    assert kinds == [
        accounting.ViewSums(2),
        accounting.Sums(),
        accounting.ViewSums(VIEWS),
        accounting.PersonSums(3),
    ]


def test_two_replicas_train_as_one():
    one, two = (common.private(n, tf_dpfp.DPSGD) for n in (1, 2))
    for model in (one, two):
        common.fit(model, common.batches(3.5, multiplicity=2), epochs=1)
    common.assert_equal_weights(one, two)
    assert tf_dpfp.ledger(one) == tf_dpfp.ledger(two)
    assert tf_dpfp.ledger(two)[0].release == accounting.ViewSums(2)


def test_custom_loops_clip_views_together():
    fitted, looped = (_model("dense") for _ in range(2))
    fitted.fit(_batches(), verbose=0)

    @tf.function(reduce_retracing=True)
    def step(x, y, weight):
        looped.optimizer.apply(
            tf_dpfp.loops.clipped_gradients(looped, x, y, weight, views=True)
        )

    batches = _batches()
    with tf_dpfp.loops.sampled_steps(looped, batches):
        for x, y, weight in batches:
            step(x, y, weight)
    for a, b in zip(fitted.get_weights(), looped.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert tf_dpfp.ledger(fitted) == tf_dpfp.ledger(looped)


def test_views_that_are_clipped_as_examples_are_refused():
    model, batches = _model("dense"), _batches()
    before = model.get_weights()
    flat = tuple(sampling.flat(_batch("dense")))
    with tf_dpfp.loops.sampled_steps(model, batches):
        with pytest.raises(RuntimeError, match="views=True"):
            clipped = tf_dpfp.loops.clipped_gradients(model, *flat)
            model.optimizer.apply(clipped)
    for derived in (
        batches.prefetch(1),
        batches.map(lambda batch: tuple(sampling.flat(batch))),
        batches.unbatch().batch(4).map(lambda batch: (batch.x, batch.y)),
    ):
        with pytest.raises(ValueError, match="derived from batches of views"):
            model.fit(derived, verbose=0)
    with pytest.raises(ValueError, match="as many views of each"):
        x, y, weight = _batch("dense")
        tf_dpfp.loops.clipped_gradients(model, x, y[:, :2], weight, views=True)
    with pytest.raises(ValueError, match="persons or of views"):
        tf_dpfp.loops.clipped_gradients(
            model, *_batch("dense"), persons=True, views=True
        )
    assert tf_dpfp.ledger(model) == []
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("optimizer", ["sgd", "private"])
def test_representations_of_views_are_refused(optimizer):
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4),
            tf_dpfp.DPRepresentationClip(1.0, 2.0, labels="public"),
            layers.Dense(CLASSES),
        ]
    )
    private = optimizer == "private"
    model.layers[0].trainable = private
    tf_dpfp.make_private(model)
    chosen = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0) if private else "sgd"
    model.compile(chosen, joined_rows.loss())
    with pytest.raises(ValueError, match="so of each view of an example"):
        model.fit(_batches(), verbose=0)
    if private:
        with pytest.raises(ValueError, match="so of each view of an example"):
            tf_dpfp.loops.clipped_gradients(model, *_batch("dense"), views=True)
