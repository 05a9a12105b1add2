"""Scripts on images, condensed."""

import keras
import numpy as np
from keras import layers

from tests.keras_scripts import common

_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _images(size, channels=1, classes=3, count=16):
    """Images whose brightness in one corner tells the class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, count)
    x = rng.normal(0, 0.3, size=(count, size, size, channels))
    x[:, : size // 2] += y[:, None, None, None]
    return x.astype("float32"), y


def test_mnist_convnet():
    def build():
        return keras.Sequential(
            [
                keras.Input((10, 10, 1)),
                layers.Conv2D(4, 3, activation="relu"),
                layers.MaxPooling2D(2),
                layers.Conv2D(8, 3, activation="relu"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )

    common.assert_learns_as_ordinary(build, *_images(10), loss=_LOGITS)
