"""Replicas on several devices each."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.replicas import common
from tests.training import crossings
from tf_dpfp.clipping import clipped_sum
from tf_dpfp.distribute import copies


class OnDevices(layers.Layer):
    """A chain of layers, of every replica on a device of its own."""

    def __init__(self, chain, devices, **kwargs):
        super().__init__(**kwargs)
        self.chain, self.devices = chain, devices

    def build(self, input_shape):
        with tf_dpfp.distribute.on_devices(self.devices):
            for layer in self.chain:
                layer.build(input_shape)
                input_shape = layer.compute_output_shape(input_shape)

    def call(self, x):
        with tf_dpfp.distribute.on_devices(self.devices):
            for layer in self.chain:
                x = layer(x)
            return x


# The two replicas' devices for the first piece, and for the second.
FIRST, SECOND = ("CPU:0", "CPU:1"), ("CPU:2", "CPU:3")


def _in_pieces(places=(FIRST, SECOND)):
    return keras.Sequential(
        [
            keras.Input((common.FEATURES,)),
            OnDevices([layers.Dense(19, "tanh"), layers.Dense(23)], places[0]),
            OnDevices(
                [
                    layers.Dense(29, "tanh", kernel_regularizer="l2"),
                    layers.Dense(common.CLASSES),
                ],
                places[1],
            ),
        ]
    )


@pytest.mark.parametrize(
    "microbatch_size, thresholds",
    [
        (3, {"CPU:0": 0.1, "CPU:2": 0.08**0.5}),
        (None, tf_dpfp.clipping.Adaptive(rescale=False)),
    ],
    ids=["given", "adaptive"],
)
def test_pieces_on_two_replicas_train_as_on_one(microbatch_size, thresholds):
    settings = {
        "clipping": tf_dpfp.clipping.PerDevice(thresholds=thresholds),
        "microbatch_size": microbatch_size,
    }
    models = [common.private(n, make=_in_pieces, **settings) for n in (1, 2)]
    models.append(common.private(1, make=_in_pieces))
    for model in models:
        common.fit(model, common.batches(expected=5.0), epochs=1)
    one, several, flat = models
    common.assert_equal_weights(one, several)
    assert any(
        np.abs(a - b).max() > 1e-3
        for a, b in zip(flat.get_weights(), one.get_weights(), strict=True)
    )
    assert tf_dpfp.ledger(one) == tf_dpfp.ledger(several)
    names = [list(tf_dpfp.clip_norms(m)) for m in (one, several)]
    assert names == [["CPU:0", "CPU:2"]] * 2, names
    common.assert_equal_thresholds(one, several)


def test_the_noise_of_a_piece_goes_by_its_own_threshold():
    width, expected, multiplier = 450, 5.0, 1.7
    chosen = {"CPU:0": 0.3, "CPU:2": 0.4}

    def make():
        model = keras.Sequential([keras.Input((width,))])
        for places in (FIRST, SECOND):
            dense = layers.Dense(width, kernel_initializer="zeros")
            model.add(OnDevices([dense], places))
        return model

    zeros = np.zeros((6, width), np.float32)
    data = tf.data.Dataset.from_tensors((zeros, zeros))
    model = common.private(
        2,
        tf_dpfp.DPSGD,
        make,
        compiled={"loss": lambda y_true, y_pred: tf.reduce_sum(0.0 * y_pred)},
        l2_norm_clip=0.5,
        noise_multiplier=multiplier,
        expected_batch_size=expected,
        clipping=tf_dpfp.clipping.PerDevice(thresholds=chosen),
    )
    common.fit(model, data, epochs=1)
    weights = [np.float64(w) / 0.05 for w in model.get_weights()]
    for threshold, pair in zip(
        chosen.values(), (weights[:2], weights[2:]), strict=True
    ):
        scale = multiplier * math.sqrt(2) * threshold / expected
        common.assert_scale_one(
            np.concatenate([w.ravel() for w in pair]) / scale, 2
        )
    kernels = [weights[0].ravel(), weights[2].ravel()]
    assert abs(np.corrcoef(kernels)[0, 1]) < 5 / width


@pytest.mark.parametrize("settings", [{}, {"microbatch_size": 2}], ids=str)
def test_only_noised_sums_leave_the_pieces_of_a_replica(settings):
    model = common.private(
        2,
        make=_in_pieces,
        noise_multiplier=1.0,
        clipping="per_device",
        **settings,
    )
    step = crossings.of_step(
        lambda: common.fit(model, common.batches(steps_per_epoch=1), epochs=1)
    )
    replica = {d: n for n in (0, 1) for d in (FIRST[n], SECOND[n])}
    for found in step.crossings:
        assert "examples" not in found.carries, found
        within = replica[found.source] == replica.get(found.to)
        if found.carries and not (within and settings):
            assert found.noised, found
    # Each piece's norms, and its noise, are where the piece is.
    for scope, operation in (
        (clipped_sum.EXAMPLES_SCOPE, None),
        (clipped_sum.SUM_SCOPE, None),
        ("", "StatelessRandomUniformFullIntV2"),
    ):
        devices = {
            device
            for device, operations in step.operations.items()
            for kind, names in operations.items()
            if operation in (None, kind)
            and any(scope in name for name in names)
        }
        assert devices == set(replica), (scope, operation, devices)


def test_state_of_a_piece_is_where_the_piece_is():
    settings = {"make": _in_pieces, "clipping": "per_device"}
    model = common.private(2, noise_multiplier=1.0, use_ema=True, **settings)
    common.fit(model, epochs=1)
    common.assert_same_bits(model, 2)
    for index, variable in enumerate(model.trainable_variables):
        names = [
            crossings.short(device)
            for state in [variable, *model.optimizer.variables]
            if variable.path.replace("/", "_") in state.path.replace("/", "_")
            for device in copies.devices_of(state.value)
        ]
        # The weight, two moments and an average.
        assert names == list(FIRST if index < 4 else SECOND) * 4, names


@pytest.mark.parametrize("second", [("CPU:2", "CPU:1"), ("CPU:0", "CPU:2")])
def test_pieces_that_are_not_alike_on_all_replicas_are_refused(second):
    model = common.private(
        2,
        make=functools.partial(_in_pieces, (FIRST, second)),
        noise_multiplier=1.0,
        clipping="per_device",
    )
    common.refuses(model, "alike on every replica")


def test_copies_that_can_not_be_placed_are_refused():
    few = functools.partial(_in_pieces, (FIRST, ("CPU:2",)))
    with pytest.raises(
        ValueError, match="one device for each of the 2 replicas"
    ):
        common.private(2, make=few)

    # A TensorFlow that places copies where it likes.
    class Elsewhere(layers.Layer):
        def build(self, input_shape):
            with (
                tf.variable_creator_scope(
                    lambda create, **kwargs: create(
                        **(kwargs | {"colocate_with": None})
                    )
                ),
                tf_dpfp.distribute.on_devices(SECOND),
            ):
                self.add_weight(shape=(2,))

    with pytest.raises(RuntimeError, match="can't place copies"):
        with common.strategy(2).scope():
            Elsewhere().build((None, 2))
