"""Poisson sampling: every example joins every batch independently."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy import stats

from tf_dpfp.accounting import PoissonSampling
from tf_dpfp.sampling import info as info_lib
from tf_dpfp.sampling import padding
from tf_dpfp.sampling import sources

# Probability per step that a padded batch cannot hold its draw, by default.
_OVERFLOW = 1e-15
_CAPACITY_MULTIPLE = 8


def poisson_batches(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    expected_batch_size: float | None = None,
    sampling_rate: float | None = None,
    steps_per_epoch: int | None = None,
    padded: str | None = None,
    capacity: int | None = None,
    map_fn: Callable[..., Any] | None = None,
    cache: bool = False,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Draws batches by Poisson sampling, the law the privacy analysis assumes.

    Each example is in each batch with probability `sampling_rate`,
    independently of every other example and of every other batch. Batches
    therefore vary in size, and may be empty. Every iteration over the data set
    draws anew, so each epoch sees other batches; an example may be in none or
    in several batches of one epoch.

    The guarantee is for adding or removing one example. The sampling rate must
    then not depend on whether that example is there, nor may the number that
    sums are divided by: the scale of the noise in the weights shows it.
    Either of `expected_batch_size` and `sampling_rate` alone treats the size of
    the data set as public; if it is not, choose both (and `steps_per_epoch`)
    yourself.
    An example must be in the data once, and an example is what is protected:
    a person with several examples is protected less.

    Args:
        x: where the examples are. One of:
            - an array or tensor, or arrays nested in dicts, tuples and lists,
                with a common first dimension over examples. Floats become
                Keras's `floatx`, as in `fit`. Memory-mapped arrays are read by
                batch;
            - a `tf.data.Dataset` of single examples (not batched, not repeated)
                with a known cardinality. It is read once and kept in memory, so
                random augmentation belongs in `map_fn`;
            - a `keras.utils.PyDataset`. Rows are drawn from within its batches,
                which must all have the size of the first, except the last, and
                must hold the same examples whenever they are read. A draw reads
                every batch it touches; see `cache`;
            - an object with `__len__` and `__getitem__`, which returns one
                example (TFDS data sources, torch and grain style). A method
                `__getitems__` is used when there is one.
        y: targets, nested like `x`. Leave it out if `x` yields `(x, y)` or
            `(x, y, sample_weight)` itself.
        sample_weight: weights, nested like `x` or `y`. Needs `y`.
        expected_batch_size: mean number of examples in a batch. Together with
            `sampling_rate`, nothing but the public number that the sum of a
            step is divided by.
        sampling_rate: probability of each example to be in a batch, in (0, 1].
            If it is given alone, sums are divided by it times the size of the
            data set, which treats that size as public.
        steps_per_epoch: number of batches in an iteration. Defaults to
            `1 / sampling_rate` rounded, at least 1.
        padded: `None` for batches of the size drawn, or `"static"` for batches
            of exactly `capacity` rows, whose shapes are fully static as XLA and
            TPUs like them. Rows beyond the draw are zeros (empty strings) and
            have weight zero, so padded batches are always
            `(x, y, sample_weight)` and need targets. Metrics see the padding
            unless they are `weighted_metrics`.
        capacity: rows of a padded batch. Defaults to the smallest multiple of 8
            that a draw exceeds with probability at most 1e-15. Of a draw that
            does exceed it, the surplus is dropped at random, and the
            probability of that is part of what `sampling_of` reports to the
            accountant.
        map_fn: transforms a batch, called as by `tf.data.Dataset.map`, with
            `x`, `(x, y)` or `(x, y, sample_weight)`. It must keep the number of
            rows and must treat each example by itself (augmentation, casting):
            what mixes examples, such as normalising by batch statistics or
            mixup, breaks the guarantee. When padding, it sees the padding rows,
            whose weights are set to zero afterwards.
        cache: reads a PyDataset or random-access object once and keeps it in
            memory, which makes drawing fast. Others are in memory already.
        seed: only to reproduce a run; iterations still differ from each other.
            Whoever knows the seed knows which examples were drawn. By default
            the randomness comes from the operating system, for each iteration
            anew, whatever global seeds are set.

    Returns:
        A `tf.data.Dataset` of `steps_per_epoch` batches `x`, `(x, y)` or
        `(x, y, sample_weight)`, recognised by `sampling_of`. Lists come out as
        tuples; a tuple `x` without `y` comes out as `(x,)`, as in Keras.
        Transforming the data set loses the recognition; use `map_fn` instead.

    Raises:
        ValueError: if the arguments contradict each other or the data, before
            anything is drawn.
        TypeError: if examples cannot be drawn from `x`.

    Reference:
        - Abadi et al., 2016, "Deep Learning with Differential Privacy".
        - Mironov et al., 2019, "Renyi Differential Privacy of the Sampled
            Gaussian Mechanism".
    """
    _check_options(
        expected_batch_size, sampling_rate, steps_per_epoch, padded, capacity
    )
    check_seed(seed)
    if info_lib.sampling_of(x) is not None:
        raise ValueError(
            "`x` already consists of drawn batches. Pass the examples."
        )
    source = sources.make_source(x, y, sample_weight, cache)
    rate = _rate(source.size, expected_batch_size, sampling_rate)
    steps = int(steps_per_epoch or max(1, round(1 / rate)))

    def shard(
        index: int, count: int
    ) -> tuple[tf.data.Dataset, info_lib.SamplingInfo]:
        largest = -(-source.size // count)
        rows, overflow = None, 0.0
        if padded:
            rows = -(-capacity // count) if capacity else None
            rows = int(rows or default_capacity(largest, rate))
            # Any of the shards may overflow.
            overflow = count * overflow_probability(largest, rate, rows)
        mine = sources.every_nth(source, index, count)
        dataset = _sampled(mine, rate, steps, rows, map_fn, seed, index)
        info = info_lib.SamplingInfo(
            sampling=PoissonSampling(
                rate, overflow_probability=min(1.0, overflow)
            ),
            expected_batch_size=float(
                expected_batch_size or rate * source.size
            ),
            population=source.size,
            steps_per_epoch=steps,
            capacity=rows,
            seeded=seed is not None,
        )
        return dataset, info

    return info_lib.register(
        *shard(0, 1), shard, lambda key: sources.digest(source, key)
    )


def _sampled(
    source: sources.Source,
    rate: float,
    steps: int,
    capacity: int | None,
    map_fn: Callable[..., Any] | None,
    seed: int | None,
    shard: int,
) -> tf.data.Dataset:
    """Poisson batches of a source, `steps` in every iteration."""
    entropy = seeds(seed, shard)

    def draws() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(next(entropy))
        for _ in range(steps):
            yield draw(rng, source.size, rate, capacity)

    dataset = batches(source, draws, capacity, map_fn)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    return dataset.prefetch(2)


def draw(
    rng: np.random.Generator,
    population: int,
    rate: float,
    capacity: int | None = None,
) -> np.ndarray:
    """Draws the indices of one Poisson batch, in random order.

    A binomial number of examples chosen without replacement is the same law
    as a coin per example, without touching every example.

    Args:
        rng: where the randomness comes from.
        population: number of examples.
        rate: probability of each example.
        capacity: most indices to return; a surplus is dropped at random.

    Returns:
        Distinct indices, an integer array of varying length.
    """
    count = rng.binomial(population, rate)
    # The choice is shuffled, so what is cut off is uniform among the drawn.
    return rng.choice(population, count, replace=False)[:capacity]


def overflow_probability(population: int, rate: float, capacity: int) -> float:
    """Bounds the probability that a draw has more than `capacity` examples.

    The bound is for one example more than `population`: the accountant needs
    it to hold on the neighbouring data set as well.

    Args:
        population: number of examples.
        rate: probability of each example.
        capacity: number of rows of a padded batch.

    Returns:
        The tail probability of the binomial distribution, per batch.
    """
    return float(stats.binom.sf(capacity, population + 1, rate))


def default_capacity(population: int, rate: float) -> int:
    """The smallest multiple of 8 that overflows at most once in 1e15 draws."""
    low, high = 0, -(-(population + 1) // _CAPACITY_MULTIPLE)
    while high - low > 1:
        middle = (low + high) // 2
        rows = middle * _CAPACITY_MULTIPLE
        if overflow_probability(population, rate, rows) <= _OVERFLOW:
            high = middle
        else:
            low = middle
    return high * _CAPACITY_MULTIPLE


def seeds(seed: int | None, shard: int = 0) -> Iterator[Any]:
    """One seed per iteration over the data set; None asks the system."""
    if seed is None:
        return itertools.repeat(None)
    # `zip` rather than a generator: iterators may start in several threads.
    # Trailing zeros are no part of a seed: shard 0 draws as the whole would.
    return zip(
        itertools.repeat(seed), itertools.count(), itertools.repeat(shard)
    )


def batches(
    source: sources.Source,
    draws: Callable[[], Iterator[np.ndarray]],
    capacity: int | None,
    map_fn: Callable[..., Any] | None,
    fixed: int | None = None,
) -> tf.data.Dataset:
    """The batches of `draws`, in the structure of the source.

    Args:
        source: where the examples are.
        draws: the indices of every batch of an iteration.
        capacity: rows to which every batch is padded, if it is.
        map_fn: transforms a batch.
        fixed: rows of every batch, if all draws have as many.

    Returns:
        The data set.
    """

    def generate() -> Iterator[sources.Leaves]:
        return (source.take(indices) for indices in draws())

    def assemble(*leaves: tf.Tensor) -> Any:
        rows = tf.shape(leaves[0])[0]
        if fixed is not None:
            leaves = [_with_rows(leaf, fixed) for leaf in leaves]
            rows = fixed
        if capacity is not None:
            # At most `capacity` rows were drawn, so the next multiple is it.
            leaves, mask = padding.pad_to_multiple(leaves, capacity)
            leaves = [_with_rows(leaf, capacity) for leaf in leaves]
            rows = capacity
        batch = keras.tree.pack_sequence_as(source.structure, leaves)
        if map_fn is not None:
            batch = sources.as_components(map_fn(*batch))
            batch = keras.tree.map_structure(
                lambda leaf: _with_rows(leaf, rows),
                keras.tree.lists_to_tuples(batch),
            )
        if capacity is not None:
            batch = _weigh(batch, tf.ensure_shape(mask, [capacity]))
        return _as_element(batch)

    signature = tuple(
        tf.TensorSpec([None, *spec.shape], spec.dtype) for spec in source.specs
    )
    dataset = tf.data.Dataset.from_generator(
        generate, output_signature=signature
    )
    parallel = None if map_fn is None else tf.data.AUTOTUNE
    return dataset.map(assemble, num_parallel_calls=parallel)


def _with_rows(leaf: Any, rows: int | tf.Tensor) -> tf.Tensor:
    """Checks that `map_fn` kept one row per example."""
    if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
        raise ValueError(
            f"`map_fn` returned a {type(leaf).__name__}. Make it dense."
        )
    leaf = tf.convert_to_tensor(leaf)
    fixed = rows if isinstance(rows, int) else None
    if fixed is not None and leaf.shape.rank is None:
        raise ValueError(
            "`map_fn` returned a tensor of unknown rank, which cannot be "
            "padded statically. Declare its shape with `tf.ensure_shape`."
        )
    kept = leaf.shape.rank is None or leaf.shape.rank > 0
    if not kept or not leaf.shape[:1].is_compatible_with([fixed]):
        raise ValueError(
            "`map_fn` must keep one row per example, but returned shape "
            f"{leaf.shape}" + (f" for {rows} rows." if fixed else ".")
        )
    if fixed is not None:
        return tf.ensure_shape(leaf, [fixed, *leaf.shape[1:]])
    same = tf.debugging.assert_equal(
        tf.shape(leaf)[0],
        rows,
        message="`map_fn` must keep one row per example.",
    )
    with tf.control_dependencies([same]):
        return tf.identity(leaf)


def _weigh(batch: tuple[Any, ...], mask: tf.Tensor) -> tuple[Any, ...]:
    """Gives padding rows the weight zero, whatever weight they had."""
    if len(batch) == 1:
        raise ValueError(
            "padded='static' marks padding rows by their sample weight, which "
            "needs targets. Pass `y`, or use padded=None."
        )
    if len(batch) == 2:
        return (*batch, tf.cast(mask, keras.config.floatx()))

    def weigh(weight: tf.Tensor) -> tf.Tensor:
        ones = [1] * (weight.shape.rank - 1)
        return tf.where(
            tf.reshape(mask, [-1, *ones]), weight, tf.zeros_like(weight)
        )

    return (*batch[:2], keras.tree.map_structure(weigh, batch[2]))


def _as_element(batch: tuple[Any, ...]) -> Any:
    """Packs components as Keras does, so that a tuple `x` stays one input."""
    if len(batch) == 1 and not isinstance(batch[0], tuple):
        return batch[0]
    return batch


def _rate(
    population: int,
    expected_batch_size: float | None,
    sampling_rate: float | None,
) -> float:
    if sampling_rate is not None:
        return float(sampling_rate)
    if expected_batch_size > population:
        raise ValueError(
            f"expected_batch_size={expected_batch_size} is larger than the "
            f"data set of {population} examples. Choose a smaller batch."
        )
    return float(expected_batch_size) / population


def _check_options(
    expected_batch_size: float | None,
    sampling_rate: float | None,
    steps_per_epoch: int | None,
    padded: str | None,
    capacity: int | None,
) -> None:
    if expected_batch_size is None and sampling_rate is None:
        raise ValueError(
            "Give `expected_batch_size`, `sampling_rate` or both, got neither."
        )
    if expected_batch_size is not None:
        _check_positive("expected_batch_size", expected_batch_size)
    if sampling_rate is not None:
        _check_positive("sampling_rate", sampling_rate)
        if sampling_rate > 1:
            raise ValueError(
                "`sampling_rate` is a probability and cannot exceed 1, got "
                f"{sampling_rate}. For a batch size, use `expected_batch_size`."
            )
    check_count("steps_per_epoch", steps_per_epoch)
    check_count("capacity", capacity)
    if padded not in (None, "static"):
        raise ValueError(f"`padded` must be None or 'static', got {padded!r}.")
    if capacity is not None and padded is None:
        raise ValueError("`capacity` is for padded='static', got padded=None.")


def _check_positive(name: str, value: Any) -> None:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value <= 0:
        raise ValueError(f"`{name}` must be a number > 0, got {value!r}.")


def check_count(name: str, value: Any) -> None:
    """Raises `ValueError` unless a value is a positive integer or `None`."""
    if value is None:
        return
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}.")


def check_seed(seed: Any) -> None:
    """Raises `ValueError` unless a seed is an integer >= 0 or `None`."""
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if seed is not None and (not whole or seed < 0):
        raise ValueError(
            f"`seed` must be None or an integer >= 0, got {seed!r}."
        )
