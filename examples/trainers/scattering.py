"""Scattering features: a fixed transform of images, which looks at no data.

Wavelets at two scales and eight angles, the modulus, wavelets and modulus once
more, and averages over neighbourhoods of 4 x 4 pixels. Nothing in it is
learned, so it spends no privacy, and what is learned on top can be small.

References:
- Bruna and Mallat, 2013, "Invariant Scattering Convolution Networks",
  arXiv 1203.1513.
- Tramer and Boneh, 2021, "Differentially Private Learning Needs Better
  Features (or Much More Data)", arXiv 2011.11660.
"""

import keras
import numpy as np
from keras import layers
from keras import ops

_ANGLES = 8
_FINE, _COARSE = 7, 13  # Sizes of the wavelets at the two scales.
_AVERAGED = 4
# Keeps where nothing is, the margin of a digit say, from being blown up; of
# the order of 1 % of a feature's usual deviation, squared.
_EPSILONS = {"image": 1e-4, "fine": 4e-6, "coarse": 6e-6, "second": 4e-7}


def features(input_shape: tuple[int, int, int]) -> keras.Model:
    """Builds the transform for images of one size.

    The features of each kind and angle are brought to zero mean and unit
    variance within the image, as the statistics of a data set would have to be
    learned from it.

    Args:
        input_shape: `(height, width, channels)`, height and width divisible
            by 4.

    Returns:
        A Keras model of standard layers, without trainable weights, from
        images `(n, height, width, channels)` to features
        `(n, height / 4, width / 4, 81 * channels)`.

    Raises:
        ValueError: If height or width is not divisible by 4.
    """
    height, width, channels = input_shape
    if height % _AVERAGED or width % _AVERAGED:
        raise ValueError(
            "Scattering needs images with sides divisible by 4. Received: "
            f"images of {height} x {width}. Use the model 'cnn'."
        )
    images = keras.Input(input_shape)
    # One plane at a time: the angles of one plane are the channels of the
    # next, and the batch dimension takes them in.
    planes = _to_batch(images)
    fine = _moduli(planes, 0, _FINE)
    coarse = _moduli(planes, 1, _COARSE)
    second = _moduli(_to_batch(fine), 1, _COARSE, strides=2)
    pieces = [
        _averages(images, "image", 1),
        _averages(_from_batch(fine, channels), "fine", channels),
        _averages(_from_batch(coarse, channels), "coarse", channels),
        _averages(
            _from_batch(second, channels * _ANGLES),
            "second",
            channels * _ANGLES,
            strides=2,
        ),
    ]
    outputs = layers.Concatenate()(pieces)
    return keras.Model(images, outputs, name="wavelets", trainable=False)


def _moduli(planes, scale: int, size: int, strides: int = 1):
    """Moduli of the wavelet coefficients, a channel for each angle."""
    waves = [
        _wavelet(size, 0.8 * 2**scale, np.pi * turn / _ANGLES, 0.75 / 2**scale)
        for turn in range(_ANGLES)
    ]
    kernel = np.stack([w.real for w in waves] + [w.imag for w in waves], -1)
    real, imaginary = ops.split(
        _fixed(layers.Conv2D, planes, kernel[:, :, None], strides), 2, axis=-1
    )
    return ops.sqrt(ops.square(real) + ops.square(imaginary) + 1e-12)


def _averages(maps, kind: str, groups: int, strides: int = _AVERAGED):
    """Local averages, normalised within groups of channels of one image."""
    spread = np.arange(-4, 5, _AVERAGED // strides)
    window = np.exp(-(spread**2) / (2 * 1.6**2))
    kernel = np.outer(window, window) / window.sum() ** 2
    kernel = np.repeat(kernel[:, :, None, None], maps.shape[-1], axis=2)
    averages = _fixed(layers.DepthwiseConv2D, maps, kernel, strides)
    return layers.GroupNormalization(
        groups, center=False, scale=False, epsilon=_EPSILONS[kind]
    )(averages)


def _wavelet(size: int, deviation: float, angle: float, frequency: float):
    """A Morlet wavelet of zero mean and unit absolute sum."""
    half = size // 2
    row, column = np.mgrid[-half : half + 1, -half : half + 1]
    along = row * np.cos(angle) + column * np.sin(angle)
    across = (column * np.cos(angle) - row * np.sin(angle)) * 4 / _ANGLES
    envelope = np.exp(-(along**2 + across**2) / (2 * deviation**2))
    wave = envelope * np.exp(1j * np.pi * frequency * along)
    wave -= envelope * (wave.sum() / envelope.sum())
    return wave / np.abs(wave).sum()


def _fixed(kind, inputs, kernel: np.ndarray, strides: int):
    size = kernel.shape[0]
    options = dict(strides=strides, padding="same", use_bias=False)
    if kind is layers.Conv2D:
        layer = layers.Conv2D(kernel.shape[-1], size, **options)
    else:
        layer = layers.DepthwiseConv2D(size, **options)
    layer.build(inputs.shape)
    layer.set_weights([kernel])
    layer.trainable = False
    return layer(inputs)


def _to_batch(maps):
    """`(n, h, w, c)` to `(n * c, h, w, 1)`."""
    _, height, width, _ = maps.shape
    maps = ops.transpose(maps, (0, 3, 1, 2))
    return ops.reshape(maps, (-1, height, width, 1))


def _from_batch(maps, planes: int):
    """`(n * planes, h, w, c)` to `(n, h, w, planes * c)`."""
    _, height, width, channels = maps.shape
    maps = ops.reshape(maps, (-1, planes, height, width, channels))
    maps = ops.transpose(maps, (0, 2, 3, 1, 4))
    return ops.reshape(maps, (-1, height, width, planes * channels))
