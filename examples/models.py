"""Small image classifiers that train well with differential privacy."""

from collections.abc import Callable

import keras
from keras import layers


def build(
    name: str, input_shape: tuple[int, int, int], num_classes: int
) -> keras.Model:
    """Builds a classifier by name.

    Args:
        name: One of `NAMES`.
        input_shape: `(height, width, channels)` of the images.
        num_classes: Number of classes.

    Returns:
        A built Keras model from images in [0, 1] to logits.

    Raises:
        ValueError: If there is no model of that name, or the images are too
            small for it.
    """
    if name not in _BUILDERS:
        raise ValueError(f"model is one of {NAMES}. Received: {name!r}.")
    try:
        return keras.Sequential(
            [
                keras.Input(input_shape),
                *_BUILDERS[name](),
                layers.Dense(num_classes, name="logits"),
            ],
            name=name,
        )
    except ValueError as error:
        raise ValueError(
            f"Images of shape {input_shape} do not fit the model {name!r}; "
            f"they may be too small. Use the model 'mlp'. Keras says: {error}"
        ) from error


def _cnn() -> list[layers.Layer]:
    """The CNN of the TF-Privacy tutorial, with tanh in place of ReLU.

    A bounded activation keeps the gradients of single examples small, so that
    clipping takes less away.

    Reference:
        Papernot et al., 2021, "Tempered Sigmoid Activations for Deep Learning
        with Differential Privacy", arXiv 2007.14191.
    """
    return [
        layers.Conv2D(16, 8, strides=2, padding="same", activation="tanh"),
        layers.MaxPooling2D(2, strides=1),
        layers.Conv2D(32, 4, strides=2, activation="tanh"),
        layers.MaxPooling2D(2, strides=1),
        layers.Flatten(),
        layers.Dense(32, activation="tanh"),
    ]


def _mlp() -> list[layers.Layer]:
    return [layers.Flatten(), layers.Dense(128, activation="tanh")]


_BUILDERS: dict[str, Callable[[], list[layers.Layer]]] = {
    "cnn": _cnn,
    "mlp": _mlp,
}
NAMES = tuple(_BUILDERS)
