"""Checks that replicas hold the same, and workers were told the same."""

import hashlib
import re
import secrets
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
        strategy: Strategy that the variables were made under.
        variables: Variables of which every replica keeps a copy.

    Raises:
        ReplicasDifferError: If copies differ.
    """
    for variable in variables:
        first, *others = map(
            _bytes, strategy.experimental_local_results(variable.value)
        )
        if any(other != first for other in others):
            raise ReplicasDifferError(
                f"The replicas hold different numbers for '{variable.path}'. "
                "They were trained apart: discard this training, and look "
                "for code that changes variables on one replica only."
            )
    apart = _differing(strategy, {"all": digest_of(variables)})
    if apart:
        raise ReplicasDifferError(
            "The workers hold different weights or optimizer states. They "
            "were trained apart: discard this training, and look for code "
            "that changes variables on one worker only."
        )


def digest_of(variables: Sequence[keras.Variable]) -> str:
    """Returns a digest of the bits of variables on the first local replica."""
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(_bytes(variable))
    return digest.hexdigest()


def _bytes(variable) -> bytes:
    return np.ascontiguousarray(variable.numpy()).tobytes()


def check_same_on_workers(
    strategy: tf.distribute.Strategy, values: Mapping[str, object]
) -> None:
    """Raises unless every worker was given the same settings.

    All workers must call this.

    Args:
        strategy: A `tf.distribute` strategy.
        values: Settings by name; compared by their `repr`.

    Raises:
        ValueError: If a setting differs between workers.
    """
    apart = _differing(strategy, values)
    if apart:
        raise ValueError(
            f"The workers were given different {', '.join(apart)}. Start every "
            "worker with the same program, flags, data and checkpoint."
        )


def _differing(
    strategy: tf.distribute.Strategy, values: Mapping[str, object]
) -> list[str]:
    """Returns the names of the values that differ between workers."""
    if num_workers(strategy) == 1:
        return []
    rows = np.stack([_digest(value) for value in values.values()])
    everyone = _of_everyone(strategy, rows)
    return [
        name
        for column, name in enumerate(values)
        if (everyone[:, column] != rows[column]).any()
    ]


def _of_everyone(
    strategy: tf.distribute.Strategy, mine: np.ndarray
) -> np.ndarray:
    """Gathers the values of all workers, once for each replica."""
    given = strategy.experimental_distribute_values_from_function(
        lambda _: tf.constant(mine[None])
    )
    return strategy.gather(given, axis=0).numpy()


def fresh_key(strategy: tf.distribute.Strategy) -> bytes:
    """Agrees on random bytes that no worker has chosen.

    All workers must call this.

    Args:
        strategy: A `tf.distribute` strategy.

    Returns:
        32 bytes, the same on every worker.
    """
    mine = np.frombuffer(secrets.token_bytes(32), np.int32)
    return hashlib.sha256(_of_everyone(strategy, mine).tobytes()).digest()


def _digest(value: object) -> np.ndarray:
    # Where an object lives is no setting.
    shown = re.sub(r"0x[0-9a-f]+", "", repr(value))
    return np.frombuffer(hashlib.sha256(shown.encode()).digest(), np.int32)


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of processes that train together."""
    resolver = strategy.cluster_resolver
    if resolver is None or not isinstance(
        strategy, tf.distribute.MultiWorkerMirroredStrategy
    ):
        return 1
    cluster = resolver.cluster_spec().as_dict()
    return max(1, sum(len(cluster.get(job, [])) for job in ("chief", "worker")))
