"""Registry of the data sets whose sampling is known, and how they draw."""

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from tf_dpfp import arguments
from tf_dpfp.accounting import LedgerEntry
from tf_dpfp.accounting import PoissonSampling
from tf_dpfp.accounting import WithoutReplacement
from tf_dpfp.keras_private import datasets

DrawAfter: TypeAlias = Callable[[object], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Cyclic:
    """Functions of the examples behind a data set of cyclic batches.

    Attributes:
        parts: Number of parts that was asked for; `None`: as many as the noise
            has bands.
        most_parts: Greatest number of parts that hold a batch each.
        sampling_of: From a number of parts to the sampling of a step.
        batches_of: From a number of parts to a data set of `PartBatch`es.
    """

    parts: int | None
    most_parts: int
    sampling_of: Callable[[int], PoissonSampling]
    batches_of: Callable[[int], tf.data.Dataset]


@dataclasses.dataclass(frozen=True)
class SamplingInfo:
    """Distribution of the batches of one data set.

    Attributes:
        sampling: Sampling with its rate, as the accountant takes it.
        expected_batch_size: Mean number of examples in a batch.
        population: Number of examples that batches are drawn from.
        steps_per_epoch: Number of batches in one iteration.
        capacity: Size of every batch if it is static, else `None`.
        seeded: Boolean, true if a seed was given. Anyone who has the seed can
            tell which examples are in which batch.
        draws: Number of independent draws in a batch.
        labels: Ledger entry of the randomised labels; `None` if labels were
            not randomised.
        max_examples_per_user: Greatest number of examples of a person in a
            batch that is drawn by person, whose sizes are numbers of persons;
            `None` if examples are drawn.
        cyclic: Functions that draw from one part of the data after the other;
            `None` if it can't be drawn so.
        multiplicity: Number of views of each example in a batch.
        ask_earlier: Called with the function of `draw_after`, before iterations
            for a training; `None` if draws hang on no steps.
    """

    sampling: PoissonSampling | WithoutReplacement
    expected_batch_size: float
    population: int
    steps_per_epoch: int
    capacity: int | None = None
    seeded: bool = False
    draws: int = 1
    labels: LedgerEntry | None = None
    max_examples_per_user: int | None = None
    cyclic: Cyclic | None = None
    multiplicity: int = 1
    ask_earlier: Callable[[DrawAfter], None] | None = dataclasses.field(
        default=None, compare=False
    )


@dataclasses.dataclass(frozen=True)
class Shards:
    """Functions of the examples behind a data set of Poisson batches.

    Attributes:
        batches_of: From a worker's index and the number of workers to the
            result of `sampled_shard`.
        digest: From a key to the result of `examples_digest`.
    """

    batches_of: Callable[[int, int], tuple[tf.data.Dataset, SamplingInfo]]
    digest: Callable[[bytes], bytes]


# Keyed by the identity of the data set rather than kept as its attribute: a
# transformed data set is another object, and must not inherit the claim.
_KNOWN: weakref.WeakKeyDictionary[
    tf.data.Dataset, tuple[SamplingInfo, Shards | None]
] = weakref.WeakKeyDictionary()


def register(
    dataset: tf.data.Dataset,
    info: SamplingInfo,
    shards: Shards | None = None,
) -> tf.data.Dataset:
    """Registers how a data set draws its batches.

    Args:
        dataset: The data set.
        info: Distribution of its batches.
        shards: Functions of its examples; `None` if it has no shards.

    Returns:
        `dataset`.
    """
    _KNOWN[dataset] = (info, shards)
    return dataset


def sampling_of(dataset: Any) -> SamplingInfo | None:
    """Returns how a data set draws its batches, if that is known.

    Args:
        dataset: Anything that `fit` takes.

    Returns:
        The `SamplingInfo` of a data set made by `poisson_batches` or
        `stratified_batches`. `None` for anything else, including a data set
        derived from such a one: after `map`, `take`, `shuffle`, `repeat` and
        the like nothing is proved about the batches. Use their argument
        `map_fn` to transform batches and keep the proof.
    """
    if not isinstance(dataset, tf.data.Dataset):
        return None
    return _KNOWN.get(dataset, (None, None))[0]


def draw_after(dataset: Any, after: DrawAfter) -> None:
    """Has a seed draw other batches than it drew for earlier steps.

    Args:
        dataset: Data that steps are to be taken on.
        after: From the sampler of the data to the number of steps of the
            training so far, and numbers that tell it from other samplers that
            draw after as many; asked whenever an iteration begins.
    """
    info = sampling_of(dataset)
    if info is not None and info.ask_earlier is not None:
        info.ask_earlier(after)


def draws_of(dataset: Any) -> int:
    """Returns how many draws a batch of a data set may be made of.

    A data set that was derived from one of several draws proves nothing, and
    yet an example may be in each of its batches once for every draw.

    Args:
        dataset: Anything that `fit` takes.

    Returns:
        The greatest number of draws of what it was derived from; 1 if that
        is unknown.
    """
    return max((info.draws for info in _origins(dataset)), default=1)


def multiplicity_of(dataset: Any) -> int:
    """Returns how many views of one example a batch of a data set may hold.

    Args:
        dataset: Anything that `fit` takes.

    Returns:
        The greatest number of views in what it was derived from; 1 if that is
        unknown.
    """
    return max((info.multiplicity for info in _origins(dataset)), default=1)


def is_derived(dataset: Any) -> bool:
    """Tells a data set that was made of one whose sampling is known.

    Args:
        dataset: Anything that `fit` takes.

    Returns:
        Boolean, false for the data set whose sampling is known, itself.
    """
    return sampling_of(dataset) is None and bool(_origins(dataset))


def _origins(dataset: Any) -> list[SamplingInfo]:
    """Lists the distributions of what a data set was derived from."""
    if not isinstance(dataset, tf.data.Dataset):
        return []
    info = sampling_of(dataset)
    if info is not None:
        return [info]
    return [i for d in datasets.made_of(dataset) for i in _origins(d)]


def is_cut_anew(dataset: Any) -> bool:
    """Tells if an example may be several times in a batch of a data set.

    It may, if batches were drawn, each by itself, and cut into other ones.

    Args:
        dataset: Anything that `fit` takes.
    """
    if not is_derived(dataset):
        return False
    if datasets.cuts_anew(dataset):
        return True
    return any(is_cut_anew(each) for each in datasets.made_of(dataset))


def is_of_draws(x: Any) -> bool:
    """Tells if `x` is a data set of drawn batches, or was made of one."""
    return bool(_origins(x))


def refuse_drawn(x: Any) -> None:
    """Raises `ValueError` if `x` is made of drawn batches."""
    if is_derived(x):
        raise ValueError(
            "`x` was made of drawn batches, in which an example may be any "
            f"number of times. Pass the examples. Received: x={x!r}"
        )
    if sampling_of(x) is not None:
        raise ValueError(
            "`x` already consists of drawn batches. Pass the examples. "
            f"Received: x={x!r}"
        )


def sampled_shard(
    dataset: tf.data.Dataset, index: int, count: int
) -> tuple[tf.data.Dataset, SamplingInfo]:
    """Draws from every `count`-th example only, as one of `count` workers.

    Poisson sampling of disjoint shards, each by itself, is Poisson sampling of
    the whole: examples are drawn independently of each other. So workers need
    to agree on the rate alone.

    Args:
        dataset: A data set made by `poisson_batches`.
        index: Index of the worker, from 0.
        count: Number of workers.

    Returns:
        The batches of this worker, and the distribution of the batches of all
        workers together, which is the same on every worker.

    Raises:
        ValueError: If `dataset` was not made by `poisson_batches`, or `index`
            is not below `count`.
    """
    shards = _shards_of(dataset)
    count = arguments.positive_integer("count", count)
    index = arguments.integer("index", index, most=count - 1)
    return shards.batches_of(index, count)


def examples_digest(dataset: tf.data.Dataset, key: bytes) -> bytes:
    """Computes a digest of the examples that a data set draws from.

    Reads all of them in order, and draws none.

    Args:
        dataset: A data set made by `poisson_batches`.
        key: Secret key of at most 64 bytes. Without it the digest tells
            nothing about the examples.

    Returns:
        The digest.

    Raises:
        ValueError: If `dataset` was not made by `poisson_batches`.
    """
    return _shards_of(dataset).digest(key)


def _shards_of(dataset: tf.data.Dataset) -> Shards:
    shards = _KNOWN.get(dataset, (None, None))[1]
    if shards is None:
        raise ValueError(
            "Only the data set that tf_dpfp.poisson_batches returned, itself, "
            f"can be drawn from by shards. Received: dataset={dataset!r}"
        )
    return shards
