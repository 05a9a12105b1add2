"""The noise of a device."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers
from tests.clipping import placed

pytestmark = pytest.mark.usefixtures("seeded", "without_trial")


@pytest.mark.parametrize("size", [None, 4])
def test_the_noise_of_a_device_goes_by_its_own_threshold(size):
    def build():
        return keras.Sequential(
            [
                keras.Input((300,)),
                # Large enough for the noise that XLA compiles.
                placed.OnDevice(
                    [layers.Dense(240, kernel_initializer="zeros")],
                    placed.DEVICES[0],
                ),
                placed.OnDevice(
                    [layers.Dense(150, kernel_initializer="zeros")],
                    placed.DEVICES[1],
                ),
            ]
        )

    chosen = {"CPU:1": 0.3, "CPU:2": 0.4}
    x = np.zeros((placed.BATCH, 300), np.float32)
    y = np.zeros((placed.BATCH, 150), np.float32)
    model = tf_dpfp.make_private(build())
    model.compile(
        tf_dpfp.DPSGD(
            1.0,
            l2_norm_clip=0.5,
            noise_multiplier=1.7,
            clipping=tf_dpfp.clipping.PerDevice(thresholds=chosen),
            expected_batch_size=placed.EXPECTED,
            microbatch_size=size,
        ),
        loss=lambda y_true, y_pred: tf.reduce_sum(0.0 * y_pred),
    )
    moves = []
    for _ in range(2):
        before = model.get_weights()
        model.train_on_batch(x, y)
        moves.append(
            [
                (a - b).astype(np.float64).ravel()
                for a, b in zip(model.get_weights(), before, strict=True)
            ]
        )
    for pair, threshold in (((0, 1), 0.3), ((2, 3), 0.4)):
        sample = np.concatenate([m[i] for m in moves for i in pair])
        scale = 1.7 * math.sqrt(2) * threshold / placed.EXPECTED
        # Of the bound, of the other device, of one group, and next to it.
        wrong = (
            0.5 / threshold / math.sqrt(2),
            (0.7 - threshold) / threshold,
            1 / math.sqrt(2),
            0.95,
            1.05,
        )
        helpers.assert_normal(sample, scale, wrong)
    kernels = [m[i][:36000] for m in moves for i in (0, 2)]
    for i, a in enumerate(kernels):
        for b in kernels[:i]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(36000)
