"""Automatic clipping: every gradient (nearly) as long as its threshold."""

import json
import math

import keras
import numpy as np
import pytest
from keras import layers

import tf_dpfp
from tests.oracles import reference

pytestmark = pytest.mark.usefixtures("without_trial")

CLIP, STABILITY = 0.6, 0.03


@pytest.mark.parametrize(
    "value", [0.0, -1.0, 1e-20, 1e30, math.nan, math.inf, "0.1", None, True]
)
def test_stability_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match="`stability` must be") as error:
        tf_dpfp.clipping.Automatic(stability=value)
    assert f"Received: stability={value!r}" in str(error.value)


@pytest.mark.parametrize("value", ["fair", 1.0, None])
def test_an_unknown_split_is_refused(value):
    with pytest.raises(ValueError, match="`split` must be"):
        tf_dpfp.clipping.Automatic(split=value)


@pytest.mark.parametrize(
    "automatic",
    [
        tf_dpfp.clipping.Automatic(),
        tf_dpfp.clipping.Automatic(stability=1e-3, split="by_dimension"),
        tf_dpfp.clipping.Automatic(split={"b": 3.0, "a": 4.0}),
    ],
    ids=str,
)
def test_serialization(automatic):
    config = keras.saving.serialize_keras_object(automatic)
    config = json.loads(json.dumps(config))
    assert keras.saving.deserialize_keras_object(config) == automatic


def _build():
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, "tanh", name="first"),
            layers.Dense(2, name="second"),
        ]
    )


def _model(clipping, microbatch_size=None):
    keras.utils.set_random_seed(2)
    model = tf_dpfp.make_private(_build())
    model.compile(
        tf_dpfp.DPSGD(
            0.1,
            l2_norm_clip=CLIP,
            noise_multiplier=0.0,
            expected_batch_size=5.0,
            clipping=clipping,
            microbatch_size=microbatch_size,
        ),
        loss="mse",
    )
    return model


def _data(count=6):
    rng = np.random.default_rng(3)
    # Gradients of all lengths, most of them shorter than the threshold.
    sizes = 10.0 ** np.linspace(-6, 2, count)[:, None]
    x = rng.normal(size=(count, 4)) * np.minimum(sizes, 3.0)
    return x.astype(np.float32), (rng.normal(size=(count, 2)) * sizes).astype(
        np.float32
    )


@pytest.mark.parametrize(
    ("clipping", "groups", "split"),
    [
        (
            tf_dpfp.Flat(
                thresholds=tf_dpfp.clipping.Automatic(stability=STABILITY)
            ),
            reference.flat_group,
            [CLIP],
        ),
        (
            tf_dpfp.PerLayer(
                thresholds=tf_dpfp.clipping.Automatic(
                    stability=STABILITY, split="by_dimension"
                )
            ),
            reference.layer_groups,
            [CLIP * math.sqrt(25 / 37), CLIP * math.sqrt(12 / 37)],
        ),
    ],
    ids=["flat", "per_layer"],
)
@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_sums_equal_the_loop(clipping, groups, split, microbatch_size):
    model = _model(clipping, microbatch_size)
    loop = reference.Reference(
        _build,
        model,
        keras.optimizers.SGD,
        groups,
        CLIP,
        5.0,
        lambda: {"loss": "mse"},
    )
    x, y = _data()
    gradients, _ = loop.gradients(x, y)
    norms = reference.norms(gradients, loop.groups)
    assert np.min(norms) < STABILITY < max(split) < np.max(norms)
    factors = reference.automatic_factors(norms, split, STABILITY)
    expected = reference.sums(gradients, loop.groups, factors)
    clipped = tf_dpfp.loops.clipped_gradients(model, x, y)
    assert clipped.counts is None
    for a, b in zip(clipped.sums, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_rows_that_do_not_count():
    model = _model(tf_dpfp.PerLayer(thresholds="automatic"), 4)
    x, y = _data()

    def sums(x, y, weights=None):
        clipped = tf_dpfp.loops.clipped_gradients(model, x, y, weights)
        return [s.numpy() for s in clipped.sums]

    without = sums(x[2:], y[2:])
    bad = y.copy()
    bad[0, 0], bad[1, 1] = np.nan, np.inf
    weights = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0], np.float32)
    for found in (sums(x, bad), sums(x, y, weights)):
        for a, b in zip(found, without, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    # Padding of the physical batch is a row of zeros, which has a gradient.
    assert np.any(sums(np.zeros_like(x[:1]), np.ones_like(y[:1]))[1] != 0.0)
    for a, b in zip(sums(x[:3], y[:3]), sums(x[:2], y[:2]), strict=True):
        assert np.linalg.norm(a - b) <= CLIP / math.sqrt(2)


def test_a_short_gradient_is_stretched_and_a_long_one_cut():
    model = _model(
        tf_dpfp.Flat(thresholds=tf_dpfp.clipping.Automatic(stability=STABILITY))
    )
    for size, expected in ((1e-6, 0.0), (1.0, CLIP), (1e10, CLIP)):
        x = np.ones((1, 4), np.float32)
        y = model(x).numpy() + size
        clipped = tf_dpfp.loops.clipped_gradients(model, x, y)
        length = np.sqrt(sum(np.sum(np.float64(s) ** 2) for s in clipped.sums))
        assert length < CLIP
        assert length == pytest.approx(expected, abs=0.05)
