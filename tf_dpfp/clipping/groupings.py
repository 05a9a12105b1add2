"""Groupings: which released tensors share one clip factor per example."""

import dataclasses
import re
from collections.abc import Callable, Sequence

import keras

from tf_dpfp.clipping.adaptive import Adaptive
from tf_dpfp.clipping.clipping import Clipping
from tf_dpfp.clipping.groups import OwnedVariable
from tf_dpfp.clipping.per_device import PerDevice


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flat(Clipping):
    """One group: the whole gradient of an example is clipped at once.

    With adaptive thresholds it is adaptive clipping by Andrew et al.

    Args:
        thresholds: As in `Clipping`. An `Adaptive` needs `rescale=False`: the
            one threshold would always be `l2_norm_clip`.
        noise_allocation: As in `Clipping`.

    Raises:
        ValueError: If adaptive thresholds are to be rescaled.

    Reference:
        Andrew et al., 2021, arXiv 1905.03871.
    """

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.thresholds, Adaptive) and self.thresholds.rescale:
            raise ValueError(
                "The one threshold of Flat(), rescaled, is always "
                "l2_norm_clip, and counting for it would waste budget. Use "
                "thresholds=tf_dpfp.clipping.Adaptive(rescale=False)."
            )

    def group_names(self, variables):
        return ["all"] * len(variables)


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PerLayer(Clipping):
    """A group for every layer that owns weights.

    Kernel and bias of one layer are one group; each projection of an
    attention layer is a layer of its own. A group's name is the path of its
    layer.
    """

    def group_names(self, variables):
        return _layer_names(variables)


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PerBlock(Clipping):
    """A group for every block of layers, found by their paths.

    Layers in whose path a regular expression finds the same text are one
    group, named by that text; all the others are one more, named "rest".

    Example:

    ```python
    PerBlock(pattern=r"transformer_layer_[0-9]+")
    ```

    Args:
        pattern: The regular expression.
        thresholds: As in `Clipping`.
        noise_allocation: As in `Clipping`.

    Raises:
        ValueError: If `pattern` is not a regular expression; when groups are
            made, if it finds nothing.
    """

    pattern: str

    def __post_init__(self):
        super().__post_init__()
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                "`pattern` is a regular expression. Received: "
                f"pattern={self.pattern!r} ({error})"
            ) from error

    def group_names(self, variables):
        found = [re.search(self.pattern, o.layer.path) for o in variables]
        if not any(found):
            raise ValueError(
                f"`pattern` {self.pattern!r} is found in the path of no "
                "layer. The paths are: "
                f"{sorted({o.layer.path for o in variables})}"
            )
        return [match.group(0) if match else "rest" for match in found]


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ByFunction(Clipping):
    """Groups that a function makes: from a layer to the name of its group.

    Example:

    ```python
    @keras.saving.register_keras_serializable()
    def group_of(layer):
        return "embedding" if "embedding" in layer.path else "rest"

    ByFunction(function=group_of)
    ```

    Args:
        function: Takes a `keras.layers.Layer` that owns trainable weights,
            returns a string. Register it with Keras, or a saved model can't
            be loaded with its optimizer.
        thresholds: As in `Clipping`.
        noise_allocation: As in `Clipping`.

    Raises:
        TypeError: If `function` can't be called; when groups are made, if it
            returns something else than a string.
    """

    function: Callable[[keras.layers.Layer], str]

    def __post_init__(self):
        super().__post_init__()
        if not callable(self.function):
            raise TypeError(
                "`function` takes a layer and returns the name of its group. "
                f"Received: function={self.function!r}"
            )

    def group_names(self, variables):
        names = [self.function(owned.layer) for owned in variables]
        for owned, name in zip(variables, names, strict=True):
            if not isinstance(name, str):
                raise TypeError(
                    "`function` returns the name of a layer's group, a "
                    f"string. For '{owned.layer.path}' it returned {name!r}."
                )
        return names


def _layer_names(variables: Sequence[OwnedVariable]) -> list[str]:
    """Paths of the layers; numbered where several layers share a path."""
    layers_of: dict[str, list[int]] = {}
    names = []
    for owned in variables:
        same_path = layers_of.setdefault(owned.layer.path, [])
        if id(owned.layer) not in same_path:
            same_path.append(id(owned.layer))
        number = same_path.index(id(owned.layer))
        names.append(
            f"{owned.layer.path}#{number}" if number else owned.layer.path
        )
    return names


_BY_NAME: dict[str, Callable[[], Clipping]] = {
    "flat": Flat,
    "per_device": PerDevice,
    "per_layer": PerLayer,
}


def get(clipping: "str | dict | Clipping") -> Clipping:
    """Resolves the `clipping` argument of an optimizer.

    Args:
        clipping: "flat", "per_layer", "per_device", a `Clipping`, or the
            serialized form of one.

    Returns:
        A `Clipping`.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(clipping, Clipping):
        return clipping
    if isinstance(clipping, dict):
        clipping = keras.saving.deserialize_keras_object(clipping)
        if isinstance(clipping, Clipping):
            return clipping
    if isinstance(clipping, str) and clipping in _BY_NAME:
        return _BY_NAME[clipping]()
    raise ValueError(
        f"`clipping` must be one of {sorted(_BY_NAME)} or a tf_dpfp Clipping "
        f"object such as tf_dpfp.PerLayer(). Received: clipping={clipping!r}"
    )
