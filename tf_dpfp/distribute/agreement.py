"""Checks that replicas hold the same, and workers were told the same."""

import hashlib
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf


class ReplicasDifferError(RuntimeError):
    """Replicas that must hold the same numbers hold different ones."""


def check_identical(
    strategy: tf.distribute.Strategy, variables: Sequence[keras.Variable]
) -> None:
    """Raises unless every replica holds the same bits.

    Of several workers, all must call this.

    Args:
        strategy: The strategy the variables were made under.
        variables: Variables of which every replica keeps a copy.

    Raises:
        ReplicasDifferError: If copies differ.
    """
    digest = hashlib.sha256()
    for variable in variables:
        first, *others = (
            np.ascontiguousarray(copy.numpy()).tobytes()
            for copy in strategy.experimental_local_results(variable.value)
        )
        if any(other != first for other in others):
            raise ReplicasDifferError(
                f"The replicas hold different numbers for '{variable.path}'. "
                "They were trained apart: discard this training, and look "
                "for code that changes variables on one replica only."
            )
        digest.update(first)
    _compare_workers(
        strategy,
        {"weights and optimizer state": digest.hexdigest()},
        ReplicasDifferError,
        "The workers hold different {}. They were trained apart: discard this "
        "training, and look for code that changes variables on one worker "
        "only.",
    )


def check_same_on_workers(
    strategy: tf.distribute.Strategy, values: Mapping[str, object]
) -> None:
    """Raises unless every worker was given the same settings.

    All workers must call this.

    Args:
        strategy: The strategy.
        values: Settings by name; compared by their `repr`.

    Raises:
        ValueError: If a setting differs between workers.
    """
    _compare_workers(
        strategy,
        values,
        ValueError,
        "The workers were given different {}. Start every worker with the "
        "same program, flags and data.",
    )


def _compare_workers(strategy, values, error: type, message: str) -> None:
    if num_workers(strategy) == 1:
        return
    rows = np.stack([_digest(value) for value in values.values()])
    # One row of all settings for each replica, from every worker.
    mine = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(rows[None])
    )
    everyone = strategy.gather(mine, axis=0).numpy()
    apart = [
        name
        for column, name in enumerate(values)
        if (everyone[:, column] != rows[column]).any()
    ]
    if apart:
        raise error(message.format(", ".join(apart)))


def _digest(value: object) -> np.ndarray:
    digest = hashlib.sha256(repr(value).encode()).digest()
    return np.frombuffer(digest, np.int32)


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """How many processes train together."""
    resolver = strategy.cluster_resolver
    if resolver is None or not isinstance(
        strategy, tf.distribute.MultiWorkerMirroredStrategy
    ):
        return 1
    return max(
        1,
        len(resolver.cluster_spec().as_dict().get("worker", []))
        + (1 if resolver.cluster_spec().as_dict().get("chief") else 0),
    )
