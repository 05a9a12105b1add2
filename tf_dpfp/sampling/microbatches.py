"""Draws of a fixed size, without replacement, from within each label."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfp.accounting import WithoutReplacement
from tf_dpfp.sampling import info as info_lib
from tf_dpfp.sampling import labels as labels_lib
from tf_dpfp.sampling import poisson
from tf_dpfp.sampling import sources


def microbatch_sampler(
    x: Any,
    y: Any,
    *,
    microbatch_size: int,
    microbatches: int = 1,
    labels: str | None = None,
    steps_per_epoch: int | None = None,
    map_fn: Callable[..., Any] | None = None,
    cache: bool = False,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Draws batches for `DPRepresentationClip`, and says so to its ledger.

    A batch is `microbatches` independent draws, laid end to end. A draw takes a
    fixed number of the examples of every label, without replacement, all
    subsets being equally likely, in random order. The smaller a draw is beside
    the data, the less it costs: at one batch size, more draws need less noise,
    though by less than their number.

    How often each label is drawn is fixed, and as even as it can be: the
    greatest rate of any label, which is what epsilon is computed from, is as
    small as `microbatch_size` allows. The guarantee is for replacing one
    example by another of the same label; the number of examples of each label
    is public.

    Args:
        x: where the examples are, as for `poisson_batches`, without labels.
        y: one label for each example: integers of shape `(n,)` or `(n, 1)`, or
            what `randomize_labels` returned.
        microbatch_size: number of examples in a draw.
        microbatches: number of draws in a batch.
        labels: `"public"` declares that the labels of all examples may be
            known to anyone. It must be given for labels that were not
            randomised by `randomize_labels`, and only for those.
        steps_per_epoch: number of batches in an iteration. Defaults to the
            number of examples over that of a batch, rounded, at least 1.
        map_fn: transforms a batch `(x, y)`; as for `poisson_batches`. The
            labels it returns must depend on the labels alone.
        cache: as for `poisson_batches`.
        seed: only to reproduce a run; as for `poisson_batches`.

    Returns:
        A `tf.data.Dataset` of batches `(x, y)` of `microbatches *
        microbatch_size` rows, with static shapes. Transforming it loses what
        is known of its sampling; use `map_fn` instead.

    Raises:
        ValueError: if the arguments contradict each other or the data, or a
            draw is too small for every label to be in it.
        TypeError: if examples cannot be drawn from `x`.

    Reference:
        - Balle et al., 2018, "Privacy Amplification by Subsampling: Tight
            Analyses via Couplings and Divergences".
        - Du and Mi, 2021, "DP-FP: Differentially Private Forward Propagation
            for Large Models".
    """
    poisson.check_count("microbatch_size", microbatch_size)
    poisson.check_count("microbatches", microbatches)
    poisson.check_count("steps_per_epoch", steps_per_epoch)
    poisson.check_seed(seed)
    if info_lib.sampling_of(x) is not None:
        raise ValueError(
            "`x` already consists of drawn batches. Pass the examples."
        )
    randomized = _randomized(y, labels)
    y = y if randomized is None else randomized.values
    classes = labels_lib.class_labels(y)
    source = sources.make_source(x, None, None, cache)
    if len(source.structure) != 1:
        raise ValueError(
            "`x` must hold the inputs only, got elements of (x, y). Pass the "
            "labels as `y`: draws are made from within each of them."
        )
    if source.size != len(classes):
        raise ValueError(
            f"`x` has {source.size} examples and `y` {len(classes)}."
        )
    strata = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    counts = shares([len(s) for s in strata], microbatch_size)
    _check_strata(np.unique(classes), strata, counts, microbatch_size)
    source = _with_labels(source, np.asarray(y))
    rows = microbatches * microbatch_size
    steps = int(steps_per_epoch or max(1, round(source.size / rows)))

    def draws() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(next(entropy))
        for _ in range(steps):
            yield np.concatenate(
                [draw(rng, strata, counts) for _ in range(microbatches)]
            )

    entropy = poisson.seeds(seed)
    dataset = poisson.batches(source, draws, None, map_fn, rows)
    if len(sources.as_components(dataset.element_spec)) != 2:
        raise ValueError(
            "`map_fn` must return (x, y): weights that differ within a label "
            "would tell whose row is whose. Use `class_weight` in `fit`."
        )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    rates = [count / len(s) for count, s in zip(counts, strata, strict=True)]
    worst = int(np.argmax(rates))
    return info_lib.register(
        dataset.prefetch(2),
        info_lib.SamplingInfo(
            sampling=WithoutReplacement(len(strata[worst]), counts[worst]),
            expected_batch_size=float(rows),
            population=source.size,
            steps_per_epoch=steps,
            capacity=rows,
            seeded=seed is not None,
            draws=microbatches,
            labels=None if randomized is None else randomized.entry,
        ),
    )


def draw(
    rng: np.random.Generator, strata: list[np.ndarray], counts: list[int]
) -> np.ndarray:
    """Draws the indices of one micro-batch.

    Args:
        rng: where the randomness comes from.
        strata: the indices of each stratum's examples.
        counts: how many of each to draw.

    Returns:
        Distinct indices, stratum by stratum.
    """
    # `choice` shuffles: the order within a stratum is random. With a fixed one
    # (by index, say) a row's place would tell whose it may be, and a draw with
    # one example in place of another would differ in more than one row.
    return np.concatenate(
        [
            rng.choice(stratum, count, replace=False, shuffle=True)
            for stratum, count in zip(strata, counts, strict=True)
        ]
    )


def shares(sizes: list[int], total: int) -> list[int]:
    """Shares the rows of a draw among strata, as evenly as it can be done.

    Row by row, each goes to the stratum whose rate it leaves the lowest, so
    the greatest rate is the least possible.

    Args:
        sizes: number of examples of each stratum.
        total: number of rows, at most the sum of the sizes.

    Returns:
        The number of rows of each stratum.

    Raises:
        ValueError: if there are more rows than examples.
    """
    if total > sum(sizes):
        raise ValueError(
            f"`microbatch_size` is {total} and there are {sum(sizes)} "
            "examples: a draw is without replacement. Choose a smaller one."
        )
    counts = [0] * len(sizes)
    queue = [(1 / size, index) for index, size in enumerate(sizes)]
    heapq.heapify(queue)
    for _ in range(total):
        _, index = heapq.heappop(queue)
        counts[index] += 1
        if counts[index] < sizes[index]:
            rate = (counts[index] + 1) / sizes[index]
            heapq.heappush(queue, (rate, index))
    return counts


def _randomized(y: Any, labels: str | None) -> Any:
    """The randomised labels, or `None` for public ones."""
    if isinstance(y, labels_lib.RandomizedLabels):
        if labels is not None:
            raise ValueError(
                f"`y` was randomised, so `labels` must be left out, got "
                f"{labels!r}."
            )
        return y
    if labels != "public":
        raise ValueError(
            "The noise of the representations does not cover the labels. "
            "Declare them public with labels='public', or pass y="
            f"tf_dpfp.randomize_labels(y, ...). Got labels={labels!r}."
        )
    return None


def _check_strata(
    classes: np.ndarray,
    strata: list[np.ndarray],
    counts: list[int],
    microbatch_size: int,
) -> None:
    for label, stratum, count in zip(classes, strata, counts, strict=True):
        if not count:
            raise ValueError(
                f"A draw of {microbatch_size} takes none of the {len(stratum)} "
                f"examples of label {label}: there are {len(strata)} labels. "
                "Raise `microbatch_size`, or leave that label out of the data."
            )


def _with_labels(source: sources.Source, y: np.ndarray) -> sources.Source:
    def take(indices: np.ndarray) -> sources.Leaves:
        return (*source.take(indices), y[indices])

    return sources.Source(
        source.size,
        (*source.structure, 0),
        (*source.specs, tf.TensorSpec(y.shape[1:], tf.as_dtype(y.dtype))),
        take,
    )
