"""Makes a `tf.distribute` strategy from a name."""

import json
import os
from collections.abc import Mapping

import tensorflow as tf

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")


def make_strategy(
    name: str = "one_device",
    *,
    num_logical_cpus: int | None = None,
    tpu: str | None = None,
) -> tf.distribute.Strategy:
    """Makes the strategy to train under, from what a command line can say.

    Call it before anything else of TensorFlow, then make and compile the model
    in its scope; `fit` needs no scope.

    Example:

    ```python
    strategy = tf_dpfp.distribute.make_strategy("mirrored")
    with strategy.scope():
        model = tf_dpfp.make_private(build_model())
        model.compile(optimizer=tf_dpfp.DPAdam(1e-3, noise_multiplier=1.1),
                      loss="sparse_categorical_crossentropy")
    model.fit(tf_dpfp.poisson_batches(x, y, expected_batch_size=256))
    ```

    Args:
        name: One of
            - `"one_device"`: TensorFlow's default, without replicas;
            - `"mirrored"`: a replica on every GPU of this machine, or on every
              logical CPU;
            - `"multi_worker"`: this process is one of several, which
              `TF_CONFIG` lists; each has a replica on every GPU that it sees,
              or one on its CPU;
            - `"tpu"`: a replica on every core of a TPU.
        num_logical_cpus: Into how many devices to split the CPU, for trying
            out `"mirrored"` without GPUs.
        tpu: Name or address of the TPU; `None` for that of a TPU VM.

    Returns:
        The strategy.

    Raises:
        ValueError: If the arguments, `TF_CONFIG` or the devices of this
            machine do not fit the name, or the TPU can't be reached.
        RuntimeError: If TensorFlow has started, so that CPUs can't be split.
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"`name` is one of {', '.join(STRATEGIES)}. Received: name={name!r}"
        )
    if num_logical_cpus is not None and name != "mirrored":
        raise ValueError(
            "Only the strategy 'mirrored' trains on logical CPUs. Leave "
            "`num_logical_cpus` out. Received: "
            f"name={name!r}, num_logical_cpus={num_logical_cpus}"
        )
    if tpu is not None and name != "tpu":
        raise ValueError(
            f"`tpu` is for the strategy 'tpu'. Received: name={name!r}, "
            f"tpu={tpu!r}"
        )
    if name == "mirrored":
        return _mirrored(num_logical_cpus)
    if name == "multi_worker":
        _checked_config(os.environ.get("TF_CONFIG", ""))
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _tpu("local" if tpu is None else tpu)
    return tf.distribute.get_strategy()


def worker_index() -> int:
    """Returns the index of this process among the workers of `TF_CONFIG`.

    Returns:
        Its number, from 0; a chief comes first.

    Raises:
        ValueError: If `TF_CONFIG` does not say so.
    """
    config = _checked_config(os.environ.get("TF_CONFIG", ""))
    cluster, task = config["cluster"], config["task"]
    before = len(cluster.get("chief", [])) if task["type"] == "worker" else 0
    return before + task["index"]


def _mirrored(num_logical_cpus: int | None) -> tf.distribute.Strategy:
    if num_logical_cpus is None:
        if tf.config.list_physical_devices("GPU"):
            return tf.distribute.MirroredStrategy()
        raise ValueError(
            "TensorFlow sees no GPU, so there is nothing to train on but one "
            "CPU. Use the strategy 'one_device', or `num_logical_cpus=2` to "
            "try replicas out."
        )
    if num_logical_cpus < 1:
        raise ValueError(
            "`num_logical_cpus` is a positive integer. Received: "
            f"num_logical_cpus={num_logical_cpus}"
        )
    (cpu, *_) = tf.config.list_physical_devices("CPU")
    try:
        tf.config.set_logical_device_configuration(
            cpu,
            [tf.config.LogicalDeviceConfiguration()] * num_logical_cpus,
        )
    except RuntimeError as error:
        raise RuntimeError(
            "TensorFlow has started already, and its CPU can't be split any "
            "more. Call `make_strategy` before anything else of TensorFlow, "
            "and once."
        ) from error
    return tf.distribute.MirroredStrategy(
        [f"CPU:{index}" for index in range(num_logical_cpus)]
    )


def _checked_config(text: str) -> Mapping:
    """Reads `TF_CONFIG`.

    Raises:
        ValueError: If it would train something else, or wait forever.
    """
    try:
        config = json.loads(text or "null")
    except json.JSONDecodeError as error:
        raise ValueError(
            f"The environment variable TF_CONFIG is not JSON ({error}). "
            f"Received: {text!r}"
        ) from error
    example = (
        '{"cluster": {"worker": ["host0:port", "host1:port"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    cluster = config.get("cluster") if isinstance(config, Mapping) else None
    task = config.get("task") if isinstance(config, Mapping) else None
    if not isinstance(cluster, Mapping) or not isinstance(task, Mapping):
        raise ValueError(
            "The strategy 'multi_worker' needs the environment variable "
            f"TF_CONFIG, such as {example}, with an index of its own for each "
            f"worker. Received: {text!r}"
        )
    if set(cluster) - {"chief", "worker"}:
        raise ValueError(
            "Private training needs all workers in each step: TF_CONFIG may "
            "list workers and one chief, and no parameter servers or "
            f"evaluators. Received: {sorted(cluster)}"
        )
    members = cluster.get(task.get("type"), [])
    if task.get("index") not in range(len(members)):
        raise ValueError(
            f"TF_CONFIG says that this is {task.get('type')} number "
            f"{task.get('index')}, which its cluster does not list: "
            f"{dict(cluster)}."
        )
    return config


def _tpu(tpu: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, RuntimeError, tf.errors.OpError) as error:
        raise ValueError(
            f"There is no TPU at tpu={tpu!r}: {error}. Give the name or the "
            "address of one, or on a TPU VM leave `tpu` out."
        ) from error
    return tf.distribute.TPUStrategy(resolver)
