"""Groupings: which released tensors share one clip factor per example.

A grouping and its thresholds are one frozen object, the `clipping` argument
of the optimizers. Whatever the grouping, the thresholds satisfy
`sum_k C_k^2 = l2_norm_clip^2`: the sensitivity of the whole release is the
bound that the user gave.

Reference:
    He et al., 2022, arXiv 2212.01539 (group-wise clipping).
"""

import abc
import dataclasses
import math
from collections.abc import Sequence

import keras


@dataclasses.dataclass(frozen=True)
class OwnedVariable:
    """A trainable variable and the layer whose weight it is.

    Attributes:
        variable: The variable.
        layer: The layer that owns it; the first, if several share it.
    """

    variable: keras.Variable
    layer: keras.layers.Layer


@dataclasses.dataclass(frozen=True)
class Group:
    """Variables that are clipped together.

    Attributes:
        name: For messages.
        members: Positions in the list of trainable variables.
        threshold: The clip norm C_k.
    """

    name: str
    members: tuple[int, ...]
    threshold: float


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True)
class Clipping(abc.ABC):
    """What is clipped together, and at which thresholds."""

    @abc.abstractmethod
    def group_names(self, variables: Sequence[OwnedVariable]) -> list[str]:
        """The name of each variable's group."""

    def groups(
        self, variables: Sequence[OwnedVariable], l2_norm_clip: float
    ) -> tuple[Group, ...]:
        """Groups the variables and splits the bound equally.

        Args:
            variables: The trainable variables, in the model's order.
            l2_norm_clip: The bound of the whole release.

        Returns:
            The groups; `sum_k threshold_k^2 = l2_norm_clip^2`.
        """
        members: dict[str, list[int]] = {}
        for index, name in enumerate(self.group_names(variables)):
            members.setdefault(name, []).append(index)
        threshold = l2_norm_clip / math.sqrt(max(len(members), 1))
        return tuple(
            Group(name, tuple(indices), threshold)
            for name, indices in members.items()
        )

    def get_config(self) -> dict:
        """The fields, for Keras serialization."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict) -> "Clipping":
        """The inverse of `get_config`."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True)
class Flat(Clipping):
    """One group: the whole gradient of an example is clipped at once."""

    def group_names(self, variables):
        return ["all"] * len(variables)


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True)
class PerLayer(Clipping):
    """A group for every layer that owns weights, at equal thresholds.

    Kernel and bias of one layer are one group; each projection of an
    attention layer is a layer of its own. With K groups each is clipped at
    `l2_norm_clip / sqrt(K)`.
    """

    def group_names(self, variables):
        return [f"{owned.layer.path}#{id(owned.layer)}" for owned in variables]


_BY_NAME = {"flat": Flat, "per_layer": PerLayer}


def get(clipping: "str | dict | Clipping") -> Clipping:
    """Resolves the `clipping` argument of an optimizer.

    Args:
        clipping: "flat", "per_layer", a `Clipping`, or the serialized form of
            one.

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
        f"`clipping` is one of {sorted(_BY_NAME)} or a tf_dpfp Clipping "
        f"object such as tf_dpfp.PerLayer(). Received: clipping={clipping!r}"
    )
