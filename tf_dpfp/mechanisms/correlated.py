"""Training with correlated noise: which data, and by how many parts.

Correlated noise is amplified only where an example is in steps that are as far
apart as noise reaches. `fit` draws such batches itself, from one part of the
data after the other, and says with each batch from which part it is. Steps that
are not those of its loop have independent noise, or are refused.
"""

import contextlib
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import optimizers
from tf_dpfp import replicas
from tf_dpfp import sampling as sampling_lib
from tf_dpfp.sampling import lengths
from tf_dpfp.sampling import pipelines

if TYPE_CHECKING:
    from tf_dpfp.mechanisms.gradients import Gradients


def applies(
    optimizer: optimizers.PrivateOptimizer, pipeline: pipelines.Pipeline
) -> bool:
    """Tells if steps on a pipeline have correlated noise.

    Args:
        optimizer: The optimizer.
        pipeline: Description of the data.
    """
    return pipeline.cyclic is not None and (optimizer.bands or 1) > 1


def parts_of(
    optimizer: optimizers.PrivateOptimizer, pipeline: pipelines.Pipeline
) -> int:
    """Returns the number of parts that batches are drawn from in turn.

    Args:
        optimizer: An optimizer whose number of bands is known.
        pipeline: Description of cyclic batches.
    """
    assert pipeline.cyclic is not None and optimizer.bands is not None
    return pipeline.cyclic.parts or optimizer.bands


def by_parts(
    optimizer: optimizers.PrivateOptimizer, pipeline: pipelines.Pipeline
) -> tuple[accounting.Sampling, accounting.Release]:
    """Returns the sampling and the release of steps with correlated noise.

    Args:
        optimizer: The optimizer.
        pipeline: Description of cyclic batches.
    """
    assert pipeline.cyclic is not None and optimizer.bands is not None
    sampling = pipeline.cyclic.sampling_of(parts_of(optimizer, pipeline))
    return sampling, released(optimizer.bands, pipeline)


def released(bands: int, pipeline: pipelines.Pipeline) -> accounting.BandedSums:
    """Returns the release of steps with a number of bands.

    Args:
        bands: Number of bands, above 1.
        pipeline: Description of cyclic batches.
    """
    places = pipeline.max_examples_per_user
    if places is None:
        return accounting.BandedSums(bands)
    return accounting.BandedPersonSums(bands, places)


def batches(
    optimizer: optimizers.PrivateOptimizer,
    pipeline: pipelines.Pipeline,
    arguments: dict[str, Any],
    padded: bool,
    pieces: int = 1,
) -> tf.data.Dataset:
    """Returns batches from one part after the other, which say so.

    Args:
        optimizer: The optimizer.
        pipeline: Description of cyclic batches.
        arguments: The bound arguments of `fit`, whose `x` is the data set that
            `cyclic_poisson_batches` returned.
        padded: True to pad them to few sizes, for XLA.
        pieces: Number of pieces of one size that each is cut into.
    """
    assert pipeline.cyclic is not None
    found = pipeline.cyclic.batches_of(parts_of(optimizer, pipeline))
    if not padded:
        return found
    # Whatever the parts are, a step draws as many as one of all the data: each
    # example is in the part whose turn it is, and drawn, at that rate.
    info = sampling_lib.sampling_of(arguments["x"])
    assert info is not None
    return sampling_lib.in_buckets(
        found,
        info,
        pieces * (optimizer.microbatch_size or 1),
        lengths.steps_of(arguments),
    )


def opened(
    optimizer: optimizers.PrivateOptimizer,
    pipeline: pipelines.Pipeline,
    arguments: dict[str, Any],
    strategy: tf.distribute.Strategy | None = None,
) -> contextlib.AbstractContextManager[None]:
    """Begins correlated noise for the steps of a `fit`, if it is correlated.

    Args:
        optimizer: The optimizer.
        pipeline: Description of the data.
        arguments: The bound arguments of `fit`.
        strategy: The strategy whose replicas draw the noise; `None`: one
            device does.
    """
    if not applies(optimizer, pipeline):
        return contextlib.nullcontext()
    with strategy.scope() if strategy else contextlib.nullcontext():
        optimizer.correlation.build()
    epochs = arguments["epochs"] - (arguments["initial_epoch"] or 0)
    of_epoch = arguments.get("steps_per_epoch") or pipeline.steps_per_epoch
    return optimizer.correlation.opened(max(1, epochs * (of_epoch or 1)))


def check(
    mechanism: "Gradients",
    pipeline: pipelines.Pipeline,
    strategy: tf.distribute.Strategy | None,
    arguments: dict[str, Any],
) -> None:
    """Refuses a `fit` whose noise can't be correlated as it is asked for.

    Args:
        mechanism: The mechanism of the model.
        pipeline: Description of the data.
        strategy: The strategy that the model trains under, or `None`.
        arguments: The bound arguments of `fit`.

    Raises:
        ValueError: If so.
    """
    bands = mechanism.optimizer.bands
    if bands == 1:
        return
    noise = mechanism.optimizer.correlated_noise
    if pipeline.cyclic is None:
        raise ValueError(
            "Correlated noise is amplified only where an example is in steps "
            "that are far enough apart. Pass the data set that "
            "tf_dpfp.cyclic_poisson_batches returned, itself, or leave "
            f"`correlated_noise` out. Received: {pipeline.name}, "
            f"correlated_noise={noise}"
        )
    if replicas.deals(strategy) and not replicas.are_mirrored(strategy):
        raise ValueError(
            "Correlated noise is drawn by the replicas of one machine, under "
            "MirroredStrategy: workers don't agree on the part of the data "
            "whose turn it is. Train on one machine, or leave "
            f"`correlated_noise` out. Received: correlated_noise={noise} "
            f"under {type(strategy).__name__}"
        )
    if arguments.get("class_weight"):
        raise ValueError(
            "`class_weight` is for batches that are not drawn by parts. Give "
            "weights with the examples instead: cyclic_poisson_batches(x, y, "
            f"sample_weight, ...). Received: correlated_noise={noise}"
        )
    _check_parts(pipeline.cyclic.parts, bands)


def _check_parts(parts: int | None, bands: int | None) -> None:
    if parts is not None and bands is not None and parts < bands:
        raise ValueError(
            "With fewer parts than bands an example would be in steps that "
            "share noise. Leave `bands` of cyclic_poisson_batches out, or "
            f"raise it. Received: cyclic_poisson_batches(bands={parts}), "
            f"Banded(bands={bands})"
        )


def refuse_loop(optimizer: optimizers.PrivateOptimizer) -> None:
    """Refuses sampled steps of a loop, whose noise would be independent.

    Args:
        optimizer: The optimizer.

    Raises:
        ValueError: If its noise is correlated.
    """
    if optimizer.bands != 1:
        raise ValueError(
            "Noise is correlated in `fit` alone: a loop does not say from "
            "which part of the data its batches are. Use `fit`, or leave "
            "`correlated_noise` out. Received: correlated_noise="
            f"{optimizer.correlated_noise}"
        )
