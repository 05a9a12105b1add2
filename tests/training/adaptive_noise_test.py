"""The noise of adaptive steps: that of the sums, and that of the counts."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers
from tests.oracles import reference
from tf_dpfp import clipping as clipping_lib

pytestmark = pytest.mark.usefixtures("without_trial")

CLIP, MULTIPLIER, EXPECTED = 0.4, 1.7, 5.0
WRONG = (0.98, 1.02, 1 / math.sqrt(2), math.sqrt(2), 0.5, 2.0)
INPUTS, WIDTH = 300, 450


def _silent_model(clipping, seed=None, **arguments):
    """Zero inputs, and a loss without a slope: whatever moves is noise."""
    model = keras.Sequential(
        [
            keras.Input((INPUTS,)),
            layers.Dense(WIDTH, kernel_initializer="zeros", name="first"),
            layers.Dense(WIDTH, kernel_initializer="zeros", name="second"),
        ],
        name="silent",
    )
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(
            1.0,
            l2_norm_clip=CLIP,
            noise_multiplier=MULTIPLIER,
            expected_batch_size=EXPECTED,
            clipping=clipping,
            seed=seed,
            microbatch_size=arguments.pop("microbatch_size", None),
        ),
        loss=lambda y_true, y_pred: tf.reduce_sum(0.0 * y_pred),
        **arguments,
    )
    return model


def _step(model, examples=6):
    """The noise of both layers, in units of the sums."""
    x = np.zeros((examples, INPUTS), np.float32)
    before = [v.numpy() for v in model.trainable_variables]
    model.train_on_batch(x, np.zeros((examples, WIDTH), np.float32))
    moves = [
        ((v.numpy() - b) * EXPECTED).astype(np.float64).ravel()
        for v, b in zip(model.trainable_variables, before, strict=True)
    ]
    return np.concatenate(moves[:2]), np.concatenate(moves[2:])


SIZES = np.array([(INPUTS + 1) * WIDTH, (WIDTH + 1) * WIDTH])


def _stated_scales(thresholds, multiplier, allocation):
    """What each layer's noise must be; written out for two groups."""
    a, b = thresholds
    if allocation == "global":
        return [multiplier * math.hypot(a, b)] * 2
    if allocation == "equal_budget":
        return [multiplier * math.sqrt(2) * a, multiplier * math.sqrt(2) * b]
    return [
        multiplier * math.sqrt(SIZES.sum() / SIZES[0]) * a,
        multiplier * math.sqrt(SIZES.sum() / SIZES[1]) * b,
    ]


@pytest.mark.parametrize(
    ("allocation", "rescale", "arguments"),
    [
        ("global", True, {}),
        ("global", False, {"jit_compile": True, "microbatch_size": 4}),
        ("equal_budget", True, {"microbatch_size": 4}),
        ("by_dimension", False, {}),
    ],
)
def test_the_noise_follows_the_thresholds(allocation, rescale, arguments):
    share = 0.4
    adaptive = tf_dpfp.clipping.Adaptive(
        initial={"silent/first": 0.1, "silent/second": 0.3},
        rescale=rescale,
        budget_share=share,
        # So that the thresholds of one step are not nearly those of the next.
        learning_rate=2.0,
    )
    model = _silent_model(
        tf_dpfp.PerLayer(thresholds=adaptive, noise_allocation=allocation),
        **arguments,
    )
    estimates = np.array([0.1, 0.3])
    first, second, seen = [], [], []
    for _ in range(3):
        thresholds = estimates
        if rescale:
            thresholds = CLIP * estimates / np.linalg.norm(estimates)
        scales = _stated_scales(
            thresholds, MULTIPLIER / math.sqrt(1 - share), allocation
        )
        for sample, noise, scale in zip(
            (first, second), _step(model), scales, strict=True
        ):
            sample.append(noise / scale)
        seen.append(estimates)
        stored = reference.estimates_of(model.optimizer)
        np.testing.assert_array_equal(stored[:2], stored[0])
        np.testing.assert_array_equal(stored[2:], stored[2])
        estimates = stored[[0, 2]]
    # Each step must tell the right scale from those next to it by itself:
    # thresholds of another step could be larger here and smaller there.
    assert np.min(np.ptp(np.log(seen), axis=0)) > 0.1
    for sample in (first, second):
        for noise in sample:
            helpers.assert_normal(noise, 1.0, (0.96, 1.04, *WRONG[2:]))
        helpers.assert_normal(np.concatenate(sample), 1.0, WRONG)


def _counting_optimizer(names, **arguments):
    """An optimizer, and groups of one variable each that counted nobody.

    The loss depends on the first variable only, so the rest costs no noise
    of its own, and there can be many.
    """
    variables = [
        keras.Variable(np.zeros(1, np.float32), name=name) for name in names
    ]
    shared = arguments.pop("shared", False)
    adaptive = tf_dpfp.clipping.Adaptive(
        learning_rate=1.0,
        initial=1.0,
        rescale=False,
        shared=shared,
        budget_share=arguments.pop("budget_share"),
    )
    optimizer = tf_dpfp.DPSGD(
        0.0,
        noise_multiplier=MULTIPLIER,
        # So large that no fraction leaves [0, 1].
        expected_batch_size=arguments.pop("expected"),
        clipping=tf_dpfp.PerLayer(thresholds=adaptive),
    )
    optimizer.build(variables)

    def clipped(estimate):
        groups = [
            clipping_lib.Group(name, (i,), 1.0, 1, estimate=estimate)
            for i, name in enumerate(names)
        ]
        return tf_dpfp.loops.ClippedGradients(
            sums=[tf.zeros([1])] + [None] * (len(names) - 1),
            variables=variables,
            groups=groups,
            regularization=[None] * len(names),
            counts=tf.zeros([len(names)]),
        )

    return optimizer, clipped


def _estimates_after_each_of(steps, optimizer, step):
    """Runs steps in one graph: the estimates after each, `(steps, n)`."""

    def body(index, found):
        step()
        (estimates,) = [
            v for v in optimizer.variables if v.name == "clip_estimates"
        ]
        return index + 1, found.write(index, estimates.value)

    @tf.function(autograph=False)
    def run():
        _, found = tf.while_loop(
            lambda index, _: index < steps,
            body,
            (0, tf.TensorArray(tf.float32, steps)),
        )
        return found.stack()

    return run().numpy().astype(np.float64)


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1e4), (0.5, 1e3)])
def test_the_noise_of_many_counts(share, expected):
    count, size = 1000, 480_000
    optimizer, clipped = _counting_optimizer(
        [f"v{i}" for i in range(count)], budget_share=share, expected=expected
    )
    grads = clipped(1.0)
    found = _estimates_after_each_of(
        size // count, optimizer, lambda: optimizer.apply(grads)
    )
    # estimate = exp(-(noise / expected + 1/2 - 1/2)), of an estimate of 1.
    noise = -np.log(found) * expected
    std = MULTIPLIER * math.sqrt(count) / (2.0 * math.sqrt(share))
    assert np.max(np.abs(noise)) < 0.4 * expected
    wrong = (*WRONG, math.sqrt(count), 1 / math.sqrt(count))
    helpers.assert_normal(noise, std, wrong)
    # Independent of each other, over groups and steps.
    flat = noise / std
    for lag in (1, 2):
        for a, b in ((flat[lag:], flat[:-lag]), (flat.T[lag:], flat.T[:-lag])):
            assert abs(np.mean(a * b)) < 6.0 / math.sqrt(size)


@pytest.mark.parametrize("shared", [False, True])
def test_the_noise_of_the_counts_of_a_model(shared):
    count, share, steps, expected = 3, 0.2, 3000, 200.0
    model = keras.Sequential(
        [keras.Input((2,)), *[layers.Dense(2) for _ in range(count)]]
    )
    tf_dpfp.make_private(model)
    adaptive = tf_dpfp.clipping.Adaptive(
        learning_rate=5.0, budget_share=share, shared=shared, rescale=False
    )
    model.compile(
        tf_dpfp.DPSGD(
            1e-3,
            noise_multiplier=MULTIPLIER,
            expected_batch_size=expected,
            clipping=tf_dpfp.PerLayer(thresholds=adaptive),
        ),
        loss="mse",
    )
    # Nobody is there: the true counts are zero.
    nobody = tf.zeros([0, 2])
    found = _estimates_after_each_of(
        steps,
        model.optimizer,
        lambda: model.optimizer.apply(
            tf_dpfp.loops.clipped_gradients(model, nobody, nobody)
        ),
    )
    path = np.vstack([np.full(count, count**-0.5), found[:, ::2]])
    noise = -np.diff(np.log(path), axis=0) / 5.0 * expected
    assert np.max(np.abs(noise)) < 0.4 * expected
    std = MULTIPLIER / (2.0 * math.sqrt(share))
    if shared:
        # One noise for all, of the sensitivity of one count.
        np.testing.assert_allclose(noise, noise[:, :1] * np.ones(3), atol=1e-3)
        noise = noise[:, 0]
    else:
        assert np.max(np.abs(np.corrcoef(noise.T) - np.eye(3))) < 0.15
        std *= math.sqrt(count)
    helpers.assert_normal(
        noise, std, (1 / math.sqrt(count), math.sqrt(count), *WRONG[2:])
    )


def test_sums_and_counts_draw_from_different_streams():
    # A group of one variable with one number: its noise and its count's.
    optimizer, clipped = _counting_optimizer(
        ["a", "b"], budget_share=0.5, expected=1e3
    )
    optimizer.learning_rate = 1.0
    sums, counts = [], []
    grads = clipped(1.0)
    kernel = grads.variables[0]
    for _ in range(60):
        kernel.assign([0.0])
        optimizer.apply(grads)
        sums.append(float(kernel.numpy()[0]))
        counts.append(np.log(reference.estimates_of(optimizer)))
    every = np.column_stack([sums, counts])
    assert np.max(np.abs(np.corrcoef(every.T) - np.eye(3))) < 0.6
