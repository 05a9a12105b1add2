"""Grouping by device: one group for every device that holds weights."""

import dataclasses

import keras
import tensorflow as tf

from tf_dpfp import user_warnings
from tf_dpfp.clipping.clipping import Clipping
from tf_dpfp.distribute import copies


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
            user_warnings.warn(
                "PerDevice() clips like Flat(): all weights are on "
                f"{short[places[0]]}. To place a layer, build and call it "
                "under `tf.device`, or `tf_dpfp.distribute.on_devices` where "
                "there are replicas.",
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
    """Lists the devices of a variable's copies, one for each replica."""
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
