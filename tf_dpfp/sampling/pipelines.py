"""What can be told of an input pipeline before training starts."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import accounting
from tf_dpfp.sampling import registry

_KERAS_BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """How the batches of a `fit` come about.

    Attributes:
        name: What it is, for messages.
        sampling: What is proved about the sampling.
        expected_batch_size: Mean number of examples of a batch; `None` if it
            was not asked for or can't be told.
        population: Number of examples, if known.
        seeded: Whether the sampling can be reproduced from a seed.
        is_dataset: Whether it is a data set that this package made.
        drawn: How its draws came about, if `microbatch_sampler` made it.
        batch_size: Rows of a batch, of arrays.
    """

    name: str
    sampling: accounting.Sampling
    expected_batch_size: float | None
    population: int | None = None
    seeded: bool = False
    is_dataset: bool = False
    drawn: registry.SamplingInfo | None = None
    batch_size: int | None = None


UNKNOWN = Pipeline("the batch", accounting.UnknownSampling(), None)


def describe(
    arguments: dict[str, Any], need_batch_size: bool, rows: bool = False
) -> Pipeline:
    """Describes the data that `fit` was given.

    Only a data set made by `poisson_batches` proves anything. An ordinary
    pipeline is described as unknown sampling: each example may be in every
    step.

    Args:
        arguments: The bound arguments of `fit`.
        need_batch_size: Whether to look into an ordinary pipeline for its
            batch size, which reads its first batch.
        rows: Whether steps release representations beside the clipped sums,
            for which other ways of sampling amplify.

    Returns:
        A `Pipeline`.

    Raises:
        ValueError: If the batches were drawn for another kind of step.
    """
    x = arguments["x"]
    info = registry.sampling_of(x)
    if info is not None and rows:
        return _of_rows(info)
    if info is not None:
        if not isinstance(info.sampling, accounting.PoissonSampling):
            raise ValueError(
                "Batches of `microbatch_sampler` are for models with a "
                "DPRepresentationClip: nothing is proved of them for clipped "
                "gradients. Use tf_dpfp.poisson_batches."
            )
        return of_info(info)
    if isinstance(x, tf.data.Dataset):
        size = _dataset_batch_size(x) if need_batch_size else None
        return Pipeline("the data set", accounting.UnknownSampling(), size)
    if isinstance(x, keras.utils.PyDataset):
        size = len(tree.flatten(x[0])[0]) if need_batch_size else None
        return Pipeline("the PyDataset", accounting.UnknownSampling(), size)
    return _describe_arrays(x, arguments, need_batch_size)


def of_info(info: registry.SamplingInfo) -> Pipeline:
    """The description of a Poisson-sampled data set."""
    return Pipeline(
        "the Poisson-sampled data set",
        info.sampling,
        info.expected_batch_size,
        info.population,
        info.seeded,
        is_dataset=True,
    )


def _of_rows(info: registry.SamplingInfo) -> Pipeline:
    if isinstance(info.sampling, accounting.PoissonSampling):
        # Row for row it does not amplify: a row shows who was drawn.
        return dataclasses.replace(
            of_info(info), sampling=accounting.UnknownSampling()
        )
    if info.draws != 1:
        raise ValueError(
            f"A batch of these is {info.draws} draws, and the gradient of what "
            "is below a DPRepresentationClip is one sum over the batch. Use "
            "`microbatch_sampler` with microbatches=1."
        )
    return Pipeline(
        "the data set of draws",
        info.sampling,
        info.expected_batch_size,
        info.population,
        info.seeded,
        is_dataset=True,
        drawn=info,
    )


def _describe_arrays(x, arguments, need_batch_size: bool) -> Pipeline:
    leaves = [leaf for leaf in tree.flatten(x) if leaf is not None]
    if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
        # A generator: its first batch can't be read and put back.
        return Pipeline("the generator", accounting.UnknownSampling(), None)
    count = int(leaves[0].shape[0])
    held_out = arguments.get("validation_split") or 0.0
    count -= int(count * held_out)
    batch_size = min(arguments.get("batch_size") or _KERAS_BATCH_SIZE, count)
    return Pipeline(
        "the arrays",
        accounting.UnknownSampling(count, batch_size)
        if count
        else accounting.UnknownSampling(),
        float(batch_size) if need_batch_size and batch_size else None,
        count or None,
        batch_size=batch_size or None,
    )


def _dataset_batch_size(dataset: tf.data.Dataset) -> float | None:
    specs = tree.flatten(
        tf.nest.flatten(dataset.element_spec, expand_composites=False)
    )
    static = specs[0].shape[0] if specs and specs[0].shape.rank else None
    if static is not None:
        return float(static)
    for batch in dataset.take(1):
        return float(tf.nest.flatten(batch)[0].shape[0])
    return None
