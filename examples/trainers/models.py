"""Small image classifiers that train well with differential privacy."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

import tf_dpfp
from examples.trainers import efficientnet
from examples.trainers import feature_cache

_CHUNK = 500


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings that a model trains well with, where none are given.

    Attributes:
        batch_size: Expected number of examples of a Poisson batch.
        epochs: Passes over the data, as expected.
        step: Step of SGD for a batch whose clipped gradients all agree, once
            momentum has gathered. Said this way it holds for every clip norm.
        momentum: Momentum of SGD.
        weight_averaging: Decay of averages of the weights; 0 for none.
    """

    batch_size: int = 2048
    epochs: int = 45
    step: float = 2.0
    momentum: float = 0.0
    weight_averaging: float = 0.0


@dataclasses.dataclass(frozen=True)
class Network:
    """A classifier, and what is fixed before it.

    Attributes:
        features: A transform without weights to learn, computed once for each
            image. `None` if the classifier takes the images themselves.
        classifier: What is trained: from features to logits.
        kept_as: Name under which features are kept for the next training;
            `None` if they are cheap.
    """

    features: keras.Model | None
    classifier: keras.Model
    kept_as: str | None = None

    def transform(
        self, images: np.ndarray, dtype: str = "float32"
    ) -> np.ndarray:
        """Computes the features.

        Args:
            images: `(n, height, width, channels)`, in [0, 1].
            dtype: Of the result. Half precision halves the memory.

        Returns:
            What the classifier takes.
        """
        if self.features is None:
            return images
        if self.kept_as is None:
            return self._compute(images, dtype)
        return feature_cache.features(
            self.kept_as,
            self.features,
            images,
            lambda x: self._compute(x, dtype),
            dtype,
        )

    def _compute(self, images: np.ndarray, dtype: str) -> np.ndarray:
        assert self.features is not None
        result = np.empty((len(images), *self.features.output_shape[1:]), dtype)
        for start in range(0, len(images), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            result[chunk] = self.features.predict_on_batch(images[chunk])
        return result

    def for_images(self) -> keras.Model:
        """Returns a model from images to logits, to give away.

        It is not compiled: neither the optimizer nor its state is in it. All of
        its layers are Keras's.
        """
        # Not `clone_model`, which compiles the copy with the same optimizer.
        classifier = keras.Sequential(
            [
                keras.Input(self.classifier.input_shape[1:]),
                *(_of_keras(layer) for layer in self.classifier.layers),
            ],
            name=self.classifier.name,
        )
        if self.features is None:
            return classifier
        images = keras.Input(self.features.input_shape[1:])
        return keras.Model(images, classifier(self.features(images)))


def _of_keras(layer: layers.Layer) -> layers.Layer:
    """Returns a layer of Keras that computes the same, with its own weights."""
    if isinstance(layer, tf_dpfp.recipes.WSConv2D):
        return layer.to_conv2d()
    copy = type(layer).from_config(layer.get_config())
    copy.build(layer.input.shape)
    copy.set_weights(layer.get_weights())
    return copy


def build(
    name: str, input_shape: tuple[int, int, int], num_classes: int
) -> Network:
    """Builds a network by name.

    Args:
        name: One of `NAMES`.
        input_shape: `(height, width, channels)` of the images.
        num_classes: Number of classes.

    Returns:
        A `Network`; its models are built.

    Raises:
        ValueError: If there is no network of that name, or the images are of
            a size that it can't take.
    """
    if name not in _CLASSIFIERS:
        raise ValueError(f"model is one of {NAMES}. Received: {name!r}.")
    features = None
    shape = input_shape
    if name in ON_FEATURES:
        try:
            features = ON_FEATURES[name](input_shape)
        except ValueError as error:
            raise ValueError(f"{error}. Use the model 'cnn'.") from error
        shape = features.output_shape[1:]
    try:
        classifier = keras.Sequential(
            [
                keras.Input(shape),
                *_CLASSIFIERS[name](),
                layers.Dense(num_classes, name="logits"),
            ],
            name=name,
        )
    except ValueError as error:
        raise ValueError(
            f"Images of shape {input_shape} do not fit the model {name!r}; "
            f"they may be too small. Use the model 'mlp'. Keras says: {error}"
        ) from error
    kept_as = name if name == "linear_efficientnet" else None
    return Network(features, classifier, kept_as)


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


def _normalized(convolution: layers.Layer) -> list[layers.Layer]:
    """A convolution whose results are normalised within each image.

    With kernels that are standardised, and without scales to learn: what an
    image adds to the gradients hangs little on its contrast.

    Reference:
        De et al., 2022, "Unlocking High-Accuracy Differentially Private Image
        Classification through Scale", arXiv 2204.13650.
    """
    return [
        convolution,
        layers.GroupNormalization(8, center=False, scale=False),
        layers.Activation("relu"),
    ]


def _ws_cnn() -> list[layers.Layer]:
    """Two standardised convolutions, the first one with strides."""
    convolution = tf_dpfp.recipes.WSConv2D
    return [
        *_normalized(convolution(16, 5, strides=2, padding="same")),
        *_normalized(convolution(32, 3, padding="same")),
        layers.MaxPooling2D(2),
        layers.Flatten(),
    ]


def _on_scattering() -> list[layers.Layer]:
    """One convolution on top of the features of `Scattering2D`."""
    return [
        *_normalized(tf_dpfp.recipes.WSConv2D(32, 3)),
        layers.MaxPooling2D(2, strides=1),
        layers.Flatten(),
    ]


def _linear() -> list[layers.Layer]:
    return [layers.Flatten()]


def _grouped_scattering(input_shape) -> keras.Model:
    layer = tf_dpfp.recipes.Scattering2D(groups=27, square_roots=True)
    return layer.as_model(input_shape)


def _efficientnet(input_shape) -> keras.Model:
    """Five blocks, of images of 64 x 64: 8 x 8 x 40 features."""
    return efficientnet.features(input_shape, size=64, blocks=5, groups=10)


_CLASSIFIERS: dict[str, Callable[[], list[layers.Layer]]] = {
    "cnn": _cnn,
    "mlp": _mlp,
    "ws_cnn": _ws_cnn,
    "scattering": _on_scattering,
    "linear_scattering": _linear,
    "linear_efficientnet": _linear,
}
# Models on features that are computed once for each image, and what makes them
# of the shape of the images.
ON_FEATURES: dict[str, Callable[..., keras.Model]] = {
    "scattering": _grouped_scattering,
    "linear_scattering": _grouped_scattering,
    "linear_efficientnet": _efficientnet,
}
NAMES = tuple(_CLASSIFIERS)
_LINEAR_RECIPE = Recipe(8192, 60, 12.0, 0.9, 0.98)
RECIPES: dict[str, Recipe] = {
    "cnn": Recipe(),
    "mlp": Recipe(),
    "ws_cnn": dataclasses.replace(_LINEAR_RECIPE, epochs=30, step=10.0),
    "scattering": dataclasses.replace(_LINEAR_RECIPE, step=8.0),
    "linear_scattering": _LINEAR_RECIPE,
    "linear_efficientnet": dataclasses.replace(_LINEAR_RECIPE, step=8.0),
}
