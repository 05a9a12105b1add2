"""Replacing layers by private counterparts."""

import keras

from tf_dpfp.validation import checks

_MOST_GROUPS = 32
# Fewer numbers than that tell little once they are normalised: of two, only
# the sign of their difference is left; of one, nothing.
_LEAST_GROUP_SIZE = 8
_LEAST_CHANNELS = 3


def _groups(channels: int) -> int:
    """Returns the greatest number of groups of equal, sufficient size."""
    return max(
        g
        for g in range(1, _MOST_GROUPS + 1)
        if channels % g == 0 and (g == 1 or channels // g >= _LEAST_GROUP_SIZE)
    )


def _replacement(
    layer: keras.layers.BatchNormalization,
) -> keras.layers.GroupNormalization | keras.layers.LayerNormalization:
    axis = layer.axis[0] if isinstance(layer.axis, list) else layer.axis
    if not layer.built:
        raise ValueError(
            f"Layer '{layer.path}' is not built, so its number of channels is "
            "not known. Build the model first."
        )
    channels = layer.moving_mean.shape[0]
    arguments = {
        "axis": axis,
        "epsilon": layer.epsilon,
        "center": layer.center,
        "scale": layer.scale,
        "name": layer.name,
        "dtype": layer.dtype_policy,
    }
    if layer.input_spec.ndim > 2:
        return keras.layers.GroupNormalization(_groups(channels), **arguments)
    if channels < _LEAST_CHANNELS:
        raise ValueError(
            f"Layer '{layer.path}' normalises {channels} number(s) of each "
            "example, of which nothing would be left without the other "
            "examples. Remove the layer, or set `layer.trainable = False` to "
            "use its statistics as they are."
        )
    return keras.layers.LayerNormalization(**arguments)


def fix(model: keras.Model) -> keras.Model:
    """Replaces layers that can't be trained privately where that is possible.

    Every trainable BatchNormalization becomes a normalisation of single
    examples: a LayerNormalization on inputs of shape `(batch, channels)`, a
    GroupNormalization elsewhere, with as many groups, up to 32, as leave at
    least 8 channels to each. It is freshly initialised and computes something
    else, so train anew or fine-tune. All other weights are copied.

    Args:
        model: A functional or sequential model, built.

    Returns:
        A new, uncompiled model; the given one is left as it is.

    Raises:
        ValueError: If a problem remains that has no replacement; the message
            lists all. If a BatchNormalization has too few channels for any.
    """
    if not isinstance(model, keras.Sequential) and not hasattr(
        model, "operations"
    ):
        raise ValueError(
            f"`fix` rebuilds functional and sequential models; "
            f"{type(model).__name__} is neither. Replace the layers that "
            "tf_dpfp.validate(model) names in its own code."
        )

    def convert(layer):
        if (
            isinstance(layer, keras.layers.BatchNormalization)
            and layer.trainable
        ):
            return _replacement(layer)
        return layer.__class__.from_config(layer.get_config())

    arguments = {}
    if not isinstance(model, keras.Sequential):
        arguments["call_function"] = _call_without_mask
    fixed = keras.models.clone_model(
        model, clone_function=convert, recursive=True, **arguments
    )
    _copy_weights(model, fixed)
    checks.raise_if_invalid(fixed)
    return fixed


def _call_without_mask(layer, *args, **kwargs):
    """Calls a cloned layer; the replacement takes no `mask`."""
    if isinstance(
        layer,
        keras.layers.GroupNormalization | keras.layers.LayerNormalization,
    ):
        kwargs.pop("mask", None)
    return layer(*args, **kwargs)


def _copy_weights(source: keras.Model, target: keras.Model) -> None:
    for old, new in zip(source.layers, target.layers, strict=True):
        if isinstance(old, keras.Model):
            _copy_weights(old, new)
        elif type(old) is type(new):
            new.set_weights(old.get_weights())
            new.trainable = old.trainable
