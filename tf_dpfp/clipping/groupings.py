"""Groupings: which released tensors share one clip factor per example.

A grouping and its thresholds are one frozen object, the `clipping` argument
of the optimizers. Whatever the grouping, the thresholds satisfy
`sum_k C_k^2 = l2_norm_clip^2`: the sensitivity of the whole release is the
bound that the user gave. (Adaptive thresholds that are not rescaled begin
there and then go their own way; the noise goes with them.)

Reference:
    He et al., 2022, arXiv 2212.01539 (group-wise clipping).
"""

import abc
import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from tf_dpfp import noise
from tf_dpfp.clipping import adaptive as adaptive_lib
from tf_dpfp.clipping import thresholds as thresholds_lib
from tf_dpfp.clipping.adaptive import Adaptive
from tf_dpfp.clipping.automatic import Automatic
from tf_dpfp.distribute import copies


@dataclasses.dataclass(frozen=True)
class OwnedVariable:
    """A trainable variable and the layer whose weight it is.

    Attributes:
        variable: The variable.
        layer: The layer that owns it; the first, if several share it.
        released: How many numbers a step releases of it; `None` for one of
            each parameter.
    """

    variable: keras.Variable
    layer: keras.layers.Layer
    released: int | None = None

    @property
    def dimension(self) -> int:
        """How many numbers a step releases of the variable."""
        if self.released is None:
            return math.prod(self.variable.shape)
        return self.released


@dataclasses.dataclass(frozen=True)
class Group:
    """Variables that are clipped together.

    Attributes:
        name: For messages, and to give thresholds by.
        members: Positions in the list of trainable variables.
        threshold: The clip norm C_k; a scalar tensor while it adapts.
        dimension: Number of parameters d_k, or of what is released of them.
        stability: What automatic clipping adds to norms; 0 for clipping.
        estimate: What norms are compared with to be counted, a scalar tensor;
            `None` where nothing adapts.
        device: Where norms, factors and sums are computed, and noise is
            drawn; `None` leaves that to TensorFlow.
    """

    name: str
    members: tuple[int, ...]
    threshold: float | tf.Tensor
    dimension: int
    stability: float = 0.0
    estimate: float | tf.Tensor | None = None
    device: str | None = None


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Clipping(abc.ABC):
    """What is clipped together, at which thresholds, under which noise.

    Args:
        thresholds: How the bound is split among K groups: `"equal"`
            (`C / sqrt(K)` each), `"by_dimension"` (in proportion to the root
            of the number of parameters), or a dict from group name to
            threshold whose squares add up to that of the bound; or
            `tf_dpfp.Adaptive(...)`, thresholds that follow the gradients; or
            `tf_dpfp.Automatic(...)`, gradients scaled to one length.
            `"adaptive"` and `"automatic"` are those with their defaults.
        noise_allocation: How the noise is split: `"global"` (the same
            standard deviation everywhere), `"equal_budget"` (in proportion
            to the group's threshold) or `"by_dimension"` (the same ratio of
            noise norm to threshold in each group). Privacy is the same.

    Raises:
        ValueError: If an argument is none of these.
    """

    thresholds: str | Mapping[str, float] | Adaptive | Automatic = "equal"
    noise_allocation: str = "global"

    def __post_init__(self):
        object.__setattr__(self, "thresholds", _as_thresholds(self.thresholds))
        if self.noise_allocation not in noise.ALLOCATIONS:
            raise ValueError(
                f"`noise_allocation` is one of {list(noise.ALLOCATIONS)}. "
                f"Received: noise_allocation={self.noise_allocation!r}"
            )

    @abc.abstractmethod
    def group_names(self, variables: Sequence[OwnedVariable]) -> list[str]:
        """The name of each variable's group."""

    def device_of(self, variable: keras.Variable | tf.Variable) -> str | None:
        """Where a variable's part of the release is computed and used.

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
            The groups, before the first step. `sum_k threshold_k^2 =
            l2_norm_clip^2`, unless thresholds adapt and are not rescaled.

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
                threshold=threshold,
                dimension=dimension,
                device=self.device_of(variables[indices[0]].variable),
            )
            for (name, indices), threshold, dimension in zip(
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
                [g.threshold for g in groups],
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
        """The fields, for Keras serialization."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_config(cls, config: dict) -> "Clipping":
        """The inverse of `get_config`."""
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
        warnings.warn(
            f"'{groups[0].name}' is the only group: its threshold, rescaled, "
            "is always l2_norm_clip, and counting for it wastes budget. Use "
            "Adaptive(rescale=False) or fixed thresholds.",
            stacklevel=2,
        )


def with_estimates(
    groups: Sequence[Group],
    estimates: Sequence[float | tf.Tensor],
    l2_norm_clip: float,
    rescale: bool,
) -> tuple[Group, ...]:
    """Groups with the thresholds that follow from estimates.

    Args:
        groups: The groups.
        estimates: The estimate of each.
        l2_norm_clip: The bound of the whole release.
        rescale: Whether the thresholds are to keep to that bound.

    Returns:
        The groups, otherwise as they were.
    """
    values = adaptive_lib.thresholds_of(estimates, l2_norm_clip, rescale)
    return tuple(
        dataclasses.replace(group, threshold=value, estimate=estimate)
        for group, value, estimate in zip(
            groups, values, estimates, strict=True
        )
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
            "`thresholds` is 'equal', 'by_dimension', 'adaptive', "
            "'automatic', a dict from group name to threshold, or a "
            "tf_dpfp.Adaptive or tf_dpfp.Automatic object. Received: "
            f"thresholds={thresholds!r}"
        ) from error


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
                "thresholds=tf_dpfp.Adaptive(rescale=False)."
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


@keras.saving.register_keras_serializable(package="tf_dpfp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PerDevice(Clipping):
    """A group for every device that holds weights.

    For a model whose layers are built and called under `with tf.device(...)`.
    Each device clips its own part of every example's gradient, adds the noise
    of its own part and updates it. What goes from device to device is what
    goes there without privacy, activations and their gradients; and which
    examples take part. No norm of an example leaves its device.

    With `microbatch_size`, the clipped sums of a micro-batch are added up on
    the first device. Adaptive thresholds send one count from each device.
    A step that is run eagerly clips as said, but its backward pass runs where
    TensorFlow puts it. XLA compiles for one device, and is refused.

    A layer with weights of its own on two devices is in two groups.
    A group's name is its device, such as "GPU:0".

    Of several replicas, each clips and noises what it has on a device by
    itself, and what replicas have of a group is added up. A group's name is
    then its device on the first replica of the process. To place weights, use
    `tf_dpfp.distribute.on_devices` in place of `tf.device`.

    Args:
        thresholds: As in `Clipping`.
        noise_allocation: As in `Clipping`. With `"equal_budget"`, the default
            here, the noise of a device depends on its own threshold only.

    Reference:
        He et al., 2022, arXiv 2212.01539 (per-device clipping).
    """

    noise_allocation: str = "equal_budget"

    def group_names(self, variables):
        # All replicas must find the same groups, so that it takes the devices
        # of all copies, and never this replica's own.
        places = [_places_of(owned.variable) for owned in variables]
        distinct = sorted(set(places))
        by_replica = zip(*distinct, strict=True)
        if any(len(set(of_one)) < len(distinct) for of_one in by_replica):
            raise ValueError(
                "Weights that one replica has on two devices another has on "
                f"one: {distinct}. Place them alike on every replica."
            )
        # Type and number tell devices apart, unless there are several hosts.
        short = {
            place: "{0.device_type}:{0.device_index}".format(
                tf.DeviceSpec.from_string(place[0])
            )
            for place in distinct
        }
        if len(short) == 1:
            warnings.warn(
                "PerDevice() clips like Flat(): all weights are on "
                f"{short[places[0]]}. To place a layer, build and call it "
                "under `tf.device`, or `tf_dpfp.distribute.on_devices` where "
                "there are replicas.",
                stacklevel=2,
            )
        if len(set(short.values())) < len(short):
            return [place[0] for place in places]
        return [short[place] for place in places]

    def device_of(self, variable):
        return _known(variable, _value_of(variable).device)


def _value_of(variable: keras.Variable | tf.Variable) -> tf.Variable:
    is_keras = isinstance(variable, keras.Variable)
    return variable.value if is_keras else variable


def _places_of(variable: keras.Variable) -> tuple[str, ...]:
    """Where the copies of a variable are, one for each replica."""
    places = copies.devices_of(_value_of(variable))
    return tuple(_known(variable, place) for place in places)


def _known(variable: keras.Variable | tf.Variable, device: str) -> str:
    if not device:
        raise ValueError(
            f"On which device '{variable.name}' is can't be told, and "
            "PerDevice() clips by device. Build the model outside of "
            "`tf.function`, or use PerLayer()."
        )
    return device


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


_BY_NAME = {"flat": Flat, "per_device": PerDevice, "per_layer": PerLayer}


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
