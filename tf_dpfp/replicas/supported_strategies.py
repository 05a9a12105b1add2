"""Strategies of tf.distribute that private training runs under."""

from typing import Any

import keras
import tensorflow as tf

from tf_dpfp.distribute import agreement
from tf_dpfp.keras_private import distribution as keras_distribution
from tf_dpfp.keras_private import optimizers as keras_optimizers

_SUPPORTED = (
    tf.distribute.OneDeviceStrategy,
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.TPUStrategy,
)


def strategy_for(
    model: keras.Model, optimizer
) -> tf.distribute.Strategy | None:
    """Returns the strategy that a model trains under.

    Args:
        model: A private, compiled model.
        optimizer: Its optimizer.

    Returns:
        The strategy, or `None` where there is none.

    Raises:
        ValueError: If model and optimizer were not both made in its scope, or
            private training does not support it.
    """
    strategy = keras_distribution.strategy_of(model)
    current = tf.distribute.get_strategy()
    if tf.distribute.has_strategy() and current is not strategy:
        raise ValueError(
            f"`fit` is called in the scope of a {type(current).__name__} and "
            f"model '{model.name}' was made outside of it. Make and compile "
            "the model inside `with strategy.scope():`."
        )
    if strategy is None:
        strategy = _strategy_of_variables(optimizer)
        if strategy is None:
            return None
        raise ValueError(
            f"The optimizer was made in the scope of a "
            f"{type(strategy).__name__} and model '{model.name}' outside of "
            "it. Make and compile the model inside `with strategy.scope():`."
        )
    if not isinstance(strategy, _SUPPORTED):
        raise ValueError(
            f"Private training does not run under {type(strategy).__name__}: "
            "all replicas must take each step together. Use MirroredStrategy, "
            "MultiWorkerMirroredStrategy or TPUStrategy."
        )
    for variable in [*model.variables, *optimizer.variables]:
        if not strategy.extended.variable_created_in_scope(variable.value):
            raise ValueError(
                f"'{variable.path}' was made outside of the scope of the "
                f"{type(strategy).__name__} that the model trains under. Make "
                "model and optimizer, and compile, inside "
                "`with strategy.scope():`."
            )
    if deals(strategy):
        _check_settings(strategy, model, optimizer)
    return strategy


def _check_settings(strategy, model: keras.Model, optimizer) -> None:
    """Refuses what is not done on several replicas, by Keras or here."""
    if int(model.steps_per_execution) != 1:
        raise ValueError(
            "Keras runs one step at a time on several replicas. Compile with "
            "steps_per_execution=1. Received: "
            f"steps_per_execution={int(model.steps_per_execution)}"
        )
    if model.jit_compile and not compiles(strategy):
        raise ValueError(
            "XLA compiles on several replicas under MirroredStrategy, for "
            "clipped gradients, where each replica is on one device, if "
            "`compile` asks for it in the scope of the strategy. Compile with "
            "jit_compile=False."
        )
    if getattr(optimizer, "ema_overwrite_frequency", None):
        raise ValueError(
            "Keras can't overwrite weights with their averages during steps "
            "on several replicas. Leave `ema_overwrite_frequency` out: they "
            "are overwritten at the end of `fit`."
        )


def check_rows(
    strategy: tf.distribute.Strategy | None, eager: bool = False
) -> None:
    """Refuses replicas that can't release rows of a batch.

    Args:
        strategy: The strategy of a model with a `DPRepresentationClip`, of
            several replicas.
        eager: True if its steps run eagerly, and not in graphs of their own.

    Raises:
        ValueError: If they are not those of one machine, or run eagerly.
    """
    if eager or not are_mirrored(strategy):
        raise ValueError(
            "Representations are released on the replicas of one machine, "
            "under MirroredStrategy, in compiled steps. Compile with "
            "run_eagerly=False, or train on one device. Received: "
            f"{type(strategy).__name__}, run_eagerly={eager}"
        )


def _strategy_of_variables(optimizer) -> tf.distribute.Strategy | None:
    count = keras_optimizers.calls_variable(optimizer)
    value: Any = None if count is None else count.value
    return value.distribute_strategy if is_distributed(value) else None


def is_distributed(value) -> bool:
    """Tells a value with one component for each replica."""
    return isinstance(value, tf.distribute.DistributedValues)


def compiles(strategy: tf.distribute.Strategy | None) -> bool:
    """Tells if a strategy has XLA compile what its replicas run."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def compiles_pieces(strategy: tf.distribute.Strategy | None) -> bool:
    """Tells if XLA can compile each replica's part of a step by itself.

    A step of all replicas it can't: it compiles for one device, and refuses the
    variables that are on another.

    Args:
        strategy: A `tf.distribute` strategy, or `None`.
    """
    return deals(strategy) and are_mirrored(strategy)


def are_mirrored(strategy: tf.distribute.Strategy | None) -> bool:
    """Tells if all replicas are those of one machine, on devices of its own.

    Args:
        strategy: A `tf.distribute` strategy, or `None`.
    """
    return isinstance(strategy, tf.distribute.MirroredStrategy)


def deals(strategy: tf.distribute.Strategy | None) -> bool:
    """Tells if batches must be dealt under a strategy."""
    return strategy is not None and (
        strategy.num_replicas_in_sync > 1 or agreement.num_workers(strategy) > 1
    )
