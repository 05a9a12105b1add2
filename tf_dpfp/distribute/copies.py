"""Weights of one replica on further devices, beside its own."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import tensorflow as tf

_STRATEGIES = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
)


@dataclasses.dataclass(frozen=True)
class _Copies:
    """Stand-in for a variable that TensorFlow colocates others with."""

    _devices: tuple[str, ...]


@contextlib.contextmanager
def on_devices(devices: Sequence[str]) -> Iterator[None]:
    """Places variables on one device for each replica of this process.

    For models of which every replica has parts on several devices. As with
    `tf.device`, weights are where they are built and a layer runs where it is
    called, so do both inside. Without a strategy it is
    `tf.device(devices[0])`.

    Example:

    ```python
    # Two replicas: one on GPU:0 and GPU:1, the other on GPU:2 and GPU:3.
    strategy = tf.distribute.MirroredStrategy(["GPU:0", "GPU:2"])
    with strategy.scope():
        dense = keras.layers.Dense(10)
        with tf_dpfp.distribute.on_devices(["GPU:1", "GPU:3"]):
            dense.build((None, 20))
    ```

    Args:
        devices: Names of the devices, one for each replica of this process,
            in the strategy's order.

    Raises:
        ValueError: If they are not as many as the replicas, or the strategy
            keeps all weights of a replica on one device.
        RuntimeError: If TensorFlow made a weight somewhere else.
    """
    strategy = tf.distribute.get_strategy()
    if not tf.distribute.has_strategy():
        with tf.device(devices[0]):
            yield
        return
    placed = _full_names(strategy, devices)
    if not tf.distribute.in_cross_replica_context():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        # The same number of replicas comes before, of each earlier worker.
        with tf.device(placed[int(tf.get_static_value(replica)) % len(placed)]):
            yield
        return

    def create(next_creator, **kwargs):
        # As `colocate_vars_with` does, which takes no devices.
        variable = next_creator(**(kwargs | {"colocate_with": _Copies(placed)}))
        found = devices_of(variable)
        if found != placed:
            raise RuntimeError(
                f"TensorFlow made '{variable.name}' on {found} and not on "
                f"{placed}. This version of it can't place copies of weights."
            )
        return variable

    with tf.variable_creator_scope(create), tf.device(placed[0]):
        yield


def devices_of(variable: tf.Variable) -> tuple[str, ...]:
    """Returns the devices of the copies of a variable.

    Args:
        variable: A variable, of one replica or several.

    Returns:
        The device of each copy that this process has.
    """
    strategy = getattr(variable, "distribute_strategy", None)
    if strategy is None:
        return (variable.device,)
    copies = strategy.experimental_local_results(variable)
    return tuple(copy.device for copy in copies)


def _full_names(
    strategy: tf.distribute.Strategy, devices: Sequence[str]
) -> tuple[str, ...]:
    if not isinstance(strategy, _STRATEGIES):
        raise ValueError(
            f"A {type(strategy).__name__} keeps all weights of a replica on "
            "one device. Leave `on_devices` out, or use MirroredStrategy or "
            "MultiWorkerMirroredStrategy."
        )
    own = strategy.extended.worker_devices
    if len(devices) != len(own):
        raise ValueError(
            f"`on_devices` takes one device for each of the {len(own)} "
            f"replicas of this process. Received: devices={devices}"
        )
    return tuple(
        tf.DeviceSpec.from_string(mine)
        .make_merged_spec(tf.DeviceSpec.from_string(given))
        .to_string()
        for mine, given in zip(own, devices, strict=True)
    )
