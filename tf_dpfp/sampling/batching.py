"""Batches of given draws: fetched, padded, mapped and weighed."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp.keras_private import autograph
from tf_dpfp.sampling import padding
from tf_dpfp.sampling import parts
from tf_dpfp.sampling import persons
from tf_dpfp.sampling import registry
from tf_dpfp.sampling import source as source_lib
from tf_dpfp.sampling import views as views_lib
from tf_dpfp.sampling.source import Leaves
from tf_dpfp.sampling.source import Source

# Tells the seed of views from that of the draws.
_OF_VIEWS = 1
# Tell the seeds of a training that goes on from those of its beginning, and
# those of samplers that draw after as many steps from those of the first one.
_AFTER_STEPS, _AFTER_OTHERS = 2, 4


def batches(
    source: Source,
    draws: Callable[[], Iterator[Any]],
    capacity: int | None,
    map_fn: Callable[..., Any] | None,
    fixed: int | None = None,
    places: int | None = None,
    from_parts: bool = False,
    views: views_lib.Views | None = None,
) -> tf.data.Dataset:
    """Fetches the batches of given draws, in the structure of the source.

    Args:
        source: The examples.
        draws: Function that starts an iteration over the indices of each
            batch.
        capacity: Size that every batch is padded to; `None` for no padding.
        map_fn: Function that transforms a batch; `None` for no change.
        fixed: Size of every batch, if all draws have the same.
        places: Number of places for examples of a person; draws then have a
            row of so many indices for each, and batches are `PersonBatch`es.
            `None` if examples are drawn.
        from_parts: True if draws are pairs: the number of a part, and what is
            drawn from it; batches are then in `PartBatch`es.
        views: Views of each example; draws are then pairs: indices, and a
            secret seed for each. `None` for examples as they are.

    Returns:
        A `tf.data.Dataset`.
    """

    def generate() -> Iterator[Leaves]:
        kind = (places is not None, from_parts, views is not None)
        return (_fetched(source, drawn, *kind) for drawn in draws())

    capacity = capacity and capacity * (places or 1)
    if map_fn is not None:
        map_fn = autograph.of_user(map_fn)

    @tf.autograph.experimental.do_not_convert
    def assemble(*leaves: tf.Tensor) -> Any:
        tensors, size = list(leaves), tf.shape(leaves[0])[0]
        part = tensors.pop() if from_parts else None
        if fixed is not None:
            size = fixed
            tensors = [_of_size(leaf, size) for leaf in tensors]
        if capacity is not None:
            # At most `capacity` were drawn, so the next multiple is it.
            tensors, is_example = padding.pad_to_multiple(tensors, capacity)
            size = capacity
            tensors = [_of_size(leaf, size) for leaf in tensors]
        if places is not None:
            # Places of padding are absent, too.
            *tensors, is_example = tensors
        seeds = None if views is None else tensors.pop()
        batch = keras.tree.pack_sequence_as(source.structure, tensors)
        if map_fn is not None:
            batch = source_lib.as_components(map_fn(*batch))
            batch = keras.tree.map_structure(
                lambda leaf: _of_size(leaf, size),
                keras.tree.lists_to_tuples(batch),
            )
        if capacity is not None:
            is_example = tf.ensure_shape(is_example, [capacity])
        if capacity is not None or places is not None:
            batch = weigh_padding(batch, is_example)
        if places is not None:
            batch = persons.PersonBatch(*persons.apart(batch, places))
        elif views is not None:
            batch = views_lib.of_batch(batch, views, seeds)
        element = _as_element(batch)
        return element if part is None else parts.PartBatch(element, part)

    dataset = tf.data.Dataset.from_generator(
        generate,
        output_signature=_signature(
            source, places is not None, from_parts, views is not None
        ),
    )
    parallel = None if map_fn is None and views is None else tf.data.AUTOTUNE
    return dataset.map(assemble, num_parallel_calls=parallel)


def _fetched(
    source: Source, drawn: Any, masked: bool, from_parts: bool, seeded: bool
) -> Leaves:
    """Fetches a draw: leaves, a mask, the number of a part, seeds of views."""
    if from_parts:
        part, indices = drawn
        leaves = _fetched(source, indices, masked, False, seeded)
        return (*leaves, np.asarray(part, np.int64))
    if seeded:
        indices, seeds_of_views = drawn
        return (*source.take(indices), seeds_of_views)
    if masked:
        return _with_absent(source, drawn.reshape(-1))
    return source.take(drawn)


def _signature(
    source: Source, masked: bool, from_parts: bool, seeded: bool
) -> tuple[tf.TensorSpec, ...]:
    """Specifies what `_fetched` returns."""
    mask = (tf.TensorSpec([], tf.bool),) if masked else ()
    part = (tf.TensorSpec([], tf.int64),) if from_parts else ()
    leaves = (
        tf.TensorSpec([None, *spec.shape], spec.dtype)
        for spec in (*source.specs, *mask)
    )
    of_views = (tf.TensorSpec([None, 2], tf.int64),) if seeded else ()
    return (*leaves, *of_views, *part)


def _with_absent(source: Source, indices: np.ndarray) -> Leaves:
    """Fetches examples, zeros (empty strings) where none is meant.

    Args:
        source: The examples.
        indices: Their indices, or `persons.ABSENT`.

    Returns:
        The leaves, and a mask of what is an example.
    """
    is_example = indices != persons.ABSENT
    found = source.take(indices[is_example])
    leaves = []
    for leaf in found:
        empty = b"" if leaf.dtype == object else 0
        whole = np.full((len(indices), *leaf.shape[1:]), empty, leaf.dtype)
        whole[is_example] = leaf
        leaves.append(whole)
    return (*leaves, is_example)


def _of_size(leaf: Any, size: int | tf.Tensor) -> tf.Tensor:
    """Checks that `map_fn` kept the batch size."""
    if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
        raise ValueError(
            "`map_fn` must return dense tensors. "
            f"Received: a {type(leaf).__name__} of shape {leaf.shape}"
        )
    leaf = tf.convert_to_tensor(leaf)
    fixed = size if isinstance(size, int) else None
    if fixed is not None and leaf.shape.rank is None:
        raise ValueError(
            "`map_fn` returned a tensor of unknown rank, which cannot be "
            "padded statically. Declare its shape with `tf.ensure_shape`. "
            f"Received: {leaf}"
        )
    kept = leaf.shape.rank is None or leaf.shape.rank > 0
    if not kept or not leaf.shape[:1].is_compatible_with([fixed]):
        raise ValueError(
            "`map_fn` must keep one entry per example. Received: shape "
            f"{leaf.shape}" + (f" for {fixed} examples" if fixed else "")
        )
    if fixed is not None:
        return tf.ensure_shape(leaf, [fixed, *leaf.shape[1:]])
    same = tf.debugging.assert_equal(
        tf.shape(leaf)[0],
        size,
        message="`map_fn` must keep one entry per example.",
    )
    with tf.control_dependencies([same]):
        return tf.identity(leaf)


def weigh_padding(
    batch: tuple[Any, ...], is_example: tf.Tensor
) -> tuple[Any, ...]:
    """Gives padding the weight zero, whatever weight it had.

    Args:
        batch: `(x, y)` or `(x, y, sample_weight)`.
        is_example: Boolean, `(batch,)`: false for padding.

    Returns:
        `(x, y, sample_weight)`.

    Raises:
        ValueError: If the batch is `x` alone.
    """
    if len(batch) == 1:
        raise ValueError(
            "padded='static' and `users` mark padding by its sample weight, "
            "which needs targets. Pass `y`, or leave them out. Received: "
            "batches of x alone"
        )
    if len(batch) == 2:
        return (*batch, tf.cast(is_example, keras.config.floatx()))

    def weigh(weight: tf.Tensor) -> tf.Tensor:
        ones = [1] * (weight.shape.rank - 1)
        return tf.where(
            tf.reshape(is_example, [-1, *ones]), weight, tf.zeros_like(weight)
        )

    return (*batch[:2], keras.tree.map_structure(weigh, batch[2]))


def _as_element(batch: tuple[Any, ...]) -> Any:
    """Packs components as Keras does, so that a tuple `x` stays one input."""
    if isinstance(batch, (persons.PersonBatch, views_lib.ViewBatch)):
        return batch
    if len(batch) == 1 and not isinstance(batch[0], tuple):
        return batch[0]
    return batch


def generators(seed: Any) -> tuple[np.random.Generator, np.random.Generator]:
    """Makes the generators of an iteration: of draws, and of their views.

    What is drawn is the same with views and without.

    Args:
        seed: A seed of `seeds`.
    """
    of_views = None if seed is None else (*seed, _OF_VIEWS)
    return np.random.default_rng(seed), np.random.default_rng(of_views)


def secret_seeds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws a seed for each example of a batch.

    Args:
        rng: Generator that the randomness comes from.
        count: Number of examples.

    Returns:
        int64, `(count, 2)`.
    """
    return rng.integers(0, 2**62, (count, 2), np.int64)


class Earlier:
    """Number of steps that a training took before the draws that follow.

    A seed would draw the same batches in every process that resumes a training,
    and from every data set that it is given to. Steps on the same draws are not
    those of independent ones, which are counted.
    """

    def __init__(self) -> None:
        self._after: registry.DrawAfter | None = None

    def ask(self, after: registry.DrawAfter) -> None:
        """Has the iterations that follow ask for the number.

        They ask anew: a callback may restore a training as it begins.

        Args:
            after: See `registry.draw_after`.
        """
        self._after = after

    def words(self) -> tuple[int, ...]:
        """Returns what the seed of an iteration that begins has besides."""
        if self._after is None:
            return ()
        steps, *others = self._after(self)
        if any(others):
            return _AFTER_OTHERS, steps, len(others), *others
        return (_AFTER_STEPS, steps) if steps else ()


def seeds(
    seed: int | None, shard: int = 0, earlier: Earlier | None = None
) -> Iterator[Any]:
    """Returns one seed per iteration over a data set.

    Args:
        seed: Integer, or `None` for seeds from the operating system.
        shard: Index of the worker that draws.
        earlier: Steps before the iterations; `None`: there are none.

    Returns:
        An infinite iterator over seeds of `np.random.default_rng`.
    """
    if seed is None:
        return itertools.repeat(None)

    def seed_of(number: int) -> tuple[int, ...]:
        after = () if earlier is None else earlier.words()
        # Trailing zeros are no part of a seed: shard 0 draws as the whole.
        return (seed, number, shard, *after)

    # `map` rather than a generator: iterators may start in several threads.
    return map(seed_of, itertools.count())
