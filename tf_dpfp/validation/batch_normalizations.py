"""Counterparts of a BatchNormalization that treat examples separately."""

import keras
import numpy as np

_MOST_GROUPS = 32
# Fewer numbers than that tell little once they are normalised: of two, only
# the sign of their difference is left; of one, nothing.
_LEAST_GROUP_SIZE = 8
_LEAST_CHANNELS = 3


def is_trained(layer: keras.layers.Layer) -> bool:
    """Tells if a layer is a BatchNormalization that normalises by the batch.

    Args:
        layer: Any layer.

    Returns:
        False for a frozen one, which uses its statistics as they are.
    """
    return (
        isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    )


def obstacle(layer: keras.layers.BatchNormalization) -> str | None:
    """Returns why a BatchNormalization has no counterpart, with a way out.

    Args:
        layer: A trained BatchNormalization.

    Returns:
        A predicate whose subject is the layer; `None` if there is a
        counterpart.
    """
    if not layer.built:
        return (
            "is not built, so its number of channels is not known. Build the "
            "model first, for example by a call on one batch."
        )
    channels = _channels(layer)
    if _rank(layer) > 2 or channels >= _LEAST_CHANNELS:
        return None
    return (
        f"normalises {channels} number(s) of each example, of which nothing "
        "would be left without the other examples. Remove the layer, or set "
        "`layer.trainable = False` to use its statistics as they are."
    )


def counterpart(
    layer: keras.layers.BatchNormalization,
) -> keras.layers.GroupNormalization | keras.layers.LayerNormalization:
    """Returns a normalisation of single examples with the same settings.

    Args:
        layer: A BatchNormalization without an `obstacle`.

    Returns:
        A layer that is not built.
    """
    arguments = {
        name: getattr(layer, name)
        for name in (
            "epsilon",
            "center",
            "scale",
            "beta_initializer",
            "gamma_initializer",
            "beta_regularizer",
            "gamma_regularizer",
            "beta_constraint",
            "gamma_constraint",
            "name",
        )
    }
    arguments |= {"axis": axis(layer), "dtype": layer.dtype_policy}
    if _rank(layer) > 2:
        return keras.layers.GroupNormalization(
            _groups(_channels(layer)), **arguments
        )
    return keras.layers.LayerNormalization(**arguments)


def has_statistics(layer: keras.layers.BatchNormalization) -> bool:
    """Tells if the moving statistics were ever updated.

    Args:
        layer: A BatchNormalization.

    Returns:
        False where mean and variance are 0 and 1 in all channels, as in a new
        layer.
    """
    if not layer.built:
        return False
    mean, variance = _statistics(layer)
    return bool(np.any(mean != 0.0) or np.any(variance != 1.0))


def folded(layer: keras.layers.BatchNormalization) -> list[np.ndarray]:
    """Returns the inference of a BatchNormalization as an affine map.

    Args:
        layer: A built BatchNormalization.

    Returns:
        `[factor, offset]`, one number of each for a channel: the layer gives
        `factor * inputs + offset`.
    """
    mean, variance = _statistics(layer)
    # In float64: nothing is lost but by the last rounding.
    factor = 1.0 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        factor = factor * np.asarray(layer.gamma, np.float64)
    offset = -mean * factor
    if layer.center:
        offset = offset + np.asarray(layer.beta, np.float64)
    return [factor, offset]


def axis(layer: keras.layers.BatchNormalization) -> int:
    """Returns the axis of the channels."""
    return layer.axis[0] if isinstance(layer.axis, list) else layer.axis


def input_shape(
    layer: keras.layers.BatchNormalization,
) -> tuple[int | None, ...]:
    """Returns the shape of a built layer's input, as far as it is fixed."""
    shape: list[int | None] = [None] * _rank(layer)
    shape[axis(layer)] = _channels(layer)
    return tuple(shape)


def _statistics(layer) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.asarray(layer.moving_mean, np.float64),
        np.asarray(layer.moving_variance, np.float64),
    )


def _rank(layer) -> int:
    return layer.input_spec.ndim


def _channels(layer) -> int:
    return layer.moving_mean.shape[0]


def _groups(channels: int) -> int:
    """Returns the greatest number of groups of equal, sufficient size."""
    return max(
        g
        for g in range(1, _MOST_GROUPS + 1)
        if channels % g == 0 and (g == 1 or channels // g >= _LEAST_GROUP_SIZE)
    )
