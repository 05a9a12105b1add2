"""Replacing layers by private counterparts."""

import keras

from tf_dpfp.validation import checks

_MOST_GROUPS = 32


def _groups(channels: int) -> int:
    """The greatest divisor of `channels` up to 32."""
    return max(
        g
        for g in range(1, min(_MOST_GROUPS, channels) + 1)
        if channels % g == 0
    )


def _replacement(
    layer: keras.layers.BatchNormalization,
) -> keras.layers.GroupNormalization:
    axis = layer.axis[0] if isinstance(layer.axis, list) else layer.axis
    if not layer.built:
        raise ValueError(
            f"Layer '{layer.path}' is not built, so its number of channels is "
            "not known. Build the model first."
        )
    channels = layer.moving_mean.shape[0]
    return keras.layers.GroupNormalization(
        groups=_groups(channels),
        axis=axis,
        epsilon=layer.epsilon,
        center=layer.center,
        scale=layer.scale,
        name=layer.name,
        dtype=layer.dtype_policy,
    )


def fix(model: keras.Model) -> keras.Model:
    """Replaces layers that can't be trained privately where that is possible.

    Every trainable BatchNormalization becomes a GroupNormalization with the
    greatest number of groups up to 32 that divides the channels, freshly
    initialised: the two compute different things, so train anew or fine-tune.
    All other weights are copied.

    Args:
        model: A functional or sequential model, built.

    Returns:
        A new, uncompiled model; the given one is left as it is.

    Raises:
        ValueError: If a problem remains that has no replacement; the message
            lists all.
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
    checks.raise_if_invalid(fixed, made_private=False)
    return fixed


def _call_without_mask(layer, *args, **kwargs):
    """Calls a cloned layer; the replacement takes no `mask`."""
    if isinstance(layer, keras.layers.GroupNormalization):
        kwargs.pop("mask", None)
    return layer(*args, **kwargs)


def _copy_weights(source: keras.Model, target: keras.Model) -> None:
    for old, new in zip(source.layers, target.layers, strict=True):
        if isinstance(old, keras.Model):
            _copy_weights(old, new)
        elif type(old) is type(new):
            new.set_weights(old.get_weights())
            new.trainable = old.trainable
