"""Sums and steps, against the loop that clips each device."""

from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.clipping import placed
from tests.oracles import reference
from tests.training import crossings
from tf_dpfp.clipping import clipped_sum

pytestmark = pytest.mark.usefixtures("seeded", "without_trial")

CHOSEN = {"CPU:1": 0.3, "CPU:2": 0.4}
PAIRS = placed.indices(4, 4)


def _chosen(thresholds):
    return {"clipping": tf_dpfp.clipping.PerDevice(thresholds=thresholds)}


@pytest.mark.parametrize("devices", [placed.DEVICES, placed.THREE_DEVICES])
def test_sums_equal_the_loop_that_clips_each_device(devices):
    x, y = placed.data()
    count = len(devices)
    bound = placed.CLIP * count**0.5
    model = placed.private(placed.mlp(devices), l2_norm_clip=bound)
    groups, thresholds = placed.indices(*[4] * count), [placed.CLIP] * count
    gradients = placed.gradients(lambda: placed.mlp(devices), model, x, y)
    clipped = reference.norms(gradients, groups) > placed.CLIP
    assert np.all(clipped.any(axis=1)) and not np.any(clipped.all(axis=1))
    expected = reference.clipped_sums(gradients, groups, thresholds)
    placed.assert_close(placed.sums(model, x, y), expected)
    flat = reference.clipped_sums(gradients, [sum(groups, [])], bound)
    for a, b in zip(flat, expected, strict=True):
        assert np.max(np.abs(a - b)) > 0.01


def test_given_thresholds_go_by_the_name_of_the_device():
    x, y = placed.data()
    model = placed.private(placed.mlp(), **_chosen(CHOSEN))
    gradients = placed.gradients(placed.mlp, model, x, y)
    expected = reference.clipped_sums(gradients, PAIRS, [0.3, 0.4])
    placed.assert_close(placed.sums(model, x, y), expected)
    wrong = placed.private(placed.mlp(), **_chosen({"GPU:1": 0.5}))
    with pytest.raises(ValueError, match="CPU:1") as error:
        placed.groups(wrong)
    assert "GPU:1" in str(error.value)


def test_automatic_thresholds_scale_each_device():
    x, y = placed.data()
    model = placed.private(placed.mlp(), **_chosen("automatic"))
    stability = model.optimizer.clipping.thresholds.stability
    gradients = placed.gradients(placed.mlp, model, x, y)
    factors = reference.automatic_factors(
        reference.norms(gradients, PAIRS), [0.5 / 2**0.5] * 2, stability
    )
    expected = reference.sums(gradients, PAIRS, factors)
    placed.assert_close(placed.sums(model, x, y), expected)


@pytest.mark.parametrize("rescale", [True, False])
def test_adaptive_thresholds_follow_each_device(rescale):
    x, y = placed.data()
    adaptive = tf_dpfp.clipping.Adaptive(
        initial={"CPU:1": 0.6, "CPU:2": 0.2}, learning_rate=0.9, rescale=rescale
    )
    model = placed.private(placed.mlp(), **_chosen(adaptive))
    twin = reference.AdaptiveReference(
        adaptive, [0.6, 0.2], *placed.twin_arguments(placed.mlp, model, PAIRS)
    )
    sums = placed.compiled_sums(model)
    for _ in range(3):
        twin.take_weights(model)
        placed.assert_close(sums(x, y), twin.clipped_sum(x, y)[0])
        model.train_on_batch(x, y)
        twin.step(x, y)
        found = reference.estimates_of(model.optimizer)
        np.testing.assert_allclose(found, twin.of_each_variable(), rtol=1e-4)
    assert len({g.device for g in placed.groups(model)}) == 2


@pytest.mark.parametrize("microbatch_size, momentum", [(None, 0.9), (4, 0.0)])
def test_training_equals_the_loop(microbatch_size, momentum):
    x, y = placed.data()

    def build():
        return placed.mlp(kernel_regularizer=keras.regularizers.L2(0.05))

    model = placed.private(
        build(), momentum=momentum, microbatch_size=microbatch_size
    )
    twin = reference.Reference(
        *placed.twin_arguments(build, model, PAIRS, momentum)
    )
    for _ in range(3):
        model.train_on_batch(x, y)
        twin.step(x, y)
    twin.assert_weights_equal(model)


class Function(layers.Layer):
    """A layer whose call is a function that TensorFlow compiles by itself."""

    def build(self, input_shape):
        self.compiled = tf.function(lambda x: tf.sin(3.0 * x), autograph=False)

    def call(self, x):
        return self.compiled(x)

    def compute_output_shape(self, input_shape):
        return input_shape


def _with_functions():
    return keras.Sequential(
        [
            keras.Input((placed.FEATURES,)),
            placed.OnDevice(
                [layers.Dense(19, "tanh"), Function()], placed.DEVICES[0]
            ),
            placed.OnDevice(
                [Function(), layers.Dense(placed.CLASSES)], placed.DEVICES[1]
            ),
        ]
    )


def test_functions_inside_of_the_model_work():
    x, y = placed.data()
    model = placed.private(_with_functions(), l2_norm_clip=placed.CLIP)
    gradients = placed.gradients(_with_functions, model, x, y)
    expected = reference.clipped_sums(
        gradients, placed.indices(2, 2), [placed.CLIP / 2**0.5] * 2
    )
    placed.assert_close(placed.sums(model, x, y), expected)
    placed.assert_nothing_of_clipping_crosses(model, x, y)


@pytest.mark.parametrize("thresholds", [CHOSEN, "automatic"])
def test_one_example_moves_each_device_by_its_threshold(thresholds):
    rng = np.random.default_rng(1)
    model = placed.private(placed.mlp(), **_chosen(thresholds))
    limits = np.array([g.clip_norm for g in placed.groups(model)])
    sums = placed.compiled_sums(model)
    x, y = placed.data()
    without = sums(x, y)
    greatest = np.zeros(2)
    for scale in (1e-6, 1e-2, 1.0, 1e3, 1e18):
        more = rng.normal(size=(1, placed.FEATURES)) * scale
        more = np.concatenate([x, more.astype(np.float32)])
        found = sums(more, np.append(y, 0))
        moves = [np.float64(a - b) for a, b in zip(found, without, strict=True)]
        lengths = reference.norms([moves], PAIRS)[:, 0]
        # The difference of two sums is rounded.
        assert np.all(lengths <= limits + 1e-5), lengths
        greatest = np.maximum(greatest, lengths)
    assert np.all(greatest > 0.95 * limits), greatest


def test_eager_steps_clip_on_each_device():
    x, y = placed.data()
    model = placed.private(
        placed.mlp(), l2_norm_clip=placed.CLIP, run={"run_eagerly": True}
    )
    seen = []
    squared_norms = clipped_sum._squared_norms

    def noted(*args):
        norms = squared_norms(*args)
        seen.append(crossings.short(norms.device))
        return norms

    gradients = placed.gradients(placed.mlp, model, x, y)
    expected = reference.clipped_sums(
        gradients, PAIRS, [placed.CLIP / 2**0.5] * 2
    )
    before = model.get_weights()
    with mock.patch.object(clipped_sum, "_squared_norms", noted):
        model.train_on_batch(x, y)
    assert seen == list(placed.DEVICES), seen
    moves = [b - a for a, b in zip(model.get_weights(), before, strict=True)]
    placed.assert_close(moves, [0.7 / placed.EXPECTED * e for e in expected])
