"""Scattering features: a fixed transform of images, which looks at no data.

Wavelets at two scales and several angles, the modulus, wavelets and modulus
once more, and averages over neighbourhoods of 4 x 4 pixels, normalised within
the image. Nothing in it is learned, so it spends no privacy, and what is
learned on top can be small.
"""

from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
from keras import layers
from keras import ops

from tf_dpfp import arguments

_FINE, _COARSE = 7, 13  # Sizes of the wavelets at the two scales.
_AVERAGED = 4
# Keeps where nothing is, the margin of a digit say, from being blown up; of
# the order of 1 % of a feature's usual deviation, squared.
_EPSILONS = {"image": 1e-4, "fine": 4e-6, "coarse": 6e-6, "second": 4e-7}
_EPSILON_OF_GROUPS = 1e-5
# Roots are of the order of 0.1 to 1.
_EPSILON_OF_ROOTS, _LEAST_OF_ROOTS = 1e-3, 1e-4


@keras.saving.register_keras_serializable("tf_dpfp")
class Scattering2D(keras.layers.Layer):
    """Transforms images to scattering features, without any weights.

    The features of each kind and angle, or groups of channels, are brought to
    zero mean and unit variance within the image, as the statistics of a data
    set would have to be learned from it. Computes in float32 whatever the
    precision of the model.

    Features of a training set are the same in every epoch: compute them once,
    and train on them.

    Example:

    ```python
    features = tf_dpfp.recipes.Scattering2D()
    model.fit(tf_dpfp.poisson_batches(features.predict(x), y, ...))
    ```

    Args:
        angles: Number of angles of the wavelets.
        groups: Number of groups of consecutive channels that are normalised;
            `None` normalises the features of each kind and angle. Of 27
            groups, on 81 channels, a linear model learned more.
        square_roots: True takes the square roots of features before they are
            normalised, so that a few large ones do not outweigh the rest.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, height, width, channels)`, height and width divisible by 4.

    Output shape:
        `(batch, height / 4, width / 4, channels * (1 + 2 * angles +
        angles ** 2))`: 81 for each channel and 8 angles.

    Raises:
        ValueError: If `angles` or `groups` is not positive; when it is built,
            if height or width is not known or not divisible by 4, or the
            channels are not divisible by `groups`.

    Reference:
        - Bruna and Mallat, 2013, "Invariant Scattering Convolution Networks",
            arXiv 1203.1513.
        - Tramer and Boneh, 2021, "Differentially Private Learning Needs Better
            Features (or Much More Data)", arXiv 2011.11660.
    """

    def __init__(
        self,
        angles: int = 8,
        groups: int | None = None,
        square_roots: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.angles = arguments.positive_integer("angles", angles)
        self.groups = groups
        if groups is not None:
            self.groups = arguments.positive_integer("groups", groups)
        self.square_roots = arguments.boolean("square_roots", square_roots)
        self.autocast = False

    def build(self, input_shape) -> None:
        height, width = input_shape[1:3]
        if None in (height, width) or height % _AVERAGED or width % _AVERAGED:
            raise ValueError(
                "Scattering needs images of known size, with sides divisible "
                "by 4. Pad or resize them first. Received: images of "
                f"{height} x {width}"
            )
        channels = self.compute_output_shape(input_shape)[-1]
        if self.groups is not None and channels % self.groups:
            raise ValueError(
                f"`groups` must divide the {channels} channels of the "
                f"features. Received: groups={self.groups}"
            )

    def call(self, inputs):
        images = ops.cast(inputs, "float32")
        features = self._features(images, _Constants())
        return ops.cast(features, self.compute_dtype)

    def _features(self, images, do: "_Operations"):
        """Computes the features of a batch of images."""
        pieces = _averages(images, self.angles, do)
        if self.square_roots:
            pieces = [
                piece._replace(
                    maps=ops.sqrt(ops.relu(piece.maps) + _LEAST_OF_ROOTS),
                    epsilon=_EPSILON_OF_ROOTS,
                )
                for piece in pieces
            ]
        if self.groups is None:
            return ops.concatenate([do.normalize(*p) for p in pieces], axis=-1)
        features = ops.concatenate([piece.maps for piece in pieces], axis=-1)
        epsilon = _EPSILON_OF_GROUPS
        if self.square_roots:
            epsilon = _EPSILON_OF_ROOTS
        return do.normalize(features, self.groups, epsilon)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        kinds = 1 + 2 * self.angles + self.angles**2
        return (batch, height // 4, width // 4, channels * kinds)

    def predict(
        self, images: np.ndarray, batch_size: int = 500, dtype: Any = "float32"
    ) -> np.ndarray:
        """Computes the features of many images.

        Args:
            images: Array of images.
            batch_size: Number of images that are transformed at once.
            dtype: Type of the result; `"float16"` halves its memory.

        Returns:
            The features, an array.
        """
        shape = self.compute_output_shape(images.shape)
        features = np.empty(shape, dtype)
        for first in range(0, len(images), batch_size):
            part = slice(first, first + batch_size)
            features[part] = ops.convert_to_numpy(self(images[part]))
        return features

    def as_model(self, input_shape: tuple[int, int, int]) -> keras.Model:
        """Builds the same transform of Keras's own layers.

        A file of a model with it loads without this package. Its wavelets are
        weights that are not trained; keep it so.

        Args:
            input_shape: `(height, width, channels)` of the images.

        Returns:
            A model from images to features.

        Raises:
            ValueError: If height or width is not divisible by 4.
        """
        self.build((None, *input_shape))
        images = keras.Input(input_shape, dtype="float32")
        outputs = self._features(images, _Layers())
        return keras.Model(images, outputs, name="wavelets", trainable=False)

    def get_config(self) -> dict:
        return super().get_config() | {
            "angles": self.angles,
            "groups": self.groups,
            "square_roots": self.square_roots,
        }


class _Operations(Protocol):
    """Steps of the transform that have kernels or statistics."""

    def convolve(self, maps: Any, kernel: np.ndarray, strides: int) -> Any:
        """Convolves `(n, h, w, 1)` by a kernel."""

    def average(self, maps: Any, kernel: np.ndarray, strides: int) -> Any:
        """Convolves each channel by a kernel of its own."""

    def normalize(self, maps: Any, groups: int, epsilon: float) -> Any:
        """Normalises groups of channels of each image."""


class _Constants:
    """Operations on constants."""

    def convolve(self, maps, kernel, strides):
        return ops.conv(maps, _constant(kernel), strides, padding="same")

    def average(self, maps, kernel, strides):
        return ops.depthwise_conv(
            maps, _constant(kernel), strides, padding="same"
        )

    def normalize(self, maps, groups, epsilon):
        _, height, width, channels = maps.shape
        grouped = ops.reshape(
            maps, (-1, height, width, groups, channels // groups)
        )
        mean, variance = ops.moments(grouped, axes=(1, 2, 4), keepdims=True)
        grouped = (grouped - mean) * ops.rsqrt(variance + epsilon)
        return ops.reshape(grouped, (-1, height, width, channels))


class _Layers:
    """Layers of Keras, of fixed weights."""

    def convolve(self, maps, kernel, strides):
        return _fixed(
            layers.Conv2D(
                kernel.shape[-1], kernel.shape[0], **_options(strides)
            ),
            maps,
            kernel,
        )

    def average(self, maps, kernel, strides):
        return _fixed(
            layers.DepthwiseConv2D(kernel.shape[0], **_options(strides)),
            maps,
            kernel,
        )

    def normalize(self, maps, groups, epsilon):
        return layers.GroupNormalization(
            groups, center=False, scale=False, epsilon=epsilon, dtype="float32"
        )(maps)


def _options(strides: int) -> dict[str, Any]:
    return dict(
        strides=strides, padding="same", use_bias=False, dtype="float32"
    )


def _fixed(layer: keras.layers.Layer, inputs: Any, kernel: np.ndarray) -> Any:
    layer.build(inputs.shape)
    layer.set_weights([kernel])
    layer.trainable = False
    return layer(inputs)


def _constant(kernel: np.ndarray) -> Any:
    return ops.convert_to_tensor(kernel.astype(np.float32))


class _Piece(NamedTuple):
    """Features of one kind, before they are normalised.

    Attributes:
        maps: The features, `(batch, height / 4, width / 4, channels)`.
        groups: Number of angles and colours that are normalised apart.
        epsilon: What is added to their variance.
    """

    maps: Any
    groups: int
    epsilon: float


def _averages(images: Any, angles: int, do: _Operations) -> list[_Piece]:
    """Computes local averages of moduli."""
    channels = images.shape[-1]
    # One plane at a time: the angles of one plane are the channels of the
    # next, and the batch dimension takes them in.
    planes = _to_batch(images)
    fine = _moduli(planes, 0, _FINE, angles, do)
    coarse = _moduli(planes, 1, _COARSE, angles, do)
    second = _moduli(_to_batch(fine), 1, _COARSE, angles, do, strides=2)
    kinds = [
        ("image", images, 1, _AVERAGED),
        ("fine", _from_batch(fine, channels), channels, _AVERAGED),
        ("coarse", _from_batch(coarse, channels), channels, _AVERAGED),
        (
            "second",
            _from_batch(second, channels * angles),
            channels * angles,
            _AVERAGED // 2,
        ),
    ]
    return [
        _Piece(
            do.average(maps, _window(maps.shape[-1], strides), strides),
            groups,
            _EPSILONS[kind],
        )
        for kind, maps, groups, strides in kinds
    ]


def _moduli(
    planes: Any,
    scale: int,
    size: int,
    angles: int,
    do: _Operations,
    strides: int = 1,
) -> Any:
    """Computes moduli of wavelet coefficients, a channel for each angle."""
    waves = [
        _wavelet(size, 0.8 * 2**scale, turn, angles, 0.75 / 2**scale)
        for turn in range(angles)
    ]
    kernel = np.stack([w.real for w in waves] + [w.imag for w in waves], -1)
    coefficients = do.convolve(planes, kernel[:, :, None], strides)
    real, imaginary = ops.split(coefficients, 2, axis=-1)
    return ops.sqrt(ops.square(real) + ops.square(imaginary) + 1e-12)


def _window(channels: int, strides: int) -> np.ndarray:
    """Makes the kernel of local averages of so many channels."""
    spread = np.arange(-4, 5, _AVERAGED // strides)
    window = np.exp(-(spread**2) / (2 * 1.6**2))
    kernel = np.outer(window, window) / window.sum() ** 2
    return np.repeat(kernel[:, :, None, None], channels, axis=2)


def _wavelet(
    size: int, deviation: float, turn: int, angles: int, frequency: float
) -> np.ndarray:
    """Makes a Morlet wavelet of zero mean and unit absolute sum."""
    half, angle = size // 2, np.pi * turn / angles
    row, column = np.mgrid[-half : half + 1, -half : half + 1]
    along = row * np.cos(angle) + column * np.sin(angle)
    across = (column * np.cos(angle) - row * np.sin(angle)) * 4 / angles
    envelope = np.exp(-(along**2 + across**2) / (2 * deviation**2))
    wave = envelope * np.exp(1j * np.pi * frequency * along)
    wave -= envelope * (wave.sum() / envelope.sum())
    return wave / np.abs(wave).sum()


def _to_batch(maps: Any) -> Any:
    """`(n, h, w, c)` to `(n * c, h, w, 1)`."""
    _, height, width, _ = maps.shape
    maps = ops.transpose(maps, (0, 3, 1, 2))
    return ops.reshape(maps, (-1, height, width, 1))


def _from_batch(maps: Any, planes: int) -> Any:
    """`(n * planes, h, w, c)` to `(n, h, w, planes * c)`."""
    _, height, width, channels = maps.shape
    maps = ops.reshape(maps, (-1, planes, height, width, channels))
    maps = ops.transpose(maps, (0, 2, 3, 1, 4))
    return ops.reshape(maps, (-1, height, width, planes * channels))
