"""Batches dealt to replicas: each example reaches exactly one."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import sampling as sampling_lib
from tf_dpfp.distribute import agreement
from tf_dpfp.keras_private import adapters
from tf_dpfp.keras_private import distribution as keras_distribution
from tf_dpfp.replicas.supported_strategies import compiles
from tf_dpfp.replicas.supported_strategies import is_distributed
from tf_dpfp.replicas.worker_checks import state_of
from tf_dpfp.sampling import pipelines

# What `assert_cardinality` says of infinite data that end.
_ENDED = "expected to contain an infinite number of elements"


def pipeline_of(
    strategy: tf.distribute.Strategy, x: Any, pipeline: pipelines.Pipeline
) -> pipelines.Pipeline:
    """Describes the pipeline of all workers together.

    Args:
        strategy: A `tf.distribute` strategy.
        x: Data that `fit` was given.
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
    if not _can_be_dealt(x, pipeline):
        raise ValueError(
            f"A {type(x).__name__} can't be dealt to several replicas. Give "
            "`fit` the data set that tf_dpfp.poisson_batches returned, a "
            "tf.data.Dataset of batches, a keras.utils.PyDataset, a Python "
            "generator, or arrays."
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


def _can_be_dealt(x: Any, pipeline: pipelines.Pipeline) -> bool:
    """Tells if batches can be made of what `fit` was given."""
    if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)):
        return True
    return inspect.isgenerator(x) or pipeline.batch_size is not None


def batches_of(
    arguments: dict[str, Any], pipeline: pipelines.Pipeline
) -> tf.data.Dataset:
    """Returns the batches that `fit` was given, or makes them of arrays.

    Args:
        arguments: Arguments of `fit`.
        pipeline: Their description.

    Returns:
        A data set of batches.

    Raises:
        ValueError: If some of the arrays are to be held out.
    """
    x = arguments["x"]
    if inspect.isgenerator(x) or isinstance(x, keras.utils.PyDataset):
        return adapters.batches_of(x, bool(arguments["shuffle"]))
    if pipeline.batch_size is None:
        return x
    if arguments["validation_split"]:
        raise ValueError(
            "`validation_split` can't be used on several replicas. Split the "
            "arrays, and give `validation_data`. Received: validation_split="
            f"{arguments['validation_split']}"
        )
    return sampling_lib.shuffled_batches(
        x,
        arguments["y"],
        arguments["sample_weight"],
        batch_size=pipeline.batch_size,
        shuffle=bool(arguments["shuffle"]),
    )


def whole_batch(strategy: tf.distribute.Strategy, batch: Any) -> Any:
    """Returns a batch that is certainly the same on all replicas.

    Args:
        strategy: A `tf.distribute` strategy.
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
            "`distributed_step` outside of `strategy.run`: it calls it."
        )
    if agreement.num_workers(strategy) > 1 or compiles(strategy):
        raise ValueError(
            "A batch of a loop is dealt to the replicas of one machine, "
            f"without XLA, and a {type(strategy).__name__} has others. Train "
            "with `fit`."
        )
    if any(map(is_distributed, keras.tree.flatten(batch))):
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
        strategy: A `tf.distribute` strategy.
        batch: Result of `whole_batch`; not while a function is traced.

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
    strategy: tf.distribute.Strategy,
    batches: tf.data.Dataset,
    weigh: Callable[[tf.data.Dataset], tf.data.Dataset],
    pads: bool = True,
) -> tf.distribute.DistributedDataset:
    """Distributes batches, each example to exactly one replica.

    Args:
        strategy: A `tf.distribute` strategy.
        batches: Data that `fit` was given.
        weigh: Adds weights by class to batches.
        pads: Boolean, whether batches of one size are padded, for pieces of
            one size.

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
            weigh(mine),
            context.num_replicas_in_sync // context.num_input_pipelines,
            static=pads and info is not None and info.capacity is not None,
        ).prefetch(2)

    return strategy.distribute_datasets_from_function(of_worker)


def next_of(iterator: Any) -> Any:
    """Takes the next batch of dealt data that may end.

    Of data that end inside of a compiled step, what needs no data has run by
    then, on some of the replicas.

    Args:
        iterator: Iterator over a dealt data set, which is declared infinite:
            `tf.distribute` would otherwise look in every step which replicas
            have data.

    Returns:
        The pieces of all replicas.

    Raises:
        StopIteration: If the data have ended.
    """
    try:
        return next(iterator)
    except tf.errors.FailedPreconditionError as error:
        if _ENDED not in str(error):
            raise
        raise StopIteration from error


def steps_per_epoch(batches: tf.data.Dataset, given: int | None) -> int:
    """Returns the number of steps in an epoch.

    Args:
        batches: Data that `fit` was given.
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
        strategy: A `tf.distribute` strategy.
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
    """Sets what Keras needs while it fits a model that is built.

    Args:
        strategy: A `tf.distribute` strategy.
        model: A built model.

    Raises:
        ReplicasDifferError: At the end, if replicas hold different numbers.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(keras_distribution.without_symbolic_build(model))
        if agreement.num_workers(strategy) > 1:
            stack.enter_context(keras_distribution.reducible_logs(model))
        yield
    agreement.check_identical(strategy, state_of(model))
