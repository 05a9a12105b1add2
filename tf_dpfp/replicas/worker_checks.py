"""Checks that all workers train the same model on the same examples."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import clipping
from tf_dpfp import sampling as sampling_lib
from tf_dpfp.distribute import agreement
from tf_dpfp.keras_private import distribution as keras_distribution
from tf_dpfp.sampling import pipelines


def check_workers(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    groups: Sequence[clipping.Group],
    pipeline: pipelines.Pipeline,
    arguments: dict[str, Any],
) -> None:
    """Raises unless all workers were given the same.

    Args:
        strategy: A `tf.distribute` strategy.
        model: A built model.
        groups: Groups of variables that are clipped together.
        pipeline: Pipeline of all workers.
        arguments: Arguments of `fit`.

    Raises:
        ValueError: If they were not.
    """
    if agreement.num_workers(strategy) == 1:
        return
    optimizer = model.optimizer
    lengths = ("epochs", "steps_per_epoch", "validation_steps")
    agreement.check_same_on_workers(
        strategy,
        {
            "optimizers": sorted(optimizer.get_config().items()),
            "ledgers": optimizer.ledger_entries,
            "data sets": (pipeline.sampling, pipeline.population),
            "batch sizes": optimizer.expected_batch_size,
            "class weights": arguments["class_weight"],
            "lengths of training": [arguments[name] for name in lengths],
            "models": [
                (tuple(v.shape), str(v.dtype), bool(v.trainable))
                for v in model.variables
            ],
            # Names of layers count up, and may differ; those of devices not.
            "placements": [(g.device and g.name, g.members) for g in groups],
        },
    )


def check_examples(
    strategy: tf.distribute.Strategy, batches: tf.data.Dataset
) -> None:
    """Raises unless all workers draw from the same examples in one order.

    Each takes its share by position: were the orders different, an example
    could be in the shares of two workers, twice in one step, or in none. Reads
    every example.

    Args:
        strategy: A `tf.distribute` strategy.
        batches: Data that `fit` was given on this worker.

    Raises:
        ValueError: If they do not.
    """
    if agreement.num_workers(strategy) == 1:
        return
    # Under a key of this moment: what is sent can't be compared with digests
    # of other data, or of another day.
    found = sampling_lib.examples_digest(batches, agreement.fresh_key(strategy))
    agreement.check_same_on_workers(
        strategy, {"examples, or examples in different orders": found.hex()}
    )


class CheckStart(keras.callbacks.Callback):
    """Checks that workers start with the same, restored or new.

    Each restores its state by itself, and one may have saved an epoch more
    than the others before it was killed.

    Args:
        strategy: A `tf.distribute` strategy.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        super().__init__()
        self._strategy = strategy

    def on_train_begin(self, logs=None):  # noqa: ARG002
        agreement.check_same_on_workers(
            self._strategy,
            {
                "states to start with": [
                    agreement.digest_of(state_of(self.model)),
                    keras_distribution.initial_epoch(self.model),
                ]
            },
        )


def state_of(model: keras.Model) -> list[keras.Variable]:
    """Lists the variables that all replicas must agree on."""
    return [*model.trainable_variables, *model.optimizer.variables]


def with_check(callbacks: Any, strategy: tf.distribute.Strategy) -> Any:
    """Returns the callbacks of `fit`, followed by the check of the start.

    Args:
        callbacks: Callbacks that `fit` was given.
        strategy: A `tf.distribute` strategy.

    Returns:
        What to give to Keras.
    """
    if agreement.num_workers(strategy) == 1:
        return callbacks
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(CheckStart(strategy))
        return callbacks
    given = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    return [*(c for c in given if c is not None), CheckStart(strategy)]
