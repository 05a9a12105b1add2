"""How a data set's batches were drawn, known only from who made it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_dpfp.accounting import LedgerEntry
from tf_dpfp.accounting import PoissonSampling
from tf_dpfp.accounting import WithoutReplacement


@dataclasses.dataclass(frozen=True)
class SamplingInfo:
    """The law of the batches of one data set.

    Attributes:
        sampling: the mechanism, with its rate, as the accountant takes it.
        expected_batch_size: mean number of examples in a batch.
        population: number of examples the batches are drawn from.
        steps_per_epoch: number of batches in one iteration.
        capacity: rows of every batch when batches are padded, else `None`.
        seeded: whether a seed was given, so that whoever knows it knows which
            examples are in which batch.
        draws: number of independent draws that make up a batch.
        labels: how the labels were randomised; `None` if they were not.
    """

    sampling: PoissonSampling | WithoutReplacement
    expected_batch_size: float
    population: int
    steps_per_epoch: int
    capacity: int | None = None
    seeded: bool = False
    draws: int = 1
    labels: LedgerEntry | None = None


@dataclasses.dataclass(frozen=True)
class _Registered:
    """What is known of a data set, and of the examples behind it."""

    info: SamplingInfo
    shard: Callable[[int, int], tuple[tf.data.Dataset, SamplingInfo]] | None
    digest: Callable[[bytes], bytes] | None


# Keyed by the identity of the data set rather than kept as its attribute: a
# transformed data set is another object, and must not inherit the claim.
_KNOWN: weakref.WeakKeyDictionary[tf.data.Dataset, _Registered] = (
    weakref.WeakKeyDictionary()
)


def register(
    dataset: tf.data.Dataset,
    info: SamplingInfo,
    shard: Callable[[int, int], tuple[tf.data.Dataset, SamplingInfo]]
    | None = None,
    digest: Callable[[bytes], bytes] | None = None,
) -> tf.data.Dataset:
    """Records how `dataset` draws its batches, and returns it.

    Args:
        dataset: the data set.
        info: the law of its batches.
        shard: makes what `sampled_shard` returns.
        digest: makes what `examples_digest` returns.
    """
    _KNOWN[dataset] = _Registered(info, shard, digest)
    return dataset


def sampling_of(dataset: Any) -> SamplingInfo | None:
    """Says how the batches of a data set were drawn, if that is known.

    Args:
        dataset: anything that can be passed to `fit`.

    Returns:
        The `SamplingInfo` of a data set returned by `poisson_batches` or
        `microbatch_sampler`. `None` for anything else, a data set derived from
        such a one included: after `map`, `take`, `shuffle`, `repeat` and the
        like nothing is proved about the batches. Use their argument `map_fn`
        to transform batches and keep the proof.
    """
    if not isinstance(dataset, tf.data.Dataset):
        return None
    known = _KNOWN.get(dataset)
    return None if known is None else known.info


def sampled_shard(
    dataset: tf.data.Dataset, index: int, count: int
) -> tuple[tf.data.Dataset, SamplingInfo]:
    """Draws from every `count`-th example only, as one of `count` workers.

    Poisson sampling of disjoint shards, each by itself, is Poisson sampling of
    the whole: no example's coin depends on another's. So the workers need not
    agree on anything but the rate.

    Args:
        dataset: a data set returned by `poisson_batches`.
        index: which worker, from 0.
        count: number of workers.

    Returns:
        The batches of this worker, and the law of the batches of all workers
        together, which is the same on every worker.

    Raises:
        ValueError: if `dataset` was not made by `poisson_batches`.
    """
    known = _by_shards(dataset)
    if not 0 <= index < count:
        raise ValueError(
            f"`index` is one of {count} workers. Received: index={index}"
        )
    return known.shard(index, count)


def examples_digest(dataset: tf.data.Dataset, key: bytes) -> bytes:
    """Computes a digest of the examples that a data set draws from.

    It reads all of them, in their order, and does not draw.

    Args:
        dataset: a data set returned by `poisson_batches`.
        key: at most 64 bytes, without which the digest says nothing.

    Returns:
        The digest.

    Raises:
        ValueError: if `dataset` was not made by `poisson_batches`.
    """
    return _by_shards(dataset).digest(key)


def _by_shards(dataset: tf.data.Dataset) -> _Registered:
    known = _KNOWN.get(dataset)
    if known is None or known.shard is None:
        raise ValueError(
            "Only the data set that tf_dpfp.poisson_batches returned, itself, "
            "can be drawn from by shards."
        )
    return known
