"""Batches of given draws: fetched, padded, mapped and weighed."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp.sampling import padding
from tf_dpfp.sampling import source as source_lib
from tf_dpfp.sampling.source import Leaves
from tf_dpfp.sampling.source import Source


def batches(
    source: Source,
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

    def generate() -> Iterator[Leaves]:
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
            batch = source_lib.as_components(map_fn(*batch))
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


def seeds(seed: int | None, shard: int = 0) -> Iterator[Any]:
    """One seed per iteration over the data set; None asks the system."""
    if seed is None:
        return itertools.repeat(None)
    # `zip` rather than a generator: iterators may start in several threads.
    # Trailing zeros are no part of a seed: shard 0 draws as the whole would.
    return zip(
        itertools.repeat(seed), itertools.count(), itertools.repeat(shard)
    )
