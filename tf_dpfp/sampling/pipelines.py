"""Describes the data passed to `fit`: sampling, batch size, population."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import accounting
from tf_dpfp import user_warnings
from tf_dpfp.sampling import persons
from tf_dpfp.sampling import registry

KERAS_BATCH_SIZE = 32

NOT_OF_JOINT_STEPS = (
    "A private optimizer trains what is below a DPRepresentationClip by single "
    "examples, and nothing is built for the representations and gradients of "
    "persons together. Freeze what is below and compile an ordinary optimizer, "
    "take the layer out, or leave `users` out."
)

_DERIVED_OF_PERSONS = (
    "A data set that is derived from batches of persons proves nothing of "
    "persons. Pass the data set that `poisson_batches` returned, itself, "
    "and change batches by its `map_fn`."
)

NOT_OF_VIEWS = (
    "A DPRepresentationClip releases a representation of each row of a batch, "
    "so of each view of an example, and nothing is proved of several. Leave "
    "`multiplicity` out, or take a private optimizer without the layer."
)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Description of the data passed to `fit`.

    Attributes:
        name: Kind of data, for messages.
        sampling: Sampling that is proved.
        expected_batch_size: Mean number of examples of a batch; `None` if it
            was not asked for or is unknown.
        population: Number of examples, if known.
        seeded: Boolean, true if a seed reproduces the sampling.
        is_dataset: Boolean, true for a data set made by this package.
        drawn: Sampling of its draws, if `stratified_batches` made it.
        batch_size: Batch size, for arrays.
        max_examples_per_user: Greatest number of examples of a person, for
            batches that are drawn by person.
        cyclic: Functions that draw from one part of the data after the other,
            if `cyclic_poisson_batches` made it.
        steps_per_epoch: Number of batches in an iteration, if this package
            made it.
        multiplicity: Number of views of each example in a batch.
        draws: Number of draws that a batch is made of, where they are released
            row by row.
    """

    name: str
    sampling: accounting.Sampling
    expected_batch_size: float | None
    population: int | None = None
    seeded: bool = False
    is_dataset: bool = False
    drawn: registry.SamplingInfo | None = None
    batch_size: int | None = None
    max_examples_per_user: int | None = None
    cyclic: registry.Cyclic | None = None
    steps_per_epoch: int | None = None
    multiplicity: int = 1
    draws: int = 1


UNKNOWN = Pipeline("the batch", accounting.UnknownSampling(), None)


def describe(arguments: dict[str, Any], need_batch_size: bool) -> Pipeline:
    """Describes the data passed to `fit`, for steps that release sums.

    Only a data set that this package made proves anything. An ordinary
    pipeline is described as unknown sampling: each example may be in every
    step.

    Args:
        arguments: The bound arguments of `fit`.
        need_batch_size: Boolean, whether to find the batch size of an ordinary
            pipeline, which reads its first batch.

    Returns:
        The `Pipeline`.

    Raises:
        ValueError: If the batches were drawn for another kind of step.
    """
    info = registry.sampling_of(arguments["x"])
    if info is not None:
        if not isinstance(info.sampling, accounting.PoissonSampling):
            raise ValueError(
                "Batches of `stratified_batches` are for models with a "
                "DPRepresentationClip: nothing is proved of them for clipped "
                "gradients. Use tf_dpfp.poisson_batches. Received: "
                f"batches of {info.draws} draws"
            )
        return of_info(info)
    return _describe_unknown(arguments, need_batch_size)


def describe_joint(
    arguments: dict[str, Any], need_batch_size: bool
) -> Pipeline:
    """Describes the data passed to `fit`, for joint steps.

    Joint steps release representations together with clipped sums. Draws
    without replacement amplify them, Poisson sampling does not.

    Args:
        arguments: The bound arguments of `fit`.
        need_batch_size: Boolean, whether to find the batch size of an ordinary
            pipeline, which reads its first batch.

    Returns:
        The `Pipeline`.

    Raises:
        ValueError: If a batch is several draws.
    """
    refuse_persons(arguments["x"], NOT_OF_JOINT_STEPS)
    refuse_views(arguments["x"], NOT_OF_VIEWS)
    info = registry.sampling_of(arguments["x"])
    if info is not None:
        return _of_joint_steps(info)
    return _describe_unknown(arguments, need_batch_size)


def describe_representations(arguments: dict[str, Any]) -> Pipeline:
    """Describes the data passed to `fit`, for steps that release rows.

    Args:
        arguments: The bound arguments of `fit`.

    Returns:
        The `Pipeline`; `drawn` is the record of `stratified_batches`, and
        `None` for any other data.

    Raises:
        ValueError: If it is derived from batches of persons, or has batches of
            views.
    """
    x = arguments["x"]
    refuse_views(x, NOT_OF_VIEWS)
    info, draws = registry.sampling_of(x), registry.draws_of(x)
    if info is not None and info.max_examples_per_user is not None:
        # Who is dropped from a full batch is in fewer steps, and no more.
        rate = info.sampling.proved_rate
        return dataclasses.replace(
            of_info(info), sampling=accounting.PoissonSampling(rate)
        )
    refuse_persons(x, _DERIVED_OF_PERSONS)
    if info is not None and isinstance(
        info.sampling, accounting.WithoutReplacement
    ):
        return dataclasses.replace(_of_draws(info), draws=draws)
    if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)):
        _warn_of_derived(x)
        sampling = accounting.UnknownSampling()
        return Pipeline("the data set", sampling, None, draws=draws)
    return _describe_arrays(x, arguments, need_batch_size=False)


def _describe_unknown(
    arguments: dict[str, Any], need_batch_size: bool
) -> Pipeline:
    """Describes an ordinary pipeline: each example may be in every step."""
    x = arguments["x"]
    refuse_persons(x, _DERIVED_OF_PERSONS)
    refuse_views(
        x,
        "A data set that is derived from batches of views may hold an example "
        "several times, and nothing is proved of it. Pass the data set that "
        "`poisson_batches` returned, itself, and change batches by its "
        "`map_fn`.",
    )
    draws = registry.draws_of(x)
    if draws != 1:
        raise ValueError(
            "A batch must be one draw: an example that is in it several times "
            "moves the clipped sums by as many clip norms. Use "
            "`poisson_batches`, or `stratified_batches` with draws=1. "
            f"Received: a data set made of batches of {draws} draws"
        )
    if isinstance(x, tf.data.Dataset):
        _warn_of_derived(x)
        size = _dataset_batch_size(x) if need_batch_size else None
        return Pipeline("the data set", accounting.UnknownSampling(), size)
    if isinstance(x, keras.utils.PyDataset):
        size = len(tree.flatten(x[0])[0]) if need_batch_size else None
        return Pipeline("the PyDataset", accounting.UnknownSampling(), size)
    return _describe_arrays(x, arguments, need_batch_size)


def of_info(info: registry.SamplingInfo) -> Pipeline:
    """Describes a Poisson-sampled data set."""
    return Pipeline(
        "the Poisson-sampled data set",
        info.sampling,
        info.expected_batch_size,
        info.population,
        info.seeded,
        is_dataset=True,
        max_examples_per_user=info.max_examples_per_user,
        cyclic=info.cyclic,
        steps_per_epoch=info.steps_per_epoch,
        multiplicity=info.multiplicity,
    )


def refuse_persons(x: Any, reason: str) -> None:
    """Refuses batches that are drawn by person.

    Args:
        x: Data that `fit` was given.
        reason: Sentence that says why.

    Raises:
        ValueError: If `x` is a data set of such batches.
    """
    is_dataset = isinstance(x, tf.data.Dataset)
    if is_dataset and isinstance(x.element_spec, persons.PersonBatch):
        raise ValueError(
            f"{reason} Received: batches of poisson_batches(users=...)"
        )


def refuse_views(x: Any, reason: str) -> None:
    """Refuses batches that hold several views of an example.

    Args:
        x: Data that `fit` was given.
        reason: Sentences that say why.

    Raises:
        ValueError: If `x` is a data set of such batches, or derived from one.
    """
    multiplicity = registry.multiplicity_of(x)
    if multiplicity > 1:
        raise ValueError(
            f"{reason} Received: batches of "
            f"poisson_batches(multiplicity={multiplicity})"
        )


def _warn_of_derived(x: Any) -> None:
    """Warns of batches that were drawn at random, and changed afterwards.

    Args:
        x: A data set.

    Raises:
        ValueError: If batches were laid together: whatever the sampling, an
            example may be in a batch once at most.
    """
    if registry.is_cut_anew(x):
        raise ValueError(
            "The data set cuts batches that this package drew into other ones, "
            "by `unbatch`, `batch`, `rebatch`, `flat_map` or the like. Each "
            "was drawn by itself, so an example may be several times in one of "
            "these, and move a step by as many clip norms. Draw batches of the "
            "size that you want (`expected_batch_size`), and change them by "
            "`map_fn`."
        )
    if registry.is_derived(x):
        user_warnings.warn(
            "The data set was made of batches that this package drew, by "
            "`prefetch`, `map`, `take` or the like, and nothing is proved of "
            "how such batches are drawn: epsilon is that of no amplification "
            "by sampling, which is far larger. Pass the data set itself, which "
            "prefetches by itself, and change batches by its `map_fn`.",
        )


def _of_joint_steps(info: registry.SamplingInfo) -> Pipeline:
    if isinstance(info.sampling, accounting.PoissonSampling):
        # It does not amplify: a representation shows who was drawn.
        return dataclasses.replace(
            of_info(info), sampling=accounting.UnknownSampling()
        )
    if info.draws != 1:
        raise ValueError(
            "A batch must be one draw: the gradient of the layers below a "
            "DPRepresentationClip is one sum over the batch. Use "
            "`stratified_batches` with draws=1. Received: batches of "
            f"{info.draws} draws"
        )
    return _of_draws(info)


def _of_draws(info: registry.SamplingInfo) -> Pipeline:
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
    batch_size = min(arguments.get("batch_size") or KERAS_BATCH_SIZE, count)
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
