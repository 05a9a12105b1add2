"""Stratified draws: a fixed number of each label, without replacement."""

import heapq
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfp import arguments
from tf_dpfp.accounting import WithoutReplacement
from tf_dpfp.sampling import batching
from tf_dpfp.sampling import labels as labels_lib
from tf_dpfp.sampling import registry
from tf_dpfp.sampling import source as source_lib
from tf_dpfp.sampling import sources
from tf_dpfp.sampling.source import Leaves
from tf_dpfp.sampling.source import Source


def stratified_batches(
    x: Any,
    y: Any,
    *,
    draw_size: int,
    draws: int = 1,
    labels: str | None = None,
    steps_per_epoch: int | None = None,
    map_fn: Callable[..., Any] | None = None,
    cache: bool = False,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Draws batches for `DPRepresentationClip`, stratified by label.

    A batch is `draws` independent draws, laid end to end. A draw takes a fixed
    number of the examples of every label, without replacement. All subsets are
    equally likely, and their order is random. A draw that is small beside the
    data costs little: at one batch size, more draws need less noise, though by
    less than their number.

    Each label has a fixed share of every draw, and the shares are as even as
    possible: the greatest rate of any label, from which epsilon is computed,
    is the least that `draw_size` allows. The guarantee is for replacing one
    example by another of the same label; the number of examples of each label
    is public.

    Args:
        x: Examples, as in `poisson_batches`, without labels.
        y: One label for each example: integers of shape `(n,)` or `(n, 1)`, or
            the result of `randomize_labels`.
        draw_size: Number of examples in a draw.
        draws: Number of draws in a batch.
        labels: `"public"` declares that anyone may know the labels of all
            examples. Required for labels that `randomize_labels` did not
            randomise, and refused for those that it did.
        steps_per_epoch: Number of batches in an iteration. Defaults to the
            number of examples divided by the batch size, rounded, at least 1.
        map_fn: Function that transforms a batch `(x, y)`; see
            `poisson_batches`. The labels it returns must depend on the labels
            alone.
        cache: Boolean, see `poisson_batches`.
        seed: Integer that makes the draws reproducible; see
            `poisson_batches`.

    Returns:
        A `tf.data.Dataset` of batches `(x, y)` of `draws * draw_size`
        examples, with static shapes. A data set derived from it by `map`,
        `take` and the like claims nothing; use `map_fn`.

    Raises:
        ValueError: If an argument is outside its range or contradicts another
            one or the data, or a draw is too small to hold every label.
        TypeError: If examples cannot be drawn from `x`.

    Reference:
        - Balle et al., 2018, "Privacy Amplification by Subsampling: Tight
            Analyses via Couplings and Divergences".
        - Du and Mi, 2021, "DP-FP: Differentially Private Forward Propagation
            for Large Models".
    """
    draw_size = arguments.positive_integer("draw_size", draw_size)
    draws = arguments.positive_integer("draws", draws)
    if steps_per_epoch is not None:
        steps_per_epoch = arguments.positive_integer(
            "steps_per_epoch", steps_per_epoch
        )
    seed = arguments.seed(seed)
    registry.refuse_drawn(x)
    randomized = _randomized(y, labels)
    y = np.asarray(y if randomized is None else randomized.values)
    source = _labelled_source(x, y, cache)
    strata, counts = _strata(labels_lib.class_labels(y), draw_size)
    batch_size = draws * draw_size
    steps = steps_per_epoch or max(1, round(source.size / batch_size))
    earlier = batching.Earlier()
    entropy = batching.seeds(seed, earlier=earlier)

    def draw_batches() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(next(entropy))
        for _ in range(steps):
            yield np.concatenate(
                [draw(rng, strata, counts) for _ in range(draws)]
            )

    dataset = batching.batches(source, draw_batches, None, map_fn, batch_size)
    if len(source_lib.as_components(dataset.element_spec)) != 2:
        raise ValueError(
            "`map_fn` must return (x, y): weights that differ within a label "
            "would tell whose representation is whose. Use `class_weight` in "
            f"`fit`. Received: elements of {dataset.element_spec}"
        )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    return registry.register(
        dataset.prefetch(2),
        registry.SamplingInfo(
            sampling=_most_often_drawn(strata, counts),
            expected_batch_size=float(batch_size),
            population=source.size,
            steps_per_epoch=steps,
            capacity=batch_size,
            seeded=seed is not None,
            draws=draws,
            labels=None if randomized is None else randomized.entry,
            ask_earlier=earlier.ask,
        ),
    )


def draw(
    rng: np.random.Generator, strata: list[np.ndarray], counts: list[int]
) -> np.ndarray:
    """Draws the indices of one draw.

    Args:
        rng: Generator that the randomness comes from.
        strata: Indices of the examples of each label.
        counts: Number of examples to draw of each label.

    Returns:
        Distinct indices, label by label.
    """
    # `choice` shuffles: the order within a label is random. With a fixed one
    # (by index, say) a place would tell whose representation it may hold, and
    # a draw with one example in place of another would differ in more places.
    return np.concatenate(
        [
            rng.choice(stratum, count, replace=False, shuffle=True)
            for stratum, count in zip(strata, counts, strict=True)
        ]
    )


def shares(sizes: list[int], total: int) -> list[int]:
    """Shares the places of a draw among labels, as evenly as possible.

    One by one, each place goes to the label whose rate it leaves lowest, so
    that the greatest rate is the least possible.

    Args:
        sizes: Number of examples of each label.
        total: Number of places, at most the sum of `sizes`.

    Returns:
        The number of places of each label.

    Raises:
        ValueError: If there are more places than examples.
    """
    if total > sum(sizes):
        raise ValueError(
            f"`draw_size` must be at most the number of examples, {sum(sizes)}"
            ": a draw is without replacement. Choose a smaller one. Received: "
            f"draw_size={total}"
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


def _randomized(
    y: Any, labels: str | None
) -> labels_lib.RandomizedLabels | None:
    """Returns the randomised labels, or `None` for public ones."""
    if isinstance(y, labels_lib.RandomizedLabels):
        if labels is not None:
            raise ValueError(
                "`labels` must be left out: `y` was randomised. "
                f"Received: labels={labels!r}"
            )
        return y
    if not isinstance(labels, str) or labels != "public":
        raise ValueError(
            "The noise of the representations does not cover the labels. "
            "Declare them public with labels='public', or pass "
            "y=tf_dpfp.representations.randomize_labels(y, ...). Received: "
            f"labels={labels!r}"
        )
    return None


def _labelled_source(x: Any, y: np.ndarray, cache: bool) -> Source:
    """Wraps the inputs `x` and their labels `y`."""
    classes = labels_lib.class_labels(y)
    source = sources.make_source(x, None, None, cache)
    if len(source.structure) != 1:
        raise ValueError(
            "`x` must hold the inputs only: draws are made by label, so pass "
            f"the labels as `y`. Received: x with {len(source.structure)} "
            "components, as in (x, y)"
        )
    if source.size != len(classes):
        raise ValueError(
            "`x` and `y` must have the same number of examples. Received: "
            f"`x` has {source.size} examples and `y` {len(classes)}"
        )

    def take(indices: np.ndarray) -> Leaves:
        return (*source.take(indices), y[indices])

    return Source(
        source.size,
        (*source.structure, 0),
        (*source.specs, tf.TensorSpec(y.shape[1:], tf.as_dtype(y.dtype))),
        take,
    )


def _strata(
    classes: np.ndarray, draw_size: int
) -> tuple[list[np.ndarray], list[int]]:
    """Returns the indices of each label's examples, and its share."""
    found = np.unique(classes)
    strata = [np.flatnonzero(classes == label) for label in found]
    counts = shares([len(stratum) for stratum in strata], draw_size)
    for label, stratum, count in zip(found, strata, counts, strict=True):
        if not count:
            raise ValueError(
                f"A draw of {draw_size} takes none of the {len(stratum)} "
                f"examples of label {label}: there are {len(strata)} labels. "
                "Raise `draw_size`, or leave that label out of the data. "
                f"Received: draw_size={draw_size}"
            )
    return strata, counts


def _most_often_drawn(
    strata: list[np.ndarray], counts: list[int]
) -> WithoutReplacement:
    """Returns the sampling of the label that is drawn at the greatest rate."""
    rates = [count / len(s) for count, s in zip(counts, strata, strict=True)]
    worst = int(np.argmax(rates))
    return WithoutReplacement(len(strata[worst]), counts[worst])
