"""Private `fit` on the replicas of a `tf.distribute` strategy.

Every batch is dealt: each of its examples reaches exactly one replica. What
would happen inside the first step (building, the trial) happens before it, once
and outside of all replicas. After the last step, the replicas must hold the
same bits.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import clipping
from tf_dpfp import sampling as sampling_lib
from tf_dpfp.distribute import agreement
from tf_dpfp.sampling import pipelines
from tf_dpfp.training import keras_distribution

_SUPPORTED = (
    tf.distribute.OneDeviceStrategy,
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.TPUStrategy,
)


def strategy_for(
    model: keras.Model, optimizer
) -> tf.distribute.Strategy | None:
    """The strategy that a model trains under.

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
            "Steps on several replicas run without XLA, except on TPUs. "
            "Compile with jit_compile=False."
        )
    if getattr(optimizer, "ema_overwrite_frequency", None):
        raise ValueError(
            "Keras can't overwrite weights with their averages during steps "
            "on several replicas. Leave `ema_overwrite_frequency` out: they "
            "are overwritten at the end of `fit`."
        )


def _strategy_of_variables(optimizer) -> tf.distribute.Strategy | None:
    value = optimizer.iterations.value
    return value.distribute_strategy if _is_distributed(value) else None


def _is_distributed(value) -> bool:
    return isinstance(value, tf.distribute.DistributedValues)


def compiles(strategy: tf.distribute.Strategy | None) -> bool:
    """Whether a strategy has XLA compile what its replicas run."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def deals(strategy: tf.distribute.Strategy | None) -> bool:
    """Whether batches must be dealt under a strategy."""
    return strategy is not None and (
        strategy.num_replicas_in_sync > 1 or agreement.num_workers(strategy) > 1
    )


def pipeline_of(
    strategy: tf.distribute.Strategy, x: Any, pipeline: pipelines.Pipeline
) -> pipelines.Pipeline:
    """The pipeline of all workers together.

    Args:
        strategy: The strategy.
        x: What `fit` was given.
        pipeline: Its description.

    Returns:
        The description of what all workers draw.

    Raises:
        ValueError: If it is not certain that each example would reach exactly
            one replica.
    """
    if isinstance(x, tf.distribute.DistributedDataset):
        raise ValueError(
            "Whether each example of a distributed data set reaches exactly "
            "one replica can't be told. Give `fit` the data set that "
            "tf_dpfp.poisson_batches returned; it is distributed here."
        )
    is_data = isinstance(x, tf.data.Dataset) or pipeline.batch_size is not None
    if not is_data:
        raise ValueError(
            f"{pipeline.name[:1].upper()}{pipeline.name[1:]} can't be dealt "
            "to several replicas. Give `fit` the data set that "
            "tf_dpfp.poisson_batches returned, a tf.data.Dataset of batches, "
            "or arrays."
        )
    workers = agreement.num_workers(strategy)
    if workers == 1:
        return pipeline
    if not pipeline.is_dataset:
        raise ValueError(
            "Workers that read data sets of their own may meet the same "
            "example in one step. Give `fit` the data set that "
            "tf_dpfp.poisson_batches returned: each worker then draws from "
            "its own share of the examples."
        )
    _, info = sampling_lib.sampled_shard(x, 0, workers)
    return pipelines.of_info(info)


def batches_of(
    arguments: dict[str, Any], pipeline: pipelines.Pipeline
) -> tf.data.Dataset:
    """The batches that `fit` was given, or that it makes of arrays.

    Args:
        arguments: Those of `fit`.
        pipeline: Their description.

    Returns:
        A data set of batches.

    Raises:
        ValueError: If some of the arrays are to be held out.
    """
    if pipeline.batch_size is None:
        return arguments["x"]
    if arguments["validation_split"]:
        raise ValueError(
            "`validation_split` can't be used on several replicas. Split the "
            "arrays, and give `validation_data`. Received: validation_split="
            f"{arguments['validation_split']}"
        )
    return sampling_lib.shuffled_batches(
        arguments["x"],
        arguments["y"],
        arguments["sample_weight"],
        batch_size=pipeline.batch_size,
        shuffle=bool(arguments["shuffle"]),
    )


def whole_batch(strategy: tf.distribute.Strategy, batch: Any) -> Any:
    """A batch of which it is certain that all replicas see the same.

    Args:
        strategy: The strategy.
        batch: Nested arrays or tensors.

    Returns:
        Nested tensors.

    Raises:
        ValueError: If it is not, or XLA would need to know its size.
    """
    if tf.distribute.has_strategy() and not (
        tf.distribute.in_cross_replica_context()
    ):
        raise ValueError(
            "One replica alone can't deal a batch to all of them. Call "
            "`dealt_step` outside of `strategy.run`: it calls it."
        )
    if agreement.num_workers(strategy) > 1 or compiles(strategy):
        raise ValueError(
            "A batch of a loop is dealt to the replicas of one machine, "
            f"without XLA, and a {type(strategy).__name__} has others. Train "
            "with `fit`."
        )
    if any(map(_is_distributed, keras.tree.flatten(batch))):
        raise ValueError(
            "Whether each example of a batch that was distributed already is "
            "on exactly one replica can't be told. Give whole batches: they "
            "are dealt here."
        )
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else tf.convert_to_tensor(leaf), batch
    )


def pieces_of(strategy: tf.distribute.Strategy, batch: Any) -> Any:
    """Deals one batch, each example to exactly one replica.

    Args:
        strategy: The strategy.
        batch: What `whole_batch` returned; not while a function is traced.

    Returns:
        The batch, with the pieces of all replicas in place of each tensor.
    """
    count = strategy.num_replicas_in_sync

    def deal(leaf):
        return strategy.experimental_distribute_values_from_function(
            lambda context: sampling_lib.piece_of(
                leaf, context.replica_id_in_sync_group, count
            )
        )

    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else deal(leaf), batch
    )


def dealt(
    strategy: tf.distribute.Strategy, batches: tf.data.Dataset
) -> tf.distribute.DistributedDataset:
    """Distributes batches, each example to exactly one replica.

    Args:
        strategy: The strategy.
        batches: What `fit` was given.

    Returns:
        An infinite distributed data set.
    """

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        info, mine = sampling_lib.sampling_of(batches), batches
        if context.num_input_pipelines > 1:
            mine, info = sampling_lib.sampled_shard(
                batches,
                context.input_pipeline_id,
                context.num_input_pipelines,
            )
        return sampling_lib.deal(
            mine,
            context.num_replicas_in_sync // context.num_input_pipelines,
            static=info is not None and info.capacity is not None,
        ).prefetch(2)

    return strategy.distribute_datasets_from_function(of_worker)


def steps_per_epoch(batches: tf.data.Dataset, given: int | None) -> int:
    """How many steps an epoch has.

    Args:
        batches: What `fit` was given.
        given: Its `steps_per_epoch`.

    Returns:
        The number.

    Raises:
        ValueError: If it can't be told.
    """
    steps = given or int(batches.cardinality())
    if steps < 1:
        raise ValueError(
            "How many batches the data set has can't be told. Give `fit` "
            "`steps_per_epoch=`."
        )
    return steps


def build(
    strategy: tf.distribute.Strategy, model: keras.Model, batch: Any
) -> tuple:
    """Builds a model, its metrics and its optimizer under a strategy.

    Args:
        strategy: The strategy.
        model: A private, compiled model.
        batch: A batch, or the specification of batches.

    Returns:
        `(x, y, sample_weight)` of it.
    """
    data = keras.utils.unpack_x_y_sample_weight(batch)
    with strategy.scope():
        keras_distribution.symbolic_build(model, data)
    return data


@contextlib.contextmanager
def fitting(
    strategy: tf.distribute.Strategy, model: keras.Model
) -> Iterator[None]:
    """What must hold while Keras fits a model that is built.

    Args:
        strategy: The strategy.
        model: The model.

    Raises:
        ReplicasDifferError: At the end, if replicas hold different numbers.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(keras_distribution.without_symbolic_build(model))
        if agreement.num_workers(strategy) > 1:
            stack.enter_context(keras_distribution.reducible_logs(model))
        yield
    agreement.check_identical(strategy, _state_of(model))


def check_workers(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    groups: Sequence[clipping.Group],
    pipeline: pipelines.Pipeline,
    arguments: dict[str, Any],
) -> None:
    """Raises unless all workers were given the same.

    Args:
        strategy: The strategy.
        model: The model, built.
        groups: What is clipped together.
        pipeline: The pipeline of all workers.
        arguments: Those of `fit`.

    Raises:
        ValueError: If they were not.
    """
    optimizer = model.optimizer
    lengths = ("epochs", "steps_per_epoch", "validation_steps")
    agreement.check_same_on_workers(
        strategy,
        {
            "optimizers": sorted(optimizer.get_config().items()),
            "ledgers": optimizer.ledger_entries,
            "data sets": (pipeline.sampling, pipeline.population),
            "batch sizes": optimizer.expected_batch_size,
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
        strategy: The strategy.
        batches: What `fit` was given on this worker.

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
        strategy: The strategy.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        super().__init__()
        self._strategy = strategy

    def on_train_begin(self, logs=None):  # noqa: ARG002
        agreement.check_same_on_workers(
            self._strategy,
            {
                "states to start with": [
                    agreement.digest_of(_state_of(self.model)),
                    keras_distribution.initial_epoch(self.model),
                ]
            },
        )


def _state_of(model: keras.Model) -> list[keras.Variable]:
    return [*model.trainable_variables, *model.optimizer.variables]


def with_check(callbacks: Any, strategy: tf.distribute.Strategy) -> Any:
    """The callbacks of `fit`, with the check of the start behind them.

    Args:
        callbacks: What `fit` was given.
        strategy: The strategy.

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
