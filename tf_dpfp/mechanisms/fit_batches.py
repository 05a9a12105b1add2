"""Batches as Keras's `fit` takes them: padded, weighed, built for."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import optimizers
from tf_dpfp import replicas
from tf_dpfp import sampling as sampling_lib
from tf_dpfp.keras_private import distribution as keras_distribution
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.sampling import lengths
from tf_dpfp.sampling import pipelines


def built_before(
    model: keras.Model, batches: Any
) -> contextlib.AbstractContextManager[None]:
    """Builds a model for batches that are not as Keras knows them.

    Args:
        model: The model.
        batches: The data of `fit`.

    Returns:
        Context in which Keras builds nothing of a model built here.
    """
    spec, part = sampling_lib.split_part(getattr(batches, "element_spec", None))
    if sampling_lib.kind_of(spec) is not None:
        batch = tuple(sampling_lib.flat(spec))
    elif part is not None:
        batch = keras.utils.unpack_x_y_sample_weight(spec)
    else:
        return contextlib.nullcontext()
    keras_distribution.symbolic_build(model, batch)
    return keras_distribution.without_symbolic_build(model)


def check_sparse(
    sparse: optimizers.Sparse | None, strategy: tf.distribute.Strategy | None
) -> None:
    """Refuses sparse tables on workers and TPUs.

    Args:
        sparse: The sparse tables, if any.
        strategy: The strategy that the model trains under, if any.

    Raises:
        ValueError: If its replicas are not those of one machine.
    """
    deals = replicas.deals(strategy) and not replicas.are_mirrored(strategy)
    if sparse is not None and deals:
        raise ValueError(
            "How many rows of a sparse table are released differs from step to "
            "step, and workers and TPUs add up tensors of one size. Train on "
            "one machine, under MirroredStrategy, or leave `sparse_tables` "
            f"out. Received: sparse_tables={sparse} under "
            f"{type(strategy).__name__}"
        )


def needs_buckets(
    model: keras.Model, pipeline: pipelines.Pipeline, compiles: bool
) -> bool:
    """Tells if XLA compiles for each size of Poisson batches anew.

    Args:
        model: The model.
        pipeline: Description of the data.
        compiles: True if XLA compiles the step, or what is clipped in it.
    """
    compiles_sizes = compiles and not model.run_eagerly
    return compiles_sizes and isinstance(
        pipeline.sampling, accounting.PoissonSampling
    )


def in_buckets(
    ordinary: Any,
    optimizer: optimizers.PrivateOptimizer,
    batches: tf.data.Dataset,
    args: tuple,
    kwargs: dict,
) -> tuple[tuple, dict]:
    """Pads Poisson batches to few sizes, each compiled once.

    Args:
        ordinary: Keras's `fit`.
        optimizer: The optimizer; it cuts the batches into pieces.
        batches: The data set that was passed, before it was weighed.
        args: Arguments of `fit` by position.
        kwargs: Arguments of `fit` by name.

    Returns:
        The arguments, with padded batches where they can be.
    """
    arguments = state_lib.bound(ordinary, args, kwargs)
    info = sampling_lib.sampling_of(batches)
    if info is None or arguments.get("class_weight"):
        return args, kwargs
    padded = sampling_lib.in_buckets(
        arguments["x"],
        info,
        optimizer.microbatch_size or 1,
        lengths.steps_of(arguments),
    )
    return state_lib.replaced(ordinary, args, kwargs, x=padded)


def handed_on(
    ordinary: Any, args: tuple, kwargs: dict, pipeline: pipelines.Pipeline
) -> Any:
    """Returns what Keras's `fit` must be handed; `None`: anything.

    Args:
        ordinary: The model's own `fit`.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        pipeline: Description of the data.
    """
    if not pipeline.is_dataset:
        return None
    return state_lib.bound(ordinary, args, kwargs)["x"]


def weighed(ordinary: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Makes sample weights of the class weights of a data set.

    Args:
        ordinary: Keras's `fit`.
        args: Arguments of `fit` by position.
        kwargs: Arguments of `fit` by name.

    Returns:
        The arguments.

    Raises:
        ValueError: If class weights come with batches of persons.
    """
    arguments = state_lib.bound(ordinary, args, kwargs)
    batches, class_weight = arguments["x"], arguments.get("class_weight")
    if not class_weight or not isinstance(batches, tf.data.Dataset):
        return args, kwargs
    found = _weigh(batches, class_weight)
    if found is batches:
        return args, kwargs
    return state_lib.replaced(
        ordinary, args, kwargs, x=found, class_weight=None
    )


def weigher(
    batches: tf.data.Dataset, class_weight: Mapping[int, float] | None
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """Returns what makes sample weights of class weights, for replicas.

    Args:
        batches: The data of `fit`, in batches.
        class_weight: From class to weight; `None` without.

    Returns:
        Function of `batches`, or of a part of them.

    Raises:
        ValueError: If class weights come with batches of persons, or of
            anything else than examples with one label each.
    """
    if not class_weight:
        return lambda part: part
    if _weigh(batches, class_weight) is batches:
        raise ValueError(
            "On several replicas `class_weight` takes batches (x, y) with one "
            "label for each example, without sample weights, and classes that "
            f"are integers. Received: class_weight={class_weight}, batches of "
            f"{batches.element_spec}"
        )
    return lambda part: sampling_lib.weigh(part, class_weight)


def sizer(
    optimizer: optimizers.PrivateOptimizer,
    batches: tf.data.Dataset,
    weigh: Callable[[tf.data.Dataset], tf.data.Dataset],
    steps: int | None,
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """Returns what pads Poisson batches to few sizes, for equal pieces.

    Args:
        optimizer: The optimizer, made under a strategy of several replicas.
        batches: The data of `fit`, in batches.
        weigh: What is done to batches before.
        steps: Number of steps that are planned, if it is known.

    Returns:
        Function of `batches`.
    """
    info = sampling_lib.sampling_of(batches)
    if info is None:
        return weigh
    count = optimizer.iterations.value.distribute_strategy.num_replicas_in_sync
    multiple = count * (optimizer.microbatch_size or 1)
    return lambda part: sampling_lib.in_buckets(
        weigh(part), info, multiple, steps
    )


def _weigh(
    batches: tf.data.Dataset, class_weight: Mapping[int, float]
) -> tf.data.Dataset:
    pipelines.refuse_persons(
        batches,
        "`class_weight` is for batches of examples. Give weights with the "
        "examples instead: poisson_batches(x, y, sample_weight, ...).",
    )
    return sampling_lib.weigh(batches, class_weight)
