"""Correlated noise of devices that clip and noise their own weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.clipping import placed
from tests.replicas import common
from tests.training import banded_runs as runs
from tf_dpfp.accounting import banded
from tf_dpfp.noise import chain as chain_lib

pytestmark = pytest.mark.usefixtures("without_trial")

BANDS, WIDTH = 3, 260
STRATEGY = banded.coefficients(BANDS, 10)


def _silent(**kwargs):
    """A model without gradients; each device has a kernel drawn in pieces."""
    model = keras.Sequential([keras.Input((3,))])
    for device, count in zip(placed.DEVICES, (2, 1), strict=True):
        chain = [
            layers.Dense(WIDTH, kernel_initializer="zeros")
            for _ in range(count)
        ]
        model.add(placed.OnDevice(chain, device))
    tf_dpfp.make_private(model)
    model.compile(
        runs.optimizer(BANDS, **{"clipping": "per_device"} | kwargs),
        loss=lambda _, y_pred: tf.reduce_sum(0.0 * y_pred),
    )
    return model


@pytest.mark.parametrize("arguments", [{}, {"microbatch_size": 4}], ids=str)
def test_noise_of_all_devices_is_that_of_one_strategy(arguments):
    model = _silent(**arguments)
    found = runs.releases(model)
    sizes = (4 + WIDTH + 1) * WIDTH, (WIDTH + 1) * WIDTH
    assert found.shape == (10, sum(sizes))
    for own in np.split(found, [sizes[0]], axis=1):
        runs.assert_of_strategy(own, STRATEGY, runs.CLIP * runs.NOISE)
    chain = model.optimizer.correlation._chain
    places = {
        tuple({tf.DeviceSpec.from_string(v.device).device_index for v in kept})
        for kept in chain._kept.values()
    }
    # Earlier noise stays where the weights are.
    assert places == {(1,), (2,)}


def test_replicas_of_several_devices_share_the_noise():
    with common.strategy(2).scope():
        first, second = (
            layers.Dense(WIDTH, kernel_initializer="zeros") for _ in range(2)
        )
        model = keras.Sequential([keras.Input((3,)), first])
        with tf_dpfp.distribute.on_devices(["CPU:2", "CPU:3"]):
            second.build((None, WIDTH))
        model.add(second)
        tf_dpfp.make_private(model)
        model.compile(
            runs.optimizer(BANDS, clipping="per_device"),
            loss=lambda _, y_pred: tf.reduce_sum(0.0 * y_pred),
        )
    found = runs.releases(model)
    runs.assert_of_strategy(found, STRATEGY, runs.CLIP * runs.NOISE)


def test_one_device_that_takes_nothing_back_would_be_seen(monkeypatch):
    ordinary = chain_lib.NoiseChain.correlated

    def correlated(self, normals, turn, draw, *args):
        found = ordinary(self, normals, turn, draw, *args)
        return normals if draw == 2 else found

    monkeypatch.setattr(chain_lib.NoiseChain, "correlated", correlated)
    with pytest.raises(AssertionError):
        test_noise_of_all_devices_is_that_of_one_strategy({})
