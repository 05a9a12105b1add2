"""Random views of small images, for augmentation multiplicity."""

from collections.abc import Callable

import keras
import tensorflow as tf

# Pixels that an image is shifted by at most, up or down, left or right.
_SHIFT = 2
# Data sets whose classes look the same in a mirror.
_MIRRORED = ("fashion_mnist", "cifar10", "tfds:cifar10")


def for_dataset(dataset: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the augmentation of one image of a data set.

    Images are shifted by up to two pixels, over a margin of zeros, and
    mirrored where that changes no label.

    Args:
        dataset: Name of the data set.

    Returns:
        A function for `poisson_batches(augment=...)`.
    """

    def augment(image: tf.Tensor) -> tf.Tensor:
        margin = [_SHIFT, _SHIFT]
        wide = tf.pad(image, [margin, margin, [0, 0]])
        corner = keras.random.randint((2,), 0, 2 * _SHIFT + 1)
        corner = tf.concat([corner, [0]], axis=0)
        shifted = tf.ensure_shape(
            tf.slice(wide, corner, tf.shape(image)), image.shape
        )
        if dataset not in _MIRRORED:
            return shifted
        mirror = keras.random.uniform(()) < 0.5
        return tf.where(mirror, tf.reverse(shifted, axis=[1]), shifted)

    return augment
