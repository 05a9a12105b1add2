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
import re
from collections.abc import Mapping, Sequence

import keras

from tf_dpfp import noise
from tf_dpfp.clipping import thresholds as thresholds_lib


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
        name: For messages, and to give thresholds by.
        members: Positions in the list of trainable variables.
        threshold: The clip norm C_k.
        dimension: Number of parameters d_k.
    """

    name: str
    members: tuple[int, ...]
    threshold: float
    dimension: int


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Clipping(abc.ABC):
    """What is clipped together, at which thresholds, under which noise.

    Args:
        thresholds: How the bound is split among K groups: `"equal"`
            (`C / sqrt(K)` each), `"by_dimension"` (in proportion to the root
            of the number of parameters), or a dict from group name to
            threshold whose squares add up to that of the bound.
        noise_allocation: How the noise is split: `"global"` (the same
            standard deviation everywhere), `"equal_budget"` (in proportion
            to the group's threshold) or `"by_dimension"` (the same ratio of
            noise norm to threshold in each group). Privacy is the same.

    Raises:
        ValueError: If an argument is none of these.
    """

    thresholds: str | Mapping[str, float] = "equal"
    noise_allocation: str = "global"

    def __post_init__(self):
        if isinstance(self.thresholds, Mapping):
            # Hashable and comparable, as a frozen object should be.
            pairs = tuple(sorted(self.thresholds.items()))
            object.__setattr__(self, "thresholds", pairs)
        elif isinstance(self.thresholds, list | tuple):
            pairs = tuple(tuple(pair) for pair in self.thresholds)
            object.__setattr__(self, "thresholds", pairs)
        elif self.thresholds not in ("equal", "by_dimension"):
            raise ValueError(
                "`thresholds` is 'equal', 'by_dimension' or a dict from group "
                f"name to threshold. Received: thresholds={self.thresholds!r}"
            )
        if self.noise_allocation not in noise.ALLOCATIONS:
            raise ValueError(
                f"`noise_allocation` is one of {list(noise.ALLOCATIONS)}. "
                f"Received: noise_allocation={self.noise_allocation!r}"
            )

    @abc.abstractmethod
    def group_names(self, variables: Sequence[OwnedVariable]) -> list[str]:
        """The name of each variable's group."""

    def groups(
        self, variables: Sequence[OwnedVariable], l2_norm_clip: float
    ) -> tuple[Group, ...]:
        """Groups the variables and splits the bound.

        Args:
            variables: The trainable variables, in the model's order.
            l2_norm_clip: The bound of the whole release.

        Returns:
            The groups; `sum_k threshold_k^2 = l2_norm_clip^2`.

        Raises:
            ValueError: If given thresholds do not fit the groups.
        """
        members: dict[str, list[int]] = {}
        for index, name in enumerate(self.group_names(variables)):
            members.setdefault(name, []).append(index)
        dimensions = [
            sum(math.prod(variables[i].variable.shape) for i in indices)
            for indices in members.values()
        ]
        values = self._split(l2_norm_clip, list(members), dimensions)
        return tuple(
            Group(name, tuple(indices), threshold, dimension)
            for (name, indices), threshold, dimension in zip(
                members.items(), values, dimensions, strict=True
            )
        )

    def _split(self, l2_norm_clip, names, dimensions) -> tuple[float, ...]:
        if self.thresholds == "equal":
            return thresholds_lib.equal_split(l2_norm_clip, len(names))
        if self.thresholds == "by_dimension":
            return thresholds_lib.split_by_dimension(l2_norm_clip, dimensions)
        return thresholds_lib.given(l2_norm_clip, names, dict(self.thresholds))

    def get_config(self) -> dict:
        """The fields, for Keras serialization."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_config(cls, config: dict) -> "Clipping":
        """The inverse of `get_config`."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flat(Clipping):
    """One group: the whole gradient of an example is clipped at once."""

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
