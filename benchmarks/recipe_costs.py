"""Times the recipes: views in the pipeline, and standardised convolutions.

`python -m benchmarks.recipe_costs` prints processor seconds of 1,024 views of
images of 28 x 28, and of a private step on 256 such images with `Conv2D` and
with `WSConv2D`.
"""

import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tf_dpfp

_EXAMPLES, _VIEWS, _BATCHES, _REPEATS = 256, 4, 60, 15
_IMAGES = (
    np.random.default_rng(0)
    .uniform(size=(_EXAMPLES, 28, 28, 1))
    .astype(np.float32)
)
_LABELS = np.arange(_EXAMPLES) % 10


def shifted(image: tf.Tensor) -> tf.Tensor:
    """Shifts an image by up to two pixels."""
    wide = tf.pad(image, [[2, 2], [2, 2], [0, 0]])
    corner = tf.concat([keras.random.randint((2,), 0, 5), [0]], axis=0)
    return tf.ensure_shape(tf.slice(wide, corner, (28, 28, 1)), (28, 28, 1))


def seconds_of(run: Callable[[], object]) -> float:
    """Returns the median processor time of a call, of all threads."""
    found = []
    for _ in range(_REPEATS):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return statistics.median(found)


def seconds_of_views(augment) -> float:
    """Times the views of a batch, beside those of copies."""

    def seconds(given) -> float:
        batches = tf_dpfp.poisson_batches(
            _IMAGES,
            _LABELS,
            sampling_rate=1.0,
            steps_per_epoch=_BATCHES,
            augment=given,
            multiplicity=_VIEWS,
        )
        # The pipeline runs ahead of whoever reads it: all of it is timed.
        start = time.process_time()
        for _ in batches:
            pass
        return (time.process_time() - start) / _BATCHES

    return seconds(augment) - seconds(None)


def seconds_of_step(convolution) -> float:
    """Times a private step of a network of three convolutions."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            convolution(32, 5, strides=2, padding="same", activation="tanh"),
            convolution(64, 3, strides=2, padding="same", activation="tanh"),
            convolution(64, 3, activation="tanh"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=_EXAMPLES),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for _ in range(2):
        model.train_on_batch(_IMAGES, _LABELS)
    return seconds_of(lambda: model.train_on_batch(_IMAGES, _LABELS))


def main() -> None:
    """Prints the table."""
    for name, augment in (
        ("RandomFlip", layers.RandomFlip("horizontal")),
        ("RandomTranslation", layers.RandomTranslation(0.1, 0.1)),
        ("a shift of two pixels", shifted),
    ):
        found = seconds_of_views(augment)
        print(f"1024 views, {name}: {found:.3f} s", flush=True)
    for convolution in (layers.Conv2D, tf_dpfp.recipes.WSConv2D):
        found = seconds_of_step(convolution)
        print(f"Step with {convolution.__name__}: {found:.3f} s", flush=True)


if __name__ == "__main__":
    main()
