"""Base class of all groupings: groups, clip norms and noise allocation.

A grouping and its clip norms are one frozen object, the `clipping` argument
of the optimizers. Whatever the grouping, the clip norms satisfy
`sum_k C_k^2 = l2_norm_clip^2`: the sensitivity of the whole release is the
bound that the user gave. (Adaptive clip norms that are not rescaled begin
there and then go their own way; the noise goes with them.)

Reference:
    He et al., 2022, arXiv 2212.01539 (group-wise clipping).
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from tf_dpfp import arguments
from tf_dpfp import noise
from tf_dpfp import user_warnings
from tf_dpfp.clipping import thresholds as thresholds_lib
from tf_dpfp.clipping.adaptive import Adaptive
from tf_dpfp.clipping.automatic import Automatic
from tf_dpfp.clipping.groups import Group
from tf_dpfp.clipping.groups import OwnedVariable
from tf_dpfp.clipping.groups import with_estimates


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Clipping(abc.ABC):
    """Groups of variables, their clip norms and the split of the noise.

    Args:
        thresholds: Clip norms of K groups, a split of the bound: `"equal"`
            (`C / sqrt(K)` each), `"by_dimension"` (in proportion to the root
            of the number of parameters), or a dict from group name to
            clip norm whose squares add up to that of the bound; or
            `tf_dpfp.clipping.Adaptive(...)`, clip norms that follow the
            gradients; or `tf_dpfp.clipping.Automatic(...)`, gradients scaled to
            one length. `"adaptive"` and `"automatic"` are those with their
            defaults.
        noise_allocation: Split of the noise: `"global"` (the same
            standard deviation everywhere), `"equal_budget"` (in proportion
            to the group's clip norm) or `"by_dimension"` (the same ratio of
            noise norm to clip norm in each group). Privacy is the same.

    Raises:
        ValueError: If an argument is none of these.
    """

    thresholds: str | Mapping[str, float] | Adaptive | Automatic = "equal"
    noise_allocation: str = "global"

    def __post_init__(self):
        object.__setattr__(self, "thresholds", _as_thresholds(self.thresholds))
        arguments.one_of(
            "noise_allocation", self.noise_allocation, noise.ALLOCATIONS
        )

    @abc.abstractmethod
    def group_names(self, variables: Sequence[OwnedVariable]) -> list[str]:
        """Returns the name of each variable's group."""

    def device_of(self, variable: keras.Variable | tf.Variable) -> str | None:
        """Returns the device of a variable's part of the release.

        Args:
            variable: A trainable variable.

        Returns:
            A device's name; `None` leaves that to TensorFlow.
        """
        del variable
        return None

    def groups(
        self, variables: Sequence[OwnedVariable], l2_norm_clip: float
    ) -> tuple[Group, ...]:
        """Groups the variables and splits the bound.

        Args:
            variables: The trainable variables, in the model's order.
            l2_norm_clip: The bound of the whole release.

        Returns:
            The groups, before the first step. `sum_k C_k^2 =
            l2_norm_clip^2`, unless clip norms adapt and are not rescaled.

        Raises:
            ValueError: If given thresholds do not fit the groups.
        """
        members: dict[str, list[int]] = {}
        for index, name in enumerate(self.group_names(variables)):
            members.setdefault(name, []).append(index)
        dimensions = [
            sum(variables[i].dimension for i in indices)
            for indices in members.values()
        ]
        groups = [
            Group(
                name=name,
                members=tuple(indices),
                clip_norm=clip_norm,
                dimension=dimension,
                device=self.device_of(variables[indices[0]].variable),
            )
            for (name, indices), clip_norm, dimension in zip(
                members.items(),
                self._split(l2_norm_clip, list(members), dimensions),
                dimensions,
                strict=True,
            )
        ]
        if isinstance(self.thresholds, Automatic):
            stability = self.thresholds.stability
            groups = [
                dataclasses.replace(g, stability=stability) for g in groups
            ]
        if isinstance(self.thresholds, Adaptive):
            _warn_if_alone(groups, self.thresholds)
            return with_estimates(
                groups,
                [g.clip_norm for g in groups],
                l2_norm_clip,
                self.thresholds.rescale,
            )
        return tuple(groups)

    def _split(self, l2_norm_clip, names, dimensions) -> tuple[float, ...]:
        if isinstance(self.thresholds, Adaptive):
            return self.thresholds.initial_estimates(
                l2_norm_clip, names, dimensions
            )
        split = self.thresholds
        if isinstance(split, Automatic):
            split = split.split
        return thresholds_lib.split_bound(
            split, l2_norm_clip, names, dimensions
        )

    def get_config(self) -> dict:
        """Returns the fields, for Keras serialization."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_config(cls, config: dict) -> "Clipping":
        """Makes the object from its fields; inverse of `get_config`."""
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value)
                if isinstance(value, dict) and "class_name" in value
                else value
                for name, value in config.items()
            }
        )


def _warn_if_alone(groups: Sequence[Group], adaptive: Adaptive) -> None:
    if adaptive.rescale and len(groups) == 1:
        user_warnings.warn(
            f"'{groups[0].name}' is the only group: its threshold, rescaled, "
            "is always l2_norm_clip, and counting for it wastes budget. Use "
            "Adaptive(rescale=False) or fixed thresholds.",
        )


def _as_thresholds(thresholds):
    if isinstance(thresholds, Adaptive | Automatic):
        return thresholds
    if thresholds == "adaptive":
        return Adaptive()
    if thresholds == "automatic":
        return Automatic()
    try:
        return thresholds_lib.as_split("thresholds", thresholds)
    except ValueError as error:
        raise ValueError(
            "`thresholds` must be 'equal', 'by_dimension', 'adaptive', "
            "'automatic', a dict from group name to threshold, or a "
            "tf_dpfp.clipping.Adaptive or tf_dpfp.clipping.Automatic object. "
            f"Received: thresholds={thresholds!r}"
        ) from error
