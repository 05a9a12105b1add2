"""Replacing layers by private counterparts, in place."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp import arguments
from tf_dpfp import layers
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import replacing
from tf_dpfp.validation import batch_normalizations
from tf_dpfp.validation import checks


@dataclasses.dataclass(frozen=True)
class _Change:
    """One layer, and what becomes of it.

    Attributes:
        layer: A trainable BatchNormalization.
        other: The new layer, not built.
        weights: Values of the new layer; `None` for fresh ones.
        was: The layer's class, in words.
        becomes: The new layer, in words.
    """

    layer: keras.layers.BatchNormalization
    other: keras.layers.Layer
    weights: list[np.ndarray] | None
    was: str
    becomes: str


def fix(
    model: keras.Model,
    keep_statistics: bool = False,
    print_fn: Callable[[str], object] | None = None,
) -> keras.Model:
    """Replaces layers that can't be trained privately where that is possible.

    Every trainable `BatchNormalization`, wherever in the model it is, becomes a
    normalisation of single examples: a `LayerNormalization` on inputs of shape
    `(batch, channels)`, a `GroupNormalization` elsewhere, with as many groups,
    up to 32, as leave at least 8 channels to each. It is freshly initialised
    and computes something else, so train anew or fine-tune.

    With `keep_statistics=True` a pretrained `BatchNormalization` becomes a
    frozen scale and offset of each channel, of its mean, variance, gamma and
    beta. The model predicts what it did before. Statistics are kept without
    noise: do so only if they come from public data.

    The model is changed in place, and every other layer stays the object that
    it was. Compile it anew. A custom layer that makes a `BatchNormalization` in
    its own code makes one again when it is loaded from a `.keras` file: load
    the weights into a model that was fixed likewise.

    Example:

    ```python
    model = keras.applications.MobileNetV2(weights="imagenet")
    tf_dpfp.fix(model, keep_statistics=True)
    tf_dpfp.make_private(model)
    ```

    Args:
        model: A Keras model, built.
        keep_statistics: Fold statistics into a frozen layer. A
            `BatchNormalization` that has none, of mean 0 and variance 1 in all
            channels, is replaced as without it.
        print_fn: Function that takes the table of what was replaced; `print`
            by default.

    Returns:
        The same model.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If `keep_statistics` is not a boolean. If a problem would
            remain, such as a `BatchNormalization` that is not built or has too
            few channels; the message lists all. The model is as before then.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`fix` takes a keras.Model. Received: {model!r}")
    keep_statistics = arguments.boolean("keep_statistics", keep_statistics)
    within = keras_layers.all_layers(model)
    found = [
        _change(layer, keep_statistics)
        for layer in within
        if batch_normalizations.is_trained(layer)
    ]
    changes = [change for change in found if change is not None]
    checks.raise_if_invalid(model, apart_from=[c.layer for c in changes])
    for change in changes:
        _apply(change, model)
    if changes:
        for layer in within:
            replacing.forget_compiled(layer)
    (print_fn or print)(_table(model, changes))
    return model


def _change(
    layer: keras.layers.BatchNormalization, keep_statistics: bool
) -> _Change | None:
    was = type(layer).__name__
    if keep_statistics and batch_normalizations.has_statistics(layer):
        affine = layers.FrozenAffine(
            axis=batch_normalizations.axis(layer),
            name=layer.name,
            dtype=layer.dtype_policy,
        )
        folded = batch_normalizations.folded(layer)
        return _Change(layer, affine, folded, was, "FrozenAffine")
    if batch_normalizations.obstacle(layer) is not None:
        return None
    other = batch_normalizations.counterpart(layer)
    becomes = type(other).__name__
    if isinstance(other, keras.layers.GroupNormalization):
        becomes += f"(groups={other.groups})"
    return _Change(layer, other, None, was, becomes)


def _apply(change: _Change, model: keras.Model) -> None:
    layer = change.layer
    shape = batch_normalizations.input_shape(layer)
    # New weights are where the old ones are.
    device = layer.moving_mean.value.device
    with model.distribute_strategy.scope(), tf.device(device):
        replacing.become(layer, change.other, shape)
    if change.weights is not None:
        layer.set_weights(change.weights)


def _table(model: keras.Model, changes: Sequence[_Change]) -> str:
    """Returns what was replaced, a line for each layer."""
    if not changes:
        return f"Model '{model.name}': nothing to replace."
    rows = [("layer", "was", "is now")]
    rows += [(c.layer.path, c.was, c.becomes) for c in changes]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [
        f"  {where:<{widths[0]}}  {was:<{widths[1]}}  {becomes}"
        for where, was, becomes in rows
    ]
    return "\n".join([f"Model '{model.name}', replaced:", *lines])
